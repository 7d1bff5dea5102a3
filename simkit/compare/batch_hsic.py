"""One batch of a minibatch stream: the debiased HSIC of its layers, which the stream averages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays import Matrix
from ..backends.base import Block
from ..kernels import Linear
from ..metrics.cka import ForcedRoute, sums_of
from ..metrics.measure import Degenerate
from ..metrics.prepare import prepare
from ..streaming import minibatch


def batch_hsic(
    layers: Sequence[Matrix], split: int, *, alone: bool, backend: str | None, threads: int
) -> minibatch.BatchHsic:
    """Debiased HSIC of one batch, each layer in its block's units; constant layers give zeros.

    The first ``split`` layers are those of the rows; ``alone``: there are no others.
    """
    blocks: list[Block | None] = []
    for layer in layers:
        try:
            blocks.append(prepare(layer, Linear(), backend=backend, threads=threads))
        except Degenerate:
            blocks.append(None)
    exponents = [None if block is None else block.exponent for block in blocks]
    alive = [i for i, block in enumerate(blocks) if block is not None]
    left = [i for i in alive if i < split]
    right = left if alone else [i for i in alive if i >= split]
    values = np.zeros((split, split if alone else len(layers) - split))
    own_rows, own_columns = np.zeros(values.shape[0]), np.zeros(values.shape[1])
    row_blocks, column_blocks = ([block for i in side if (block := blocks[i]) is not None] for side in (left, right))
    places = [j - (0 if alone else split) for j in right]
    forced = ForcedRoute(backend=backend, threads=threads)
    pairs = layers[0].n * (layers[0].n - 3)
    if row_blocks and column_blocks:
        sums, _ = sums_of(row_blocks, None if alone else column_blocks, "debiased", forced)
        values[np.ix_(left, places)] = sums.table / pairs
        own_rows[left], own_columns[places] = sums.self_rows / pairs, sums.self_columns / pairs
    elif row_blocks:  # the other side is dead in this batch: its zeros are right, and this side's own counts
        own_rows[left] = sums_of(row_blocks, None, "debiased", forced)[0].self_rows / pairs
    elif column_blocks:
        own_columns[places] = sums_of(column_blocks, None, "debiased", forced)[0].self_rows / pairs
    return minibatch.BatchHsic(values, own_rows, own_columns, exponents)
