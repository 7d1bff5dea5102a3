"""similarity_matrix and its result: shapes, names, plans, memory, files."""

from __future__ import annotations

import json
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import ANY
from safetensors.numpy import save_file
from tolerance import assert_close

import simkit as sk
from simkit.backends.base import Plan, Step
from simkit.backends.routes import parse_memory
from simkit.errors import TooLittleMemory
from simkit.metrics.cca import R2CCA, MeanCCA
from simkit.metrics.linear_regression import LinearRegression
from simkit.metrics.nbs import NBS
from simkit.metrics.procrustes import Procrustes
from simkit.metrics.pwcca import PWCCA
from simkit.metrics.svcca import SVCCA

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def layers() -> dict[str, Array]:
    r = np.random.default_rng(0)
    z = r.standard_normal((120, 4))
    return {
        f"block{p}": (z @ r.standard_normal((4, p)) + r.standard_normal((120, p))).astype(np.float32)
        for p in (3, 200, 31)
    }


@pytest.mark.parametrize("backend", ANY)
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_square_and_across(layers: dict[str, Array], estimator: Any, backend: str | None) -> None:
    measure = sk.CKA(estimator=estimator)
    xs = list(layers.values())
    want = oracles.cka_matrix(xs, xs, estimator=estimator)
    square = sk.similarity_matrix(layers, measure=measure, backend=backend)
    assert_close(square.values, want, "cka", np.float32, 120, 200)
    assert square.values.dtype == np.float64
    assert square.rows == square.columns == tuple(layers)
    assert square.samples == 120
    assert square.measure == f"CKA(kernel=Linear(), estimator='{estimator}')"
    assert square.degenerate == {}
    across = sk.similarity_matrix({"a": xs[0]}, {"b": xs[1], "c": xs[2]}, measure=measure, backend=backend)
    assert_close(across.values, want[:1, 1:], "cka", np.float32, 120, 200)
    assert (across.rows, across.columns) == (("a",), ("b", "c"))


def test_entries_by_name(layers: dict[str, Array]) -> None:
    m = sk.similarity_matrix(layers, {"x": layers["block3"]})
    assert m["block200", "x"] == m.values[1, 0]
    assert isinstance(m["block3", "x"], float)
    with pytest.raises(KeyError, match=r"no pair .*rows are .*block3.*columns are"):
        m["x", "block3"]
    for bad in ("x", "ab", ("x",), ("x", "y", "z"), ["x", "y"], 0):  # "ab" would unpack into "a" and "b"
        sentence = re.escape(f"a score is m[row, column], the names of two layers, not m[{bad!r}]")
        with pytest.raises(TypeError, match=f"^{sentence}$"):
            m[bad]  # type: ignore[index]


def test_names_that_are_equal_as_text_are_refused(layers: dict[str, Array]) -> None:
    a, b = layers["block3"], layers["block31"]
    sentence = r"has the keys 1 and '1', which are one name, '1', as text$"
    with pytest.raises(ValueError, match=f"^layers {sentence}"):
        sk.similarity_matrix({1: a, "1": b})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=f"^others {sentence}"):
        sk.similarity_matrix({"a": a}, {1: a, "1": b})  # type: ignore[dict-item]
    stream = sk.StreamingCKA()
    with pytest.raises(ValueError, match=f"^layers {sentence}"):
        stream.update({1: a, "1": b})  # type: ignore[dict-item]
    assert stream.samples == 0


def test_one_layer_and_one_pair() -> None:
    x = np.random.default_rng(0).standard_normal((5, 2))
    assert sk.similarity_matrix({"x": x}).values.tolist() == [[pytest.approx(1.0)]]
    assert sk.similarity_matrix({"x": x}, {"y": x + 7}).values.tolist() == [[pytest.approx(1.0)]]


def test_a_measure_without_an_engine_of_its_own_is_looped(layers: dict[str, Array]) -> None:
    class Widths:
        """Fewer over more features: not what it says, but a measure."""

        def prepare(self, x: Any) -> int:
            if x.p == 31:
                raise sk.metrics.measure.Degenerate(x.name, "31 is too odd")
            return int(x.p)

        def score(self, x: int, y: int) -> float:
            return min(x, y) / max(x, y)

        def __repr__(self) -> str:
            return "Widths()"

    m = sk.similarity_matrix(layers, measure=Widths())
    assert np.array_equal(m.values, [[1, 0.015, np.nan], [0.015, 1, np.nan], [np.nan] * 3], equal_nan=True)
    assert m.degenerate == {("row", "block31"): "31 is too odd", ("column", "block31"): "31 is too odd"}
    assert m.measure == "Widths()"


def test_what_is_no_measure(layers: dict[str, Array]) -> None:
    for bad in (sk.CKA, "cka", None, sk.Linear()):
        with pytest.raises(TypeError, match=r"^measure must be a measure object such as simkit.CKA\(\), not "):
            sk.similarity_matrix(layers, measure=bad)  # type: ignore[arg-type]


