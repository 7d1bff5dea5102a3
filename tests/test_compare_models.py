"""compare end to end: every way of keeping features gives one number, within memory, and says what it did."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from needed import torch_on_gpu  # noqa: E402
from resident import COUNTED, RESIDENT  # noqa: E402
from tolerance import assert_close  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from simkit.compare import collect  # noqa: E402
from simkit.compare.collect import Shape, decide  # noqa: E402
from simkit.compare.matrix import SimilarityMatrix, similarity_matrix  # noqa: E402
from simkit.compare.models import compare  # noqa: E402
from simkit.compare.on_device import OnDevice  # noqa: E402
from simkit.compare.spool import Spool  # noqa: E402
from simkit.errors import TooLittleMemory  # noqa: E402
from simkit.kernels import RBF  # noqa: E402
from simkit.metrics.cka import CKA  # noqa: E402
from simkit.metrics.nbs import NBS  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")
X = torch.from_numpy(np.random.default_rng(0).standard_normal((1200, 6)).astype(np.float32))


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        layers += [nn.Linear(widths[i - 1] if i else 6, width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def batches(size: int = 100) -> Iterator[Tensor]:
    """A stream of unknown length."""
    return iter(X.split(size))


def reference(a: nn.Sequential, b: nn.Sequential, measure: Any = CKA()) -> SimilarityMatrix:
    def features(model: nn.Sequential) -> dict[str, Tensor]:
        x, out = X, {}
        with torch.no_grad():
            for name, module in model.named_children():
                x = module(x.clone())
                if isinstance(module, nn.Linear):
                    out[name] = x.clone()
        return out

    return similarity_matrix(features(a), features(b), measure=measure, backend="reference")


WAYS: dict[str, dict[str, Any]] = {
    "memory": {"data": X, "memory": "1 GB"},
    "moments": {"data": batches, "memory": "1 GB"},
    "moments in ragged batches": {"data": lambda: batches(77), "memory": "1 GB"},
    "disk": {"data": X, "memory": "350 KB"},
    "disk, unknown length": {"data": batches, "memory": "350 KB"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_every_way_gives_the_reference(way: str, estimator: Any) -> None:
    a, b = mlp(20, 33, 9), mlp(15, 40)
    options = dict(WAYS[way])
    data = options.pop("data")
    m = compare(a, b, data=data() if callable(data) else data, measure=CKA(estimator=estimator), **options)
    want = reference(a, b, CKA(estimator=estimator))
    assert (m.rows, m.columns, m.samples) == (want.rows, want.columns, 1200)
    np.testing.assert_allclose(m.values, want.values, atol=1e-6)
    assert {"mom": "moments:", "mem": "were in memory", "dis": "were on disk"}[way[:3]] in m.plan.explain()


def test_the_way_is_said_with_numbers() -> None:
    a = mlp(20)
    assert compare(a, data=X, memory="1 GB").plan.notes == (
        "features spooled: 0.09155 MiB have room in memory; memory=953.7 MiB",
        "0.09155 MiB of features were in memory",
    )
    assert compare(a, data=X, memory="150 KB").plan.notes == (
        "features spooled: moments take 0.08118 MiB; memory=0.1431 MiB",
        "0.09155 MiB of features were on disk",
    )
    assert compare(a, data=batches(), memory="1 GB").plan.notes == (
        "moments: an unknown number of rows, their state is 0.08118 MiB; memory=953.7 MiB",
    )
    assert "a quarter of what is free" in compare(a, data=X).plan.explain()


def test_other_kernels_and_measures_use_the_features() -> None:
    class Overlap:
        """Not CKA: the share of samples whose largest feature is positive in both."""

        def prepare(self, x: Any) -> Any:
            return x.float64().max(axis=1) > 0

        def score(self, x: Any, y: Any) -> float:
            return float((x & y).mean())

    a, b = mlp(8, 5), mlp(7)
    rbf = compare(a, b, data=batches(), measure=CKA(RBF(0.5)), samples=300, memory="1 GB")
    assert "CKA(kernel=RBF" in rbf.plan.notes[0]
    assert rbf.samples == 300
    overlap = compare(a, b, data=batches(), measure=Overlap(), memory="1 GB")
    assert overlap.values.shape == (2, 1)
    assert 0 < overlap.values[0, 0] <= 1


def test_minibatch_is_an_estimate_that_says_so() -> None:
    a, b = mlp(20, 9), mlp(15)
    m = compare(a, b, data=batches(), mode="minibatch")
    assert "an estimate" in m.plan.explain()
    assert m.measure.endswith("minibatch estimate")
    assert np.abs(m.values - compare(a, b, data=X).values).max() < 0.05
    for measure in (CKA(RBF()), CKA(estimator="biased")):
        with pytest.raises(ValueError, match='mode="minibatch" estimates debiased linear CKA, not CKA'):
            compare(a, b, data=X, mode="minibatch", measure=measure)


def test_bad_options() -> None:
    a = mlp(4)
    with pytest.raises(ValueError, match='mode must be "exact" or "minibatch", not \'fast\''):
        compare(a, data=X, mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory must be a number of bytes"):
        compare(a, data=X, memory="lots")
    with pytest.raises(TypeError, match="measure must be a measure object"):
        compare(a, data=X, measure=CKA)  # type: ignore[arg-type]


def test_too_little_memory_is_said_before_the_models_have_run() -> None:
    taken = []

    def data() -> Iterator[Tensor]:
        for batch in X.split(100):
            taken.append(len(batch))
            yield batch

    sentence = r"memory=1000 bytes is too little: comparing 2 layers of 1200 samples needs \d+"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        compare(mlp(40), mlp(30), data=data(), samples=1200, memory=1000)
    sentence = r"memory=1 KB is too little: comparing 2 layers of 1200 samples by NBS\(\) needs \d+"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        compare(mlp(40), mlp(30), data=data(), samples=1200, memory=" 1 KB", measure=NBS())
    assert taken == [100, 100]


@pytest.mark.parametrize("measure", [CKA(RBF()), NBS()])
@pytest.mark.parametrize("known", [True, False])
def test_the_memory_that_is_said_to_be_needed_is_enough(measure: Any, known: bool) -> None:
    """Whether the number of samples is known before the models run, or only after."""

    def data() -> Any:
        return X if known else iter(X.split(100))

    with pytest.raises(ValueError, match=r"^memory=10 KB is too little: comparing 2 layers of .* needs \d+$") as caught:
        compare(mlp(40), mlp(30), data=data(), memory="10 KB", measure=measure)
    assert caught.value.__cause__ is None
    needed = int(str(caught.value).split()[-1])
    assert compare(mlp(40), mlp(30), data=data(), memory=needed, measure=measure).samples == len(X)


@pytest.mark.parametrize("measure", [CKA(RBF()), CKA(RBF(), estimator="biased"), NBS()])
@pytest.mark.parametrize("known", [True, False])
def test_features_that_leave_the_engine_too_little_memory_go_to_disk(
    measure: Any, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, size = mlp(4, 3), 4 * 7 * len(X)
    to_disk, kept = Spool.to_disk, []

    def moved(spool: Spool) -> None:
        held = [weakref.ref(layer.held) for layer in spool.layers.values()]
        to_disk(spool)
        kept.append([memory() for memory in held])

    monkeypatch.setattr(Spool, "to_disk", moved)

    def run(memory: int) -> Any:
        return compare(a, data=X if known else iter(X.split(100)), memory=memory, measure=measure)

    with pytest.raises(TooLittleMemory) as caught:
        run(10_000)
    least = caught.value.needed
    assert size < collect.IN_MEMORY * least
    tight, ample = run(least), run(least + size + 1)
    assert tight.plan.notes[0].endswith("; on disk all the same: the engine needs the memory") == known
    assert tight.plan.notes[2:] == (() if known else ("they left memory at the end: the engine needs it",))
    assert [m.plan.notes[1] for m in (tight, ample)] == [
        f"0.03204 MiB of features were {w}" for w in ("on disk", "in memory")
    ]
    assert_close(tight.values, ample.values, "cka", np.float32, len(X), 4)
    with pytest.raises(TooLittleMemory, match=rf"^memory={least - 2} bytes is too little: .* needs {least}$"):
        run(least - 2)
    assert kept == ([] if known else [[None] * 2] * 3)  # nobody else held what was moved


def test_free_memory_that_is_too_little_is_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "free_memory", lambda: 4000)
    with pytest.raises(
        ValueError, match=r"^memory=4000 bytes \(of what is free\) is too little: comparing 2 layers of "
    ):
        compare(mlp(40), mlp(30), data=X, measure=NBS())


def test_less_than_a_byte_is_no_memory() -> None:
    with pytest.raises(ValueError, match=r'^memory must be a number of bytes or a text such as "64 MB", not 0\.5$'):
        compare(mlp(40), data=X, memory=0.5)


def test_numpys_integers_limit_the_samples() -> None:
    assert compare(mlp(40), data=X, samples=np.int64(50)).samples == 50  # type: ignore[arg-type]


def test_widths_that_change_between_batches() -> None:
    model = nn.Linear(6, 3)
    ragged = [torch.randn(8, 5, 6), torch.randn(8, 4, 6)]
    for memory in ("1 GB", "1 KB"):
        with pytest.raises(ValueError, match=r"12|'Linear \[12\]'"):
            compare(model, data=iter(ragged), memory=memory)
    assert compare(model, data=iter(ragged), reduce="mean").samples == 16
    assert compare(model, data=iter(ragged), reduce="positions").samples == 72


def test_temporary_files_go_even_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def watched(fail: bool) -> Iterator[Tensor]:
        for batch in batches():
            yield batch
            seen.append(len(list(tmp_path.iterdir())))
        if fail:
            raise KeyboardInterrupt

    m = compare(mlp(30), mlp(40), data=watched(False), memory="300 KB")
    assert "of features were on disk" in m.plan.explain()
    assert max(seen) == 0  # no name that could stay
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        compare(mlp(30), mlp(40), data=watched(True), memory="300 KB")
    assert list(tmp_path.iterdir()) == []


# --- the decision, by itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "rows", "memory", "way"),
    [
        ((256,) * 4, (256,) * 4, 10**6, 2**30, "moments"),  # a long stream of narrow layers
        ((256,) * 4, (256,) * 4, None, 2**30, "moments"),
        ((256,) * 4, (256,) * 4, 10**4, 2**30, "spool"),  # fits in memory
        ((16384,) * 16, (16384,) * 16, 1024, 2**30, "spool"),  # wide maps, few samples: the sample space is cheaper
        ((16384,) * 16, (16384,) * 16, None, 2**30, "spool"),
        ((16384,) * 16, None, 1024, 2**40, "spool"),
        ((512,) * 8, None, 65536, 64 * 10**6, "spool"),  # moments do not fit
        ((4096,), (4096,), 2000, 2**25, "spool"),
    ],
)
def test_decisions(left: Any, right: Any, rows: int | None, memory: int, way: str) -> None:
    shape = Shape(left, right, 4 * sum((*left, *(right or ()))), rows)
    decision = decide(shape, CKA(), memory=memory, mode="exact")
    assert decision.way == way
    assert decide(shape, CKA(RBF()), memory=memory, mode="exact").way == "spool"
    assert decide(shape, CKA(), memory=memory, mode="minibatch").way == "minibatch"


def test_features_stay_on_a_device_that_has_room() -> None:
    there = OnDevice(1, "native_cuda", 4 * 10**6, bounded=False)
    known, unknown, large = (Shape((500,), None, 2000, rows) for rows in (1000, None, 1001))
    decision = decide(known, CKA(), memory=None, mode="exact", there=there)  # half of what is free
    assert decision.way == "device"
    assert decision.reason == "features stay on cuda:1: 1.907 MiB, and 3.815 MiB are free there"
    assert decide(known, CKA(RBF()), memory=None, mode="exact", there=there).way == "device"
    for shape, memory in ((unknown, None), (large, None), (known, 4 * 10**6)):  # or 0.4 of what is allowed
        assert decide(shape, CKA(), memory=memory, mode="exact", there=there).way != "device"
    decision = decide(known, CKA(), memory=5 * 10**6, mode="exact", there=there)
    assert (decision.way, decision.memory) == ("device", 5 * 10**6)
    assert decision.reason.endswith("; memory=4.768 MiB")
    assert decide(known, CKA(), memory=None, mode="minibatch", there=there).way == "minibatch"


def test_the_default_budget_is_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "free_memory", lambda: 8 * 2**30)
    decision = decide(Shape((8,), None, 32, 100), CKA(), memory=None, mode="exact")
    assert decision.memory == 2 * 2**30
    decision = decide(Shape((8,), None, 32, 100), NBS(), memory=None, mode="exact")
    assert (decision.memory, decision.ram) == (8 * 2**30, int(0.8 * 2**30))  # every layer is prepared: no smaller way
    monkeypatch.undo()
    assert collect.free_memory() >= 2**26


# --- around it -------------------------------------------------------------------------------------------------------


def test_the_progress_bar_is_on_stderr_and_only_when_it_takes_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    from simkit.compare import run

    compare(mlp(4), data=X)
    assert capfd.readouterr() == ("", "")
    before = run.SHOW_AFTER
    run.SHOW_AFTER = 1e-9
    try:
        compare(mlp(4), data=X)
        out, err = capfd.readouterr()
        assert out == ""
        assert "samples/s" in err
        assert "1200" in err
        compare(mlp(4), data=X, progress=False)
        assert capfd.readouterr() == ("", "")
    finally:
        run.SHOW_AFTER = before


@pytest.mark.gpu
def test_models_on_a_gpu() -> None:
    torch_on_gpu()
    a, b = mlp(20, 33), mlp(15)
    want = compare(a, b, data=X)
    state = torch.cuda.get_rng_state()
    there = compare(a, b, data=X, device="cuda")
    assert {p.device.type for p in [*a.parameters(), *b.parameters()]} == {"cpu"}
    np.testing.assert_allclose(there.values, want.values, atol=1e-4)
    one_each = compare(a, mlp(15).cuda(), data=X, memory="400 KB")
    assert one_each.values.shape == (2, 1)
    assert torch.equal(state, torch.cuda.get_rng_state())
    with pytest.raises(ValueError, match="non-finite"):
        compare(a, data=X * float("nan"), device="cuda")


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, timeout=500, capture_output=True, text=True
    ).stdout


def test_without_torch_one_sentence_names_the_extra() -> None:
    code = """
