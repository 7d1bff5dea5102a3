"""What the tests of strips share: calls of the emulated ops, comparisons of bits, matrices within a bound of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cuda_cases import bound
from emulated_strips import Emulated
from least_memory import least_memory

import simkit as sk
from simkit.backends import cuda_device
from simkit.backends.base import Block


def strips(resident: int = 0, passing: int = 0, room: int = 2**20, threads: int = 2) -> dict[str, int]:
    return {"resident": resident, "passing": passing, "bytes": room, "threads": threads}


def same_bits(first: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(first, other, strict=True))


def sums(
    emulated: Emulated,
    blocks: Sequence[Block],
    left: int,
    *,
    sample: bool,
    wide: bool,
    debiased: bool = True,
    tensor: bool = False,
    **sizes: int,
) -> Any:
    return emulated.pair_sums(
        rows=[bound(block) for block in blocks[:left]],
        columns=[bound(block) for block in blocks[left:]],
        debiased=debiased,
        sample_space=sample,
        double_products=wide,
        tensor=tensor,
        **strips(**sizes),
    )


def within(emulated: Emulated, layers: dict[str, Any], memory: int | None, **options: Any) -> Any:
    """The matrix within so much memory, which no op exceeded."""
    emulated.ran.clear()
    m = sk.similarity_matrix(layers, memory=memory, backend="native_cuda", **options)
    assert m.backend == "native_cuda"
    assert not cuda_device._held
    assert all(terms.machines == 1 for terms in emulated.ran)
    if memory is not None:
        assert m.plan.steps[0].bytes <= memory
        assert all(terms.most <= memory for terms in emulated.ran)
    return m


def smallest(emulated: Emulated, layers: dict[str, Any], **options: Any) -> int:
    return least_memory(lambda memory: within(emulated, layers, memory, **options))
