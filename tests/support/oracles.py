"""What the tests believe: similarity from its definitions in NumPy and SciPy alone. Nothing here comes from simkit.

Everything is formed the long way: features are centred in extended precision before anything is multiplied, distances
come from differences, Gram matrices are whole n × n matrices that are centred before they are multiplied. So the
rounding of a result is a few float64 units, with no cancellation to enlarge it. Sources: Gretton et al. 2005,
definition 2; Song et al. 2012, eq. 5 (as the inner product of U-centred matrices, Székely & Rizzo 2014, eq. 3.2);
Kornblith et al. 2019, eq. 5 and section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform

Array: TypeAlias = npt.NDArray[Any]
GramOf: TypeAlias = Callable[[Array], Array]


def centred_features(x: Array) -> Array:
    """Float64 features ``[n, p]`` less their means, the mean and the subtraction in extended precision."""
    wide = np.asarray(x).reshape(len(x), -1).astype(np.longdouble)
    return np.asarray(wide - wide.mean(axis=0), dtype=np.float64)


def linear(x: Array) -> Array:
    """K of the linear kernel, on centred features: both estimators are blind to a shift."""
    z = centred_features(x)
    return z @ z.T


def cosine(x: Array) -> Array:
    """K of the cosine kernel: linear on rows of unit length."""
    wide = np.asarray(x).reshape(len(x), -1).astype(np.longdouble)
    wide = wide / np.abs(wide).max(axis=1, keepdims=True)
    return linear(wide / np.sqrt((wide * wide).sum(axis=1, keepdims=True)))


def squared_distances(x: Array) -> Array:
    """Squared Euclidean distances ``[n, n]``, from differences of the rows as they are."""
    return np.asarray(squareform(pdist(np.asarray(x, dtype=np.float64), "sqeuclidean")))


def rbf(bandwidth: float) -> GramOf:
    """K of exp(-d² / (2 t² m)), m the median of all n × n squared distances."""

    def gram(x: Array) -> Array:
        d2 = squared_distances(x)
        return np.asarray(np.exp(-d2 / (2 * bandwidth**2 * np.median(d2))))

    return gram


def laplacian(bandwidth: float) -> GramOf:
    """K of exp(-d / (t √m))."""

    def gram(x: Array) -> Array:
        d2 = squared_distances(x)
        return np.asarray(np.exp(-np.sqrt(d2) / (bandwidth * math.sqrt(np.median(d2)))))

    return gram


def polynomial(degree: int, gamma: float | None, coef0: float) -> GramOf:
    """K of (γ x·y + c)^d on raw rows, centred in extended precision before it is handed on as float64."""

    def gram(x: Array) -> Array:
        wide = np.asarray(x).reshape(len(x), -1).astype(np.longdouble)
        scale = 1.0 / wide.shape[1] if gamma is None else gamma
        k = (scale * (wide @ wide.T) + coef0) ** degree
        rows = k.mean(axis=0)
        return np.asarray(k - rows[:, None] - rows[None, :] + rows.mean(), dtype=np.float64)

    return gram


def double_centred(k: Array) -> Array:
    """H K H."""
    rows = k.mean(axis=0)
    k = k - rows[:, None]
    k -= (rows - rows.mean())[None, :]
    return k


def u_centred(k: Array) -> Array:
    """K̃ whose inner products, over n(n-3), are Song's debiased estimator."""
    n = len(k)
    k = k.copy()
    np.fill_diagonal(k, 0.0)
    rows = k.sum(axis=0)
    k -= (rows / (n - 2))[:, None]
    k -= (rows / (n - 2) - rows.sum() / ((n - 1) * (n - 2)))[None, :]
    np.fill_diagonal(k, 0.0)
    return k


def centred_kernel(k: Array, estimator: str) -> Array:
    """What the estimator makes of K before inner products."""
    return double_centred(k) if estimator == "biased" else u_centred(k)


def hsic_matrix(layers: Sequence[Array], *, estimator: str, gram: GramOf = linear) -> Array:
    """HSIC of all pairs ``[L, L]``. Biased: tr(KHLH)/(n-1)². Debiased: Song et al. 2012, eq. 5."""
    n = len(layers[0])
    flat = [centred_kernel(gram(layer), estimator).ravel() for layer in layers]
    pairs = (n - 1) ** 2 if estimator == "biased" else n * (n - 3)
    table = np.array(
        [[np.vdot(a, b) / pairs if i <= j else 0.0 for j, b in enumerate(flat)] for i, a in enumerate(flat)]
    )
    return np.asarray(table + np.triu(table, 1).T)


def hsic(x: Array, y: Array, *, estimator: str, gram: GramOf = linear) -> float:
    """HSIC of two representations."""
    return float(hsic_matrix([x, y], estimator=estimator, gram=gram)[0, 1])


def cka_matrix(xs: Sequence[Array], ys: Sequence[Array], *, estimator: str, gram: GramOf = linear) -> Array:
    """CKA of every x with every y ``[L, M]``: HSIC(x, y) / √(HSIC(x, x) HSIC(y, y))."""
    table = hsic_matrix(xs if ys is xs else [*xs, *ys], estimator=estimator, gram=gram)
    own = np.sqrt(np.diag(table))
    if ys is xs:
        return np.asarray(table / own[:, None] / own[None, :])
    return table[: len(xs), len(xs) :] / own[: len(xs), None] / own[None, len(xs) :]


