"""The ops of a stream against the reference: every type and layout, ragged sizes, more layers than a sliver holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from simkit.arrays import Matrix
from simkit.backends import native_cpu, reference
from simkit.backends.moment_sums import NARROW, PROBES, MomentRows, MomentSums, MomentUnits, SideSums
from simkit.streaming.rebase import rebase
from simkit.streaming.signs import signs_of

Array = npt.NDArray[Any]
DTYPES = ("float16", "bfloat16", "float32", "float64")


def matrix(values: Array, dtype: str) -> Matrix:
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16
        return Matrix("x", bits.astype(np.uint16), dtype)
    return Matrix("x", values.astype(dtype), dtype)


def laid_out(values: Array, layout: str) -> Array:
    """The same values with other strides."""
    if layout == "columns":
        return np.asfortranarray(values)
    if layout == "backwards":
        return np.ascontiguousarray(values[::-1, ::-1])[::-1, ::-1]
    if layout == "spaced":
        return np.repeat(np.repeat(values, 2, axis=0), 3, axis=1)[::2, ::3]
    return values


def side_of(widths: list[int], rng: np.random.Generator, *, alone: bool) -> SideSums:
    ends = np.cumsum([0, *widths])
    scale = np.concatenate([np.full(w, 2.0 ** rng.integers(-9, 9)) for w in widths])
    p, layers = int(ends[-1]), len(widths)
    grams = () if alone else tuple(np.zeros((w, w)) for w in widths)
    offsets = tuple(int(e) for e in ends)
    zeros = (np.zeros(p), np.zeros(p), np.zeros(layers), np.zeros(layers))
    return SideSums(offsets, rng.standard_normal(p), scale, *zeros, grams)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "columns", "backwards", "spaced"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 511), (129, 512), (7, 1025), (513, 130), (2, 70_000)])
def test_the_largest_entry(dtype: str, layout: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    made = matrix(rng.standard_normal(shape) * 4, dtype)
    x = Matrix("x", laid_out(made.values, layout), dtype)
    expected = np.abs(x.float64()).max()
    for threads in (1, 3):
        assert native_cpu.largest_entries([x, x], threads=threads) == [expected, expected]
    assert reference.largest_entries([x]) == [expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinite(dtype: str, bad: float) -> None:
    for place in [(0, 0), (4, 6), (2, 3)]:
        values = np.full((5, 7), -1e4)
        fine = matrix(values, dtype)
        values[place] = bad
        for backend in (native_cpu, reference):
            found = backend.largest_entries([fine, matrix(values, dtype), fine])
            assert found[1] == np.inf
            assert found[0] == found[2] == np.abs(fine.float64()).max()


def test_zeros_and_the_smallest_numbers() -> None:
    smallest = np.nextafter(0.0, -1.0)
    for values, expected in (([[0.0, -0.0]], 0.0), ([[smallest, 0.0]], -smallest), ([[-np.finfo("d").max]], np.inf)):
        found = native_cpu.largest_entries([Matrix("x", np.array(values), "float64")])[0]
        assert found == min(expected, np.finfo("d").max)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 255, 257, 512])
@pytest.mark.parametrize("widths", [[1], [5, 24, 25], [241, 3], [2] * 30])
def test_moments_of_a_block(rows: int, widths: list[int]) -> None:
    """Both ops, one side alone and two sides, equal the reference to rounding; the same bits for any threads."""
    rng = np.random.default_rng(rows + len(widths))
    others = [7, *widths[:8]]
    layers = [[matrix(rng.standard_normal((rows, w)), DTYPES[k % 4]) for k, w in enumerate(side)]
              for side in (widths, others)]  # fmt: skip
    for alone in (True, False):
        found = []
        for backend, threads in ((reference, 1), (native_cpu, 1), (native_cpu, 3)):
            seeded = np.random.default_rng(1)
            sides = [side_of(w, seeded, alone=alone) for w in ([widths] if alone else [widths, others])]
            units = [MomentUnits(x, s, np.full((rows, s.offsets[-1]), np.nan))
                     for x, s in zip(layers, sides, strict=False)]  # fmt: skip
            moved = backend.moments_rows(units, threads=threads)
            left, right = moved[0], None if alone else moved[1]
            sums = sums_of(sides)
            for _ in range(2):  # adds
                backend.moments_add(sums, left, right, threads=threads)
            found.append(arrays_of(sums, moved))
        for name, expected in found[0].items():
            size = max(float(np.abs(expected).max()), 1e-300)
            assert np.abs(found[1][name] - expected).max() <= 1e-13 * size, name
            assert found[1][name].tobytes() == found[2][name].tobytes(), name


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 257, 512])
@pytest.mark.parametrize("widths", [[1], [5, 49, 48], [241, 3], [13, 12, 30]])
def test_float32_moments_of_a_block(rows: int, widths: list[int]) -> None:
    """The same rows to the bit; all sums equal the reference's float64 ones but for products of different columns."""
    rng = np.random.default_rng(rows + len(widths))
    others = [14, *widths]
    layers = [[matrix(rng.standard_normal((rows, w)), DTYPES[k % 4]) for k, w in enumerate(side)]
              for side in (widths, others)]  # fmt: skip
    for alone in (True, False):
        found, sums = [], []
        for backend, threads in ((reference, 1), (native_cpu, 1), (native_cpu, 3)):
            seeded = np.random.default_rng(1)
            sides = [side_of(w, seeded, alone=alone) for w in ([widths] if alone else [widths, others])]
            sides = [with_probes(side, alone) for side in sides]
            units = [MomentUnits(x, s, np.full((rows, s.offsets[-1]), np.nan, dtype=np.float32))
                     for x, s in zip(layers, sides, strict=False)]  # fmt: skip
            moved = backend.moments_rows(units, threads=threads)
            sums.append(sums_of(sides))
            for _ in range(2):  # adds
                backend.moments_add(sums[-1], moved[0], None if alone else moved[1], threads=threads)
            found.append(arrays_of(sums[-1], moved))
        sizes = [np.sqrt((x.z.astype(np.float64) ** 2).sum(axis=0)) for x in moved]
        assert_float32_sums(found, sizes, [widths] if alone else [widths, others])


