"""Which units of a device form products, decided once on the host: plain multiply-adds, or tensor cores.

Tensor cores multiply float32 operands split in two, three products of TF32 for one, at float32 accuracy, and float64
ones as they are (``csrc/cuda/tensor_product.hpp``). Plain TF32 is never used.

Multiply-adds of one multiprocessor and clock, by the data sheets: 8.0 and 9.0 form 64 and 128 of float32 plainly, 512
and 1024 of TF32, a third of that here (mma.sync reaches about five eighths of it on 9.0), 32 and 64 of float64 plainly,
twice that on tensor cores. Others (8.6, 8.9, 12.0) form 128 to 256 of TF32 beside 128 of float32: a third of it loses,
and their float64, of which they form two, gains nothing. 10.0 has not been counted. No time has been measured:
``ForcedRoute(cores=)`` and ``column_products(cores=)`` are there for that.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Cores, Input, Precision
from .cuda_device import capability_of

FLOAT64 = {"plain": 2.0, "tensor": 1.7}  # a multiply-add of it in float32 ones, where the same cores form both
AMPERE = {"plain": 2.0, "tensor": 2.7}  # on 8.0
FEW_FLOAT64 = ((8, 6), (8, 7), (8, 9), (10, 3), (12, 0), (12, 1))  # capabilities that form two a clock, plainly
FIRST = (8, 0)  # the capability from which on tensor cores take TF32 and float64
PAYS = ((8, 0), (9, 0))  # those where they are taken unasked


def cores_for(inputs: Sequence[Input], cores: Cores | None = None) -> Cores:
    """The units that form products on the device of ``inputs``; ``cores`` forces them.

    Raises:
        NotImplementedError: tensor cores that the device does not have.
    """
    capability = capability_of(inputs)
    if cores == "tensor" and capability < FIRST:
        major, minor = capability
        raise NotImplementedError(f"products on tensor cores need a device of capability 8.0, not {major}.{minor}")
    return cores or ("tensor" if capability in PAYS else "plain")


def float64_cost(inputs: Sequence[Input], cores: Cores) -> float:
    """What a float64 multiply-add costs on the device of ``inputs``, in float32 ones, where ``cores`` form both."""
    capability = capability_of(inputs)
    return 64.0 if capability in FEW_FLOAT64 else (AMPERE if capability == (8, 0) else FLOAT64)[cores]


def products_in_words(products: Precision, cores: Cores, of: str = "") -> str:
    """What the products are, for a plan."""
    if cores == "plain":
        return f"{products} products{of}"
    return f"{products} products{of} on tensor cores" + (", each three of TF32" if products == "float32" else "")