def cka(x: Array, y: Array, *, estimator: str, gram: GramOf = linear) -> float:
    """CKA of two representations."""
    return float(cka_matrix([x], [y], estimator=estimator, gram=gram)[0, 0])


def debiased_sum(x: Array, y: Array) -> float:
    """Song's formula as printed: tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n-1)(n-2)) - 2/(n-2)·1ᵀK̃L̃1, over n(n-3)."""
    n = len(x)
    k, m = linear(x), linear(y)
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(m, 0.0)
    one = np.ones(n)
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float(total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


@dataclass(frozen=True)
class Removal:
    """Units in order of removal, CKA(original, kept) after each, and per step every candidate's score."""

    order: list[int]
    cka: list[float]
    scores: list[dict[int, float]]


def greedy_by_evaluation(
    x: Array, units: Sequence[Array], *, estimator: str, mode: str = "greedy", choices: Sequence[int] | None = None
) -> Removal:
    """Remove, one at a time, the unit whose removal keeps CKA(x, kept columns) highest: u²/2 evaluations of CKA.

    ``units`` lists each unit's columns. Scores within 1e-12 tie to the lowest index. ``choices`` follows another
    search's order instead, scoring every candidate on the way. The score of the empty set is NaN.
    """
    z = centred_features(x)
    centre = double_centred if estimator == "biased" else u_centred
    grams = np.stack([centre(z[:, columns] @ z[:, columns].T).ravel() for columns in units])
    whole = grams.sum(axis=0)
    whole /= np.sqrt(whole @ whole)

    def score(kept: list[int]) -> float:
        part = grams[kept].sum(axis=0)
        norm = np.sqrt(part @ part)
        return float(part @ whole / norm) if kept and norm > 0 else -math.inf

    alive = list(range(len(units)))
    first = {k: score([i for i in alive if i != k]) for k in alive}
    fixed = list(choices) if choices is not None else None
    if mode == "oneshot":
        fixed = _ranked(first)
    order: list[int] = []
    values: list[float] = []
    steps: list[dict[int, float]] = []
    while alive and (fixed is None or len(order) < len(fixed)):
        scores = {k: score([i for i in alive if i != k]) for k in alive}
        pick = fixed[len(order)] if fixed is not None else _first_of_the_best(scores)
        order.append(pick)
        values.append(scores[pick] if scores[pick] > -math.inf else math.nan)
        steps.append(scores)
        alive.remove(pick)
    return Removal(order, values, steps)


def _first_of_the_best(scores: dict[int, float]) -> int:
    best = max(scores.values())
    return min(k for k, value in scores.items() if value == best or value >= best - 1e-12)


def _ranked(scores: dict[int, float]) -> list[int]:
    left, ranking = dict(scores), []
    while left:
        ranking.append(_first_of_the_best(left))
        del left[ranking[-1]]
    return ranking


@dataclass(frozen=True)
class Hazard:
    """A pair of representations on which careless arithmetic fails."""

    name: str
    x: Array
    y: Array
    debiased: float | None = None  # to six digits, where it is known beforehand
    biased: float | None = None


def relu_pair(seed: int = 0) -> tuple[Array, Array, np.random.Generator]:
    """Two float32 ReLU layers ``[512, 64]`` that share eight latent factors, and the generator that drew them."""
    r = np.random.default_rng(seed)
    z = r.standard_normal((512, 8))
    x, y = (np.maximum(z @ r.standard_normal((8, 64)) + r.standard_normal((512, 64)), 0) for _ in range(2))
    return x.astype(np.float32), y.astype(np.float32), r


def hazard_battery() -> list[Hazard]:
    """The finite rows of the battery; every other row is an error or a named NaN."""
    x, y, r = relu_pair()
    wide = [r.standard_normal((64, 2048)).astype(np.float32) for _ in range(2)]
    both = {"debiased": 0.787368, "biased": 0.793040}
    cases = [Hazard("plain", x, y, **both)]
    cases += [Hazard(f"+{c:g}", x + np.float32(c), y + np.float32(c), **both) for c in (100, 1000)]
    cases.append(Hazard("+1e5, float64", x.astype(np.float64) + 1e5, y.astype(np.float64) + 1e5, **both))
    cases += [Hazard(f"×{c:g}", x * np.float32(c), y * np.float32(c), **both) for c in (1e-4, 1e4, 1e6, 1e-20)]
    cases.append(Hazard("independent and wide", *wide, debiased=-0.006563, biased=0.968979))
    spiked, shared = x.copy(), y.copy()
    spiked[:, 0] *= 1000
    shared[:, 0] = spiked[:, 0]
    cases.append(Hazard("one feature ×1e3, shared", spiked, shared))
    for c in (1e3, 1e4):
        a, b = x.copy(), y.copy()
        a[0] *= c
        b[0] *= c
        cases.append(Hazard(f"first row ×{c:g}", a, b))
    classes = np.argsort(x[:, 0] + y[:, 1], kind="stable")
    cases.append(Hazard("sorted by class", x[classes], y[classes], **both))
    constant = x.copy()
    constant[:, 1:4] = np.float32(0.1), 7, 0
    cases.append(Hazard("constant columns", constant, y))
    return cases