def test_the_plan_names_the_backend_the_route_and_the_reason(layers: dict[str, Array]) -> None:
    m = sk.similarity_matrix(layers)
    step, stats = m.plan.steps
    assert (stats.op, stats.backend) == ("column_stats", "native_cpu")
    assert (step.op, step.backend, m.backend) == ("pair_sums", "native_cpu", "native_cpu")
    assert step.route == "sample space"
    assert step.multiply_adds == 120 * 120 * 234 // 2 + 120 * 120 * (9 // 2) // 2
    assert "feature space would take" in step.reason
    text = m.plan.explain()
    assert text.startswith("pair_sums: native_cpu, sample space, ")
    assert "multiply-adds" in text
    assert "MiB of workspace" in text
    narrow = sk.similarity_matrix({"a": layers["block3"], "b": layers["block31"]})
    assert narrow.plan.steps[0].route == "feature space"
    assert "against" in narrow.plan.steps[0].reason


def test_what_cancels_is_formed_again_and_the_plan_says_so() -> None:
    r = np.random.default_rng(0)
    x = r.standard_normal((200, 300)).astype(np.float32)
    x[0] *= 1e4
    m = sk.similarity_matrix({"x": x})
    assert [step.route for step in m.plan.steps] == ["sample space", "sample space", ""]
    assert m.plan.steps[1].reason.endswith("done again because the first pass cancelled")


@pytest.mark.parametrize("memory", [300_000, "1 MB", "0.5MiB", "64 MB", "2 GiB", 1e9])
def test_memory_changes_the_tiles_not_the_answer(layers: dict[str, Array], memory: Any) -> None:
    free = sk.similarity_matrix(layers)
    bound = sk.similarity_matrix(layers, memory=memory)
    assert sum(step.bytes for step in bound.plan.steps) <= parse_memory(memory)  # type: ignore[operator]
    assert np.abs(bound.values - free.values).max() <= 1e-6


def test_too_little_memory_is_an_error_with_the_numbers(layers: dict[str, Array]) -> None:
    with pytest.raises(
        ValueError, match=r"^memory=1000 bytes is too little: comparing 3 layers of 120 samples needs \d+$"
    ) as caught:
        sk.similarity_matrix(layers, memory=1000)
    needed = int(str(caught.value).rsplit(" ", 1)[1])
    assert sk.similarity_matrix(layers, memory=needed).plan.steps[0].bytes <= needed
    with pytest.raises(ValueError, match="is too little"):
        sk.similarity_matrix(layers, memory=needed - 1)
    with pytest.raises(ValueError, match=r"^threads must be a positive integer, not 0$"):
        sk.similarity_matrix(layers, measure=NBS(), threads=0)


PREPARING = [MeanCCA(), R2CCA(), SVCCA(), SVCCA(1.0), PWCCA(), NBS(), Procrustes(), LinearRegression()]


@pytest.mark.parametrize("measure", PREPARING, ids=repr)
@pytest.mark.parametrize(("n", "p"), [(900, 40), (500, 160), (90, 1500), (200, 200), (201, 200)])
@pytest.mark.filterwarnings("ignore::simkit.errors.DegenerateWarning")
def test_measures_that_prepare_every_layer_keep_to_what_they_say(measure: Any, n: int, p: int) -> None:
    r = np.random.default_rng(0)
    x = r.standard_normal((n, p))
    layers = {"x": x, "near": x + 1e-3 * r.standard_normal((n, p)), "half": x[:, : p // 2].astype(np.float32)}
    layers["steep"] = x * np.geomspace(1, 1e-9, p)
    layers["turned"] = layers["steep"] @ np.linalg.qr(r.standard_normal((p, p)))[0]
    others = {"y": r.standard_normal((n, p))}
    sk.similarity_matrix(layers, others, measure=measure)  # modules load before memory is watched
    tracemalloc.start()
    free = sk.similarity_matrix(layers, others, measure=measure)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = free.plan.steps[0].bytes
    assert needed / 5 < peak < needed
    assert np.array_equal(sk.similarity_matrix(layers, others, measure=measure, memory=needed).values, free.values)
    sentence = re.escape(
        f"memory={needed - 1} bytes is too little: comparing 6 layers of {n} samples by {measure!r} needs {needed}"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        sk.similarity_matrix(layers, others, measure=measure, memory=needed - 1)


def test_memory_of_a_measure_that_does_not_say_what_it_needs() -> None:
    class Widths:
        def prepare(self, x: Any) -> int:
            return int(x.p)

        def score(self, x: int, y: int) -> float:
            return x / y

    x = np.ones((5, 2))
    m = sk.similarity_matrix({"x": x}, measure=Widths(), memory=100)
    assert m.plan.explain().endswith("memory=100 is not kept to: Widths does not say what it needs")
    assert sk.similarity_matrix({"x": x}, measure=Widths()).plan.notes == ()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64 MB", 64_000_000),
        ("64MB", 64_000_000),
        (" 1.5 gib ", 1_610_612_736),
        ("10 kB", 10_000),
        ("1 KiB", 1024),
        ("512", 512),
        ("7 b", 7),
        (12, 12),
        (1.5e3, 1500),
        (np.int64(9), 9),
        (None, None),
    ],
)
def test_amounts_of_memory(text: Any, count: int | None) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "MB",
        "64 TB",
        "64 MB/s",
        "-1",
        0,
        0.5,
        "0.9",
        "0.0001 KB",
        -5,
        float("nan"),
        float("inf"),
        "1e400",
        True,
        [64],
        "64 M B",
        pytest.param(10**400, id="1e400"),
        pytest.param(-(10**5000), id="more digits than Python writes"),
    ],
)
def test_what_is_no_amount_of_memory(bad: Any) -> None:
    with pytest.raises(ValueError, match=r'^memory must be a number of bytes or a text such as "64 MB", not '):
        parse_memory(bad)


