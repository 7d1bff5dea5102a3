"""resume=: a killed comparison continues to the same bits, and a folder of another run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from simkit.compare import resume as resume_module  # noqa: E402
from simkit.compare.models import compare  # noqa: E402

X = torch.from_numpy(np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32))


@pytest.fixture(autouse=True)
def _every_batch_is_recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(resume_module, "COMMIT_EVERY", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


class Data:
    """Batches of X that stop like a kill after some; counts what was taken."""

    def __init__(self, stop: int | None = None, x: Tensor = X, size: int = 20) -> None:
        self.stop, self.x, self.size = stop, x, size

    def __iter__(self) -> Iterator[Tensor]:
        for i, batch in enumerate(self.x.split(self.size)):
            if i == self.stop:
                raise KeyboardInterrupt
            yield batch


def calls(model: nn.Module) -> list[int]:
    """Batch sizes of the forward passes that a model runs."""
    sizes: list[int] = []
    forward = model.forward
    model.forward = lambda input: (sizes.append(len(input)), forward(input))[1]
    return sizes


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_a_stopped_comparison_continues_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    a, b = net(0), net(1)
    want = compare(a, b, data=Data(), resume=tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    with pytest.raises(KeyboardInterrupt):
        compare(a, b, data=Data(stop), resume=tmp_path / "part")
    ran = calls(a)
    m = compare(a, b, data=Data(), resume=tmp_path / "part")
    np.testing.assert_array_equal(m.values, want.values)
    assert (m.rows, m.columns, m.samples) == (want.rows, want.columns, 90)
    assert len(ran) == 5 - max(0, stop - 1)  # the first again, to be sure, and those that were not done
    assert not (tmp_path / "part").exists()
    np.testing.assert_array_equal(m.values, compare(a, b, data=list(X.split(20)), memory="1 GB").values)


def test_a_killed_process_continues(tmp_path: Path) -> None:
    """Killed in the middle of a batch: rows of some layers are there that the state does not know."""
    code = f"""
import os, torch, numpy as np
from torch import nn
from simkit.compare import resume
from simkit.compare.models import compare
resume.COMMIT_EVERY = 0.0
torch.set_num_threads(1)
X = torch.from_numpy(np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32))
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
count = 0
def kill(module, args):
    global count
    count += 1
    if count == 4:
        os._exit(9)
model[2].register_forward_pre_hook(kill)
compare(model, data=list(X.split(20)), resume={str(tmp_path / "kept")!r})
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 9
    sizes = sorted(path.stat().st_size for path in (tmp_path / "kept").glob("*.rows"))
    assert sizes == [60 * 3 * 4, 80 * 8 * 4]
    model = net()
    ran = calls(model)
    m = compare(model, data=list(X.split(20)), resume=tmp_path / "kept")
    assert ran == [20, 20, 10]  # the first again, to be sure; then the fourth and fifth
    np.testing.assert_array_equal(m.values, compare(net(), data=list(X.split(20))).values)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(("widths", "memory"), [([4000], "4 MB"), ([60] * 200, "40 MB")])
def test_a_kill_without_a_folder_leaves_nothing(widths: list[int], memory: str, tmp_path: Path) -> None:
    """Of two layers, nor of two hundred."""
    code = """
import json, os, signal, sys, torch
from torch import nn
from simkit.compare.models import compare
torch.set_num_threads(1)
widths = [6, *json.loads(sys.argv[1])]
hidden = [layer for p, q in zip(widths, widths[1:]) for layer in (nn.Linear(p, q), nn.ReLU())]
model = nn.Sequential(*hidden, nn.Linear(widths[-1], 3))
def data():
    for i in range(9):
        if i == 8:
            sizes = [os.fstat(int(name)).st_size for name in os.listdir("/proc/self/fd") if spooled(name)]
            print("written", sum(sizes), len(sizes), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        yield torch.randn(100, 6)
def spooled(descriptor):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(os.environ["TMPDIR"])
    except OSError:
        return False
compare(model, data=data(), memory=sys.argv[2])
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code, json.dumps(widths), memory]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["written", str(800 * (sum(widths) + 3) * 4), str(len(widths) + 1)]
    assert list(tmp_path.iterdir()) == []


def test_killed_after_the_last_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    want = compare(net(), data=Data())
    with monkeypatch.context() as patch:
        patch.setattr(resume_module.KeptFeatures, "result", stop)
        with pytest.raises(KeyboardInterrupt):
            compare(net(), data=Data(), resume=tmp_path)
    model = net()
    ran = calls(model)
    np.testing.assert_array_equal(compare(model, data=Data(), resume=tmp_path).values, want.values)
    assert ran == [20]


def test_samples_and_positions_and_pairs_continue(tmp_path: Path) -> None:
    a, b = net(0), net(1)
    images = X.reshape(30, 3, 6)
    for options in ({"samples": 25}, {"reduce": "positions"}):
        want = compare(a, b, data=Data(x=images, size=10), **options)
        with pytest.raises(KeyboardInterrupt):
            compare(a, b, data=Data(2, x=images, size=10), resume=tmp_path / "kept", **options)
        m = compare(a, b, data=Data(x=images, size=10), resume=tmp_path / "kept", **options)
        np.testing.assert_array_equal(m.values, want.values)
        assert m.samples == want.samples
    ids = [(x, torch.arange(i * 20, i * 20 + len(x))) for i, x in enumerate(X.split(20))]
    with pytest.raises(ValueError, match="model_b ended first"):
        compare(a, b, data=(ids, ids[:3]), resume=tmp_path / "kept")
    m = compare(a, b, data=(ids, ids), resume=tmp_path / "kept")
    np.testing.assert_array_equal(m.values, compare(a, b, data=list(X.split(20))).values)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with three of five batches."""
    with pytest.raises(KeyboardInterrupt):
        compare(net(), data=Data(3), resume=tmp_path / "kept")
    return tmp_path / "kept"


