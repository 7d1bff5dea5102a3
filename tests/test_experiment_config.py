"""Config files: what they may hold, overrides, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, assert_one_sentence

pytest.importorskip("torch")

from pydantic import ValidationError

from simkit.experiments.config_file import parse_seeds, read_config

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"
GOOD = """
[model]
name = "mlp"
hidden = [8]
[data]
name = "digits"
[train]
epochs = 1
[prune]
methods = ["l1"]
amounts = [0.5]
"""


def write(folder: Path, text: str, name: str = "config.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_the_example_says_what_the_design_says() -> None:
    config = read_config(EXAMPLE)
    assert (config.model.name, config.model.options) == ("mlp", {"hidden": [64, 64]})
    assert config.train.training(7).lr == 0.05
    assert config.prune is not None
    assert (config.prune.methods, config.prune.amounts) == (("cka", "l1", "random"), (0.3, 0.5))
    assert (config.run.seeds, config.run.out) == ((0, 1), "runs")


@pytest.mark.parametrize("file", sorted(EXAMPLE.parent.glob("*.toml")), ids=lambda file: file.name)
def test_every_shipped_config_is_one(file: Path) -> None:
    config = read_config(file)
    assert config.prune is not None
    assert config.run.out.startswith("runs")


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    content = {
        "model": {"name": "mlp", "hidden": [8]},
        "data": {"name": "digits"},
        "train": {"epochs": 1},
        "prune": {"methods": ["l1"], "amounts": [0.5]},
    }
    assert read_config(write(tmp_path, json.dumps(content), "c.json")) == read_config(write(tmp_path, GOOD))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    plain = read_config(write(tmp_path, GOOD))
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_config(tmp_path / "marked.toml") == plain


def test_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    config = read_config(
        file,
        overrides=[
            "train.lr=0.2",
            "prune.methods=['l2', \"cka\"]",
            "model.name=vit",
            "model.hidden=12",
            "run.threads=1",
        ],
        seeds="2:5",
        out="elsewhere",
    )
    assert config.train.lr == 0.2
    assert config.prune is not None
    assert config.prune.methods == ("l2", "cka")
    assert (config.model.name, config.model.options) == ("vit", {"hidden": 12})
    assert (config.run.seeds, config.run.out, config.run.threads) == ((2, 3, 4), "elsewhere", 1)


@pytest.mark.parametrize(("text", "seeds"), [("0:3", [0, 1, 2]), (":2", [0, 1]), ("4", [4]), ("3,1", [3, 1])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))
    with pytest.raises(ValidationError):
        config.train.lr = 1.0  # type: ignore[misc]


# What replaces what in the good config, and what the sentence must hold.
BAD: dict[str, tuple[str, str, str]] = {
    "syntax": ("[train]", "[train", "is not TOML: "),
    "unknown section": ("[train]", "[trian]", "there is no section trian; did you mean train?"),
    "unknown option": (
        "epochs = 1",
        "epoch = 1",
        "there is no option train.epoch; did you mean epochs? (its value is 1)",
    ),
    "missing section": ('[data]\nname = "digits"', "", "the section [data] is missing"),
    "missing option": ("amounts = [0.5]", "", "prune.amounts is missing"),
    "network": ('"mlp"', '"mpl"', "[model] name must be one of mlp, "),
    "network option": ("hidden = [8]", "hiden = [8]", "[model] network 'mlp' cannot be called with {'hiden': [8]}"),
    "factory": (
        '"mlp"',
        '"no_module:make"',
        "[model] the factory 'no_module:make' cannot be imported: No module named",
    ),
    "data set": ('"digits"', '"digit"', "data.name should be 'digits', 'fashion-mnist', "),
    "data option": ('"digits"', '"digits"\nsize = 3', "[data] size=3 does not belong to the data set 'digits'"),
    "type": ("epochs = 1", 'epochs = "many"', "train.epochs should be a valid integer, not 'many'"),
    "fraction of an epoch": ("epochs = 1", "epochs = 1.5", "train.epochs should be a valid integer, not 1.5"),
    "range": ("epochs = 1", "lr = -0.1", "[train] lr must be a positive number, not -0.1"),
    "infinity": ("epochs = 1", "lr = inf", "train.lr should be a finite number, not inf"),
    "choice": ("epochs = 1", 'optimizer = "lion"', "train.optimizer should be 'sgd', 'adam' or 'adamw', not 'lion'"),
    "method": ('["l1"]', '["l1", "l3"]', "[prune] methods of kind='structured' are cka, "),
    "no method": ('["l1"]', "[]", "prune.methods should have at least one entry, not []"),
    "method twice": ('["l1"]', '["l1", "l1"]', "[prune] methods names 'l1' twice"),
    "amount": ("[0.5]", "[0.5, 1.0]", "[prune] amounts must lie between 0 and 1, both excluded, not 1.0"),
    "amount's type": ("[0.5]", '[0.5, "half"]', "prune.amounts[1] should be a valid number, not 'half'"),
    "amounts": ("[0.5]", "0.5", "prune.amounts should be a valid array, not 0.5"),
    "rounds": ("amounts", "rounds = 0\namounts", "prune.rounds should be greater than or equal to 1, not 0"),
    "kind": (
        "amounts",
        'kind = "sparse"\namounts',
        "prune.kind should be 'structured' or 'unstructured', not 'sparse'",
    ),
    "compensation": (
        'methods = ["l1"]',
        'kind = "unstructured"\nmethods = ["magnitude"]\ncompensate = "merge"',
        "[prune] compensate='merge' is for units, and kind is 'unstructured'",
    ),
    "lost compensation": (
        "amounts",
        'compensate = "merge"\nretrain = ["none", "reinit"]\namounts',
        "[prune] compensate='merge' is lost on weights that 'reinit' replaces",
    ),
    "no way": ("amounts", "retrain = []\namounts", "prune.retrain should have at least one entry, not []"),
    "one way twice": (
        "amounts",
        'retrain = ["rewind-init", "rewind-weights"]\namounts',
        "which are the same where all train.epochs=1 are run again: set prune.epochs",
    ),
    "scope": (
        '["l1"]',
        '["l1", "geometric-median"]\nscope = "global"',
        "[prune] scope='global' does not go with the method 'geometric-median', which takes 'layer'",
    ),
    "seed of the network": ("hidden = [8]", "seed = 3", "[model] seed=3 does not belong to the network: run.seeds"),
    "momentum of adam": (
        "epochs = 1",
        'optimizer = "adam"\nmomentum = 0.5',
        "[train] momentum=0.5 belongs to optimizer='sgd', not to 'adam'",
    ),
    "steps of a cosine": (
        "epochs = 1",
        'schedule = "cosine"\nstep_factor = 0.5',
        "[train] step_factor=0.5 belongs to schedule='step', not to 'cosine'",
    ),
    "momentum": ("epochs = 1", "momentum = 1.0", "[train] momentum must be below 1, not 1.0"),
    "threads": ("[prune]", "[run]\nthreads = 100000\n[prune]", "run.threads should be less than or equal to 256"),
    "learning rate of nothing": (
        "amounts",
        'lr = 0.1\nretrain = "none"\namounts',
        "[prune] lr=0.1 is of fine-tuning, and retrain is 'none'",
    ),
    "rewinding": (
        "amounts",
        'epochs = 2\nretrain = "rewind-lr"\namounts',
        "prune.epochs=2 goes back further than the training of 1 epochs",
    ),
    "patience": ("epochs = 1", "patience = 1", "train.patience=1 needs data.validation above 0"),
    "seeds": ("[prune]", "[run]\nseeds = [0, 0]\n[prune]", "[run] seeds names 0 twice"),
    "seed": ("[prune]", "[run]\nseeds = [-1]\n[prune]", "[run] seeds must be integers from 0 to 2^32 - 1, not -1"),
    "search": ("[prune]", "[search]\ntrials = 3\n[prune]", "[search] is reserved for a later version"),
    "too many rounds": (
        "amounts",
        "rounds = 18446744073709551616\namounts",
        "prune.rounds should be less than or equal to 10000, not 18446744073709551616",
    ),
    "thousands of digits": ("epochs = 1", f"epochs = {'9' * 5000}", "is not TOML: Exceeds the limit"),
    "measure": ("[prune]", '[compare]\nmeasures = ["ckaa"]\n[prune]', "compare.measures[0] should be 'cka', "),
}


@pytest.mark.parametrize("mistake", BAD)
def test_bad_configs_are_one_sentence(mistake: str, run_simkit: Run, tmp_path: Path) -> None:
    old, new, sentence = BAD[mistake]
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new, 1))
    result = run_simkit("prune", file)
    assert_one_sentence(*result)
    assert sentence in result[2]
    assert result[2].startswith(f"simkit: error: {str(file)!r}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "train.lr=-1"], " with --set train.lr=-1: [train] lr must be a positive number, not -1.0"),
        (["--set", "train.lrr=1"], "--set train.lrr=1: there is no option train.lrr; did you mean lr?"),
        (["--set", f"train.lr={'[' * 20_000}"], "train.lr should be a valid number, not '[[["),
        (["--set", "train=1"], "--set train=1 must be SECTION.NAME=VALUE, such as train.lr=0.1"),
        (["--set", "train.lr"], "--set train.lr must be SECTION.NAME=VALUE"),
        (["--set", "train.lr=1\nepochs = 3"], "train.lr should be a valid number, not '1\\nepochs = 3'"),
        (["--set", "train.epochs=few"], "--set train.epochs=few: train.epochs should be a valid integer, not 'few'"),
        (["--seeds", "3:3"], "--seeds 3:3: seeds are FIRST:END, such as 0:10"),
        (["--seeds", "0:100000000000"], "--seeds 0:100000000000: at most 10000 seeds"),
        (["--seeds", "a"], "--seeds a: seeds are FIRST:END"),
        (["--seeds", "1,1"], "[run] seeds names 1 twice"),
        (["--out", ""], "--out : run.out should have at least 1 character, not ''"),
    ],
)
def test_bad_overrides_name_themselves(arguments: list[str], sentence: str, run_simkit: Run, tmp_path: Path) -> None:
    result = run_simkit("train", write(tmp_path, GOOD), *arguments)
    assert_one_sentence(*result)
    assert sentence in result[2]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", b"", "must end in .toml or .json"),
        ("config.toml", b"\xff\xfe", "is not UTF-8"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[]", "must hold sections such as [model], not []"),
        ("config.json", b'{"model": 3}', "[model] must be a section, not 3"),
        ("config.json", b"[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_no_config(name: str, content: bytes, sentence: str, run_simkit: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    result = run_simkit("prune", tmp_path / name)
    assert_one_sentence(*result)
    assert sentence in result[2]


def test_a_config_that_is_not_there(run_simkit: Run, tmp_path: Path) -> None:
    result = run_simkit("train", tmp_path / "absent.toml")
    assert_one_sentence(*result)
    assert result[2] == f"simkit: error: '{tmp_path}/absent.toml': No such file or directory\n"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.name=mnist", "data.path=nowhere"], "mnist was not found: put train-images-idx3-ubyte, "),
        (["data.name=cifar10", "data.path=nowhere"], "cifar10 was not found: put data_batch_1 ... "),
        (["data.name=folder", "data.path=nowhere"], "the folder of images 'nowhere' was not found"),
        (["model.hidden=[0]"], "[model] mlp on digits: hidden[0] must be an integer of at least 1, not 0"),
        (["model.hidden=64"], "[model] mlp on digits: hidden must be a list of widths, such as [64, 64], not 64"),
        (["run.device=meta"], "[run] device='meta' cannot be used: "),
        (["data.test_fraction=1e-9"], "test_fraction=1e-09 leaves 1797 samples to train on, 0 to test on"),
        (["data.test_fraction=0.99999"], "test_fraction=0.99999 leaves 0 samples to train on, 1797 to test on"),
        (["prune.keep=['fc7']"], "[prune] keep names 'fc7', which holds no layer of the model"),
        (["prune.kind=unstructured", "prune.methods=['obs']", "prune.keep=['fc7']"], "[prune] keep names 'fc7'"),
        (["prune.methods=['bn-scale']"], "[prune] layer 'fc1' has no BatchNorm with a scale after it"),
        (["compare.layers=['fc7']"], "[compare] "),
        (["compare.memory='1 parsec'"], "[compare] "),
        (["compare.memory='1 B'"], "[compare] "),
        (["run.device=tpu"], "[run] device='tpu' cannot be used: "),
        (["data.validation=0.9999"], "a share of 0.9999 to validate on leaves 0 of 1438 samples"),
    ],
)
def test_what_only_the_data_show_is_said_before_anything_is_written(
    overrides: list[str], sentence: str, run_simkit: Run, tmp_path: Path
) -> None:
    options: list[Any] = [part for text in overrides for part in ("--set", text)]
    result = run_simkit("prune", write(tmp_path, GOOD), *options, "--out", tmp_path / "runs")
    assert_one_sentence(*result)
    assert sentence in result[2]
    assert not (tmp_path / "runs").exists()


def test_new_weights_alone_take_what_fine_tuning_removes(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD.replace("amounts", 'retrain = "reinit"\namounts')))
    assert config.prune is not None
    assert config.prune.retrain == ("finetune", "reinit")


def test_epochs_of_nothing_make_no_other_runs(tmp_path: Path) -> None:
    """A file that says epochs may be run without retraining: the same runs as without."""
    ways = 'retrain = ["none", "rewind-init"]\namounts'
    plain, said = (
        read_config(write(tmp_path, GOOD.replace("amounts", f"{more}{ways}"))) for more in ("", "epochs = 1\n")
    )
    assert plain.prune == said.prune
    assert plain.prune is not None
    assert plain.prune.model_dump() == said.prune.model_dump()  # type: ignore[union-attr]