def test_a_saved_matrix_comes_back(layers: dict[str, Array], tmp_path: Path) -> None:
    flat = {**layers, "dead": np.zeros((120, 2))}
    m = sk.similarity_matrix(flat, measure=sk.CKA(estimator="biased"))
    m.save(tmp_path / "m.safetensors")
    again = sk.SimilarityMatrix.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.values, m.values, equal_nan=True)
    assert (again.rows, again.columns, again.samples, again.measure) == (m.rows, m.columns, m.samples, m.measure)
    assert (
        again.degenerate
        == m.degenerate
        == {
            ("row", "dead"): "every feature is constant over the samples",
            ("column", "dead"): "every feature is constant over the samples",
        }
    )
    assert again.plan == m.plan
    odd = sk.SimilarityMatrix(
        np.zeros((1, 0)), ('a "quoted", näme\n',), (), 4, "m", {}, Plan((Step("a", "b", "c"),), ("note",))
    )
    odd.save(tmp_path / "odd.safetensors")
    assert sk.SimilarityMatrix.load(tmp_path / "odd.safetensors").rows == odd.rows
    assert sk.SimilarityMatrix.load(tmp_path / "odd.safetensors").plan == odd.plan


@pytest.mark.parametrize("name", ["m.csv", "m.png", "m"])
def test_a_matrix_is_saved_as_safetensors_only(name: str, tmp_path: Path) -> None:
    m = sk.similarity_matrix({"a": np.eye(5)})
    sentence = rf"^path='.*/{name}' must end in \.safetensors: to_csv writes a table, plot a picture$"
    with pytest.raises(ValueError, match=sentence):
        m.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    m.save(tmp_path / "M.SAFETENSORS")
    assert sk.SimilarityMatrix.load(tmp_path / "M.SAFETENSORS").plan == m.plan


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no file '.*nowhere'$"):
        sk.SimilarityMatrix.load(tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    save_file({"values": np.zeros((2, 2))}, tmp_path / "bare")
    meta = {"format": "simkit.SimilarityMatrix.1", "rows": ["a"], "columns": ["a"], "samples": 4, "measure": "m"}
    save_file({"values": np.zeros((1, 1))}, tmp_path / "partial", {"simkit": json.dumps(meta)})
    save_file({"values": np.zeros((1, 1))}, tmp_path / "other", {"simkit": json.dumps({**meta, "format": "x"})})
    for name in ("text", "empty", "bare", "partial", "other"):
        with pytest.raises(ValueError, match=f"^'.*{name}' is not a saved SimilarityMatrix: "):
            sk.SimilarityMatrix.load(tmp_path / name)
    whole = {**meta, "degenerate": [], "steps": [], "notes": []}
    save_file({"values": np.zeros((2, 1))}, tmp_path / "shape", {"simkit": json.dumps(whole)})
    with pytest.raises(ValueError, match=r"holds \(2, 1\) values for other names$"):
        sk.SimilarityMatrix.load(tmp_path / "shape")


@pytest.mark.parametrize(("write", "name"), [("save", "m.safetensors"), ("to_csv", "m.csv"), ("plot", "m.png")])
def test_where_nothing_can_be_written(layers: dict[str, Array], write: str, name: str, tmp_path: Path) -> None:
    m = sk.similarity_matrix(layers)
    with pytest.raises(FileNotFoundError, match=rf"^there is no folder '.*/nowhere' to write '{name}' into$"):
        getattr(m, write)(tmp_path / "nowhere" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=rf"^the output '.*/{name}' is a folder: name a file$"):
        getattr(m, write)(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_too_little_memory_tells_its_numbers() -> None:
    layers = {str(k): np.random.default_rng(k).standard_normal((200, 6)) for k in range(3)}
    for measure, work in ((sk.CKA(), "comparing 3 layers of 200 samples"), (NBS(), "of 200 samples by NBS()")):
        with pytest.raises(TooLittleMemory) as caught:
            sk.similarity_matrix(layers, measure=measure, memory=1000)
        error = caught.value
        assert work in error.work
        assert str(error) == f"memory=1000 bytes is too little: {error.work} needs {error.needed}"
        sk.similarity_matrix(layers, measure=measure, memory=error.needed)
        with pytest.raises(ValueError, match="is too little"):
            sk.similarity_matrix(layers, measure=measure, memory=error.needed - 1)
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.needed) == (str(error), error.needed)
