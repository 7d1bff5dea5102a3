"""What a SIGKILL leaves: work in forked children, killed at moments spread over its length. Run as a script.

Arguments: the run's name and an empty folder. Prints "whole" when every claim held.

A kill while a file is written leaves its draft, ``.simkit-*``. In a folder of outputs a later run does not delete it:
another process may be writing there at that moment. The folder of ``resume=`` belongs to one run, and the next one
deletes it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from threading import RLock

import numpy as np
from safetensors.numpy import save_file

import simkit as sk
from simkit.cli import main
from simkit.files import is_draft

KILLS = 12
SAMPLES, LAYERS, WIDTH = 500, 40, 24
Files = dict[str, str]


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Do the work in a fork and kill it after so long; whether that was before its end."""
    child = os.fork()
    if child == 0:
        with suppress(SystemExit):
            work()
            os._exit(0)
        os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def moments(work: Callable[[], object], share: float) -> Iterator[float]:
    """Seconds up to ``share`` times the length of the work, one at random from each equal part."""
    start = time.perf_counter()
    work()
    length = share * (time.perf_counter() - start)
    chance = np.random.default_rng(os.getpid())
    for part in range(KILLS):
        yield length * (part + chance.random()) / KILLS


def contents(folder: Path, *, drafts: bool = False) -> Files:
    """A digest of every file in a folder."""
    files = [path for path in folder.iterdir() if drafts or not is_draft(path)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def features(folder: Path) -> None:
    """Layers in .npy files and, as two models, in safetensors files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    layers = {f"layer{k}": rng.standard_normal((SAMPLES, WIDTH + k)).astype(np.float32) for k in range(LAYERS)}
    for name, values in layers.items():
        np.save(folder / f"{name}.npy", values)
    save_file(layers, folder / "a.safetensors")
    save_file({name: values[:, ::2].copy() for name, values in layers.items()}, folder / "b.safetensors")


def kill_often(folder: Path, work: Callable[[Path], object], names: set[str], *, again: bool) -> None:
    """Kill the work in an empty folder and in one with older results; ``again``: it repeats itself until it is killed.

    Outputs must be whole, be the old ones, or not be there.
    """
    inputs = contents(folder / "in")
    whole = folder / "whole"
    whole.mkdir()

    def repeated(out: Path) -> None:
        work(out)
        while again:
            work(out)

    out = folder / "out"
    out.mkdir()
    early = False
    for k, moment in enumerate(moments(lambda: work(whole), 3.0 if again else 1.2)):
        expected = contents(whole)
        assert set(expected) == names
        for name in contents(out):
            (out / name).unlink()
        for name in names if k % 2 else ():
            (out / name).write_bytes(b"old")
        before = contents(out)
        killed(lambda: repeated(out), moment)
        after = contents(out)
        assert set(before) <= set(after) <= names, after
        assert all(digest in (expected[name], before.get(name)) for name, digest in after.items()), after
        early = early or after != expected
    assert early, "no kill came before the end"
    work(out)
    assert contents(out) == contents(whole)
    assert contents(folder / "in") == inputs


def matrix(folder: Path) -> None:
    """``similarity_matrix`` of mapped files in little memory, saved twice."""
    features(folder / "in")

    def work(out: Path) -> None:
        layers = {path.stem: np.load(path, mmap_mode="r") for path in sorted((folder / "in").glob("*.npy"))}
        found = sk.similarity_matrix(layers, memory="2 MB")
        found.save(out / "m.safetensors")
        found.to_csv(out / "m.csv")

    kill_often(folder, work, {"m.safetensors", "m.csv"}, again=True)
    loaded = sk.SimilarityMatrix.load(folder / "out" / "m.safetensors")
    assert loaded.values.shape == (LAYERS, LAYERS)


def command(folder: Path) -> None:
    """``simkit compare A.safetensors B.safetensors`` with three outputs."""
    features(folder / "in")
    names = {"m.safetensors", "m.csv", "m.json"}

    def work(out: Path) -> None:
        outs = [argument for name in sorted(names) for argument in ("--out", str(out / name))]
        pair = [str(folder / "in" / name) for name in ("a.safetensors", "b.safetensors")]
        with Path(os.devnull).open("w") as quiet, redirect_stdout(quiet):
            assert main(["compare", *pair, "--memory", "2 MB", *outs]) == 0

    kill_often(folder, work, names, again=False)


def resume(folder: Path) -> None:
    """``compare(resume=)`` on mapped data, killed over and over; each time the next process goes on."""
    import torch
    from torch import nn
    from tqdm import tqdm

    from simkit.compare import resume as module

    tqdm.set_lock(RLock())  # its own is shared with forks: a child killed while it holds that one keeps it for ever
    module.COMMIT_EVERY = 0.0
    torch.set_num_threads(1)
    kept = folder / "kept"
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((SAMPLES, WIDTH)).astype(np.float32))
    data = list(torch.from_numpy(np.load(folder / "x.npy", mmap_mode="c")).split(10))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def work(where: Path | None) -> sk.SimilarityMatrix:
        return sk.compare(model, data=data, memory="16 MB", resume=where, progress=False)

    inputs = contents(folder)
    expected = work(None)
    for moment in moments(lambda: work(folder / "timed"), 0.4):
        killed(lambda: work(kept), moment)
    found = work(kept)
    assert found.values.tobytes() == expected.values.tobytes()
    assert not kept.exists(), contents(kept, drafts=True)
    assert contents(folder) == inputs


if __name__ == "__main__":
    {"matrix": matrix, "command": command, "resume": resume}[sys.argv[1]](Path(sys.argv[2]))
    print("whole")