def with_probes(side: SideSums, alone: bool) -> SideSums:
    p = side.offsets[-1]
    signs = signs_of([s.stop - s.start for s in side.spans])
    return replace(side, rounded=np.zeros(p), signs=signs, probes=None if alone else np.zeros((PROBES, p)))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probes_are_products_times_signs(dtype: Any, alone: bool) -> None:
    """Of rows of small whole numbers every product is exact, so that nothing is missed, in other units either."""
    rng = np.random.default_rng(0)
    widths = [[30, 5, 49], [14, 241]][: 1 if alone else 2]
    for backend, threads in ((reference, 1), (native_cpu, 1), (native_cpu, 3)):
        sides = [with_probes(side_of(w, rng, alone=alone), alone) for w in widths]
        sums = sums_of(sides)
        rows = []
        for side in sides:
            z = rng.integers(-9, 9, (512, side.offsets[-1])).astype(dtype)
            rows.append(MomentRows(z, np.stack([(z[:, s].astype(float) ** 2).sum(axis=1) for s in side.spans], axis=1)))
        done = backend.moments_add(sums, rows[0], None if alone else rows[1], threads=threads)
        assert done == (backend is native_cpu and dtype is np.float32)
        assert_probed(sums, 0.0)
        moved = [replace(side, shift=side.shift + 2.0 / side.scale, scale=side.scale * 4) for side in sides]
        assert_probed(rebase(sums, 512, moved[0], None if alone else moved[1]), 1e-12)


