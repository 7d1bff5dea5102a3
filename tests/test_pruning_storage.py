"""A cut model goes to disk and comes back bit for bit; files that lie are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import Heads
from recipes import sealed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from simkit import pruning as P

pytestmark = pytest.mark.usefixtures("one_thread")


X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.PReLU(6),
        nn.Flatten(),
        nn.Linear(216, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    model = network()
    model(X)
    model[6].bias.requires_grad_(False)
    return P.apply(model, P.plan(model, X, score=P.L1()), X)


@pytest.fixture
def path(small: nn.Module, tmp_path: Path) -> Path:
    P.save(small, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_round_trip_is_bit_exact(small: nn.Module, path: Path) -> None:
    again = P.load(path, network)
    for (name, one), (other_name, other) in zip(small.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert str(again) == str(small)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in small.parameters()]
    assert again.simkit_kept == small.simkit_kept
    assert torch.equal(again.eval()(X), small.eval()(X))


def test_a_loaded_model_can_be_pruned_and_saved_again(path: Path, tmp_path: Path) -> None:
    first = P.load(path, network)
    second = P.apply(first, P.plan(first, X, score=P.Random(1), amount=0.34), X)
    P.save(second, tmp_path / "second.safetensors")
    third = P.load(tmp_path / "second.safetensors", network)
    assert third.simkit_kept == second.simkit_kept
    assert set(third.simkit_kept["0.weight", 0]) < set(first.simkit_kept["0.weight", 0])
    assert torch.equal(third.eval()(X), second.eval()(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_survive(small: nn.Module, dtype: torch.dtype, tmp_path: Path) -> None:
    P.save(small.to(dtype), tmp_path / "file.safetensors")
    again = P.load(tmp_path / "file.safetensors", network)
    assert {p.dtype for p in again.parameters()} == {dtype}


def test_a_dense_model_can_be_saved_too(tmp_path: Path) -> None:
    model = network()
    P.save(model, tmp_path / "dense.safetensors")
    again = P.load(tmp_path / "dense.safetensors", network)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not hasattr(again, "simkit_kept")


def test_the_factorys_model_is_not_touched(path: Path) -> None:
    dense = network()
    P.load(path, lambda: dense)
    assert dense[0].weight.shape == (6, 1, 3, 3)


def test_the_file_has_a_json_recipe_and_no_pickle(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        (written,) = file.metadata().values()
    recipe = json.loads(written)
    assert recipe["modules"]["0"]["shapes"] == {"weight": [3, 1, 3, 3]}
    assert recipe["modules"]["0"]["attributes"] == {"in_channels": 1, "out_channels": 3}
    assert len(recipe["modules"]["0"]["kept"][0]["positions"]) == 3
    assert recipe["modules"]["4"]["attributes"] == {"in_features": 108, "out_features": 4}


def test_attributes_ties_and_buffers_of_any_kind_survive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randint(7, (2, 4))
    small = P.apply(model, P.plan(model, x, score=P.L1(), amount=0.4), x)
    assert (small.shape, model.shape) == ((2, 2), (3, 2))
    assert small.simkit_sizes == {("", "shape", 0): 2}
    P.save(small, tmp_path / "heads.safetensors")
    again = P.load(tmp_path / "heads.safetensors", Heads)
    assert again.head.weight is again.table.weight
    assert (again.shape, again.shift.tolist()) == ((2, 2), small.shift.tolist())
    assert torch.equal(again(x), small(x))
    twice = P.apply(again, P.plan(again, x, score=P.L1(), amount=0.5), x)
    P.save(twice, tmp_path / "twice.safetensors")
    assert torch.equal(P.load(tmp_path / "twice.safetensors", Heads)(x), twice(x))


def test_saving_over_a_file_leaves_one_file(small: nn.Module, path: Path) -> None:
    P.save(small, path)
    assert list(path.parent.iterdir()) == [path]


SAVE = """
import sys
import torch
from torch import nn
from simkit import pruning as P
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 3))
x = torch.randn(2, 1, 8, 8)
small = P.apply(model, P.plan(model, x, score=P.L1()), x)
for path in sys.argv[1:]:
    P.save(small, path)