def test_other_runs_are_refused(kept: Path) -> None:
    changed = X.clone()
    changed[50, 0] += 1
    with pytest.raises(ValueError, match=r"was made from other data: its 3 batches of 60 samples are not the first"):
        compare(net(), data=Data(x=changed), resume=kept)
    with pytest.raises(ValueError, match="was made from other data"):
        compare(net(), data=Data(size=30), resume=kept)
    with pytest.raises(ValueError, match="it holds 3 batches and the data ended after 2"):
        compare(net(), data=Data(x=X[:40]), resume=kept)
    with pytest.raises(ValueError, match="'0' gives other features than those that resume= kept: the model"):
        compare(net(1), data=Data(), resume=kept)
    with pytest.raises(ValueError, match=r"holds the layers \['a/0', 'a/2'\], not \['a/2'\]"):
        compare(net(), data=Data(), layers=["2"], resume=kept)
    with pytest.raises(ValueError, match=r"was made with .*'samples': None}, not .*'samples': 50}"):
        compare(net(), data=Data(), samples=50, resume=kept)
    np.testing.assert_array_equal(
        compare(net(), data=Data(), resume=kept).values, compare(net(), data=Data()).values
    )  # and none of them did harm


def edit(folder: Path, **changes: Any) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **changes}))


def test_damaged_folders_are_refused(kept: Path, tmp_path: Path) -> None:
    rows = kept / "00000.rows"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"damaged state\.json: 00000\.rows holds 1916 bytes and should hold 1920"):
        compare(net(), data=Data(), resume=kept)
    rows.write_bytes(bytes(4) + whole[4:])
    with pytest.raises(ValueError, match="'0' gives other features"):
        compare(net(), data=Data(), resume=kept)
    rows.write_bytes(whole)
    layers = json.loads((kept / "state.json").read_text())["layers"]
    for text, changes in (
        ("its format is 'x'", {"format": "x"}),
        ("batches is '3'", {"batches": "3"}),
        ("'../../etc/passwd' is no file of ours", {"layers": [{**layers[0], "file": "../../etc/passwd"}]}),
        ("damaged", {"layers": [{**layers[0], "dtype": "object[]"}]}),
        ("damaged", {"layers": [{}]}),
    ):
        before = (kept / "state.json").read_text()
        edit(kept, **changes)
        with pytest.raises(ValueError, match=text):
            compare(net(), data=Data(), resume=kept)
        (kept / "state.json").write_text(before)
    (kept / "state.json").write_text("{")
    with pytest.raises(ValueError, match="damaged state"):
        compare(net(), data=Data(), resume=kept)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        compare(net(), data=Data(), resume=tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex' and no state\.json: give an empty or a new folder"):
        compare(net(), data=Data(), resume=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_leftovers_of_an_interrupted_end_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "00003.rows").write_bytes(b"old")
    (tmp_path / ".simkit-0123456789abcdef").write_text("{")
    want = compare(net(), data=Data())
    np.testing.assert_array_equal(compare(net(), data=Data(), resume=tmp_path).values, want.values)
    assert not tmp_path.exists()


def test_shuffling_loaders_are_refused(tmp_path: Path) -> None:
    data = TensorDataset(X)
    with pytest.raises(ValueError, match=r"resume= needs the same order every time, and this loader shuffles"):
        compare(net(), data=DataLoader(data, batch_size=20, shuffle=True), resume=tmp_path / "kept")
    with pytest.raises(ValueError, match='mode="minibatch" has none to keep'):
        compare(net(), data=Data(), mode="minibatch", resume=tmp_path / "kept")

    def seeded() -> DataLoader[Any]:
        return DataLoader(data, batch_size=20, shuffle=True, generator=torch.Generator().manual_seed(3))

    want = compare(net(), data=seeded())

    def stopped() -> Iterator[Any]:
        yield from list(seeded())[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(net(), data=stopped(), resume=tmp_path / "kept")
    np.testing.assert_array_equal(compare(net(), data=seeded(), resume=tmp_path / "kept").values, want.values)
    loader = DataLoader(data, batch_size=20)
    np.testing.assert_allclose(compare(net(), data=loader, resume=tmp_path / "kept").values, want.values, atol=1e-6)
