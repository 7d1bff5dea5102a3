"""One comparison under way: batches through every model, features to where they are kept, then the matrix."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..arrays import Matrix
from ..errors import TooLittleMemory
from ..metrics.cka import CKA
from ..metrics.measure import Measure
from ..streaming.moments import state_bytes
from .activations import Recorder
from .batches import Caller, Data, expected_from_length
from .collect import Decision, Shape, Side, check_engine, decide, in_full, on_disk
from .collectors import Collector, ToDevice, ToSpool, ToStream
from .matrix import SimilarityMatrix
from .on_device import copied, device_of_all, engine_there
from .spool import Spool
from .stream import StreamingCKA

if TYPE_CHECKING:
    from .resume import Checkpoint

SHOW_AFTER = 1.0  # seconds before a progress bar appears


@dataclass(frozen=True)
class Options:
    """What was asked for, checked."""

    measure: Measure
    mode: str
    samples: int | None
    memory: int | None
    asked_memory: str  # as it was written; empty for None
    reduce: str


class Run:
    """Feeds batches to the recorders; where features go is decided after the first batch."""

    def __init__(
        self,
        recorders: Mapping[Side, Recorder],
        source: Data,
        options: Options,
        stack: ExitStack,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._recorders = recorders
        self._callers = {side: Caller(r.root, r.device, r.dtype, f"model_{side}") for side, r in recorders.items()}
        self._source = source
        self._options = options
        self._stack = stack
        self._checkpoint = checkpoint
        self._collector: Collector | None = None
        self._decision: Decision | None = None
        self._first: dict[tuple[Side, str], Matrix] = {}
        self._batch_rows: tuple[str, int] | None = None
        self._seen = 0
        self._full = False  # a device had no room for the first batch

    def complete(self, *, progress: bool) -> SimilarityMatrix:
        """Run every batch, then compare.

        Raises:
            ValueError: no samples, or what the recorders, the loaders and the measure refuse.
        """
        limit = self._options.samples
        known = [count for count in (self._source.samples, limit) if count is not None]
        bar = tqdm(
            total=min(known, default=None),
            desc="running the models",
            unit=" samples",
            delay=SHOW_AFTER,
            disable=not progress,
            file=sys.stderr,
            leave=False,
        )
        with bar:
            for first, second in self._source:
                bar.update(self._step({"a": first, "b": second}))
                if limit is not None and self._seen >= limit:
                    break
            if self._collector is None:
                raise ValueError("data yielded no batches with samples: was it a generator that is used up?")
            if self._checkpoint is not None:
                self._checkpoint.finish()
            if bar.format_dict["elapsed"] > SHOW_AFTER:  # setting a description shows the bar
                bar.set_description("comparing the layers")
            with self._whole_memory():
                result = self._collector.result()
            return self._described(result)

    def _step(self, batch: Mapping[Side, Any]) -> int:
        """One batch through every model; the number of samples it counts for."""
        sizes = {side: caller.count(batch[side]) for side, caller in self._callers.items()}
        n = sizes["a"]
        if sizes.get("b", n) != n:
            raise ValueError(f"a batch has {n} samples for model_a and {sizes['b']} for model_b")
        limit = self._options.samples
        keep = n if limit is None else min(n, limit - self._seen)
        if keep == 0:
            return 0
        known = self._checkpoint is not None and self._checkpoint.advance(batch, keep)
        if known and self._collector is not None:
            for recorder in self._recorders.values():
                recorder.skip(keep)
        else:
            self._run(batch, keep)
        self._seen += keep
        return keep

    def _run(self, batch: Mapping[Side, Any], keep: int) -> None:
        self._batch_rows = None
        for side, recorder in self._recorders.items():
            recorder.run(self._callers[side](batch[side]), keep, partial(self._take, side))
        if self._collector is None:
            self._collector = self._start(keep)
            while self._first:
                side, name = next(iter(self._first))
                self._collector.add(side, name, self._first.pop((side, name)))
        self._collector.end_batch()

    def _take(self, side: Side, name: str, features: Matrix) -> None:
        """The features of one layer, straight from its hook."""
        layer = f"model_{side} layer {name!r}"
        if self._batch_rows is None:
            self._batch_rows = (layer, features.n)
        elif features.n != self._batch_rows[1]:
            raise ValueError(
                f"reduce={self._options.reduce!r} needs as many positions in every layer: {self._batch_rows[0]} has "
                f"{self._batch_rows[1]} rows in a batch and {layer} has {features.n}"
            )
        if self._collector is None:
            stay = engine_there([features], self._options.measure) is not None
            self._first[side, name] = copied(features, stay=stay)
            self._full |= stay and self._first[side, name].device is None
        else:
            self._collector.add(side, name, features)

    def _start(self, keep: int) -> Collector:
        """The collector for the shapes of the first batch."""
        order: dict[Side, tuple[str, ...]] = {side: recorder.rows for side, recorder in self._recorders.items()}
        shape = self._shape(order, keep)
        options = self._options
        there = device_of_all(list(self._first.values()), options.measure, options.memory)
        decision = decide(shape, options.measure, memory=options.memory, mode=options.mode, there=there)
        if self._checkpoint is not None:
            decision = replace(decision, way="spool", ram=0, reason="features kept in the folder of resume=")
        self._decision = decision
        if decision.way in ("moments", "minibatch"):
            estimator = options.measure.estimator if isinstance(options.measure, CKA) else "debiased"
            stream = StreamingCKA(estimator=estimator, mode="exact" if decision.way == "moments" else "minibatch")
            state = state_bytes(shape.left, shape.right) if decision.way == "moments" else 0
            return ToStream(stream, order, stay=there is not None and state <= there.room)
        stays, share = decision.way == "device", decision.ram  # on_disk() says nothing of what a device may hold
        if shape.rows is not None and not (stays and options.memory is None):
            sides = {side: [self._first[side, name] for name in names] for side, names in order.items()}
            held = shape.bytes if shape.bytes is not None and shape.bytes <= share else 0
            with self._whole_memory():
                measure, memory = options.measure, decision.memory
                beside = check_engine(sides["a"], sides.get("b"), shape.rows, measure, memory, features=held)
            if held and not beside:
                self._decision = decision = on_disk(decision)
        how = order, options.measure, decision.memory, there
        if self._checkpoint is not None:
            return self._checkpoint.collector(*how, expected=shape.bytes)

        def spool(expected: int | None = None, rows: int | None = None) -> ToSpool:
            return ToSpool(self._stack.enter_context(Spool(ram=decision.ram, expected=expected, rows=rows)), *how)

        if stays and shape.rows is not None and there is not None:
            room = there.room if options.memory is None else min(there.room, share)
            return ToDevice(shape.rows, order, options.measure, room=room, memory=options.memory, elsewhere=spool)
        return spool(expected=shape.bytes, rows=shape.rows)

    def _shape(self, order: Mapping[Side, tuple[str, ...]], keep: int) -> Shape:
        widths = {side: tuple(self._first[side, name].p for name in names) for side, names in order.items()}
        features = list(self._first.values())
        positions = features[0].n // keep
        known = [self._source.samples, self._options.samples]
        if self._source.samples is None:
            known[0] = expected_from_length(self._source.first, keep)
        samples = min((count for count in known if count is not None), default=None)
        if self._options.samples is not None and known[0] is None:
            samples = self._options.samples
        row_bytes = sum(matrix.p * matrix.itemsize for matrix in features)
        return Shape(widths["a"], widths.get("b"), row_bytes, None if samples is None else samples * positions)

    @contextmanager
    def _whole_memory(self) -> Iterator[None]:
        """Errors about too little memory speak of what the user wrote, not of a share of it."""
        assert self._decision is not None  # what is planned or computed here comes after it
        try:
            yield
        except TooLittleMemory as error:
            raise in_full(error, self._decision, self._options.asked_memory) from None

    def _described(self, result: SimilarityMatrix) -> SimilarityMatrix:
        """The result with the layers that gave no features as NaN, and with notes on what was done."""
        assert self._decision is not None
        skipped = {side: recorder.skipped for side, recorder in self._recorders.items()}
        rows, columns = skipped["a"], skipped.get("b", skipped["a"])
        values = np.full((len(result.rows) + len(rows), len(result.columns) + len(columns)), math.nan)
        values[: len(result.rows), : len(result.columns)] = result.values
        degenerate = {
            **result.degenerate,
            **{("row", name): reason for name, reason in rows.items()},
            **{("column", name): reason for name, reason in columns.items()},
        }
        return replace(
            result,
            values=values,
            rows=(*result.rows, *rows),
            columns=(*result.columns, *columns),
            degenerate=degenerate,
            plan=replace(result.plan, notes=(self._decision.reason, *result.plan.notes, *self._notes())),
        )

    def _notes(self) -> list[str]:
        notes = []
        for side, recorder in self._recorders.items():
            notes += [f"model_{side} layer {name!r} has no scores: {why}" for name, why in recorder.skipped.items()]
            dropped = sorted(self._callers[side].dropped)
            if dropped:
                notes.append(f"not passed to model_{side}, whose forward does not take them: {', '.join(dropped)}")
        if self._full:
            notes.append("features came to the host: their device had no room for those of the first batch")
        limit = self._options.samples
        if limit is not None and self._seen < limit:
            notes.append(f"the data ended after {self._seen} of samples={limit}")
        return notes
