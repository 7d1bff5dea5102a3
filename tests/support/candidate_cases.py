"""Problems of candidates that the emulator and a device share, and agreement with the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import reference
from simkit.backends.base import CandidateProblem, CandidateSums, Estimator, Levels
from simkit.backends.cuda_candidates import DeviceFeatures, hold
from simkit.backends.cuda_device import array_on, cuda

Array = npt.NDArray[Any]
KERNELS = (sk.RBF(), sk.Laplacian(), sk.Polynomial(), sk.Polynomial(degree=6, coef0=-0.5))
NAMES = ("rbf", "laplacian", "cubic", "sextic")
NONE = np.array([-1])


def problem_of(
    z: Array, kernel: Any, estimator: Estimator = "debiased", widths: tuple[int, ...] | None = None
) -> CandidateProblem:
    """Units of z [p, n], one feature each or as wide as ``widths`` says, with the centre of their kernel."""
    p, n = z.shape
    offsets = np.concatenate([[0], np.cumsum(widths or (1,) * p)]).astype(np.int64)
    if isinstance(kernel, sk.Polynomial):
        z = z.astype(np.float64)
    length = 1.0 / p if isinstance(kernel, sk.Polynomial) else float("nan")
    bare = CandidateProblem(z, offsets, kernel, length, estimator, np.zeros(n))
    return centred(bare)


def centred(bare: CandidateProblem) -> CandidateProblem:
    """With the centre of the kernel of all units."""
    n = bare.z.shape[1]
    rows = reference.candidate_sums(bare, np.arange(len(bare.offsets) - 1), NONE).rows
    assert rows is not None
    each, both = (n - 2, (n - 1) * (n - 2)) if bare.estimator == "debiased" else (n, n * n)
    return dataclasses.replace(bare, centre=rows[0] / each - float(rows.sum()) / both / 2)


def about(problem: CandidateProblem, level: float) -> Levels:
    """Of a kernel whose rows are all about one level."""
    small = isinstance(problem.kernel, sk.Polynomial | sk.CustomKernel) or level <= 0.5
    return Levels(np.full(problem.z.shape[1], (level - (not small)) / 2), small)


def features(p: int, n: int, spread: float = 1.5, seed: int = 0) -> Array:
    """z [p, n] whose distances are about ``spread``²: the size that the kernels' units give them."""
    r = np.random.default_rng([seed, n, p])
    z = np.maximum(r.standard_normal((p, 4)) @ r.standard_normal((4, n)) + r.standard_normal((p, n)), -0.25)
    return z * (spread / np.sqrt(2 * p) / z.std())


def on_device(problem: CandidateProblem) -> CandidateProblem:
    """The same problem, its z on the device."""
    p, n = problem.z.shape
    units = cuda().Units(
        x=array_on(as_matrix(problem.z.T), cuda().current_device()),
        columns=np.arange(p),
        shift=np.zeros(p),
        scale=1.0,
        unit=1.0,
        double=problem.z.dtype == np.float64,
    )
    return dataclasses.replace(problem, z=DeviceFeatures(units, (p, n), problem.z.dtype))


def held(problem: CandidateProblem, *, at_once: int = 64, packed: int = 2**30, room: int = 2**26) -> CandidateProblem:
    """The problem on the device and what candidates need there, in so much room."""
    there = dataclasses.replace(on_device(problem), workspace=room)
    return dataclasses.replace(there, packed=hold(there, at_once, packed))


def level_of(problem: CandidateProblem, kept: Array) -> float:
    """The mean of the kernel of the kept units."""
    found = reference.candidate_sums(problem, kept, NONE)
    n = problem.z.shape[1]
    return float(found.totals[0]) / (n * (n - 1) if problem.estimator == "debiased" else n * n)


def agrees(
    got: CandidateSums, problem: CandidateProblem, kept: Array, candidates: Array, level: float | Levels
) -> float:
    """Assert that the sums are the reference's, in the units of ``tolerance``; returns the worst error of them."""
    levels = level if isinstance(level, Levels) else about(problem, level)
    want = reference.candidate_sums(problem, kept, candidates, levels=levels)
    assert want.rows is not None
    n, p = problem.z.shape[1], problem.z.shape[0]
    dtype = problem.z.dtype
    centred = reference.pack_centred(problem, room=2**62)
    bare = reference.candidate_sums(problem, kept, candidates)
    values = np.sqrt(bare.squares / n**2)  # of K, before its level is taken off
    size, norms = n * values, np.sqrt(want.squares)
    errors = [
        assert_close(got.cross, want.cross, "candidates", dtype, n, p, scale=size * np.linalg.norm(centred)),
        assert_close(got.squares, want.squares, "candidates", dtype, n, p, scale=size * (norms + 1e-6 * size)),
        assert_close(got.totals, want.totals, "candidates", dtype, n, p, scale=n * size),
    ]
    rows = np.linalg.norm(want.rows, axis=1)
    scale = np.sqrt(n) * size * (rows + 1e-6 * np.sqrt(n) * size)
    errors.append(assert_close(got.row_squares, want.row_squares, "candidates", dtype, n, p, scale=scale))
    if got.rows is not None:
        errors.append(assert_close(got.rows, want.rows, "candidates", dtype, n, p, scale=size[:, None]))
    return max(errors)
