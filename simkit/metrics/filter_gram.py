"""A layer's filters while filters and weights go: their inner products are updated, not formed again.

A filter that goes takes a row and a column of the Gram matrix with it. Weights that go from all filters (those of a
channel that the layer before no longer has) take W_c W_cᵀ from it; where that leaves little of a filter's length, the
matrix is formed anew from what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, as_filters
from .covering import IndexArray
from .filter_graph import FilterGraph, of_adjacency
from .thresholds import Norm, parse_thresholds, to_squared

NEAR = 1e-6  # to the threshold, in squared distance: decided by differences
LEFT = 1e-4  # share of a filter's squared length below which subtracting has cost too many digits
HELD = 2**24  # differences formed at once


class FilterGram:
    """Filters ``[n, ...]`` that lose filters and weights; :meth:`graph` is the graph of what is left.

    ``filters`` are the rows that are left, ascending. ValueError for a weight that is not finite.
    """

    _scaled: FloatArray
    _gram: FloatArray
    _formed: FloatArray  # squared lengths when the matrix was formed

    def __init__(self, weight: object) -> None:
        self._weight = as_filters(weight).float64()
        if not np.isfinite(self._weight).all():
            row, column = np.argwhere(~np.isfinite(self._weight))[0].tolist()
            raise ValueError(f"weight is not finite at filter {row}, entry {column}")
        self.filters: IndexArray = np.arange(len(self._weight))
        self._left = np.ones(self._weight.shape[1], dtype=np.bool_)
        self._form()

    @property
    def fan_in(self) -> int:
        """How many weights a filter has left."""
        return int(self._left.sum())

    def remove(self, filter_: int) -> None:
        """A filter goes, by its row in the weight; ValueError if it has gone or is the last."""
        place = np.flatnonzero(self.filters == filter_)
        if not len(place) or len(self.filters) == 1:
            raise ValueError(f"filter {filter_!r} cannot go from the filters {self.filters.tolist()}")
        self.filters = np.delete(self.filters, place)
        self._gram = np.delete(np.delete(self._gram, place, axis=0), place, axis=1)
        self._formed = np.delete(self._formed, place)

    def shrink(self, weights: Sequence[int] | IndexArray) -> None:
        """Weights go from every filter, by their columns; those that have gone are left out.

        ValueError if none would be left.
        """
        gone = np.unique(np.asarray(weights, dtype=np.int64))
        gone = gone[self._left[gone]]
        if not len(gone):
            return
        if len(gone) == self.fan_in:
            raise ValueError(f"all {len(gone)} weights of the filters would go")
        self._left[gone] = False
        part = self._scaled[np.ix_(self.filters, gone)]
        self._gram -= part @ part.T
        if (np.diagonal(self._gram) < LEFT * self._formed).any():
            self._form()

    def graph(self, *, threshold: float | None = None, norm: Norm = "distance") -> FilterGraph:
        """What :func:`simkit.filter_graph` gives for the filters and weights that are left, without its warnings.

        Raises as :func:`simkit.filter_graph` for a bad threshold or norm.
        """
        (value, *_), _ = parse_thresholds(threshold, norm, self.fan_in)
        limit = to_squared(value, norm, self.fan_in)
        lengths = np.sqrt(np.diagonal(self._gram))
        zero = lengths == 0.0
        lengths[zero] = 1.0
        squared = 2.0 - 2.0 * (self._gram / np.outer(lengths, lengths))
        squared[zero] = squared[:, zero] = np.inf
        squared[np.ix_(zero, zero)] = 0.0
        self._decide(squared, np.triu(np.abs(squared - limit) < NEAR, 1) & ~zero & ~zero[:, None])
        np.fill_diagonal(squared, np.inf)
        return of_adjacency(self.filters, squared <= limit, value, norm, self.fan_in, "inner products, updated")

    def _form(self) -> None:
        """Scale what is left, so that squares neither overflow nor vanish, and multiply."""
        left = self._weight[:, self._left]
        _, exponents = np.frexp(np.abs(left).max(axis=1))
        with np.errstate(over="ignore"):  # in weights that have gone
            self._scaled = np.ldexp(self._weight, -exponents[:, None])
        rows = self._scaled[np.ix_(self.filters, np.flatnonzero(self._left))]
        self._gram = rows @ rows.T
        self._formed = np.diagonal(self._gram).copy()

    def _decide(self, squared: FloatArray, near: npt.NDArray[np.bool_]) -> None:
        """Put squared distances that differences of unit rows give in the place of those near the threshold."""
        first, second = np.nonzero(near)
        if not len(first):
            return
        rows = self._scaled[np.ix_(self.filters, np.flatnonzero(self._left))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(min=np.finfo(np.float64).tiny)
        for start in range(0, len(first), step := max(1, HELD // rows.shape[1])):
            i, j = first[start : start + step], second[start : start + step]
            squared[i, j] = squared[j, i] = np.square(rows[i] - rows[j]).sum(axis=1)
