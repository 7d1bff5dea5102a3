"""Which units of a device form products, decided once on the host: plain multiply-adds, or tensor cores.

Tensor cores multiply float32 operands split in two, three products of TF32 for one, at float32 accuracy, and float64
ones as they are (``csrc/cuda/tensor_product.hpp``). Plain TF32 is never used. "half" is tensor cores on layers of
bfloat16 or float16 as they are (``csrc/cuda/half_product.hpp``): such products are exact in float32, and one takes the
place of three. Nothing is subtracted before, because the difference would have more bits: the layers must lie near zero
(:func:`reason_against_halves`).

Multiply-adds of one multiprocessor and clock, by the data sheets: 8.0 and 9.0 form 64 and 128 of float32 plainly, 512
and 1024 of TF32, a third of that here (mma.sync reaches about five eighths of it on 9.0), 32 and 64 of float64 plainly,
twice that on tensor cores. Others (8.6, 8.9, 12.0) form 128 to 256 of TF32 beside 128 of float32: a third of it loses,
and their float64, of which they form two, gains nothing. Of 16-bit numbers all form twice as many as of TF32, and
nothing is split, which pays; 10.0 has not been counted. No time has been measured:
``ForcedRoute(cores=)`` and ``column_products(cores=)`` are there for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..kernels import Linear
from .base import Block, Cores, Input, Precision, UnitBlocks
from .cuda_device import capability_of

FLOAT64 = {"plain": 2.0, "tensor": 1.7}  # a multiply-add of it in float32 ones, where the same cores form both
AMPERE = {"plain": 2.0, "tensor": 2.7}  # on 8.0
FEW_FLOAT64 = ((8, 6), (8, 7), (8, 9), (10, 3), (12, 0), (12, 1))  # capabilities that form two a clock, plainly
HALF_RATES = {(8, 0): 16.0, (9, 0): 10.0}  # multiply-adds of 16-bit numbers in the time of a plain float32 one, and
HALF_RATE = 2.0  # elsewhere; float64 on tensor cores of those two takes that time too
FIRST = (8, 0)  # the capability from which on tensor cores take TF32, float64 and bfloat16
PAYS = ((8, 0), (9, 0))  # those where they are taken unasked
HALF_PAYS = (*PAYS, (8, 6), (8, 7), (8, 9), (12, 0), (12, 1))  # those where 16-bit layers are

HALVES = ("float16", "bfloat16")
FAR = 1.0  # |mean|² in mean |x - mean|², at most: inner products of rows are then at most twice their centred size
DEEP = 32  # entries from 2^-32 to 2^32: float32 holds the inner products of their rows, with the digits of centred ones


def cores_for(inputs: Sequence[Input], cores: Cores | None = None) -> Cores:
    """The units that form products on the device of ``inputs``; ``cores`` forces them.

    Raises:
        NotImplementedError: tensor cores that the device does not have; products of halves, which pairs of layers alone
            have (:func:`cores_for_pairs`).
    """
    capability = capability_of(inputs)
    if cores == "half":
        raise NotImplementedError("only pairs of layers are multiplied as the 16-bit numbers that they are")
    if cores == "tensor":
        _check_tensor_cores(capability)
    return cores or ("tensor" if capability in PAYS else "plain")


def cores_for_pairs(
    rows: Sequence[Block], columns: Sequence[Block] | None, products: Precision, cores: Cores | None = None
) -> tuple[Cores, str]:
    """The units that form pairs of layers in sample space, and why 16-bit layers are not multiplied as they are.

    Raises:
        NotImplementedError: ``cores`` forces what the device or the layers do not allow.
    """
    blocks = [*rows, *(columns or ())]
    capability = capability_of(blocks)
    if cores not in (None, "half") or (cores is None and capability not in HALF_PAYS):
        return cores_for(blocks, cores), ""
    if isinstance(rows, UnitBlocks) or isinstance(columns, UnitBlocks):
        against = "the units of a layer are multiplied in float32"
    elif products == "float64":
        against = "float64 products are asked for"
    else:
        against = reason_against_halves(blocks)
    if cores is None and against:
        mute = products == "float64" or not any(block.matrix.dtype in HALVES for block in blocks)
        return cores_for(blocks), "" if mute else against
    _check_tensor_cores(capability)
    if against:
        raise NotImplementedError(f"the layers are not multiplied as the 16-bit numbers that they are: {against}")
    return "half", ""


def reason_against_halves(blocks: Sequence[Block]) -> str:
    """Why inner products of the blocks' rows are not formed of 16-bit numbers as they are; empty where they can be."""
    types = sorted({block.matrix.dtype for block in blocks})
    if len(types) > 1 or types[0] not in HALVES:
        return f"all must be of float16, or all of bfloat16, not of {' and '.join(types)}"
    for block in blocks:
        name = block.matrix.name
        if not isinstance(block.kernel, Linear):
            return f"the kernel must be linear, not {block.kernel!r}"
        if abs(block.exponent) > DEEP:
            return f"float32 may not hold the squares of {name}, which is of the size of 2^{block.exponent}"
        squared = float(block.shift @ block.shift)
        if not squared <= FAR * block.spread:
            far = math.sqrt(squared / block.spread)
            return f"the mean of {name} lies {far:.3g} times as far from zero as its samples from the mean"
    return ""


def _check_tensor_cores(capability: tuple[int, int]) -> None:
    if capability < FIRST:
        major, minor = capability
        raise NotImplementedError(f"products on tensor cores need a device of capability 8.0, not {major}.{minor}")


def float64_cost(inputs: Sequence[Input], cores: Cores) -> float:
    """What a float64 multiply-add costs on the device of ``inputs``, in those of the layers that ``cores`` form."""
    capability = capability_of(inputs)
    if cores == "half":
        return panel_cost(inputs, cores) * (64.0 if capability in FEW_FLOAT64 else 1.0)
    return 64.0 if capability in FEW_FLOAT64 else (AMPERE if capability == (8, 0) else FLOAT64)[cores]


def panel_cost(inputs: Sequence[Input], cores: Cores) -> float:
    """What a multiply-add of panels, plain float32, costs in those of the layers that ``cores`` form, where much."""
    return HALF_RATES.get(capability_of(inputs), HALF_RATE) if cores == "half" else 1.0


def products_in_words(products: Precision, cores: Cores, of: str = "") -> str:
    """What the products are, for a plan."""
    if cores == "plain":
        return f"{products} products{of}"
    return f"{products} products{of} on tensor cores" + (", each three of TF32" if products == "float32" else "")


def halves_in_words(blocks: Sequence[Block]) -> str:
    """The same of layers of 16-bit numbers that are multiplied as they are, and why they are."""
    kind = blocks[0].matrix.dtype
    return f"{kind} products as they are on tensor cores, centred afterwards: {kind} input near zero"
