"""CKA and HSIC are right: golden values, hazards on every path, agreement with definitions, path independence."""

from __future__ import annotations

import itertools

import numpy as np
import oracles
import pytest
from backend_lists import HOST, NAMED

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu, reference
from simkit.backends.base import OPS
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

ESTIMATORS = ("debiased", "biased")
BATTERY = {case.name: case for case in oracles.hazard_battery()}
GRAMS = {
    sk.Linear(): oracles.linear,
    sk.RBF(0.5): oracles.rbf(0.5),
    sk.RBF(0.2): oracles.rbf(0.2),
    sk.Laplacian(0.5): oracles.laplacian(0.5),
    sk.Polynomial(3): oracles.polynomial(3, None, 1.0),
    sk.Cosine(): oracles.cosine,
}


def tolerance(*arrays):
    """What every path owes: 1e-10 for float64 input, 1e-6 for narrower."""
    return 1e-10 if all(np.asarray(a).dtype == np.float64 for a in arrays) else 1e-6


def relu(n, p, seed, dtype=np.float64):
    r = np.random.default_rng(seed)
    return np.maximum(r.standard_normal((n, 3)) @ r.standard_normal((3, p)) + r.standard_normal((n, p)), 0).astype(
        dtype
    )


def forced(x, y, estimator, **options):
    blocks = [prepare(as_matrix(v), sk.Linear()) for v in (x, y)]
    return float(normalised(blocks[:1], blocks[1:], estimator, ForcedRoute(**options)).values[0, 0])


@pytest.mark.parametrize("backend", NAMED)
def test_golden_values(backend):
    r = np.random.RandomState(1337)
    x = r.randn(100, 10)
    y = r.randn(100, 10) + x
    assert round(sk.cka(x, y, estimator="biased", backend=backend), 5) == 0.55761
    assert round(sk.cka(x, y, estimator="biased", kernel=sk.RBF(0.5), backend=backend), 5) == 0.65483
    assert round(sk.cka(x, y, backend=backend), 5) == 0.51346


def test_hsic_is_the_printed_formula():
    x, y = relu(30, 5, 0), relu(30, 9, 1) * 1e3
    for backend in HOST:
        assert sk.hsic(x, y, backend=backend) == pytest.approx(oracles.debiased_sum(x, y), rel=1e-12)
        expected = oracles.hsic(x, y, estimator="biased")
        assert sk.hsic(x, y, estimator="biased", backend=backend) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", BATTERY)
def test_hazards_on_every_path(name, estimator):
    case = BATTERY[name]
    truth = oracles.cka(case.x, case.y, estimator=estimator)
    known = getattr(case, estimator)
    if known is not None:  # offset inputs are other float32 numbers: the truth is that of the input
        assert truth == pytest.approx(known, abs=2e-6)
    within = tolerance(case.x, case.y)
    results = {f"cka {b}": sk.cka(case.x, case.y, estimator=estimator, backend=b) for b in HOST}
    for backend in HOST:
        matrix = sk.similarity_matrix(
            {"x": case.x}, {"y": case.y}, measure=sk.CKA(estimator=estimator), backend=backend
        )
        results[f"matrix {backend}"] = matrix["x", "y"]
        both = sk.similarity_matrix({"x": case.x, "y": case.y}, measure=sk.CKA(estimator=estimator), backend=backend)
        assert np.array_equal(both.values, both.values.T)
        results[f"square {backend}"] = both["x", "y"]
    results["sample space"] = forced(case.x, case.y, estimator, route="sample")
    results["sample space, float64"] = forced(case.x, case.y, estimator, route="sample", products="float64")
    scaled = sk.hsic(case.x, case.y, estimator=estimator) / np.sqrt(
        sk.hsic(case.x, case.x, estimator=estimator) * sk.hsic(case.y, case.y, estimator=estimator)
    )
    if "e-20" not in name:  # the product of two such HSICs is below float64
        results["hsic"] = scaled
    off = {path: value - truth for path, value in results.items() if not abs(value - truth) <= within}
    assert not off


