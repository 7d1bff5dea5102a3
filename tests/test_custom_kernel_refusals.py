"""What is no kernel, values that a kernel may not have, and what a kernel is as a value."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import simkit as sk
from simkit.backends import native_cpu
from simkit.kernels import check_kernel

numba = pytest.importorskip("numba")

from custom_kernels import BACKENDS, ESTIMATORS, MIXED, PRODUCT, jitted, mixed, pair, product_alone, tiled  # noqa: E402


def numberless(product: float, squared_distance: float) -> str:
    return "one"


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: 3, r"CustomKernel\(f=\) must be a function of product and squared_distance, not 3"),
    (lambda: None, r"CustomKernel\(f=\) must be a function of product and squared_distance, not None"),
    (
        lambda: numba.cfunc("f8(f8, f8)")(product_alone),
        r"CustomKernel\(f=product_alone\) has the signature \(float64, float64\) -> float64, and must have "
        r"\(float64\*, float64\*, float64\*, int64\) -> none",
    ),
    (lambda: numberless, r"CustomKernel\(f=numberless\) must return a real number, not .*"),
    (lambda: lambda p, d: 1j * p, r"CustomKernel\(f=.*<lambda>\) must return a real number, not complex128"),
    (lambda: lambda p: p, r"numba cannot compile CustomKernel\(f=.*<lambda>\): .*too many positional arguments.*"),
    (lambda: lambda p, d: undefined(p), r"numba cannot compile CustomKernel\(f=.*<lambda>\): .*'undefined'.*"),  # type: ignore[name-defined]  # noqa: F821
    (lambda: np.add, r"numba cannot compile CustomKernel\(f=add\): .* is not a function .*"),
    (lambda: max, r"numba cannot compile CustomKernel\(f=max\): .* is not a function .*"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED)
def test_what_is_no_kernel(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{sentence}$") as caught:
        sk.CustomKernel(make())
    assert "\n" not in str(caught.value)


def test_numba_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"^CustomKernel needs numba \(.*\): pip install 'simkit\[numba\]'$"):
        sk.CustomKernel(mixed)


@pytest.mark.parametrize("given", [mixed, sk.CustomKernel])
def test_a_bare_function_is_no_kernel(given: Any) -> None:
    with pytest.raises(TypeError, match=r"write simkit.CustomKernel\(f\) for a function f of product and squared_dist"):
        check_kernel(given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_are_not_finite(backend: str) -> None:
    x, y = pair(300, 5, 6)
    inverse = sk.CustomKernel(lambda product, d: 1 / d)
    for threads in (1, 3):
        with pytest.raises(ValueError, match=r"is inf for x, at product=\d.* and squared_distance=0.0: a kernel must"):
            sk.cka(x, y, kernel=inverse, backend=backend, threads=threads)
    y[280], y[290] = 100.0, -100.0
    root = sk.CustomKernel(lambda product, d: math.sqrt(product + 5e4))
    want = r"^CustomKernel\(.*\) is nan for y, at product=-60000.0 and squared_distance=240000.0: a kernel must"
    told = set()
    for threads in (1, 2, 3):
        with pytest.raises(ValueError, match=want) as caught:
            sk.hsic(x, y, kernel=root, backend=backend, threads=threads)
        told.add(str(caught.value))
    assert len(told) == 1
    with pytest.raises(
        ValueError, match=r"is 2e\+144 for x, at product=.*: a kernel must be finite, and below 1e\+144"
    ):
        sk.cka(x, y, kernel=sk.CustomKernel(lambda product, d: 2e144), backend=backend)
    with pytest.raises(ValueError, match=r" is nan for second, at "):
        sk.similarity_matrix({"a": x}, {"first": x, "second": y}, measure=sk.CKA(root), backend=backend)
    with pytest.raises(ValueError, match=r" is nan for b, at "):
        sk.similarity_matrix({"a": x, "b": y}, measure=sk.CKA(root), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_counts_as_nan(backend: str) -> None:
    x, y = pair(100, 5, 6)
    divides = sk.CustomKernel(numba.njit(lambda product, d: 1 / d))  # numba's own default: ZeroDivisionError
    for threads in (1, 3):
        with pytest.raises(
            ValueError, match=r" is nan for x, at .*: a kernel must be finite, and below 1e\+144 in size$"
        ):
            sk.cka(x, y, kernel=divides, backend=backend, threads=threads)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_in_a_greedy_order() -> None:
    with pytest.raises(
        ValueError, match=r" is inf for conv, at .*: a kernel must be finite, and below 1e\+144 in size$"
    ):
        sk.greedy_cka({"conv": pair(30, 4, 1)[0]}, kernel=sk.CustomKernel(lambda product, d: 1 / d))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_overflows_or_is_constant(backend: str) -> None:
    x, y = pair(40, 5, 6)
    with pytest.raises(ValueError, match=r"^y overflows the products that CustomKernel\(mixed\) is given: rescale its"):
        sk.cka(x, 1e155 * y, kernel=MIXED, backend=backend)
    with pytest.raises(ValueError, match=r"^y is degenerate: every feature is constant over the samples$"):
        sk.cka(x, np.ones((40, 2)), kernel=MIXED, backend=backend)
    assert sk.hsic(x, np.ones((40, 2)), kernel=MIXED, backend=backend) == 0.0
    uniform = "its kernel differs so little from one pair of samples to another that its squares vanish in float64"
    for value in (0.0, 1.0, 1e-170):
        constant = sk.CustomKernel(lambda product, d, value=value: value)
        for estimator in ESTIMATORS:
            with pytest.raises(ValueError, match=rf"^x is degenerate: ({uniform}|its \w+ HSIC with itself is zero.*)$"):
                sk.cka(x, y, kernel=constant, estimator=estimator, backend=backend)
            if value == 1.0:
                with pytest.raises(ValueError, match=r"^x is degenerate: its \w+ HSIC with itself is zero within"):
                    sk.hsic(x, y, kernel=constant, estimator=estimator, backend=backend)
            else:
                assert abs(sk.hsic(x, y, kernel=constant, estimator=estimator, backend=backend)) <= 1e-30
    matrix = sk.similarity_matrix({"x": x, "y": y}, measure=sk.CKA(constant), backend=backend)
    assert ("row", "x") in matrix.degenerate
    assert np.isnan(matrix.values).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [40, 600])
def test_a_kernel_that_rounding_alone_tells_from_a_constant(n: int, estimator: Any, backend: str) -> None:
    x, y = pair(n, 5, 6)
    zero = f"^x is degenerate: its {estimator} HSIC with itself is zero within rounding$"
    for kernel in (
        sk.CustomKernel(lambda product, d: 1 + 1e-16 * d),
        sk.CustomKernel(lambda product, d: 1e16 + product),
    ):
        for measure in (sk.cka, sk.hsic):
            with pytest.raises(ValueError, match=zero):
                measure(x, y, kernel=kernel, estimator=estimator, backend=backend)


def test_the_binding_checks_its_function() -> None:
    block: dict[str, Any] = {"x": np.ones((3, 2)), "dtype": "float64", "mapped": False, "shift": np.zeros(2)}
    block |= {"row_scale": None, "scale": 1.0, "length": 1.0, "coef0": 0.0, "degree": 1, "owner": None}
    for kernel, function in (("custom", 0), ("rbf", MIXED.address)):
        with pytest.raises(ValueError, match=r"^a custom kernel is a function$"):
            native_cpu._core().Block(**block, kernel=kernel, function=function)


# As a value.


def test_kernels_of_one_function_are_equal() -> None:
    assert sk.CustomKernel(mixed) == MIXED != PRODUCT
    assert len({MIXED, sk.CustomKernel(mixed), sk.CustomKernel(tiled), sk.CustomKernel(tiled)}) == 2
    assert repr(MIXED) == "CustomKernel(mixed)"
    assert repr(sk.CustomKernel(tiled)) == "CustomKernel(tiled)"
    assert repr(sk.CustomKernel(jitted)) == "CustomKernel(jitted)"
    assert copy.copy(MIXED) is copy.deepcopy(MIXED) is MIXED
    assert copy.deepcopy(sk.CKA(sk.CustomKernel(tiled))) == sk.CKA(sk.CustomKernel(tiled))
    with pytest.raises(AttributeError):
        MIXED.f = jitted  # type: ignore[misc]


def test_what_a_kernel_is_pickled_as() -> None:
    x, y = pair(50, 4, 5)
    for kernel in (MIXED, sk.CustomKernel(jitted)):
        again = pickle.loads(pickle.dumps(sk.CKA(kernel)))
        assert sk.cka(x, y, kernel=again.kernel) == sk.cka(x, y, kernel=kernel)
    assert pickle.loads(pickle.dumps(MIXED)) == MIXED
    with pytest.raises(
        TypeError, match=r"^CustomKernel\(tiled\) cannot be pickled: it holds a cfunc, which is machine"
    ):
        pickle.dumps(sk.CustomKernel(tiled))
    with pytest.raises(TypeError, match=r"cannot be pickled: its function is not at the top level of a module$"):
        pickle.dumps(sk.CustomKernel(lambda product, d: d))


def test_elementwise() -> None:
    products, distances = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    want = [[mixed(products[i, j], distances[j]) for j in range(3)] for i in range(2)]
    assert MIXED(products, distances) == pytest.approx(np.array(want), rel=1e-15)
    assert MIXED(products.T[::-1], distances[:, None]).shape == (3, 2)
