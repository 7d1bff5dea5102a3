"""Labels: which atom of which channel every element of a tensor belongs to, as broadcastable integer arrays.

A label has as many dimensions as its tensor, and size 1 where it does not vary. Removing an atom removes the elements
that carry it. The labels of one tensor vary over disjoint sets of dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Label: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = tuple[Label, ...]
Shape: TypeAlias = tuple[int, ...]


def support(label: Label) -> tuple[int, ...]:
    """The dimensions over which the label varies."""
    return tuple(dim for dim, size in enumerate(label.shape) if size > 1)


def over(labels: Labels, dim: int) -> Label | None:
    """The label that varies over ``dim``, if there is one."""
    return next((label for label in labels if label.shape[dim] > 1), None)


def aligned(label: Label, dims: int) -> Label:
    """The label with dimensions of size 1 put in front, as broadcasting does."""
    return label.reshape((1,) * (dims - label.ndim) + label.shape)


def reduced(label: Label) -> Label:
    """The label with size 1 in every dimension along which it is constant."""
    for dim in support(label):
        first = label.take([0], axis=dim)
        if bool((label == first).all()):
            label = first
    return label


def line(label: Label, dim: int) -> Label:
    """The label along ``dim``, at index 0 of the other dimensions: ``[size]``."""
    return np.moveaxis(label, dim, 0).reshape(label.shape[dim], -1)[:, 0]


def placed(values: Label, dim: int, dims: int) -> Label:
    """A 1-D array of atoms as a label that varies over ``dim`` of ``dims``."""
    shape = [1] * dims
    shape[dim] = len(values)
    return values.reshape(shape)


def reshaped(label: Label, before: Shape, after: Shape) -> Label:
    """The label of the same elements in another shape, in row-major order."""
    full = list(label.shape)
    final: list[int] = []
    for sources, targets in factors(before, after):
        if any(label.shape[dim] > 1 for dim in sources):
            for dim in sources:
                full[dim] = before[dim]
            final += [after[dim] for dim in targets]
        else:
            final += [1 for _ in targets]
    return reduced(np.ascontiguousarray(np.broadcast_to(label, full)).reshape(final))


def factors(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The finest runs of dimensions of the two shapes that hold the same elements."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        sources, targets, left, right = [], [], 1, 1
        if i < len(before):
            sources, left, i = [i], before[i], i + 1
        if j < len(after):
            targets, right, j = [j], after[j], j + 1
        while left != right:
            if left < right:
                sources, left, i = [*sources, i], left * before[i], i + 1
            else:
                targets, right, j = [*targets, j], right * after[j], j + 1
        runs.append((sources, targets))
    return runs


def without(label: Label, dims: Sequence[int], keepdim: bool = False) -> Label:
    """The label, constant over ``dims``, once these dimensions are reduced away."""
    return label if keepdim else label.reshape([size for dim, size in enumerate(label.shape) if dim not in dims])