@pytest.mark.parametrize("name", BATTERY)
def test_hazards_on_streams(name):
    case = BATTERY[name]
    truth = oracles.cka(case.x, case.y, estimator="debiased")
    n = len(case.x)
    seen = set()
    for batches in ([n], [1, n - 1], [7] * (n // 7) + [n % 7]):
        stream = sk.StreamingCKA()
        for stop, size in zip(itertools.accumulate(batches), batches, strict=True):
            if size:
                stream.update({"x": case.x[stop - size : stop]}, {"y": case.y[stop - size : stop]})
        seen.add(stream.compute()["x", "y"])
    assert len(seen) == 1
    assert seen.pop() == pytest.approx(truth, abs=tolerance(case.x, case.y))


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("kernel", GRAMS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_agree_with_their_definitions(kernel, dtype, backend):
    for n, p, q in ((4, 1, 3), (5, 9, 2), (63, 3, 70), (64, 5, 65), (300, 20, 7)):
        if p == 1 and isinstance(kernel, sk.Cosine):
            continue  # one positive feature has the same direction in every sample
        x, y = relu(n, p, 1, dtype) + dtype(0.1), relu(n, q, 2, dtype) + dtype(0.1)
        x = x + np.random.default_rng(5).standard_normal(x.shape).astype(dtype) * dtype(0.01)
        for estimator in ESTIMATORS:
            truth = oracles.cka(x, y, estimator=estimator, gram=GRAMS[kernel])
            value = sk.cka(x, y, kernel=kernel, estimator=estimator, backend=backend)
            assert value == pytest.approx(truth, abs=tolerance(x)), (n, p, q, estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("route", ["sample", "feature"])
def test_sizes_around_tile_edges(route, dtype):
    for n in (4, 255, 256, 257, 770):
        for p, q in ((1, 257), (511, 3), (513, 512)):
            x, y = relu(n, p, 3, dtype), relu(n, q, 4, dtype)
            truth = oracles.cka(x, y, estimator="debiased")
            for tile in (None, 100):
                assert forced(x, y, "debiased", route=route, tile=tile) == pytest.approx(truth, abs=tolerance(x))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_shapes(dtype):
    for n, p, q in ((4000, 1, 300), (4000, 2000, 10), (1000, 20000, 3), (4, 20000, 20000), (4000, 5000, 64)):
        x, y = relu(n, p, 5, dtype), relu(n, q, 6, dtype)
        for estimator in ESTIMATORS:
            truth = oracles.cka(x, y, estimator=estimator)
            assert sk.cka(x, y, estimator=estimator) == pytest.approx(truth, abs=tolerance(x)), (n, p, q)


def test_threads_give_the_same_bits():
    layers = {str(p): relu(600, p, p, np.float32) for p in (3, 70, 300)}
    for measure in (sk.CKA(), sk.CKA(sk.RBF(0.5)), sk.CKA(estimator="biased")):
        one, two, three = (sk.similarity_matrix(layers, measure=measure, threads=t).values for t in (1, 2, 3))
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)


def layouts(x):
    wide = np.zeros((2 * len(x), 3 * x.shape[1]), x.dtype)
    wide[::2, ::3] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    flipped = np.ascontiguousarray(x[::-1, ::-1])
    return {
        "Fortran": np.asfortranarray(x),
        "strided": wide[::2, ::3],
        "reversed": flipped[::-1, ::-1],
        "read only": frozen,
        "big endian": x.astype(x.dtype.newbyteorder(">")),
        "three axes": x.reshape(len(x), 4, -1),
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_layouts_give_the_same_bits(dtype):
    x, y = relu(200, 20, 7, dtype), relu(200, 33, 8, dtype)
    expected = sk.cka(x, y)
    for name, view in layouts(x).items():
        before = view.copy()
        assert sk.cka(view, y) == expected, name
        assert np.array_equal(view, before)


def test_narrow_types_are_widened_exactly():
    r = np.random.default_rng(0)
    whole = r.integers(-100, 100, (80, 12))
    y = relu(80, 5, 9)
    expected = sk.cka(whole.astype(np.float64), y)
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.float16, np.float32):
        assert sk.cka(whole.astype(dtype), y) == pytest.approx(expected, abs=1e-12)
    assert sk.cka(whole > 0, y) == pytest.approx(sk.cka((whole > 0).astype(float), y), abs=1e-12)


def test_invariances():
    x, y = relu(120, 30, 10), relu(120, 12, 11)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 30)))
    expected = sk.cka(x, y)
    order = np.random.default_rng(2).permutation(120)
    for changed in (x @ rotation, x * -3e7, x + 1e4, np.hstack([x, np.full((120, 2), 1e9)])):
        assert sk.cka(changed, y) == pytest.approx(expected, abs=1e-10)
    assert sk.cka(x[order], y[order]) == pytest.approx(expected, abs=1e-12)
    assert sk.cka(x, y) == pytest.approx(sk.cka(y, x), abs=1e-14)
    assert sk.cka(x, x) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("backend", NAMED)
