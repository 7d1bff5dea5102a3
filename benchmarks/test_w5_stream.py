"""W5: exact CKA of two models over a stream of batches: at the rate of products, in memory that does not grow."""

from __future__ import annotations

import site
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import simkit as sk

from .conftest import ROUNDS as USUAL
from .conftest import Measure
from .features import named, relu_layers
from .machine import cache_bytes, with_peak_memory
from .protocol import Contestant, Workload
from .rivals import from_package, package, tensors
from .truth import Array, Floats, cka_table

Models: TypeAlias = list[list[Array]]
ROOT = Path(__file__).parents[1]
BATCH = 512
FULL, SMALL = (1_000_000, (256,) * 4), (2048, (48, 32))
ROUNDS = 3  # at full size a call of simkit's takes half a minute
BIASED = "the biased estimator only; its error is against that"


@dataclass(frozen=True)
class Stream:
    """``repeats`` passes over a pool of batches that is larger than the cache."""

    pool: Sequence[Models]
    repeats: int

    def __iter__(self) -> Iterator[Models]:
        for _ in range(self.repeats):
            yield from self.pool

    @property
    def rows(self) -> int:
        return self.repeats * len(self.pool) * BATCH

    def tenth(self) -> Stream:
        """The first tenth of the passes, at least one."""
        return replace(self, repeats=max(1, self.repeats // 10))

    def whole(self) -> Models:
        """The pool's layers with all their rows."""
        return [[np.concatenate(parts) for parts in zip(*model, strict=True)] for model in zip(*self.pool, strict=True)]


def stream_of(rows: int, widths: Sequence[int]) -> Stream:
    """At least ``rows`` rows, from a pool of at most four times the cache's size."""
    batches = -(-rows // BATCH)
    size = 8 * BATCH * sum(widths)
    held = min(batches, 4 * cache_bytes() // size + 1)
    left, right = relu_layers(0, held * BATCH, widths)
    pool = [
        [[layer[i : i + BATCH] for layer in model] for model in (left, right)] for i in range(0, held * BATCH, BATCH)
    ]
    return Stream(pool, -(-batches // held))


def on_a_tenth(
    stream: Stream,
    name: str,
    call: Callable[[Stream], Any],
    finish: Callable[[Any], Floats],
    error: Callable[[Any], float] | None = None,
    note: str = "",
) -> Contestant:
    """A contestant on a tenth of the rows: the time of ``call`` is scaled to all of them, that of ``finish`` is not."""
    short = stream.tenth()
    notes = [note] if note else []
    if short.rows != stream.rows:
        notes.append(f"{short.rows:,} rows timed and scaled, the scores from their sums timed once and added as it is")
    scale = stream.rows / short.rows
    return Contestant(name, lambda _: call(short), error, scale, finish=finish, note="; ".join(notes))


def test_w5_stream(measure: Measure, full: bool) -> None:
    """Equal to the float64 value of the whole data; memory measured at 10⁴, 10⁵ and (full) 10⁶ rows."""
    rows, widths = FULL if full else SMALL
    stream = stream_of(rows, widths)
    truth = cka_table(*stream.whole(), repeats=stream.repeats)
    p = sum(widths)
    per_row = p * p + 2 * sum(width * (width + 1) // 2 for width in widths)
    workload = Workload(
        key="W5",
        title=f"streaming debiased CKA, {len(widths)} + {len(widths)} layers of {max(widths)}, {stream.rows} rows",
        sizes={"rows": stream.rows, "widths": list(widths), "batch": BATCH},
        inputs=[stream],
        error=lambda table: float(np.abs(np.asarray(table) - truth).max()),
        tolerance=1e-9,
        precision="float64",
        multiply_adds=stream.rows * per_row,
        bytes=8 * stream.rows * p,
    )
    biased = cka_table(*stream.whole(), debiased=False)

    def off(table: Any) -> float:
        return float(np.abs(table - biased).max())

    result = measure(
        workload,
        Contestant("simkit, exact", _simkit),
        [
            Contestant("simkit, minibatch estimate", partial(_simkit, mode="minibatch")),
            on_a_tenth(stream, "NumPy, sums of float64 cross-products", _numpy, _numpy_scores, off, BIASED),
            from_package(
                "torch",
                on_a_tenth(stream, "torch, sums of float64 cross-products", _torch, _torch_scores, off, BIASED),
            ),
            from_package(
                "cka",
                on_a_tenth(stream, "pytorch-cka, minibatch estimate (its hsic)", _pytorch_cka, _pytorch_cka_scores),
            ),
        ],
        rounds=ROUNDS if full else USUAL,
    )
    result["notes"].append("extra memory by rows, of a first call: " + ", ".join(_memory(widths, full)))


def test_w5_stream_float32(measure: Measure, full: bool) -> None:
    """The same stream with float32 products, beside rivals that form theirs in float32: within 1e-6."""
    rows, widths = FULL if full else SMALL
    stream = stream_of(rows, widths)
    truth, biased = (cka_table(*stream.whole(), debiased=k, repeats=stream.repeats if k else 1) for k in (True, False))
    p = sum(widths)
    per_row = p * p + 2 * sum(width * (width + 1) // 2 for width in widths)
    workload = Workload(
        key="W5 float32",
        title=f"the same with float32 products, {stream.rows} rows",
        sizes={"rows": stream.rows, "widths": list(widths), "batch": BATCH},
        inputs=[stream],
        error=lambda table: float(np.abs(np.asarray(table) - truth).max()),
        tolerance=1e-6,
        precision="float32",
        multiply_adds=stream.rows * per_row,
        bytes=8 * stream.rows * p,
    )

    def off(table: Any) -> float:
        return float(np.abs(table - biased).max())

    def rival(name: str, call: Any, finish: Any) -> Contestant:
        return on_a_tenth(stream, name, call, finish, off, BIASED)

    measure(
        workload,
        Contestant("simkit, float32 products", partial(_simkit, products="float32")),
        [
            on_a_tenth(stream, "simkit, exact", _running, _scores),
            rival("NumPy, float64 sums of float32 cross-products", partial(_numpy, dtype=np.float32), _numpy_scores),
            from_package(
                "torch",
                rival(
                    "torch, float32 sums of float32 cross-products", partial(_torch, precision="float32"), _torch_scores
                ),
            ),
        ],
        rounds=ROUNDS if full else USUAL,
    )


def _memory(widths: Sequence[int], full: bool) -> list[str]:
    """The first call of a process of its own each: here rivals' pages come and go."""
    found = []
    for rows in (10_000, 100_000, 1_000_000) if full else (2_000, 20_000):
        with ProcessPoolExecutor(1, get_context("spawn"), site.addsitedir, (str(ROOT),)) as process:
            extra = process.submit(_first_peak, rows, widths).result()
        if extra is not None:
            found.append(f"{rows:,}: {extra / 2**20:.1f} MiB")
    return found


def _first_peak(rows: int, widths: Sequence[int]) -> int | None:
    return with_peak_memory(partial(_simkit, stream_of(rows, widths)))[1]


def test_w5_memory_is_flat(benchmark: Any) -> None:
    """Ten times the rows, the same memory: what is resident does not depend on n."""
    short, long = stream_of(2 * BATCH, (48, 32)), stream_of(20 * BATCH, (48, 32))
    _simkit(short)
    peaks = [with_peak_memory(partial(_simkit, stream))[1] for stream in (short, long)]
    benchmark.pedantic(_simkit, args=(short,), rounds=3)
    if peaks[0] is None or peaks[1] is None:
        pytest.skip("resident memory is read from /proc, which this system lacks")
    assert peaks[1] < peaks[0] + 2**20


def _simkit(stream: Stream, mode: Any = "exact", products: Any = "float64") -> Floats:
    return _scores(_running(stream, mode, products))


def _running(stream: Stream, mode: Any = "exact", products: Any = "float64") -> sk.StreamingCKA:
    running = sk.StreamingCKA(mode=mode, products=products)
    for left, right in stream:
        running.update(named(left), named(right))
    return running


def _scores(running: sk.StreamingCKA) -> Floats:
    return running.compute().values


@dataclass(frozen=True)
class Sums:
    """Of all rows: their number, the columns' sums, the products of both models and of each layer with itself."""

    rows: int
    columns: list[Any]
    cross: Any
    own: list[list[Any]]
    widths: list[list[int]]


def _numpy(stream: Stream, dtype: Any = np.float64) -> Sums:
    """One pass of biased linear CKA as a good user writes it: sums, then centred at the end; products of ``dtype``."""
    widths = [[layer.shape[1] for layer in model] for model in stream.pool[0]]
    sums = [np.zeros(sum(side)) for side in widths]
    cross = np.zeros((sum(widths[0]), sum(widths[1])))
    own = [[np.zeros((width, width)) for width in side] for side in widths]
    rows = 0
    for models in stream:
        sides = [np.concatenate([np.asarray(layer, dtype) for layer in model], axis=1) for model in models]
        rows += len(sides[0])
        cross += sides[0].T @ sides[1]
        for side, (values, parts) in enumerate(zip(sides, own, strict=True)):
            sums[side] += values.sum(axis=0)
            for part, block in zip(parts, np.split(values, np.cumsum(widths[side])[:-1], axis=1), strict=True):
                part += block.T @ block
    return Sums(rows, sums, cross, own, widths)


def _numpy_scores(of: Sums) -> Floats:
    cross = of.cross - np.outer(*of.columns) / of.rows
    ends = [np.cumsum(side)[:-1] for side in of.widths]
    tops = [[np.sum(block**2) for block in np.split(strip, ends[1], axis=1)] for strip in np.split(cross, ends[0])]
    norms = [
        [np.linalg.norm(part - np.outer(s, s) / of.rows) for part, s in zip(parts, np.split(total, end), strict=True)]
        for parts, total, end in zip(of.own, of.columns, ends, strict=True)
    ]
    result: Floats = np.array(tops) / np.outer(np.array(norms[0]), np.array(norms[1]))
    return result


def _torch(stream: Stream, precision: str = "float64") -> Sums:
    """As :func:`_numpy`, the products added in place, to sums of the same precision."""
    import torch

    dtype = getattr(torch, precision)
    widths = [[layer.shape[1] for layer in model] for model in stream.pool[0]]
    with torch.inference_mode():
        sums = [torch.zeros(sum(side), dtype=dtype) for side in widths]
        cross = torch.zeros(sum(widths[0]), sum(widths[1]), dtype=dtype)
        own = [[torch.zeros(width, width, dtype=dtype) for width in side] for side in widths]
        rows = 0
        for models in stream:
            sides = [torch.cat(tensors(model), dim=1).to(dtype) for model in models]
            rows += len(sides[0])
            cross.addmm_(sides[0].T, sides[1])
            for values, total, parts, side in zip(sides, sums, own, widths, strict=True):
                total += values.sum(dim=0)
                for part, block in zip(parts, values.split(side, dim=1), strict=True):
                    part.addmm_(block.T, block)
    return Sums(rows, sums, cross, own, widths)


def _torch_scores(of: Sums) -> Floats:
    import torch

    left, right = of.widths
    with torch.inference_mode():
        cross = of.cross - torch.outer(*of.columns) / of.rows
        tops = [[block.square().sum() for block in strip.split(right, dim=1)] for strip in cross.split(left)]
        norms = [
            [
                torch.linalg.norm(part - torch.outer(s, s) / of.rows)
                for part, s in zip(parts, total.split(side), strict=True)
            ]
            for parts, total, side in zip(of.own, of.columns, of.widths, strict=True)
        ]
    result: Floats = np.array(tops) / np.outer(np.array(norms[0]), np.array(norms[1]))
    return result


def _pytorch_cka(stream: Stream) -> Any:
    """Its sums over batches: of both models, of the first and of the second alone."""
    import torch

    hsic = package("cka.hsic").hsic
    totals: list[Any] = [0.0, 0.0, 0.0]
    with torch.inference_mode():
        for models in stream:
            grams = [torch.stack([t @ t.T for t in tensors(model)]) for model in models]
            totals = [total + part for total, part in zip(totals, hsic(*grams), strict=True)]
    return totals


def _pytorch_cka_scores(totals: Any) -> Floats:
    import torch

    cross, rows, columns = totals
    result: Floats = (cross / torch.sqrt(torch.clamp(torch.outer(rows, columns), min=0))).double().numpy()
    return result
