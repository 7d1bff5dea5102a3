"""StreamingCKA: batches of named layers in, a similarity matrix out, at any moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arrays import COPIED, FloatArray, Matrix, as_matrices, enough_samples, same_samples
from ..backends.base import Estimator, PairSums, Plan, Precision
from ..backends.choose import Choice, check_backend, choose
from ..backends.moment_sums import HeldMoments
from ..backends.routes import check_threads, parse_memory
from ..kernels import Linear
from ..metrics.cka import CKA, TINY, VANISHED, check_estimator, scores_from_sums
from ..metrics.prepare import CONSTANT, check_finite
from ..streaming import finish, held, minibatch, moments, state
from .added import Added
from .batch_hsic import batch_hsic
from .matrix import SimilarityMatrix, similarity_matrix
from .promise import within_promise
from .saved_stream import FORMATS, named_widths, options, read_meta

StreamMode: TypeAlias = Literal["exact", "minibatch"]
_Side: TypeAlias = tuple[tuple[str, int], ...]  # names and widths
_Names: TypeAlias = tuple[_Side, _Side | None]


class StreamingCKA:
    """Linear CKA of every pair of layers over a stream of batches, in one pass.

    ``mode="exact"`` gives the number of the whole data, whatever the batches, from float64 moments: memory is
    8 (p_left · p_right + Σ p²) bytes however many samples pass. ``mode="minibatch"`` averages per-batch debiased HSIC
    (Nguyen et al. 2021): memory of one batch, but an estimate, which is biased when batches are not shuffled.

    ``products="float32"`` (exact mode) forms the products of different features in float32, in less time: rows are
    rounded to float32 once, less a value that each feature often has; squares, norms and sums across blocks of 512 rows
    stay float64, and so do the first block, from which units come, and blocks that float32 does not hold. A few sums
    of the same products are formed in float64 too: from them the error of every score is estimated, and ``compute``
    refuses where it may be above 1e-6, as for features of few values, which all round alike. On ordinary features
    scores are right to about 1e-8. The plan has the estimate, and how many blocks were multiplied in float32.

    Args:
        estimator: ``"debiased"`` or ``"biased"`` (exact mode only).
        mode: ``"exact"`` or ``"minibatch"``.
        products: ``"float64"``, or ``"float32"`` (exact mode only).
        memory: refuse layers whose state would take more bytes (a number or ``"64 MB"``). The state alone: a batch, and
            ``compute`` while it finishes, take about twice as much again at most. On a device up to 64 MiB of rows
            that wait to be added, or one block of 512, and another block come on top.
        backend, threads: as in :func:`simkit.cka`.

    Batches on a CUDA device stay there, and so do the exact sums, from the first such batch on; batches on the host are
    then copied to it. Minibatch estimates are sums on the host, of batches each where it lies. Copied to the host are
    batches of fewer than four rows and what joins them, layers that lie apart, all batches for float32 products and for
    the host's backends, and those for which, or for whose sums, a device has no memory. The plan says which. Another
    stream's sums and saved states meet this one's on the host.

    An exception in the middle of a batch (Ctrl-C, say) leaves part of it in the sums: the stream then refuses to go on
    (RuntimeError) until it is reset or takes a saved state.

    Raises:
        ValueError: an unknown option, or a state larger than ``memory``.
    """

    def __init__(
        self,
        *,
        estimator: Estimator = "debiased",
        mode: StreamMode = "exact",
        products: Precision = "float64",
        memory: int | float | str | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> None:
        check_estimator(estimator, 4)
        if mode not in ("exact", "minibatch"):
            raise ValueError(f'mode must be "exact" or "minibatch", not {mode!r}')
        if mode == "minibatch" and estimator != "debiased":
            raise ValueError('mode="minibatch" averages the debiased estimator; estimator="biased" needs mode="exact"')
        if products not in ("float64", "float32"):
            raise ValueError(f'products must be "float64" or "float32", not {products!r}')
        if products == "float32" and mode != "exact":
            raise ValueError(f'products="float32" needs mode="exact", not mode={mode!r}')
        check_backend(backend)
        self._products: Precision = products
        self._estimator: Estimator = estimator
        self._mode: StreamMode = mode
        self._memory = parse_memory(memory)
        self._backend = backend
        self._threads = check_threads(threads)
        self.reset()

    def reset(self) -> None:
        """Forget everything that was seen."""
        self._rows: _Side = ()
        self._columns: _Side | None = None
        self._exact: moments.Moments | None = None
        self._estimate: minibatch.Estimate | None = None
        self._added = Added()
        self._torn = False  # an exception, Ctrl-C for one, left part of a batch in the sums

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying take: sums that lie on a device, as a copy on the host."""
        return self.__dict__ | {"_exact": None if self._exact is None else held.on_host(self._exact)}

    @property
    def samples(self) -> int:
        """Samples seen so far."""
        if self._exact is not None:
            return self._exact.samples
        if self._estimate is not None:
            return self._estimate.samples + (len(self._estimate.waiting[0]) if self._estimate.waiting else 0)
        return 0

    def update(self, layers: Mapping[str, object], others: Mapping[str, object] | None = None) -> None:
        """Add a batch: ``{name: x [b, p]}`` for the rows and, unless None, for the columns of the result.

        Raises:
            ValueError: other layers or widths than before, different numbers of samples, non-finite entries (named);
                nothing is added then. NotImplementedError: float32 products by a backend that is a device's.
        """
        self._refuse_torn()
        rows = as_matrices(layers)
        columns = None if others is None else as_matrices(others, what="others")
        both = [*rows, *(columns or ())]
        same_samples(both)
        names = self._check_layers(rows, columns)
        try:
            self._take(both, names)
            return
        except MemoryError:  # of the layers' device, before anything was added
            if self._torn or self._backend is not None or all(layer.device is None for layer in both):
                raise
        self._take([layer.on_host() for layer in both], names)

    def _take(self, both: Sequence[Matrix], names: _Names) -> None:
        """Add the layers of both sides, which have ``names``."""
        widths = _widths(names[0]), None if names[1] is None else _widths(names[1])
        chosen = self._adder(both)
        hold = chosen.hold_moments if self._mode == "exact" else None
        if chosen.on_host or (hold is None and (self._apart(both) or minibatch.waits(self._estimate, both[0].n))):
            both = self._on_host(both)
        backend = self._backend if hold is None else chosen.backend
        check_finite(both, first_row=self.samples, backend=backend, threads=self._threads)
        there = None if self._exact is None else self._exact.held
        room = there if hold is None or there is not None else hold(both, *widths)
        self._torn = True
        self._rows, self._columns = names
        if self._mode == "exact":
            self._exact = self._exact or moments.empty(*widths, self._products)
            products = "" if room is None else f"; {room.products}"
            self._added = self._added.by(chosen.backend, chosen.reason + products)
            self._add(self._exact, both, room)
        else:
            if self._estimate is None:
                self._estimate = minibatch.empty(len(widths[0]), None if widths[1] is None else len(widths[1]))
            minibatch.update(self._estimate, both, self._batch_hsic)
        self._torn = False

    def merge(self, other: StreamingCKA) -> None:
        """Add, in place, everything ``other`` has seen: as if its batches had followed this stream's.

        Raises:
            TypeError: not a StreamingCKA. ValueError: other layers, estimator, mode or products.
        """
        if not isinstance(other, StreamingCKA):
            raise TypeError(f"merge needs a StreamingCKA, not {type(other).__name__}")
        mine, theirs = self._options(), other._options()
        if mine != theirs:
            raise ValueError(f"a stream of ({theirs}) does not merge into one of ({mine})")
        self._refuse_torn()
        other._refuse_torn()
        if not other._rows:
            return
        if self._rows and (self._rows, self._columns) != (other._rows, other._columns):
            raise ValueError("the streams hold different layers: " + _difference(self._names(), other._names()))
        if not self._rows:
            self.load_state_dict(other.state_dict())
            self._added = other._added
            return
        self._torn = True
        if self._exact is not None and other._exact is not None:
            newcomer = held.on_host(other._exact)  # before this one's come: it may be the same stream
            held.leave(self._exact)
            moments.merge(self._exact, newcomer, backend=self._backend, threads=self._threads)
        elif self._estimate is not None and other._estimate is not None:
            self._merge_estimate(other._estimate)
        self._added = self._added.joined(other._added)
        self._torn = False

    def compute(self) -> SimilarityMatrix:
        """The similarity matrix of everything seen so far; the stream can go on.

        Raises:
            ValueError: fewer samples than the estimator needs; float32 products that may be off by more than 1e-6 in
                a score, the first of which is named.
        """
        self._refuse_torn()
        enough_samples(self.samples, 4 if self._estimator == "debiased" else 2, f"the {self._estimator} estimator")
        matrix = self._computed()
        return replace(matrix, plan=replace(matrix.plan, notes=(*matrix.plan.notes, *self._added.notes)))

    def _computed(self) -> SimilarityMatrix:
        if self._exact is not None:
            exact = held.on_host(self._exact)
            if exact.sums is None:
                return self._few_rows(exact)
            sums, rounded = finish.finish(exact, self._estimator)
            bytes_held = moments.state_bytes(exact.left_widths, exact.right_widths, exact.products)
            added = self._adders()
            route = "float32 products, one pass" if exact.multiplied else "float64 moments, one pass"
            steps = added.steps(["moments_add"], route=route, workspace=bytes_held)
            checks = added.steps(["moments_rows", "largest_entries"])
            matrix = self._matrix(sums, Plan((*steps, *checks)), self.samples)
            return matrix if rounded is None else within_promise(matrix, exact, rounded, sums)
        assert self._estimate is not None
        return self._estimated(self._estimate)

    def _options(self) -> str:
        """What two streams must have in common to add."""
        return options(self._estimator, self._mode, self._products)

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """The whole state as named NumPy arrays, fit for ``safetensors.numpy.save_file`` or ``numpy.savez``."""
        self._refuse_torn()
        meta = {
            "format": FORMATS[self._products],
            "estimator": self._estimator,
            "mode": self._mode,
            "products": self._products,
            "rows": self._rows,
            "columns": self._columns,
            "exponents": [] if self._estimate is None else self._estimate.exponents,
        }
        out = {"meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)}
        if self._exact is not None:
            out.update(state.pack_moments(held.on_host(self._exact)))
        if self._estimate is not None:
            out.update(state.pack_estimate(self._estimate))
        return out

    def load_state_dict(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the state that :meth:`state_dict` gave, in place of this one's.

        Raises:
            ValueError: the arrays are not such a state, or of another estimator, mode or products.
        """
        try:
            meta = read_meta(arrays)
            rows = named_widths(meta, "rows")
            columns = None if meta["columns"] is None else named_widths(meta, "columns")
            exact = estimate = None
            left, right = [w for _, w in rows], None if columns is None else [w for _, w in columns]
            if rows and meta["mode"] == "exact":
                exact = state.unpack_moments(arrays, left, right, meta["products"])
            elif rows:
                estimate = state.unpack_estimate(arrays, meta["exponents"], left, right)
        except (TypeError, ValueError) as error:
            raise ValueError(f"this is not the state of a StreamingCKA: {error}") from None
        theirs = options(meta["estimator"], meta["mode"], meta["products"])
        if theirs != self._options():
            raise ValueError(f"the state is of ({theirs}), not this stream's options ({self._options()})")
        self._rows, self._columns, self._exact, self._estimate = rows, columns, exact, estimate
        self._added = Added()
        self._torn = False

    def _adder(self, layers: Sequence[Matrix]) -> Choice:
        """What adds a batch: the backend that holds the sums, or the choice for these layers.

        Raises:
            ValueError: layers on another device than the sums. NotImplementedError: float32 products on a device.
        """
        if self._mode == "minibatch":  # whose layers meet on the host where they lie apart
            return choose("pair_sums", backend=self._backend, inputs=[] if self._apart(layers) else layers)
        if self._products == "float32":
            chosen = choose("moments_add", backend=self._backend)
            if chosen.hold_moments is not None:
                raise NotImplementedError(
                    f'products="float32" adds rows on the host, not on backend={chosen.backend!r}'
                )
            return chosen
        there = None if self._exact is None else self._exact.held
        if there is not None:
            for layer in layers:
                if layer.device not in (None, there.device):
                    raise ValueError(
                        f"{layer.name} lies on cuda:{layer.device} and the sums of this stream on "
                        f"cuda:{there.device}: move the batches to one device"
                    )
        return choose("moments_add", backend=self._backend if there is None else there.backend, inputs=layers)

    def _add(self, exact: moments.Moments, layers: Sequence[Matrix], room: HeldMoments | None) -> None:
        """Add a batch to the exact sums, on the host or in ``room`` of a backend's own, where this may bring them."""
        if room is None:
            left, right = layers[: len(exact.left_widths)], layers[len(exact.left_widths) :]
            moments.update(exact, left, right or None, backend=self._backend, threads=self._threads)
            return
        if exact.held is None:
            held.enter(exact, room)
        if any(layer.device is None for layer in layers):
            self._added = self._added.copied_to(f"cuda:{room.device}")
        held.update(exact, room, layers, self._threads)

    def _on_host(self, layers: Sequence[Matrix]) -> list[Matrix]:
        if any(layer.device is not None or layer.origin.endswith(COPIED) for layer in layers):
            self._added = self._added.copied_to("the host")
        return [layer.on_host() for layer in layers]

    def _apart(self, layers: Sequence[Matrix]) -> bool:
        """Whether they lie on several devices, or on one and the host, which a backend that is named takes."""
        devices = {layer.device for layer in layers}
        return len(devices - (set() if self._backend is None else {None})) > 1

    def _refuse_torn(self) -> None:
        if self._torn:
            raise RuntimeError(
                "this stream was interrupted in the middle of a batch and holds part of it: "
                "reset() it, or load_state_dict() a state saved before"
            )

    def _names(self) -> list[str]:
        return [f"{name} [{width}]" for name, width in (*self._rows, *(self._columns or ()))]

    def _check_layers(self, rows: Sequence[Matrix], columns: Sequence[Matrix] | None) -> _Names:
        """The names and widths of both sides, those of the first batch."""
        row_names = tuple((m.name, m.p) for m in rows)
        column_names = None if columns is None else tuple((m.name, m.p) for m in columns)
        if not self._rows:
            self._check_memory(row_names, column_names)
        elif (row_names, column_names) != (self._rows, self._columns):
            names = [f"{name} [{width}]" for name, width in (*row_names, *(column_names or ()))]
            raise ValueError("the batch holds other layers than the first: " + _difference(self._names(), names))
        return row_names, column_names

    def _check_memory(self, rows: _Side, columns: _Side | None) -> None:
        if self._memory is None or self._mode != "exact":
            return
        widths = [w for _, w in rows], None if columns is None else [w for _, w in columns]
        needed = moments.state_bytes(*widths, self._products)
        if needed > self._memory:
            raise ValueError(f"the exact state takes {needed} bytes, more than memory={self._memory}")

    def _adders(self) -> Added:
        """Who added; of a saved state, who would."""
        choice = self._adder([])
        return self._added if self._added.reasons else self._added.by(choice.backend, choice.reason)

    def _few_rows(self, exact: moments.Moments) -> SimilarityMatrix:
        """Fewer rows than one block: the array engine on the staged rows."""
        rows = slice(0, exact.staged)

        def named(names: _Side, stage: FloatArray) -> dict[str, FloatArray]:
            ends = np.cumsum([width for _, width in names])
            return {name: stage[rows, end - width : end] for (name, width), end in zip(names, ends, strict=True)}

        others = None
        if self._columns is not None and exact.right_stage is not None:
            others = named(self._columns, exact.right_stage)
        measure = CKA(estimator=self._estimator)
        layers = named(self._rows, exact.left_stage)
        return similarity_matrix(layers, others, measure=measure, backend=self._backend, threads=self._threads)

    def _matrix(self, sums: PairSums, plan: Plan, samples: int) -> SimilarityMatrix:
        rows = [name for name, _ in self._rows]
        columns = rows if self._columns is None else [name for name, _ in self._columns]
        exact = self._mode == "exact"
        constant, tiny = (CONSTANT, TINY) if exact else ("every feature is constant within each batch", 0.0)
        scores = scores_from_sums(
            sums, rows, columns, samples, self._estimator, drowned=finish.DROWNED, tiny=tiny, constant=constant
        )
        for side, names, raw in (("row", rows, sums.raw_rows), ("column", columns, sums.raw_columns)):
            vanished = np.flatnonzero((raw > 0) & (raw <= tiny)).tolist()
            scores.degenerate.update({(side, names[i]): VANISHED for i in vanished})
        measure = repr(CKA(Linear(), self._estimator)) + ("" if exact else ", minibatch estimate")
        return SimilarityMatrix(scores.values, tuple(rows), tuple(columns), samples, measure, scores.degenerate, plan)

    def _batch_hsic(self, layers: Sequence[Matrix]) -> minibatch.BatchHsic:
        """On the host where the device of the layers, which nobody named, has no memory left."""
        chosen = self._adder(layers)
        alone = self._columns is None
        try:
            found = batch_hsic(layers, len(self._rows), alone=alone, backend=self._backend, threads=self._threads)
            self._added = self._added.by(chosen.backend, chosen.reason)
            return found
        except MemoryError:
            if chosen.on_host or self._backend is not None:
                raise
        return self._batch_hsic(self._on_host(layers))

    def _merge_estimate(self, other: minibatch.Estimate) -> None:
        assert self._estimate is not None
        waiting = [rows.copy() for rows in other.waiting]
        minibatch.merge(self._estimate, other)
        if waiting:
            names = [name for name, _ in (*self._rows, *(self._columns or ()))]
            layers = [Matrix(name, rows, "float64") for name, rows in zip(names, waiting, strict=True)]
            minibatch.update(self._estimate, layers, self._batch_hsic)

    def _estimated(self, estimate: minibatch.Estimate) -> SimilarityMatrix:
        enough_samples(estimate.samples, 4, "the minibatch estimator")
        sums = PairSums(
            estimate.values, estimate.own_rows, estimate.own_columns, estimate.own_rows, estimate.own_columns
        )
        notes = [f"an estimate: the mean of {estimate.batches} batches weighted by their pairs, not the whole data"]
        if estimate.waiting:
            notes.append(f"the last {len(estimate.waiting[0])} samples were too few for a batch and do not count")
        added = self._adders()
        steps = added.steps(["pair_sums"], route="minibatch"), added.steps(["column_stats", "largest_entries"])
        return self._matrix(sums, Plan((*steps[0], *steps[1]), tuple(notes)), estimate.samples)


def _widths(side: _Side) -> list[int]:
    return [width for _, width in side]


def _difference(mine: Sequence[str], theirs: Sequence[str]) -> str:
    missing = [name for name in mine if name not in theirs]
    new = [name for name in theirs if name not in mine]
    if not missing and not new:
        return "the same layers in another order or on other sides"
    return f"{', '.join(missing) or 'nothing'} is missing and {', '.join(new) or 'nothing'} is new"
