"""The hazard battery for the measures without a kernel: one float64 reference; layouts, dtypes, offsets, scales."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from simkit.compare.matrix import similarity_matrix
from simkit.errors import DegenerateWarning
from simkit.metrics.cca import R2CCA, MeanCCA, cca
from simkit.metrics.linear_regression import LinearRegression, linear_regression
from simkit.metrics.nbs import NBS, nbs
from simkit.metrics.procrustes import Procrustes, procrustes
from simkit.metrics.pwcca import PWCCA, pwcca
from simkit.metrics.svcca import SVCCA, svcca

Function = Callable[[Any, Any], float]

FUNCTIONS: dict[str, Function] = {
    "cca": lambda x, y: cca(x, y).mean,
    "r2": lambda x, y: cca(x, y).r2,
    "svcca": svcca,
    "pwcca": pwcca,
    "nbs": nbs,
    "procrustes": procrustes,
    "regression": linear_regression,
}
MEASURES = {
    "cca": MeanCCA(),
    "r2": R2CCA(),
    "svcca": SVCCA(),
    "pwcca": PWCCA(),
    "nbs": NBS(),
    "procrustes": Procrustes(),
    "regression": LinearRegression(),
}


def features() -> tuple[np.ndarray, np.ndarray]:
    """The float32 ReLU features of the battery, n = 512, p = 64."""
    r = np.random.default_rng(0)
    z = r.standard_normal((512, 8))
    x, y = (np.maximum(z @ r.standard_normal((8, 64)) + r.standard_normal((512, 64)), 0) for _ in range(2))
    return x.astype(np.float32), y.astype(np.float32)


def reference(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Every measure in plain NumPy float64; column sums are exact, by math.fsum."""
    eps = np.finfo(x.dtype).eps

    def svd(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z = z.astype(np.float64) - z[0]
        z = z / np.abs(z).max()
        z = z - np.array([math.fsum(column) / len(z) for column in z.T])
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        return z, u, s

    (zx, ux, sx), (zy, uy, sy) = svd(x), svd(y)
    qx, qy = (u[:, s > max(z.shape) * eps * s[0]] for z, u, s in ((zx, ux, sx), (zy, uy, sy)))
    tx, ty = (u[:, : 1 + int((np.cumsum(s**2) < 0.99 * (s**2).sum()).sum())] for u, s in ((ux, sx), (uy, sy)))
    a, rho, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
    alpha = np.abs((qx @ a).T @ zx).sum(axis=1)
    bures = np.linalg.norm(zx.T @ zy, "nuc") / np.linalg.norm(zx) / np.linalg.norm(zy)
    return {
        "cca": rho.mean(),
        "r2": (rho**2).mean(),
        "svcca": np.linalg.svd(tx.T @ ty, compute_uv=False).mean(),
        "pwcca": float(alpha @ rho / alpha.sum()),
        "nbs": bures,
        "procrustes": math.acos(bures),
        "regression": (np.linalg.norm(qy.T @ zx) / np.linalg.norm(zx)) ** 2,
    }


def first_row(z: np.ndarray, factor: float) -> np.ndarray:
    z = z.copy()
    z[0] *= factor
    return z


def one_feature(z: np.ndarray, shared: np.ndarray) -> np.ndarray:
    z = z.copy()
    z[:, 0] = shared * z.dtype.type(1e3)
    return z


CASES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda z, s: z,
    "+100": lambda z, s: z + z.dtype.type(100),
    "+1000": lambda z, s: z + z.dtype.type(1000),
    "+1e5": lambda z, s: z + z.dtype.type(1e5),
    "x1e-4": lambda z, s: z * z.dtype.type(1e-4),
    "x1e4": lambda z, s: z * z.dtype.type(1e4),
    "x1e6": lambda z, s: z * z.dtype.type(1e6),
    "x1e-20": lambda z, s: z * z.dtype.type(1e-20),
    "one feature x1e3": one_feature,
    "first row x1e3": lambda z, s: first_row(z, 1e3),
    "first row x1e4": lambda z, s: first_row(z, 1e4),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_battery(case: str, dtype: type) -> None:
    plain = tuple(z.astype(dtype) for z in features())
    shared = plain[0][:, 5]
    x, y = (CASES[case](z, shared) for z in plain)
    kept = x.copy(), y.copy()
    expected = reference(x, y)
    values = {name: function(x, y) for name, function in FUNCTIONS.items()}
    for name, value in values.items():
        assert value == pytest.approx(expected[name], abs=1e-10), name
    if case.startswith(("x", "+")) and (dtype is np.float64 or case != "+1e5"):
        # an offset costs float32 input its digits before simkit sees it: 6e-5 at 1000
        tolerance = {"+": 1e-4, "x": 1e-6}[case[0]] if dtype is np.float32 else 1e-9
        for name, value in reference(*plain).items():
            assert values[name] == pytest.approx(value, abs=tolerance), name
    matrices = {name: similarity_matrix({"x": x, "y": y}, measure=measure) for name, measure in MEASURES.items()}
    for name, matrix in matrices.items():
        assert matrix["x", "y"] == pytest.approx(values[name], abs=1e-13), name
        if name not in ("pwcca", "regression"):
            assert matrix["y", "x"] == pytest.approx(values[name], abs=1e-13), name
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])


