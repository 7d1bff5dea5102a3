"""A training run that is killed and started again ends with the same bits as one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simkit import train
from simkit.train import TrainOptions
from simkit.train.checkpoint import POINTER, finished_epochs

WORKER = """
import os, signal, sys
from pathlib import Path
import torch

sys.path.insert(0, {root!r})
from {module} import OPTIONS, network, problem
from simkit import train

torch.set_num_threads(1)
model = network()
forwards = 0

def die(module, args, output):
    global forwards
    forwards += module.training
    if forwards == {forwards}:
        os.kill(os.getpid(), signal.SIGKILL)

model.register_forward_hook(die)
train.fit(model, problem(), OPTIONS[{optimizer!r}], validation=problem(), checkpoint={folder!r})
"""

OPTIONS = {
    "sgd": TrainOptions(epochs=6, batch_size=16, schedule="cosine", weight_decay=0.01),
    "adam": TrainOptions(epochs=6, batch_size=16, optimizer="adam", lr=0.01, schedule="step", step_epochs=2),
}


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0).long()


def network() -> nn.Sequential:
    *layers, head = train.small_cnn((1, 8, 8), 2, widths=(4, 6), hidden=8)
    return nn.Sequential(*layers, nn.Dropout(0.3), head)


def state(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def uninterrupted(optimizer: str) -> tuple[list[Tensor], train.History]:
    model = network()
    history = train.fit(model, problem(), OPTIONS[optimizer], validation=problem())
    return state(model), history


@pytest.mark.parametrize(("optimizer", "forwards"), [("sgd", 10), pytest.param("adam", 24, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_for_bit(optimizer: str, forwards: int, tmp_path: Path) -> None:
    here = Path(__file__)
    script = WORKER.format(
        root=str(here.parent), module=here.stem, forwards=forwards, optimizer=optimizer, folder=str(tmp_path / "run")
    )
    path = os.pathsep.join(p for p in (str(Path(train.__file__).parents[2]), os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = len(json.loads((tmp_path / "run" / POINTER).read_text())["epochs"])
    assert finished == (forwards - 1) // 4
    model = network()
    resumed = train.fit(model, problem(), OPTIONS[optimizer], validation=problem(), checkpoint=tmp_path / "run")
    expected, history = uninterrupted(optimizer)
    assert resumed == history
    assert all(torch.equal(a, b) for a, b in zip(state(model), expected, strict=True))


class Interrupt(Exception):
    """Stands for anything that ends a run between two epochs."""


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("epoch", [0, 3, 5])
def test_a_run_that_stops_after_any_epoch_resumes_bit_for_bit(optimizer: str, epoch: int, tmp_path: Path) -> None:
    def stop(record: train.EpochRecord) -> None:
        if record.epoch == epoch:
            raise Interrupt

    with pytest.raises(Interrupt):
        train.fit(network(), problem(), OPTIONS[optimizer], validation=problem(), progress=stop, checkpoint=tmp_path)
    torch.manual_seed(99)
    model = network()
    resumed = train.fit(model, problem(), OPTIONS[optimizer], validation=problem(), checkpoint=tmp_path)
    expected, history = uninterrupted(optimizer)
    assert resumed == history
    assert all(torch.equal(a, b) for a, b in zip(state(model), expected, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train.fit(network(), problem(), OPTIONS["sgd"], validation=problem(), checkpoint=tmp_path)
    return tmp_path


def test_a_finished_run_is_found_finished(folder: Path) -> None:
    model = network()
    calls: list[train.EpochRecord] = []
    history = train.fit(
        model, problem(), OPTIONS["sgd"], validation=problem(), progress=calls.append, checkpoint=folder
    )
    expected, reference = uninterrupted("sgd")
    assert calls == []
    assert history == reference
    assert all(torch.equal(a, b) for a, b in zip(state(model), expected, strict=True))


def test_only_the_last_state_and_no_pickle_that_runs_code_is_kept(folder: Path) -> None:
    (folder / ".epoch-00003.pt.leftover").write_bytes(b"half")
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
        POINTER,
        "epoch-00006.pt",
        "epoch-00006.safetensors",
    ]
    assert set(torch.load(folder / "epoch-00006.pt", weights_only=True)) == {"optimizer", "random"}


def test_what_others_keep_in_the_folder_stays(tmp_path: Path) -> None:
    for name in ("epoch-accuracy.png", "epoch-00002.txt", "notes"):
        (tmp_path / name).write_text("mine")
    train.fit(network(), problem(), train.TrainOptions(epochs=2), checkpoint=tmp_path)
    kept = {"epoch-accuracy.png", "epoch-00002.txt", "notes", POINTER, "epoch-00002.pt", "epoch-00002.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_state_written_without_its_pointer_is_ignored(folder: Path) -> None:
    """A kill between the files and the pointer: the older state, named by the pointer, still counts."""
    (folder / "epoch-00007.safetensors").write_bytes(b"half a file")
    model = network()
    train.fit(model, problem(), OPTIONS["sgd"], validation=problem(), checkpoint=folder)
    assert all(torch.equal(a, b) for a, b in zip(state(model), uninterrupted("sgd")[0], strict=True))


def flip(file: Path, tensor: Tensor) -> None:
    """One wrong bit in the first number of a tensor."""
    data = bytearray(file.read_bytes())
    data[data.index(tensor.numpy().tobytes())] ^= 1
    file.write_bytes(data)


def weights(folder: Path) -> Tensor:
    return load_file(folder / "epoch-00006.safetensors")["0.weight"]


def momentum(folder: Path) -> Tensor:
    found: Tensor = torch.load(folder / "epoch-00006.pt", weights_only=True)["optimizer"]["state"][0]["momentum_buffer"]
    return found


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / POINTER).write_text("{"), "is not JSON"),
        (lambda f: (f / POINTER).write_text('{"format": "x"}'), "is not a checkpoint of format"),
        (
            lambda f: (f / POINTER).write_text(json.dumps({**json.loads((f / POINTER).read_text()), "options": None})),
            "is not a checkpoint of format",
        ),
        (lambda f: (f / "epoch-00006.safetensors").unlink(), "does not fit or is damaged"),
        (lambda f: (f / "epoch-00006.safetensors").write_bytes(b"junk"), "does not fit or is damaged"),
        (lambda f: (f / "epoch-00006.pt").write_bytes(b"junk"), "does not fit or is damaged"),
        (lambda f: flip(f / "epoch-00006.safetensors", weights(f)), "is damaged: its files are not what was written"),
        (lambda f: flip(f / "epoch-00006.pt", momentum(f)), "is damaged: its files are not what was written"),
        (
            lambda f: (f / POINTER).write_text((f / POINTER).read_text().replace('"accuracy"', '"accurasy"', 1)),
            "is damaged: the record of an epoch is not whole",
        ),
    ],
)
def test_damaged_checkpoints_are_reported(damage: Any, sentence: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=sentence):
        train.fit(network(), problem(), OPTIONS["sgd"], validation=problem(), checkpoint=folder)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s["optimizer"]["state"][0]["momentum_buffer"].resize_(3), "'momentum_buffer' of parameter 0 is"),
        (lambda s: s["optimizer"]["param_groups"][0]["params"].pop(), "the optimiser's parameters are others"),
        (lambda s: s["optimizer"]["param_groups"][0].pop("lr"), "the optimiser's options are others"),
        (lambda s: s["random"].pop("order"), "order"),
        (lambda s: s["random"].update(cpu=torch.zeros(3, dtype=torch.uint8)), "RNG state size to be 3"),
        (lambda s: s.pop("optimizer"), "optimizer"),
    ],
)
def test_nothing_is_loaded_from_a_checkpoint_that_does_not_fit(spoil: Any, sentence: str, folder: Path) -> None:
    file = folder / "epoch-00006.pt"
    saved = torch.load(file, weights_only=True)
    spoil(saved)
    torch.save(saved, file)
    model = network()
    before = [tensor.clone() for tensor in state(model)]
    with pytest.raises(ValueError, match=sentence):
        train.fit(model, problem(), OPTIONS["sgd"], validation=problem(), checkpoint=folder)
    assert all(torch.equal(a, b) for a, b in zip(state(model), before, strict=True))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_resumes_bit_for_bit(precision: Any, tmp_path: Path) -> None:
    options = TrainOptions(epochs=3, batch_size=16, precision=precision, accumulate=2, warmup_epochs=1)
    whole, resumed = network(), network()
    history = train.fit(whole, problem(), options)
    train.fit(network(), problem(), options, checkpoint=tmp_path, stop_after=2)
    assert len(finished_epochs(tmp_path)) == 2
    assert train.fit(resumed, problem(), options, checkpoint=tmp_path) == history
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))


def test_other_options_and_other_models_do_not_resume(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"was made with optimizer='sgd', not 'adam'"):
        train.fit(network(), problem(), OPTIONS["adam"], checkpoint=folder)
    with pytest.raises(ValueError, match=r"does not fit or is damaged: tensor '0.weight' is missing from the model"):
        train.fit(train.mlp(64, (3,), 2), problem(), OPTIONS["sgd"], checkpoint=folder)
