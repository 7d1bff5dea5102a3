"""A device whose memory is full, on the emulator (tests/native): every op tries again, and then says so."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import emulated_candidates
import emulated_cuda
import emulated_graphs
import emulated_greedy
import emulated_moments
import emulated_partners
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import array_of, block_of, bound, relu
from emulated_cuda import compile_programs

from simkit.arrays import as_matrix

Array = npt.NDArray[Any]
FULL = r"^CUDA cannot allocate \d+ bytes on the device: its memory is full even with the smallest workspace"
N, P, UNITS = 70, 6, (0, 2, 3, 6)


class Device(NamedTuple):
    """One library of programs."""

    programs: Any

    def memory(self, most: int = 0, refused: int = 0) -> None:
        """Of every machine from now on ``most`` bytes (0: plenty); one allocation fails (0: none)."""
        self.programs.set_memory(ctypes.c_int64(most), ctypes.c_int64(refused))

    @property
    def machines(self) -> int:
        self.programs.machines.restype = ctypes.c_int64
        return int(self.programs.machines())

    @property
    def allocations(self) -> int:
        self.programs.allocations.restype = ctypes.c_int64
        return int(self.programs.allocations())


@pytest.fixture
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    programs = compile_programs(tmp_path_factory.getbasetemp(), request.param)
    if programs is None:
        pytest.skip("there is no C++ compiler")
    yield Device(programs)
    Device(programs).memory()


def flat(found: Any) -> list[bytes]:
    """All that an op returned, byte by byte."""
    if isinstance(found, tuple | list):
        return [part for one in found for part in flat(one)]
    if isinstance(found, emulated_cuda.Array):
        return flat(found.held)
    if isinstance(found, emulated_graphs.Bits):
        return flat(found.fetch())
    return [np.asarray(found).tobytes()]


X = relu(N, P).astype(np.float32)
BLOCK, STATS = block_of(X)
ROWS = np.arange(N, dtype=np.int64)
GRAPH = np.zeros((1, N, 2), dtype=np.uint64)
GRAPH[0, 0, 0], GRAPH[0, 1, 0] = 2, 1  # one edge
CORES = {"double_products": False, "tensor": False, "bytes": 2**20}


def whole(programs: Any) -> Any:
    how = CORES | {"rows": [bound(BLOCK)], "columns": [], "debiased": True, "sample_space": True, "halves": False}
    return emulated_cuda.pair_sums(programs, 0, **how, apart=())


def copied(programs: Any) -> Array:
    out = np.empty_like(X)
    emulated_cuda.run(programs, "copied", X, ctypes.c_int64(X.nbytes), 0, out)
    return out


def unit_sums(programs: Any, sample: bool) -> Any:
    offsets = np.array(UNITS, dtype=np.int64)
    how: Any = CORES | {"debiased": True, "sample_space": sample}
    return emulated_greedy.unit_sums(programs, 0, bound(BLOCK), offsets, **how)


def eliminated(programs: Any) -> Any:
    square = emulated_greedy.square(np.cov(X.T.astype(np.float64)))
    return emulated_greedy.eliminate(programs, 0, [square], greedy=True, counts=[3], min_cka=np.nan)


def formed(programs: Any) -> Any:
    how: Any = {"shift": None, "scale": 1.0, "unit": 2.0, "double": False}
    return emulated_candidates.FormedUnits(programs, 0, x=array_of(as_matrix(X)), columns=ROWS[:P], **how)


def candidates(programs: Any) -> Any:
    how: Any = {"kernel": "rbf", "length": 1.0, "coef0": 0.0, "degree": 1, "debiased": True, "small_centre": True}
    offsets, room = np.array(UNITS, dtype=np.int64), {"at_once": 4, "packed": 2**20, "bytes": 2**20}
    search = emulated_candidates.Candidates(
        programs, 0, units=formed(programs), offsets=offsets, centre=np.zeros(N), **how, **room
    )
    kept, chosen = np.arange(3, dtype=np.int64), np.array([-1, 0, 2], dtype=np.int64)
    return search.sums(kept=kept, candidates=chosen, levels=np.full(N, 0.05), small=True, rows=True)


def nearest(programs: Any) -> Any:
    norms = np.sqrt((X.astype(np.float64) ** 2).sum(axis=1))
    how: Any = {"last": None, "residues": None, "same_sign": False, "balance": 1.0, "k": 2}
    return emulated_partners.nearest_rows(
        programs, 0, x=array_of(as_matrix(X)), norms=norms, rows=ROWS, others=ROWS, **how
    )


def moments(programs: Any) -> Any:
    """A whole life: what every call returned, and the sums at its end."""
    of = emulated_moments.Moments(programs, 0, device=0, left=[4], right=[2], blocks=1, tensor=False)
    layers = [array_of(as_matrix(X[:, :4])), array_of(as_matrix(X[:, 4:]))]
    of.set(np.full(6, 0.5), np.full(6, 2.0), np.linspace(0, 1, of.count))
    of.keep(layers, first=0, count=30, at=0)
    stage = of.stage(30)
    of.set_stage(np.ones((512, 6)))
    norms = of.rows(layers, first=0, rows=N, staged=False)
    taken = of.take(np.array([3, 9], dtype=np.int64), stream=0)
    of.put(taken, np.ones((2, 2, 2)), stream=0)
    of.add(0, N, stream=0)
    of.add(512, 2, stream=0)
    return [stage, norms, taken, of.numbers()]


OPS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "column_stats": (
        "cuda_programs",
        lambda m: emulated_cuda.column_stats(m, 0, x=array_of(BLOCK.matrix), row_scale=None),
    ),
    "row_norms": ("cuda_programs", lambda m: emulated_cuda.row_norms(m, 0, bound(BLOCK))),
    "distance_median": ("cuda_programs", lambda m: emulated_cuda.distance_median(m, 0, bound(BLOCK))),
    "pair_sums": ("cuda_programs", whole),
    "copied": ("cuda_greedy_programs", copied),
    "column_products": (
        "cuda_greedy_programs",
        lambda m: emulated_greedy.column_products(
            m, 0, bound(BLOCK), STATS.sum_sq_dev, exact=False, tensor=False, squared=True, bytes=2**20
        ),
    ),
    "gather_columns": (
        "cuda_greedy_programs",
        lambda m: emulated_greedy.gather_columns(m, 0, array_of(BLOCK.matrix), ROWS[[4, 0]]),
    ),
    "unit_sums, sample space": ("cuda_greedy_programs", lambda m: unit_sums(m, True)),
    "unit_sums, feature space": ("cuda_greedy_programs", lambda m: unit_sums(m, False)),
    "total": ("cuda_greedy_programs", lambda m: emulated_greedy.total(m, 0, emulated_greedy.square(X[:P, :P]))),
    "eliminate": ("cuda_greedy_programs", eliminated),
    "adjacency": (
        "cuda_graphs_programs",
        lambda m: emulated_graphs.adjacency(m, 0, x=array_of(BLOCK.matrix), squared=[0.3, 1.2]),
    ),
    "components": ("cuda_graphs_programs", lambda m: emulated_graphs.components(m, 0, emulated_graphs.Bits(GRAPH))),
    "cover": ("cuda_graphs_programs", lambda m: emulated_graphs.cover(m, 0, emulated_graphs.Bits(GRAPH))),
    "units": ("cuda_candidates_programs", lambda m: formed(m).z),
    "candidates": ("cuda_candidates_programs", candidates),
    "nearest_rows": ("cuda_partners_programs", nearest),
    "largest_entries": (
        "cuda_moments_programs",
        lambda m: emulated_moments.largest_entries(m, 0, [array_of(BLOCK.matrix)]),
    ),
    "moments": ("cuda_moments_programs", moments),
}
every_op = pytest.mark.parametrize(("device", "op"), OPS.values(), ids=OPS, indirect=["device"])


@every_op
def test_an_allocation_that_fails_is_tried_again(device: Device, op: Callable[[Any], Any]) -> None:
    """Whichever it is: on one more machine, with the same bits; no batch is added twice, no row taken twice."""
    device.memory()
    want = flat(op(device.programs))
    allocations, machines = device.allocations, device.machines
    assert allocations > 0
    for refused in range(1, allocations + 1):
        device.memory(refused=refused)
        assert flat(op(device.programs)) == want
        assert device.machines == machines + 1


@every_op
def test_memory_that_stays_full_is_explained(device: Device, op: Callable[[Any], Any]) -> None:
    device.memory(most=1)
    with pytest.raises(MemoryError, match=FULL):
        op(device.programs)
    assert device.machines == 2


@pytest.mark.parametrize("device", ["cuda_graphs_programs"], indirect=True)
def test_graphs_that_do_not_fit_say_what_they_take(device: Device) -> None:
    for most in (1, 8 * 2 * N * 2 + 9):  # the bits alone, and what they are formed with
        device.memory(most=most)
        what = rf"; the graphs of {N} rows at 2 thresholds take {8 * 2 * N * 2} bytes there, less with fewer thresholds"
        with pytest.raises(MemoryError, match=FULL + what):
            OPS["adjacency"][1](device.programs)


@pytest.mark.parametrize("device", ["cuda_moments_programs"], indirect=True)
def test_moments_that_do_not_fit_say_what_they_take(device: Device) -> None:
    device.memory(most=1000)
    with pytest.raises(MemoryError, match=FULL + r"; the moments of 6 columns take \d+ bytes there$"):
        moments(device.programs)


@pytest.mark.parametrize("device", ["cuda_moments_programs"], indirect=True)
def test_a_call_that_fails_leaves_the_moments_as_they_were(device: Device) -> None:
    device.memory()
    of = emulated_moments.Moments(device.programs, 0, device=0, left=[4], right=[2], blocks=1, tensor=False)
    layers, rows = [array_of(as_matrix(X[:, :4])), array_of(as_matrix(X[:, 4:]))], ROWS[[3, 9]]
    of.set(np.full(6, 0.5), np.full(6, 2.0), np.zeros(of.count))
    of.rows(layers, first=0, rows=N, staged=False)
    device.memory(most=40)  # enough for the list of the rows, not for the rows
    with pytest.raises(MemoryError, match=FULL):
        of.take(rows, stream=0)
    device.memory()
    assert np.array_equal(of.take(rows, stream=0), (X[[3, 9]].astype(np.float64) - 0.5) * 2.0)
    device.memory()
    of.add(0, N, stream=0)
    assert device.allocations == 0  # nothing of what adds can fail and begin again
