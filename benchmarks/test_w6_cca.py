"""W6: mean CCA, PWCCA, SVCCA and NBS in float64, by condition of the features."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import simkit as sk

from .cca_rivals import PUBLISHED, TORCH, Call, Pair, published
from .conftest import Measure
from .features import cold_sets
from .protocol import Contestant, Missing, Workload, finite
from .rivals import from_package
from .truth import Floats, centred

FULL, SMALL = (10_000, 512), (1500, 64)
CONDITIONS = (1e2, 1e4, 1e8)
REPSIM_AT = 1e4  # it takes six minutes or twelve, at any condition
PATIENT = "SIMKIT_PATIENT"  # the environment variable that has them spent


def pair(seed: int, n: int, p: int, condition: float) -> Pair:
    """Features whose singular values fall evenly from 1 to 1 / condition, and whose correlations are 0.2 to 1.

    Both are known by construction, up to the rounding of the construction itself, eps · condition.
    """
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 2 * p))
    q = np.linalg.qr(z - z.mean(axis=0))[0]
    rho = correlations(p)
    bases = q[:, :p], q[:, :p] * rho + q[:, p:] * np.sqrt(1 - rho * rho)
    spectrum = np.geomspace(1, 1 / condition, p)
    turns = [np.linalg.qr(rng.standard_normal((p, p)))[0] for _ in range(4)]
    x, y = (base @ turns[k] * spectrum @ turns[k + 1].T for base, k in zip(bases, (0, 2), strict=True))
    return x, y


def correlations(p: int) -> Floats:
    """The canonical correlations of :func:`pair`."""
    return np.linspace(0.99, 0.2, p)


def numpy_cca(inputs: Pair) -> float:
    """Mean CCA by QR and SVD."""
    x, y = (centred(z) for z in inputs)
    qx, qy = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    return float(np.linalg.svd(qx.T @ qy, compute_uv=False).mean())


def numpy_pwcca(inputs: Pair) -> float:
    """PWCCA by QR and SVD."""
    x, y = (centred(z) for z in inputs)
    qx, qy = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    u, rho, _ = np.linalg.svd(qx.T @ qy)
    alpha = np.abs((qx @ u).T @ x).sum(axis=1)
    return float(alpha @ rho / alpha.sum())


def numpy_svcca(inputs: Pair) -> float:
    """SVCCA by two SVDs."""
    kept = []
    for z in inputs:
        u, s, _ = np.linalg.svd(centred(z), full_matrices=False)
        explained = np.cumsum(s * s)
        kept.append(u[:, : int(np.searchsorted(explained, 0.99 * explained[-1])) + 1])
    return float(np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean())


def numpy_nbs(inputs: Pair) -> float:
    """NBS by the nuclear norm of the cross-product."""
    x, y = (centred(z) for z in inputs)
    return float(np.linalg.norm(x.T @ y, "nuc") / np.linalg.norm(x) / np.linalg.norm(y))


def eigen_cca(inputs: Pair) -> float:
    """Mean CCA by whitening covariances with their eigenvectors, those above 1e-12: fast and, at a condition, wrong."""
    x, y = (centred(z) for z in inputs)

    def whitening(z: Floats) -> Floats:
        values, vectors = np.linalg.eigh(z.T @ z)
        keep = values > 1e-12 * values[-1]
        result: Floats = vectors[:, keep] / np.sqrt(values[keep])
        return result

    return float(np.linalg.svd(whitening(x).T @ (x.T @ y) @ whitening(y), compute_uv=False).mean())


MEASURES: dict[str, tuple[Call, Call]] = {
    "mean CCA": (lambda inputs: sk.cca(*inputs).mean, numpy_cca),
    "PWCCA": (lambda inputs: sk.pwcca(*inputs), numpy_pwcca),
    "SVCCA": (lambda inputs: sk.svcca(*inputs), numpy_svcca),
    "NBS": (lambda inputs: sk.nbs(*inputs), numpy_nbs),
}


@pytest.mark.parametrize("condition", CONDITIONS, ids="{:.0e}".format)
@pytest.mark.parametrize("name", MEASURES)
def test_w6_cca(measure: Measure, full: bool, name: str, condition: float) -> None:
    """Each measure at each condition: the error is to the Householder route in LAPACK, or to the constructed value."""
    n, p = FULL if full else SMALL
    sets = cold_sets(lambda seed: pair(seed, n, p, condition), 2 * 8 * n * p)
    call, formula = MEASURES[name]
    truth = correlations(p).mean() if name == "mean CCA" else formula(sets[0])
    workload = Workload(
        key=f"W6 {name} {condition:.0e}",
        title=f"{name} of two layers of {p}, n = {n}, float64, condition {condition:.0e}",
        sizes={"n": n, "p": p, "condition": condition},
        inputs=sets,
        error=lambda answer: abs(answer - truth),
        tolerance=max(2e-10, 1e-16 * condition),
        precision="float64",
        multiply_adds=(1 if name == "NBS" else 2) * n * p * p,
        bytes=2 * 8 * n * p,
    )
    rivals: list[Contestant | Missing] = [Contestant("NumPy" if name == "NBS" else "NumPy, QR and SVD", formula)]
    if name == "mean CCA":
        rivals.append(Contestant("NumPy, eigenvectors of the covariances, cut at 1e-12", eigen_cca))
    rivals.append(from_package("torch", Contestant("torch", TORCH[name])))
    for module, measures in PUBLISHED.items():
        if name in measures and (module != "repsim" or condition == REPSIM_AT):
            rivals.append(_published(module, name, full))
    result = measure(workload, Contestant("simkit", call), rivals)
    if name == "mean CCA":
        result["notes"].append(sk.cca(*sets[0]).plan.steps[0].route)


def _published(module: str, name: str, full: bool) -> Contestant | Missing:
    package = module.split(".", maxsplit=1)[0]
    note = "it keeps other directions than those of 99% of the variance" if name == "SVCCA" else ""
    rival = Contestant(package, published(module, name), once=full and package == "repsim", note=note)
    patient = package != "repsim" or not full or os.environ.get(PATIENT) == "1"
    return from_package(module, rival) if patient else Missing(package, f"minutes: set {PATIENT}=1")


def test_errors_by_condition(keep: Callable[[dict[str, Any]], None], full: bool) -> None:
    """Mean CCA at conditions from 1 to 1e12 against constructed correlations: within 2e-10, or eps · condition."""
    n, p = FULL if full else SMALL
    rows = []
    for condition in 10.0 ** np.arange(0, 13, 2 if full else 1):
        inputs = pair(0, n, p, condition)
        found = sk.cca(*inputs)
        means = {"simkit": found.mean, "NumPy, QR and SVD": numpy_cca(inputs), "NumPy, eigenvectors": eigen_cca(inputs)}
        errors = {name: abs(mean - correlations(p).mean()) for name, mean in means.items()}
        row = {
            "measure": "mean CCA",
            "condition": condition,
            "errors": {name: finite(error) for name, error in errors.items()},
            "route": found.plan.steps[0].route,
        }
        rows.append(row | {"kept": len(found.correlations)})
        assert len(found.correlations) == p, rows[-1]  # the rank rule takes directions below p · eps for rounding
        worst = float(np.abs(found.correlations - correlations(p)).max())
        assert errors["simkit"] <= max(2e-10, 1e-16 * condition), rows[-1]
        assert worst <= max(1e-8, 1e-14 * condition), rows[-1]
    keep({"kind": "errors", "key": "W6 errors", "sizes": {"n": n, "p": p}, "rows": rows, "full": full})
