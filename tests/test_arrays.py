"""The one door: what is let in, what it becomes, and that nothing is copied, changed or imported on the way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import simkit as sk
from simkit.arrays import Matrix, as_matrices, as_matrix, enough_samples, same_samples


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)


def test_a_float_matrix_is_taken_as_it_is(x: np.ndarray) -> None:
    for dtype in ("float16", "float32", "float64"):
        values = x.astype(dtype)
        m = as_matrix(values, name="fc")
        assert (m.name, m.dtype, m.n, m.p, m.origin) == ("fc", dtype, 12, 5, "numpy")
        assert np.shares_memory(m.values, values)
        assert m.itemsize == values.itemsize
        assert m.precision == ("float64" if dtype == "float64" else "float32")
        assert m.float64().tolist() == values.astype(np.float64).tolist()


def test_any_strides_are_taken_without_a_copy(x: np.ndarray) -> None:
    for view in (x.T, x[::-1], x[:, ::-2], x[3:9:2], np.asfortranarray(x), np.broadcast_to(x[:1], (7, 5))):
        m = as_matrix(view)
        assert np.shares_memory(m.values, view)
        assert np.array_equal(m.float64(), view.astype(np.float64))
        assert m.float64().flags.c_contiguous


def test_more_dimensions_are_flattened(x: np.ndarray) -> None:
    maps = np.arange(120.0).reshape(5, 2, 3, 4)
    m = as_matrix(maps)
    assert (m.n, m.p) == (5, 24)
    assert np.shares_memory(m.values, maps)
    assert np.array_equal(m.values, maps.reshape(5, -1))
    moved = np.moveaxis(maps, 1, -1)  # channels last: flattening copies, and keeps the order of indices
    assert np.array_equal(as_matrix(moved).values, moved.reshape(5, -1))
    assert sk.cka(maps, x[:5], backend="reference") == sk.cka(maps.reshape(5, 24), x[:5], backend="reference")


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int16", "uint16"])
def test_small_integers_are_exact_in_float32(kind: str) -> None:
    values = np.array([[0, 1], [1, 1]]).astype(kind)
    if kind != "bool":
        values[0] = np.iinfo(kind).min, np.iinfo(kind).max
    m = as_matrix(values)
    assert m.dtype == "float32"
    assert m.float64().tolist() == values.astype(np.float64).tolist()


@pytest.mark.parametrize("kind", ["int32", "uint32", "int64", "uint64"])
def test_large_integers_are_exact_in_float64_or_refused(kind: str) -> None:
    top = min(2**53, int(np.iinfo(kind).max))
    values = np.array([[0, 1], [top, top - 1]], dtype=kind)
    m = as_matrix(values)
    assert m.dtype == "float64"
    assert m.float64().tolist() == values.astype(np.float64).tolist()
    if "64" in kind:
        values[1, 1] = 2**53 + 2
        with pytest.raises(
            ValueError, match=f"^x holds the integer {2**53 + 2}, which float64 cannot represent exactly$"
        ):
            as_matrix(values)
    if kind == "int64":
        values[1, 1] = np.iinfo(kind).min
        with pytest.raises(ValueError, match=f"holds the integer {2**63}"):
            as_matrix(values)


def test_foreign_byte_order_and_packed_records_are_read(x: np.ndarray) -> None:
    assert np.array_equal(as_matrix(x.astype(">f4")).values, x)
    assert as_matrix(x.astype(">f8")).dtype == "float64"
    record = np.zeros(12, dtype=[("tag", "i1"), ("value", "f4", (5,))])
    record["value"] = x
    assert not record["value"].flags.aligned
    assert np.array_equal(as_matrix(record["value"]).float64(), x)
    assert sk.cka(record["value"], x) == sk.cka(x, x)


def test_lists_scalars_subclasses_and_array_protocols(x: np.ndarray) -> None:
    assert as_matrix([[1, 2], [3, 4.5]]).float64().tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert as_matrix(((True, False), (False, True))).dtype == "float32"

    class Wrapped:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return x

    class Exchanged:
        def __dlpack__(self, **options: object) -> object:
            return x.__dlpack__(**options)  # type: ignore[arg-type]

        def __dlpack_device__(self) -> tuple[int, int]:
            return x.__dlpack_device__()

    class OnADevice:
        """As a CuPy array on device 3 behaves."""

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 3)

        def get(self) -> np.ndarray:
            return x

    for source in (Wrapped(), Exchanged()):
        assert np.array_equal(as_matrix(source).values, x)
        assert np.shares_memory(as_matrix(source).values, x)
    m = as_matrix(OnADevice())
    assert np.array_equal(m.values, x)
    assert m.origin.endswith("device 3, copied to the host")


def test_bfloat16_of_other_libraries() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([[1.0, -2.5], [3e38, 1e-40]]).astype(ml_dtypes.bfloat16)
    m = as_matrix(values)
    assert m.dtype == "bfloat16"
    assert m.float64().tolist() == values.astype(np.float64).tolist()


def test_a_matrix_goes_through_the_door_again_under_another_name(x: np.ndarray) -> None:
    m = as_matrix(as_matrix(x, name="a"), name="b")
    assert m.name == "b"
    assert np.shares_memory(m.values, x)


def test_only_pages_of_a_file_that_can_be_read_again_are_mapped(tmp_path: Path, x: np.ndarray) -> None:
    path = tmp_path / "x.npy"
    np.save(path, x)
    shared = np.load(path, mmap_mode="r")
    for view in (shared, shared[2:], shared.T, np.asarray(shared), shared.reshape(6, 10)):
        assert as_matrix(view).mapped
    assert not as_matrix(np.load(path, mmap_mode="c")).mapped  # private pages hold what was written to them
    assert not as_matrix(x).mapped
    assert not as_matrix(shared.astype(np.float64)).mapped


def test_nothing_is_written_to(x: np.ndarray) -> None:
    y = np.random.default_rng(1).standard_normal((12, 5))
    for array in (x, y):
        array.setflags(write=False)
    before = x.copy(), y.copy()
    for kernel in (sk.Linear(), sk.RBF(), sk.Cosine(), sk.Polynomial(), sk.Laplacian()):
        sk.cka(x, y, kernel=kernel)
        sk.hsic(x, y, kernel=kernel)
    sk.similarity_matrix({"x": x, "y": y})
    sk.greedy_cka(y)
    sk.greedy_cka(x, units=[0, 1, 0, 1, 2])
    stream = sk.StreamingCKA()
    for _ in range(50):
        stream.update({"x": x}, {"y": y})
    stream.compute()
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


def test_the_global_random_state_is_left_alone(x: np.ndarray) -> None:
    np.random.seed(7)  # noqa: NPY002
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    sk.cka(x, x, kernel=sk.RBF())
    sk.greedy_cka(x)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert np.array_equal(state["state"]["key"], after["state"]["key"])
    assert state["state"]["pos"] == after["state"]["pos"]


def test_a_mapping_of_layers(x: np.ndarray) -> None:
    a, b = as_matrices({"a": x, 3: x[:, :2]})
    assert (a.name, b.name) == ("a", "3")
    assert same_samples((a, b)) == 12
    with pytest.raises(TypeError, match=r"^layers must be a mapping of names to arrays, not list$"):
        as_matrices([x, x])
    with pytest.raises(TypeError, match=r"^others must be a mapping of names to arrays, not ndarray$"):
        sk.similarity_matrix({"a": x}, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^layers is empty: give at least one named array$"):
        as_matrices({})
    with pytest.raises(ValueError, match=r"^a has 12 samples and b has 4: similarity needs the same samples"):
        as_matrices({"a": x, "b": x[:4]})
    for what in ("layers", "others"):
        with pytest.raises(ValueError, match=rf"^{what} has the keys 1 and '1', which are one name, '1', as text$"):
            as_matrices({"a": x, 1: x, "1": x}, what=what)


def test_enough_samples() -> None:
    enough_samples(4, 4, "this")
    with pytest.raises(ValueError, match=r"^this needs at least 4 samples, not 3$"):
        enough_samples(3, 4, "this")


def test_sparse_matrices_are_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"^x is a sparse csr_array: pass a dense array \(x.toarray\(\)\)$"):
        as_matrix(sparse.csr_array(np.eye(3)))


def test_column_slices_are_views(x: np.ndarray) -> None:
    part = Matrix("a", x, "float32").column_slice(1, 3)
    assert (part.n, part.p) == (12, 2)
    assert np.shares_memory(part.values, x)
    assert np.array_equal(part.values, x[:, 1:3])


def test_no_framework_is_needed(x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "cupy", "jax"):
        monkeypatch.setitem(sys.modules, name, None)  # importing one would raise
    assert sk.cka(x, x) == pytest.approx(1.0)