def test_degenerate_layers_are_named(backend):
    x = relu(50, 4, 12, np.float32)
    for bad in (np.full((50, 3), 0.1, np.float32), np.zeros((50, 2)), np.full((50, 1), 1e10)):
        with pytest.raises(ValueError, match="y is degenerate: every feature is constant over the samples"):
            sk.cka(x, bad, backend=backend)
        assert sk.hsic(x, bad, backend=backend) == 0.0
        m = sk.similarity_matrix({"x": x, "dead": bad}, backend=backend)
        assert np.isnan(m.values).tolist() == [[False, True], [True, True]]
        assert set(m.degenerate) == {("row", "dead"), ("column", "dead")}
        assert "constant" in m.degenerate["row", "dead"]
    spike = np.zeros((50, 1))
    spike[7] = 3
    with pytest.raises(ValueError, match="its debiased HSIC with itself is zero within rounding"):
        sk.cka(x, spike, backend=backend)


@pytest.mark.parametrize("backend", NAMED)
def test_non_finite_entries_are_located(backend):
    x = relu(50, 4, 12, np.float32)
    bad = x.copy()
    bad[3, 2], bad[9, 0] = np.nan, np.inf
    sentence = "has 2 non-finite entries, the first at row 3, column 2"
    for call in (
        lambda: sk.cka(x, bad, backend=backend),
        lambda: sk.hsic(x, bad, backend=backend),
        lambda: sk.similarity_matrix({"x": x, "fc": bad}, backend=backend),
        lambda: sk.greedy_cka(bad, backend=backend),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "sentence"),
    [
        (np.ones((5, 2)), np.ones((6, 2)), {}, ValueError, "x has 5 samples and y has 6"),
        (np.ones((3, 2)), np.ones((3, 2)), {}, ValueError, "debiased estimator needs at least 4 samples, not 3"),
        (np.ones((1, 2)), np.ones((1, 2)), {"estimator": "biased"}, ValueError, "at least 2 samples, not 1"),
        (np.ones(5), np.ones((5, 2)), {}, ValueError, r"x has shape \(5,\)"),
        (np.ones((5, 0)), np.ones((5, 2)), {}, ValueError, "it is empty"),
        (np.ones((5, 2), complex), np.ones((5, 2)), {}, TypeError, "complex"),
        (np.full((5, 2), "a"), np.ones((5, 2)), {}, TypeError, "numbers are needed"),
        (np.full((5, 2), None), np.ones((5, 2)), {}, TypeError, "object"),
        (np.full((5, 2), 2**60), np.ones((5, 2)), {}, ValueError, "cannot represent exactly"),
        (np.ma.masked_array(np.ones((5, 2))), np.ones((5, 2)), {}, TypeError, "masked"),
        ("text", np.ones((5, 2)), {}, TypeError, "x is a str"),
        (np.ones((5, 2)), np.ones((5, 2)), {"estimator": "best"}, ValueError, "not 'best'"),
        (np.ones((5, 2)), np.ones((5, 2)), {"kernel": sk.RBF}, TypeError, "simkit.RBF()"),
        (np.ones((5, 2)), np.ones((5, 2)), {"kernel": "rbf"}, TypeError, "kernel object"),
        (np.ones((5, 2)), np.ones((5, 2)), {"threads": 0}, ValueError, "positive integer, not 0"),
        (np.ones((5, 2)), np.ones((5, 2)), {"backend": "gpu"}, ValueError, "not 'gpu'"),
        (np.full((5, 2), 1e305), np.eye(5), {}, ValueError, "too large to centre"),
    ],
)
def test_bad_input_has_one_sentence(x, y, options, error, sentence):
    with pytest.raises(error, match=sentence):
        sk.cka(x, y, **options)