def assert_probed(sums: MomentSums, tolerance: float) -> None:
    assert sums.probes is not None
    other = sums.right or sums.left
    assert other.signs is not None
    cross = sums.cross if sums.right is not None else np.triu(sums.cross) + np.triu(sums.cross, 1).T
    for layer, span in enumerate(other.spans):
        end = sums.left.offsets[-1] if sums.right is not None else span.stop
        want = other.signs[:, span] @ cross[:end, span].T
        assert np.abs(sums.probes[layer][:, :end] - want).max() <= tolerance * np.abs(want).max()
        assert not sums.probes[layer][:, end:].any()
    for side in (sums.left, other) if sums.right is not None else ():
        assert side.signs is not None
        assert side.probes is not None
        for gram, span in zip(side.gram, side.spans, strict=True):
            want = side.signs[:, span] @ (np.triu(gram) + np.triu(gram, 1).T)
            assert np.abs(side.probes[:, span] - want).max() <= tolerance * np.abs(want).max()


def assert_float32_sums(found: list[dict[str, Array]], sizes: list[Array], widths: list[list[int]]) -> None:
    """``sizes``: the roots of the columns' squares; a float32 product is off by 1e-6 of those of its columns."""
    ends = [np.cumsum([0, *side]) for side in widths]
    for name, expected in found[0].items():
        assert found[1][name].tobytes() == found[2][name].tobytes(), name
        error = np.abs(found[1][name] - expected)
        if name == "cross":
            narrow = [np.repeat(np.array(side) <= NARROW, side) for side in widths]
            allowed = 2e-6 * np.outer(sizes[0], sizes[-1])
            allowed[narrow[0][:, None] | narrow[-1][None, :]] = 1e-13 * np.abs(expected).max()
            if len(widths) == 1:
                np.fill_diagonal(allowed, 1e-13 * np.abs(expected).max())
        elif ".gram." in name:
            side, layer = int(name[0]), int(name.rsplit(".", 1)[1])
            size = sizes[side][ends[side][layer] : ends[side][layer + 1]]
            allowed = (2e-6 if len(size) > NARROW else 1e-13) * np.outer(size, size)
            np.fill_diagonal(allowed, 1e-13 * np.abs(expected).max())
        else:
            allowed = 0.0 if name.endswith(".z") else 1e-13 * max(float(np.abs(expected).max()), 1e-300)
        assert (error <= allowed).all(), name


def sums_of(sides: list[SideSums]) -> MomentSums:
    left, right = sides[0], sides[1] if len(sides) > 1 else None
    other = right or left
    layers, others = len(left.spans), len(other.spans)
    p, q = left.offsets[-1], other.offsets[-1]
    ay = np.zeros((layers, q))
    bx = np.zeros((others, p) if right is not None else (0, 0))
    probes = None if left.signs is None else np.zeros((others, PROBES, p))
    return MomentSums(left, right, np.zeros((p, q)), np.zeros((layers, others)), ay, bx, probes)


def arrays_of(sums: MomentSums, moved: list[MomentRows]) -> dict[str, Array]:
    out = {"cross": sums.cross, "ab": sums.sum_ab, "ay": sums.sum_ay, "bx": np.append(sums.sum_bx, 0.0)}
    if sums.right is None:  # only the upper triangle counts
        out["cross"] = np.triu(sums.cross)
    if sums.probes is not None:
        out["probes"] = sums.probes
    for k, (side, rows) in enumerate(zip([s for s in (sums.left, sums.right) if s is not None], moved, strict=True)):
        names = ("sum_z", "sum_az", "sum_a", "sum_aa")
        out |= {f"{k}.{name}": getattr(side, name) for name in names}
        out |= {f"{k}.gram.{layer}": np.triu(gram) for layer, gram in enumerate(side.gram)}
        out |= {f"{k}.z": rows.z, f"{k}.a": rows.a}
        out |= {f"{k}.{name}": array for name in ("rounded", "probes") if (array := getattr(side, name)) is not None}
    return out
