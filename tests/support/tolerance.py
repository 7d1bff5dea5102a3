"""How far a result may be from its reference: one table, derived, by operation, input precision and sizes.

An entry is min(demand, units · eps), eps the spacing of the precision that products are formed in and ``units`` a
count of roundings that depends on the lengths of the sums. The demand is what simkit promises; no entry is above it.

* **cka, float32**: z = x - mean is rounded to float32, eps/2 an entry, and equal entries (the zeros of a ReLU) round
  alike, so nothing averages: K_ij carries 2 · eps/2, a product of two Gram entries twice that, and a ratio to
  √(S_xx S_yy) twice that again: 4 eps. The panel adds 256 products in at least 16 lanes before float64 takes over:
  at most 16 additions, a random walk of 4 · eps/2 = 2 eps; the dot product over p in lanes of 16 the same between
  random terms, and averaged over n² entries it stays below that. 8 eps = 9.5e-7 in all, below the demand of 1e-6.
* **cka, float64**: the same 8 eps, √p more for dot products, and a loss of at most 1e4: what cancels further than
  1e-3 (feature space) or 1e-4 (sample space) is formed again, centred. 1e4 · (8 + √p) · eps, at most the demand of
  1e-10.
* **cka, float32 on tensor cores**: high + low of an entry miss 0 or, for one value in four, 1 eps; with the rounding of
  z 0.58 eps rms, columns independently, so that over 16 or more (fewer are multiplied plainly) a K_ij carries
  √2 · 0.58/√16 = 0.2 eps, three sigmas 0.6. low · low is at most 2 eps of a product, 2^-22/7 = 0.3 eps on average where
  both entries are equal, of either sign else: 0.9 in all, below the 1 eps above. Sums of eight are cut towards zero, by
  1 eps at most: K shrinks by half an eps, which a ratio does not see (hsic does, by twice that), and what differs from
  pair to pair averages over p/8 sums. The panel is plain. 8 eps stand.
* **cka, 16-bit layers as they are**: entries are not rounded and products exact, so that the 4 eps of equal entries are
  not there. Sums of sixteen are cut as those of eight above; 64 of them in one running sum are a random walk of 4 eps,
  8 by the size of a K that is up to twice its centred one, averaged over n² entries. 8 eps stand.
* **hsic**: relative to √(HSIC(x, x) HSIC(y, y)); half of cka's ratio, so cka's entry.
* **stream**: as cka, float64, whatever the input; √n more for sums over rows. Demand 1e-9.
* **fast stream**: with float32 products; what float64 sums of the same products show may be off by more than the demand
  of 1e-6 is refused. 128 products in a running sum are off by √128 · eps/2 / √3 = 3.3 eps where that is random, twice
  that for 2 sigmas, and a score by twice that again; what is left of products by their mean, nine variances at the
  most, adds nothing to their ratio on the features that are measured here.
* **merge**: two orders of the same float64 additions. Demand 1e-12 on ordinary features.
* **greedy**: CKA after a removal. float64: sums are formed afresh before half of them is gone, so as cka. Demands
  1e-9 (float64) and 1e-6 (float32).
* **products**: centred cross-products relative to √(G_ii G_jj). float32: 1,024 rows in 16 lanes, a random walk of
  4 eps; columns with mean² ≤ var stay as they are, so that sums are up to twice their centred size: 8 eps. Equal
  entries, such as those of columns that take two values, round alike: up to 40 eps more.
  On tensor cores 128 sums of eight: 3.3 eps of a random walk and half an eps of their cuts, less than the 4.
  float64: 2 (8 + √n).
* **device products**: the same on a device, where 256 rows go into one running sum: equal entries round alike, half an
  eps of what has been added, on average half of it, 64 eps of sums up to twice their centred size: 128 eps. float64:
  1,024 rows of centred columns: 256 eps.
* **mean**: relative to the largest |x|: float64 sums of n terms, √n eps. **norms**: relative, √p. **median**:
  relative; distances below 1e-5 of |x_i|² + |x_j|² are formed again from differences, so 4e5 eps (of two norms and a
  product).
* **candidates**: sums over n² pairs of kernels of what one unit less leaves, as if every K had size k = √(Σ K²/n²)
  before its level is taken off, relative to n k and to the norm of what it is multiplied by. float32: a distance is
  summed over 64 features at a time, a random walk of 4 eps of it, and 2^-q turns that into at most
  ln 2 · q 2^-q · 4 = 2 eps; a candidate's own part leaves a tenth of q at the least, 10 times that where it does, a
  small share of the pairs; 2 ulp for 2^x, 3 eps for 16 pairs in 16 threads: 16 eps. float64: what is left of a
  distance may be 1e-4 of it, so 1e4 times as many.
* **partners**: cosines and scores, of order one, of p float64 products of entries that are rounded twice each: a random
  walk of √p, on either side, and the norms'. What ties is 1e-12.
* **extremes**: extreme squared distances of unit rows, 2 - 2 u·v, from products: 256 columns in one running sum, the
  sums of p / 256 pieces, two rounded rows and a few more: (268 + p / 256) eps / 2, twice.
* **dual**: relative: n terms of like size, added one after the other by one side and in pieces by the other: at most
  n eps / 2 each; the terms themselves, 1 / size raised by 1 less a sum of such terms, the same again.

``scale`` in :func:`assert_close` is the natural size of a result that is not of order one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Op: TypeAlias = Literal[
    "cka",
    "hsic",
    "stream",
    "fast stream",
    "merge",
    "greedy",
    "products",
    "device products",
    "mean",
    "norms",
    "median",
    "candidates",
    "partners",
    "extremes",
    "dual",
]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
FLOAT32 = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Entry:
    """The promise, the precision of the products and the number of roundings for sums over n rows, p features."""

    demand: float
    eps: float
    units: Callable[[int, int], float]


def _cka64(n: int, p: int) -> float:
    return 1e4 * (8 + math.sqrt(p))


def _stream(n: int, p: int) -> float:
    return 1e4 * (8 + math.sqrt(p) + math.sqrt(n))


TABLE: dict[tuple[str, str], Entry] = {
    ("cka", "float32"): Entry(1e-6, EPS["float32"], lambda n, p: 8),
    ("cka", "float64"): Entry(1e-10, EPS["float64"], _cka64),
    ("hsic", "float32"): Entry(1e-6, EPS["float32"], lambda n, p: 8),
    ("hsic", "float64"): Entry(1e-10, EPS["float64"], _cka64),
    ("stream", "float32"): Entry(1e-9, EPS["float64"], _stream),
    ("stream", "float64"): Entry(1e-9, EPS["float64"], _stream),
    ("fast stream", "float32"): Entry(1e-6, EPS["float32"], lambda n, p: 8),
    ("fast stream", "float64"): Entry(1e-6, EPS["float32"], lambda n, p: 8),
    ("merge", "float32"): Entry(1e-12, EPS["float64"], _stream),
    ("merge", "float64"): Entry(1e-12, EPS["float64"], _stream),
    ("greedy", "float32"): Entry(1e-6, EPS["float32"], lambda n, p: 8),
    ("greedy", "float64"): Entry(1e-9, EPS["float64"], lambda n, p: 1e6),
    ("products", "float32"): Entry(1e-5, EPS["float32"], lambda n, p: 48),
    ("products", "float64"): Entry(1e-12, EPS["float64"], lambda n, p: 2 * (8 + math.sqrt(n))),
    ("device products", "float32"): Entry(1e-5, EPS["float32"], lambda n, p: 128),
    ("device products", "float64"): Entry(1e-12, EPS["float64"], lambda n, p: 256),
    ("mean", "float32"): Entry(1e-12, EPS["float64"], lambda n, p: 8 + math.sqrt(n)),
    ("mean", "float64"): Entry(1e-12, EPS["float64"], lambda n, p: 8 + math.sqrt(n)),
    ("norms", "float32"): Entry(1e-12, EPS["float64"], lambda n, p: 8 + math.sqrt(p)),
    ("norms", "float64"): Entry(1e-12, EPS["float64"], lambda n, p: 8 + math.sqrt(p)),
    ("median", "float32"): Entry(1e-9, EPS["float64"], lambda n, p: 4e5),
    ("median", "float64"): Entry(1e-9, EPS["float64"], lambda n, p: 4e5),
    ("partners", "float32"): Entry(1e-12, EPS["float64"], lambda n, p: 16 + 2 * math.sqrt(p)),
    ("partners", "float64"): Entry(1e-12, EPS["float64"], lambda n, p: 16 + 2 * math.sqrt(p)),
    ("candidates", "float32"): Entry(2e-6, EPS["float32"], lambda n, p: 16),
    ("candidates", "float64"): Entry(1e-10, EPS["float64"], lambda n, p: 16e4),
    ("extremes", "float32"): Entry(1e-4, EPS["float32"], lambda n, p: 268 + p / 256),
    ("extremes", "float64"): Entry(1e-9, EPS["float64"], lambda n, p: 268 + p / 256),
    ("dual", "float32"): Entry(1e-9, EPS["float64"], lambda n, p: 2 * n),
    ("dual", "float64"): Entry(1e-9, EPS["float64"], lambda n, p: 2 * n),
}


def tolerance(op: Op, dtype: Any, n: int, p: int) -> float:
    """The largest admissible error of ``op`` on input of ``dtype`` with n rows and p features.

    Raises:
        KeyError: an operation or a type that the table does not have.
    """
    name = "bfloat16" if dtype == "bfloat16" else np.dtype(dtype).name
    entry = TABLE[op, "float32" if name in FLOAT32 else name]
    return min(entry.demand, entry.units(n, p) * entry.eps)


def worst_error(actual: npt.ArrayLike, reference: npt.ArrayLike, *, scale: npt.ArrayLike = 1.0) -> float:
    """max |actual - reference| / scale; infinite where shapes, NaN or infinities differ."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.inf
    known = ~np.isnan(b)
    if not (np.isfinite(a[known]).all() and np.isfinite(b[known]).all()):
        return math.inf
    error = np.abs(a - b) / np.broadcast_to(np.asarray(scale, dtype=np.float64), a.shape)
    return float(error[known].max(initial=0.0))


def assert_close(
    actual: npt.ArrayLike,
    reference: npt.ArrayLike,
    op: Op,
    dtype: Any,
    n: int,
    p: int,
    *,
    scale: npt.ArrayLike = 1.0,
) -> float:
    """Assert that every entry is within the table's tolerance, in units of ``scale``; returns the worst error.

    NaN must meet NaN; anything infinite fails.
    """
    error, allowed = worst_error(actual, reference, scale=scale), tolerance(op, dtype, n, p)
    assert error <= allowed, f"{op}, {dtype}, n={n}, p={p}: off by {error:.3g}, allowed {allowed:.3g}"
    return error