def test_memory_is_parsed_and_honoured():
    x = {str(i): relu(300, 40, i, np.float32) for i in range(6)}
    wide = {str(i): relu(300, 900, i, np.float32) for i in range(6)}
    free = sk.similarity_matrix(wide)
    tight = sk.similarity_matrix(wide, memory="500 KB")
    assert tight.plan.steps[0].bytes <= 500_000 < free.plan.steps[0].bytes
    assert np.allclose(free.values, tight.values, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="is too little"):
        sk.similarity_matrix(wide, memory=1000)
    for bad in ("lots", -1, True, "5 parsecs"):
        with pytest.raises(ValueError, match="memory must be"):
            sk.similarity_matrix(x, memory=bad)


def test_every_op_runs_where_the_plan_says():
    x, y = relu(200, 500, 1, np.float32), relu(200, 400, 2, np.float32)
    for backend, expected in ((None, "native_cpu"), ("native_cpu", "native_cpu"), ("reference", "reference")):
        results = [
            sk.similarity_matrix({"x": x}, {"y": y}, backend=backend),
            sk.similarity_matrix({"x": x}, measure=sk.CKA(sk.RBF()), backend=backend),
            sk.greedy_cka(x[:, :20], backend=backend),
            sk.greedy_cka(x, units=20, backend=backend),
        ]
        stream = sk.StreamingCKA(backend=backend)
        for _ in range(4):
            stream.update({"x": x})
        results.append(stream.compute())
        assert [r.backend for r in results] == [expected] * len(results)
        assert all(step.backend == expected for r in results for step in r.plan.steps)
    for op in OPS:
        assert native_cpu.unsupported_reasons(op) == []
        assert callable(getattr(native_cpu, op))
        assert callable(getattr(reference, op))


def test_matrix_round_trip(tmp_path):
    layers = {"conv/1": relu(60, 4, 1), "dead": np.zeros((60, 3))}
    m = sk.similarity_matrix(layers, {"fc": relu(60, 9, 2)})
    m.save(tmp_path / "m.safetensors")
    back = sk.SimilarityMatrix.load(tmp_path / "m.safetensors")
    assert np.array_equal(back.values, m.values, equal_nan=True)
    assert (back.rows, back.columns, back.samples, back.measure) == (m.rows, m.columns, 60, m.measure)
    assert (back.degenerate, back.plan) == (m.degenerate, m.plan)
    assert m["conv/1", "fc"] == m.values[0, 0]
    with pytest.raises(KeyError, match="no pair"):
        _ = m["conv/1", "nowhere"]
    (tmp_path / "other").write_bytes(b"not it")
    with pytest.raises(ValueError, match="is not a saved SimilarityMatrix"):
        sk.SimilarityMatrix.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sk.SimilarityMatrix.load(tmp_path / "absent")
