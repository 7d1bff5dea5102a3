"""Native really runs: every op on the backend that the plan names; one place chooses, no fallback is silent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import choose as choosing
from simkit.backends import native_cpu, reference
from simkit.backends.base import OPS, Plan, Step
from simkit.backends.choose import ON_HOST, PREFERENCE, _warn_slow, choose
from simkit.backends.routes import check_threads, default_threads, plan_pair_sums
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.merging import merging
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def x() -> Array:
    return np.random.default_rng(0).standard_normal((600, 24)).astype(np.float32)


def stream(x: Array, **options: Any) -> sk.SimilarityMatrix:
    s = sk.StreamingCKA(**options)
    s.update({"x": x})
    return s.compute()


# For every op, a public call whose plan names it.
CALLS: dict[str, Callable[..., Any]] = {
    "column_stats": lambda x, **o: sk.similarity_matrix({"x": x}, **o),
    "row_norms": lambda x, **o: sk.similarity_matrix({"x": x}, measure=sk.CKA(sk.Cosine()), **o),
    "distance_median": lambda x, **o: sk.similarity_matrix({"x": x}, measure=sk.CKA(sk.RBF()), **o),
    "pair_sums": lambda x, **o: sk.similarity_matrix({"x": x}, **o),
    "column_products": lambda x, **o: sk.greedy_cka(x, **o),
    "gather_columns": lambda x, **o: sk.greedy_cka(x, units=np.arange(24) % 6, **o),
    "eliminate": lambda x, **o: sk.greedy_cka(x, units=6, **o),
    "unit_features": lambda x, **o: sk.greedy_cka(x, units=6, kernel=sk.RBF(), **o),
    "candidate_sums": lambda x, **o: sk.greedy_cka(x, units=6, kernel=sk.RBF(), **o),
    "pack_centred": lambda x, **o: sk.greedy_cka(x, units=6, kernel=sk.Laplacian(), **o),
    "adjacency": lambda x, **o: sk.filter_graph(x, **o),
    "components": lambda x, **o: sk.filter_graph(x, **o),
    "cover": lambda x, **o: sk.redundancy(x, **o),
    "largest_entries": stream,
    "moments_rows": stream,
    "moments_add": stream,
    "nearest_rows": lambda x, **o: merging(x, np.arange(len(x)) % 2 == 0, **o),
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Counts what truly runs: (backend, op)."""
    counts: Counter[tuple[str, str]] = Counter()

    def counted(run: Callable[..., Any], key: tuple[str, str]) -> Callable[..., Any]:
        def count(*args: Any, **options: Any) -> Any:
            counts[key] += 1
            return run(*args, **options)

        return count

    for module in (native_cpu, reference):
        for op in OPS:
            monkeypatch.setattr(module, op, counted(getattr(module, op), (module.NAME, op)))
    return counts


def test_every_op_has_a_call() -> None:
    assert tuple(CALLS) == OPS
    assert PREFERENCE == ("native_cuda", "native_cpu", "reference")
    assert PREFERENCE[1:] == ON_HOST


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("asked", "expected"), [(None, "native_cpu"), ("native_cpu", "native_cpu"), ("reference", "reference")]
)
def test_the_plan_names_the_backend_that_ran(
    x: Array, ran: Counter[tuple[str, str]], op: str, asked: str | None, expected: str
) -> None:
    plan = CALLS[op](x, backend=asked).plan
    named = {step.op: step.backend for step in plan.steps}
    assert named[op] == expected
    assert set(named.values()) == {backend for backend, _ in ran} == {expected}
    assert set(named) == {ran_op for _, ran_op in ran}
    assert plan.backend == expected
    assert (plan.steps[0].reason.split(";")[0]) == ("asked for" if asked else "first choice")


@pytest.mark.parametrize("call", [sk.cka, sk.hsic])
@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF(), sk.Cosine(), sk.Laplacian(), sk.Polynomial()])
def test_numbers_come_from_the_backend_asked_for(
    x: Array, ran: Counter[tuple[str, str]], call: Callable[..., float], kernel: sk.kernels.Kernel
) -> None:
    for asked, expected in ((None, "native_cpu"), ("reference", "reference")):
        ran.clear()
        call(x, x[:, :3], kernel=kernel, backend=asked)
        assert {backend for backend, _ in ran} == {expected}