@pytest.mark.parametrize("offset", [1e10, -3e14])
def test_offsets_whose_mean_float64_cannot_hold(offset: float) -> None:
    """The mean itself is rounded to 1e-6 or 0.06 here; what that leaves in the columns must be removed too."""
    x, y = (z.astype(np.float64) + offset for z in features())
    expected = reference(x, y)
    for name, function in FUNCTIONS.items():
        assert function(x, y) == pytest.approx(expected[name], abs=1e-10), name


def test_extreme_scales_give_the_same_number() -> None:
    x, y = (z.astype(np.float64) for z in features())
    for name, function in FUNCTIONS.items():
        value = function(x, y)
        assert function(x * 2.0**900, y * 2.0**-900) == value, f"{name}: powers of two change no bit"
        assert function(x * 1e150, y * 1e-200) == pytest.approx(value, abs=1e-12), name


def test_layouts_give_the_same_number() -> None:
    x, y = features()
    wide = np.zeros((1024, 128), np.float32)
    wide[::2, ::2] = x
    readonly = x.copy()
    readonly.flags.writeable = False
    swapped = x.astype(x.dtype.newbyteorder())
    for name, function in FUNCTIONS.items():
        value = function(x, y)
        for layout in (np.asfortranarray(x), wide[::2, ::2], readonly, swapped, x.reshape(512, 4, 16), x.tolist()):
            tolerance = 1e-9 if isinstance(layout, list) else 1e-13
            assert function(layout, y) == pytest.approx(value, abs=tolerance), name
        backwards = [np.ascontiguousarray(z[::-1]) for z in (x, y)]
        assert function(x[::-1], y[::-1]) == pytest.approx(function(*backwards), abs=1e-13), name
        assert function(*backwards) == pytest.approx(value, abs=1e-12), f"{name}: the order of samples is no matter"


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "int64", "bool"])
def test_narrow_types_are_read_exactly(dtype: str) -> None:
    x, y = (np.round(8 * z[:, :20]).astype(dtype) for z in features())
    wider = [z.astype(np.float64 if dtype == "int64" else np.float32) for z in (x, y)]
    for name, function in FUNCTIONS.items():
        assert function(x, y) == pytest.approx(function(*wider), abs=1e-13), name


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x, y = (torch.from_numpy(z) for z in features())
    rounded = [z.to(torch.bfloat16) for z in (x, y)]
    for name, function in FUNCTIONS.items():
        assert function(x, y.requires_grad_()) == function(x.numpy(), y.detach().numpy()), name
        expected = function(*(z.float().numpy() for z in rounded))
        assert function(*rounded) == pytest.approx(expected, abs=1e-13), name


def test_independent_wide_features() -> None:
    """n = 64, p = 2048: the CCA family is 1 whatever the data, and says so; NBS is large without a warning."""
    r = np.random.default_rng(0)
    x, y = (r.standard_normal((64, 2048)).astype(np.float32) for _ in range(2))
    for name in ("cca", "r2", "pwcca", "regression"):
        with pytest.warns(DegenerateWarning, match="rank 63 on 64 samples"):
            assert FUNCTIONS[name](x, y) == pytest.approx(1.0, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        expected = reference(x, y)
        for name, function in FUNCTIONS.items():
            assert function(x, y) == pytest.approx(expected[name], abs=1e-10), name
    assert nbs(x, y) > 0.9


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_gives_one_sentence(name: str) -> None:
    function = FUNCTIONS[name]
    x, y = features()
    broken = y.copy()
    broken[3, 7] = np.nan
    with pytest.raises(ValueError, match="y has 1 non-finite entry, the first at row 3, column 7"):
        function(x, broken)
    broken[1, 2] = -np.inf
    with pytest.raises(ValueError, match="x has 2 non-finite entries, the first at row 1, column 2"):
        function(broken, y)
    for dead in (np.zeros((512, 3)), np.full((512, 3), 0.1), np.full((512, 2), 1e10), np.ones((512, 1), bool)):
        with pytest.raises(ValueError, match="y is degenerate: every feature is constant over the samples"):
            function(x, dead)
        with pytest.raises(ValueError, match="x is degenerate"):
            function(dead, y)
    with pytest.raises(ValueError, match="x has 512 samples and y has 511"):
        function(x, y[:511])
    with pytest.raises(ValueError, match="needs at least 2 samples, not 1"):
        function(x[:1], y[:1])
    with pytest.raises(ValueError, match="needs at least 2 samples, not 1"):
        similarity_matrix({"a": x[:1]}, measure=MEASURES[name])
    with pytest.raises(ValueError, match=r"y has shape \(512,\)"):
        function(x, y[:, 0])
    with pytest.raises(ValueError, match="it is empty"):
        function(x[:, :0], y)
    with pytest.raises(TypeError, match="complex64"):
        function(x.astype(np.complex64), y)
    with pytest.raises(TypeError, match="object"):
        function(x, y.astype(object))


@pytest.mark.parametrize("name", MEASURES)
def test_a_matrix_names_the_layer_at_fault(name: str) -> None:
    x, y = features()
    broken = y.copy()
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="fc2 has 1 non-finite entry"):
        similarity_matrix({"fc1": x, "fc2": broken}, measure=MEASURES[name])
    matrix = similarity_matrix({"fc1": x, "dead": x * 0}, {"fc2": y}, measure=MEASURES[name])
    assert matrix.degenerate == {("row", "dead"): "every feature is constant over the samples"}
    assert np.isnan(matrix["dead", "fc2"])
    assert matrix["fc1", "fc2"] == pytest.approx(FUNCTIONS[name](x, y), abs=1e-13)