"""


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    """In processes whose hashes, and with them the order of sets and of safetensors' metadata, differ."""
    for seed in "12":
        paths = [tmp_path / f"{seed}-{i}.safetensors" for i in range(4)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", SAVE, *paths], check=True, env=environment)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def kept(positions: list[int], dim: int = 0) -> dict[str, Any]:
    return {"tensor": "weight", "dim": dim, "positions": positions}


def size(**change: Any) -> dict[str, Any]:
    return {"module": "1", "attribute": "num_features", "index": None, "value": 3, **change}


def rewrite(
    path: Path,
    *,
    recipe: dict[str, Any] | None = None,
    sizes: list[dict[str, Any]] | None = None,
    tied: dict[str, str] | None = None,
    drop: str = "",
    **tensors: torch.Tensor,
) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    data = json.loads(metadata["simkit"])
    data["modules"]["0"].update(recipe or {})
    data.update({"sizes": data["sizes"] if sizes is None else sizes, "tied": tied or {}})
    metadata["simkit"] = sealed(data)
    state.update({name.replace("_", ".", 1): value for name, value in tensors.items()})
    state.pop(drop, None)
    save_file(state, path, metadata)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"drop": "4.bias"}, "tensor '4.bias' is missing from the file"),
        ({"9_weight": torch.zeros(2)}, "tensor '9.weight' is missing from the factory's Sequential"),
        ({"0_weight": torch.zeros(7, 1, 3, 3)}, r"tensor '0.weight' of shape \(7, 1, 3, 3\) does not fit into \(6, 1"),
        ({"0_weight": torch.zeros(3)}, r"tensor '0.weight' of shape \(3,\) does not fit"),
        ({"0_weight": torch.zeros(2, 1, 3, 3)}, "the recipe of module '0' does not describe the tensors"),
        ({"recipe": {"attributes": {"out_channels": 3, "in_channels": 2}}}, "the recipe of module '0' does not"),
        ({"recipe": {"kept": [kept([0, 1])]}}, "the recipe of module '0' keeps 2 channels, its weight does not"),
        ({"recipe": {"kept": [kept([0, 1, 2], dim=7)]}}, "the recipe of module '0' keeps 3 channels, its weight does"),
        ({"sizes": [size(value=99)]}, "the recipe makes 'num_features' of module '1' 99, which is 6 at first"),
        ({"sizes": [size(attribute="eps")]}, "attribute 'eps' of module '1' is not an integer but 1e-05"),
        ({"sizes": [size(attribute="training")]}, "attribute 'training' of module '1' is not an integer but True"),
        ({"sizes": [size(attribute="forward")]}, "attribute 'forward' of module '1' is not an integer but None"),
        ({"sizes": [size(index=1)]}, "attribute 'num_features' of module '1' has no entry 1 but is 6"),
        ({"sizes": [size(module="9")]}, "Sequential has no module '9'"),
        ({"tied": {"4.bias": "7.bias"}, "drop": "4.bias"}, "tensor '4.bias' is tied to '7.bias', which is not in the"),
        ({"recipe": {"kept": "all"}}, r"the recipe in '.*' is invalid at modules\.0\.kept: Input should be"),
        ({"recipe": {"code": "print()"}}, r"the recipe in '.*' is invalid at modules\.0\.code: Extra inputs are not"),
    ],
)
def test_files_that_do_not_add_up(path: Path, change: dict[str, Any], sentence: str) -> None:
    rewrite(path, **change)
    with pytest.raises(ValueError, match=sentence):
        P.load(path, network)


def test_a_recipe_that_was_changed_is_known_by_its_checksum(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        data = json.loads(file.metadata()["simkit"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    data["sizes"] = []
    save_file(state, path, {"simkit": json.dumps(data)})
    with pytest.raises(ValueError, match=r"^the recipe in '.*' was changed after it was saved: its checksum is"):
        P.load(path, network)


def test_a_wrong_bit_of_a_tensor_is_known_by_their_checksum(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"^the tensors in '.*' were changed after they were saved: their checksum"):
        P.load(path, network)


def test_files_without_a_checksum_of_the_tensors_are_read(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        data = json.loads(file.metadata()["simkit"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del data["tensors"], data["checksum"]
    written = json.dumps(data, separators=(",", ":"))
    data["checksum"] = hashlib.sha256(written.encode()).hexdigest()
    save_file(state, path, {"simkit": json.dumps(data)})
    small = P.load(path, network)
    assert all(torch.equal(tensor, state[name]) for name, tensor in small.state_dict().items())


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"text' is not a safetensors file"):
        P.load(tmp_path / "text", network)
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"plain' was not written by simkit.pruning.save"):
        P.load(tmp_path / "plain", network)
    for name, written in (
        ("older", json.dumps({"format": "simkit.PrunedModel.2", "modules": {}})),
        ("matrix", json.dumps({"format": "simkit.SimilarityMatrix.1", "rows": []})),
        ("list", "[]"),
        ("bare", '{"modules": {}}'),
    ):
        save_file({"a": torch.zeros(1)}, tmp_path / name, {"simkit": written})
        with pytest.raises(ValueError, match=rf"^'.*{name}' was not written by simkit\.pruning\.save$"):
            P.load(tmp_path / name, network)
    for name in ("nothing", ""):
        with pytest.raises(FileNotFoundError, match=r"^there is no file '.*'$"):
            P.load(tmp_path / name, network)


def test_bad_arguments(small: nn.Module, path: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model_factory must return a torch\.nn\.Module, not int"):
        P.load(path, lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=rf"^model_factory must make a .*, not be one: {type(small).__name__}$"):
        P.load(path, small)
    with pytest.raises(FileNotFoundError, match=r"^there is no folder '.*nowhere' to write 'm\.safetensors' into$"):
        P.save(small, tmp_path / "nowhere" / "m.safetensors")
    for bad in (P.plan(network(), X, score=P.L1()), dict(small.state_dict()), None):
        with pytest.raises(TypeError, match=rf"^save writes a torch\.nn\.Module, .* not a {type(bad).__name__}$"):
            P.save(bad, tmp_path / "bad")  # type: ignore[arg-type]
    assert not (tmp_path / "bad").exists()
    for name in ("small.pt", "small"):
        with pytest.raises(ValueError, match=rf"^path='.*/{name}' must end in \.safetensors$"):
            P.save(small, tmp_path / name)
        assert not (tmp_path / name).exists()
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shared[1].weight = nn.Parameter(shared[0].weight.detach())  # two parameters on one memory
    with pytest.raises(ValueError, match="Sequential cannot be saved: "):
        P.save(shared, tmp_path / "shared.safetensors")
    assert not (tmp_path / "shared.safetensors").exists()