def test_an_unknown_backend_is_an_error(x: Array) -> None:
    sentence = "^backend must be None or one of native_cuda, native_cpu, reference, not 'cuda'$"
    calls: list[Callable[[], Any]] = [
        lambda: sk.cka(x, x, backend="cuda"),
        lambda: sk.hsic(x, x, backend="cuda"),
        lambda: sk.similarity_matrix({"x": x}, backend="cuda"),
        lambda: sk.greedy_cka(x, backend="cuda"),
        lambda: sk.StreamingCKA(backend="cuda"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_choose_refuses_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"^'svd' is not an op; ops are {', '.join(OPS)}$"):
        choose("svd")
    monkeypatch.setattr(native_cpu, "unsupported_reasons", lambda op, inputs, kernel: ["no compiler", "no luck"])
    with pytest.raises(NotImplementedError, match=r"^backend 'native_cpu' cannot run eliminate: no compiler, no luck$"):
        choose("eliminate", backend="native_cpu")
    choice = choose("eliminate")
    assert (choice.backend, choice.function) == ("reference", reference.eliminate)
    assert choice.reason == "native_cpu: no compiler, no luck"
    monkeypatch.setattr(reference, "unsupported_reasons", lambda op, inputs, kernel: ["too slow"])
    with pytest.raises(
        NotImplementedError, match=r"^no backend runs eliminate: native_cpu: no compiler, no luck; reference: too slow$"
    ):
        choose("eliminate")


def test_a_missing_module_is_said_in_the_plan(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cpu, "_load", lambda: (None, "the compiled module does not import (gone)"))
    slower = r"^NumPy computes this, many times slower: the compiled module does not import \(gone\)$"
    _warn_slow.cache_clear()  # another test may have been told
    with pytest.warns(sk.SlowBackendWarning, match=slower) as told:
        m = sk.similarity_matrix({"x": x})
    assert [Path(warning.filename).name for warning in told] == [Path(__file__).name]
    assert m.backend == "reference"
    assert m.plan.steps[0].reason.startswith("native_cpu: the compiled module does not import (gone); ")
    sk.cka(x, x, backend="reference")  # who asks for it needs no warning
    with pytest.raises(
        NotImplementedError, match=r"^backend 'native_cpu' cannot run column_stats: the compiled module does"
    ):
        sk.cka(x, x, backend="native_cpu")


@pytest.mark.filterwarnings("ignore::simkit.SlowBackendWarning")
def test_what_numpy_does_needs_no_module(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging, above all, whose reference forms whole tables."""
    want = merging(x, np.arange(len(x)) % 2 == 0)
    monkeypatch.setattr(native_cpu, "_load", lambda: (None, "the compiled module does not import (gone)"))
    found = merging(x, np.arange(len(x)) % 2 == 0)
    ran = {step.op: step.backend for step in found.plan.steps}
    assert ran == {"column_stats": "reference", "row_norms": "reference", "nearest_rows": "native_cpu"}
    assert found.partner.tolist() == want.partner.tolist()
    ran = {step.op: step.backend for step in sk.greedy_cka(x, units=np.arange(24) % 6).plan.steps}
    assert (ran["gather_columns"], ran["pair_sums"]) == ("native_cpu", "reference")
    ran = {step.op: step.backend for step in sk.greedy_cka(x[:60], kernel=sk.RBF(), count=1).plan.steps}
    assert (ran["unit_features"], ran["candidate_sums"]) == ("native_cpu", "reference")


def test_the_module_knows_no_other_ops() -> None:
    assert native_cpu.unsupported_reasons("svd") == ["there is no native svd"]
    for op in OPS:
        assert native_cpu.unsupported_reasons(op) == reference.unsupported_reasons(op) == []


def test_a_plan_in_words() -> None:
    steps = (
        Step("a", "native_cpu", "first choice", "sample space", 12_345_678, 3 * 2**20),
        Step("b", "reference", "asked for"),
    )
    plan = Plan(steps, ("a note",))
    assert plan.backend == "native_cpu, reference"
    assert plan.explain().splitlines() == [
        "a: native_cpu, sample space, 1.23e+07 multiply-adds, 3.0 MiB of workspace (first choice)",
        "b: reference (asked for)",
        "a note",
    ]
    assert Plan().backend == "numpy"


# Threads.


@pytest.mark.parametrize("threads", [1, 2, 3, 17, 500, 10**6, 2**31 - 1, 2**31, 10**12])
def test_any_number_of_threads(x: Array, threads: int) -> None:
    assert sk.cka(x, x[:, :5], threads=threads) == sk.cka(x, x[:, :5], threads=1)
    assert sk.cka(x, x[:, :5], kernel=sk.RBF(), threads=threads) == sk.cka(x, x[:, :5], kernel=sk.RBF(), threads=1)
    assert sk.greedy_cka(x, threads=threads).order.tolist() == sk.greedy_cka(x, threads=1).order.tolist()
    assert stream(x, threads=threads).values.tolist() == stream(x, threads=1).values.tolist()


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, np.bool_(True), "two", np.float64(2)])
def test_what_is_no_number_of_threads(x: Array, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"^threads must be a positive integer, not "):
        sk.cka(x, x, threads=bad)
    with pytest.raises(ValueError, match=r"^threads must be a positive integer, not "):
        sk.greedy_cka(x, threads=bad)


def test_the_default_is_what_this_process_may_use() -> None:
    assert check_threads(None) == default_threads() >= 1
    assert check_threads(3) == 3
    for kind in (np.int64, np.uint8):
        assert type(check_threads(kind(2))) is int
        assert check_threads(kind(2)) == 2


def test_many_threads_call_at_once(x: Array) -> None:
    """The GIL is released inside; every call has its own workers and workspace."""
    y = np.maximum(x @ np.random.default_rng(1).standard_normal((24, 300)), 0).astype(np.float32)
    calls: list[Callable[[], Any]] = [
        lambda: sk.cka(x, y),
        lambda: sk.cka(x, y, kernel=sk.RBF()),
        lambda: sk.greedy_cka(y).order.tolist(),
        lambda: stream(y).values.tolist(),
        lambda: sk.similarity_matrix({"x": x, "y": y}).values.tolist(),
    ]
    want = [call() for call in calls]
    start = threading.Barrier(8)

    def work(k: int) -> None:
        start.wait()
        for i in range(k, k + 10):
            assert calls[i % 5]() == want[i % 5]

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, k) for k in range(8)]:
            done.result()


# The planner.


def blocks(n: int, widths: list[int], dtype: Any = np.float32) -> list[Any]:
    r = np.random.default_rng(0)
    return [prepare(as_matrix(r.standard_normal((n, p)).astype(dtype), name="x"), sk.Linear()) for p in widths]


def test_the_route_is_the_cheaper_one() -> None:
    assert plan_pair_sums(blocks(500, [10, 20]), None).name == "feature"
    assert plan_pair_sums(blocks(100, [800, 900]), None).name == "sample"
    route = plan_pair_sums(blocks(500, [30]), blocks(500, [40]))
    assert (route.name, route.products) == ("feature", "float64")
    assert route.multiply_adds == 500 * (30 * 40 + (30 * 30 + 40 * 40) // 2)


def test_the_precision_and_its_reason() -> None:
    for n, dtype, precision, why in (
        (100, np.float32, "float32", "no float64 input"),
        (63, np.float32, "float64", "fewer than 64 samples"),
        (100, np.float64, "float64", "float64 input"),
    ):
        route = plan_pair_sums(blocks(n, [900], dtype), None, route="sample")
        assert route.products == precision
        assert why in route.reason
    rbf = [prepare(as_matrix(np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)), sk.RBF())]
    assert plan_pair_sums(rbf, None).products == "float64"
    with pytest.raises(ValueError, match=r"^the feature-space route needs a linear kernel$"):
        plan_pair_sums(rbf, None, route="feature")


def test_memory_narrows_tiles_and_then_threads() -> None:
    given = blocks(300, [900] * 4)
    free = plan_pair_sums(given, None, threads=8)
    assert (free.tile, free.threads) == (96, 8)
    assert plan_pair_sums(given, None, threads=8, tile=256).threads == 3  # two strips of tiles are three tiles
    less = plan_pair_sums(given, None, threads=8, memory=4_000_000)
    assert less.tile <= 96
    assert less.bytes <= 4_000_000
    least = plan_pair_sums(given, None, threads=8, memory=150_000)
    assert least.threads < 8
    assert least.bytes <= 150_000
    with pytest.raises(
        ValueError, match=r"^memory=9000 bytes is too little: comparing 4 layers of 300 samples needs \d+$"
    ):
        plan_pair_sums(given, None, threads=8, memory=9000)


def test_a_forced_route_is_kept() -> None:
    given = blocks(80, [5, 9])
    for route in ("sample", "feature"):
        for tile in (8, 40):
            scores = normalised(given, None, "debiased", ForcedRoute(route=route, tile=tile, threads=2))  # type: ignore[arg-type]
            assert scores.plan.steps[0].route == f"{route} space"


def test_the_binding_checks_what_it_is_given(x: Array) -> None:
    """Whatever reaches native code is checked there again: a wrong call is an exception, not a crash."""
    core: Any = native_cpu._core()
    good = {"x": x, "dtype": "float32", "mapped": False, "shift": np.zeros(24), "row_scale": None, "scale": 1.0}
    good |= {"kernel": "linear", "length": 1.0, "coef0": 0.0, "degree": 1}
    block = core.Block(**good)
    for change, sentence in (
        ({"x": x[0]}, r"a non-empty matrix \[n, p\] is needed"),
        ({"x": x[:0]}, r"a non-empty matrix \[n, p\] is needed"),
        ({"dtype": "float64"}, "the array's items are not float64"),
        ({"dtype": "int32"}, "no kernel reads dtype int32"),
        ({"shift": np.zeros(23)}, r"shift must be \[p\]"),
        ({"row_scale": np.zeros(3)}, r"row_scale must be \[n\]"),
        ({"kernel": "sinc"}, "no kernel is called sinc"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            core.Block(**{**good, **change})
    pair = {"rows": [block], "columns": [], "debiased": True, "sample_space": True, "double_products": True}
    pair |= {"tile": 8, "threads": 1, "shared": False}
    rbf = core.Block(**{**good, "kernel": "rbf"})
    short = core.Block(**{**good, "x": x[:9]})
    for change, sentence in (
        ({"rows": []}, "there are no blocks"),
        ({"rows": [None]}, "a block is None"),
        ({"tile": 0}, "tile must be 1 to 4096, not 0"),
        ({"tile": 5000}, "tile must be 1 to 4096, not 5000"),
        ({"threads": 0}, "threads must be positive, not 0"),
        ({"columns": [short]}, "blocks have different numbers of rows"),
        ({"rows": [rbf], "sample_space": False}, "non-linear kernels need float64 products in sample space"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            core.pair_sums(**{**pair, **change})
    with pytest.raises(ValueError, match=r"^sum_sq_dev must be \[p\]$"):
        core.column_products(block, np.zeros(3), exact=True, threads=1)
    for matrix, sentence in (
        (np.zeros((2, 3)), "a must be a non-empty square"),
        (np.zeros((0, 0)), "a must be a non-empty"),
    ):
        with pytest.raises(ValueError, match=sentence):
            core.eliminate(matrix, greedy=True, count=0, min_cka=0.0)
    with pytest.raises(ValueError, match="count must be 0 to u"):
        core.eliminate(np.eye(2), greedy=True, count=3, min_cka=0.0)
    frozen = np.zeros((4, 2))
    frozen.setflags(write=False)
    side = {"layers": [(np.zeros((4, 2)), "float64")], "shift": np.zeros(2), "scale": np.ones(2), "z": np.zeros((4, 2))}
    unlike = [(np.zeros((4, 1)), "float64"), (np.zeros((3, 1)), "float64")]
    for change, sentence in (
        *(
            ({"z": z}, "z has the wrong shape, type or layout")
            for z in (frozen, np.zeros((2, 4)).T, np.zeros((4, 2), dtype=np.float16), np.zeros((4, 3)))
        ),
        ({"layers": []}, "there are no layers"),
        ({"layers": unlike}, "layers have different numbers of rows"),
        ({"layers": [(np.zeros((4, 2)), "float32")]}, "the array's items are not float32"),
        ({"shift": np.zeros(3)}, r"shift and scale must be \[p\]"),
        ({"scale": np.zeros((1, 2))}, r"shift and scale must be \[p\]"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            core.moments_rows([{**side, **change}], threads=1)
    for one, other in ((np.float32, np.float64), (np.float64, np.float32)):
        sides = [{**side, "z": np.zeros((4, 2), dtype=dtype)} for dtype in (one, other)]
        with pytest.raises(ValueError, match=r"^z has the wrong shape, type or layout$"):
            core.moments_rows(sides, threads=1)
    with pytest.raises(ValueError, match=r"^a non-empty matrix \[n, p\] is needed$"):
        core.largest_entries([(np.zeros((0, 2)), "float64")], threads=1)


def test_choosing_is_lazy() -> None:
    """A named backend is the only one that is imported for."""
    assert choosing.choose("pair_sums", backend="reference").function is reference.pair_sums