import sys
sys.modules["torch"] = None
from simkit.compare.models import compare
try:
    compare(1, data=2)
except ImportError as error:
    print(error)
"""
    assert run_python(code) == "comparing models needs torch: pip install 'simkit[torch]'\n"


def test_the_public_name_is_the_function() -> None:
    """Although a package of the same name is inside."""
    import simkit

    assert simkit.compare is compare


def test_importing_compare_loads_no_torch() -> None:
    assert run_python("import sys, simkit.compare.models; print('torch' in sys.modules)") == "False\n"


PEAK = """
import sys, torch
from torch import nn
from simkit.compare.models import compare
from simkit.metrics.cka import CKA

rows, width, depth, memory = map(int, sys.argv[1:])
torch.set_num_threads(2)
torch.manual_seed(0)

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, width) for _ in range(depth))
    def forward(self, x):
        for layer in self.layers:
            layer(x)

def stream(n):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n // 256):
        yield torch.randn(256, 8, generator=generator)

model = Wide()
compare(model, data=stream(512), memory=memory)   # warm: libraries and thread pools are loaded
before = now()
m = compare(model, data=stream(rows), memory=memory)
grown = peak() - before
features = rows * width * depth * 4
print(m.plan.explain(), file=sys.stderr)
print(features, grown, m.values[0, 1])
"""


def peak_growth(rows: int, width: int, depth: int, memory: int) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + PEAK, *map(str, (rows, width, depth, memory))],
        check=True,
        timeout=900,
        capture_output=True,
        text=True,
    )
    features, grown, score = done.stdout.split()
    assert np.isfinite(float(score))
    assert "spooled" in done.stderr
    return int(features), int(grown)


@COUNTED
def test_memory_stays_within_the_budget() -> None:
    budget = 12 * 10**6
    features, grown = peak_growth(8192, 512, 4, budget)
    assert features > 5 * budget
    assert grown <= budget


@COUNTED
@pytest.mark.slow
def test_one_gigabyte_under_64_megabytes() -> None:
    features, grown = peak_growth(65536, 512, 8, 64 * 10**6)
    assert features > 10**9
    assert grown <= 64 * 10**6
