"""Networks: shapes, seeds, and that the chain tracer understands every one of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from simkit import pruning as P
from simkit import train

pytestmark = pytest.mark.usefixtures("one_thread")


SHAPES = dict.fromkeys(train.NETWORKS, (1, 8, 8)) | {"lenet5": (1, 28, 28)}
SMALL = {"vgg16": {"width": 4}, "alexnet": {"hidden": (16,)}, "resnet18": {"width": 8}}


@pytest.mark.parametrize("name", train.NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 13, 17)])
def test_networks_run_on_images_of_many_sizes(name: str, shape: tuple[int, int, int]) -> None:
    if name == "lenet5" and min(shape[1:]) < 12:
        with pytest.raises(ValueError, match="needs images of at least 12x12 pixels, not 8x8"):
            train.lenet5(shape)
        return
    if name == "vit" and shape == (2, 13, 17):
        with pytest.raises(ValueError, match="images of 13x17 pixels cannot be cut into patches of 4x4"):
            train.vit(shape)
        return
    model = train.NETWORKS[name](shape, 7, **SMALL.get(name, {}))
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", train.NETWORKS)
def test_the_seed_decides_the_weights_and_the_global_state_does_not_change(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    options = SMALL.get(name, {})
    one = train.NETWORKS[name](SHAPES[name], 10, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = (train.make_network(name, SHAPES[name], 10, seed=seed, options=options) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    weights = [next(model.parameters()) for model in (one, same, other)]
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", train.NETWORKS)
def test_every_network_can_be_pruned(name: str) -> None:
    model = train.NETWORKS[name](SHAPES[name], 10, **SMALL.get(name, {})).eval()
    x = torch.randn(2, *SHAPES[name])
    plan = P.plan(model, x, score=P.L1())
    weighted = sum(isinstance(m, nn.Linear | nn.Conv2d) for m in model.modules())
    # Layers whose outputs are added up share their channels (of one stage; under padding, of all), q, k and v heads.
    coupled = {"resnet20": 9, "resnet56": 27, "resnet18": 4 * 2, "vit": 4 * (2 + 2)}.get(name, 0)
    assert len(plan.layers) == weighted - 1 - coupled
    assert [layer.name for layer in plan.frozen] == [
        [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    ]
    assert P.apply(model, plan, x)(x).shape == (2, 10)


def test_lenet_sizes() -> None:
    assert sum(p.numel() for p in train.mlp(784).parameters()) == 266_610
    assert sum(p.numel() for p in train.lenet5().parameters()) == 61_706
    assert sum(p.numel() for p in train.mlp(784, (512, 512)).parameters()) == 669_706


def test_published_sizes() -> None:
    """Parameters as published: He et al. (0.27M, 0.85M), and VGG-16-BN and ResNet-18 as they are used on CIFAR-10."""
    sizes = {"resnet20": 269_722, "resnet56": 853_018, "vgg16": 14_724_042, "resnet18": 11_173_962}
    for name, size in sizes.items():
        assert sum(p.numel() for p in train.NETWORKS[name]((3, 32, 32), 10).parameters()) == size
    large = train.vgg16((3, 224, 224), 1000, hidden=(4096, 4096), batch_norm=False)
    assert sum(p.numel() for p in large.parameters()) == 138_357_544
    assert sum(p.numel() for p in train.resnet18((3, 224, 224), 1000).parameters()) == 11_689_512
    large = train.alexnet((3, 224, 224), 1000, hidden=(4096, 4096))
    assert sum(p.numel() for p in large.parameters()) == 61_100_840


def test_both_shortcuts() -> None:
    padded, projected = (train.resnet20((3, 8, 8), shortcut=kind) for kind in ("A", "B"))
    extra = (16 * 32 + 64) + (32 * 64 + 128)
    assert sum(p.numel() for p in projected.parameters()) - sum(p.numel() for p in padded.parameters()) == extra
    x = torch.randn(1, 16, 8, 8)
    out = padded.stages[1][0].shortcut(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_networks_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "import torch\ndef plain(shape, classes, width=3):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[1] * shape[2], classes))\n"
        "def nothing(shape, classes, seed):\n    return seed\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    one, same, other = (train.make_network("nets_of_mine:plain", (1, 4, 4), 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[1].weight, same[1].weight)
    assert not torch.equal(one[1].weight, other[1].weight)
    assert sys.path == before
    for name, sentence in {
        "nets_of_mine:none": "cannot be imported: module 'nets_of_mine' has no attribute 'none'",
        "no_such_module:x": "cannot be imported: No module named 'no_such_module'",
        "nets_of_mine:number": "is no function but int",
        "resnet21": "not 'resnet21'; did you mean 'resnet20'",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            train.make_network(name, (1, 4, 4), 3)
    with pytest.raises(ValueError, match=r"cannot be called with \{'depth': 2\}: got an unexpected keyword argument"):
        train.make_network("nets_of_mine:plain", (1, 4, 4), 3, options={"depth": 2})
    with pytest.raises(TypeError, match=r"must return a torch.nn.Module, not int"):
        train.make_network("nets_of_mine:nothing", (1, 4, 4), 3)


def test_conv8_is_the_published_network_and_runs_out_of_no_pixels() -> None:
    widths = [m.out_channels for m in train.conv8().modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 16, 32, 32, 32, 64, 64, 64]
    for side, last in ((32, 6), (28, 5), (8, 2), (4, 1), (1, 1)):
        seen: list[torch.Size] = []
        model = train.conv8((1, side, side))
        model.relu8.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.shape))
        model(torch.zeros(2, 1, side, side))
        assert seen[0] == (2, 64, last, last)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: train.mlp(0), "inputs must be an integer of at least 1, not 0"),
        (lambda: train.mlp(4, (3, -1)), r"hidden\[1\] must be an integer of at least 1, not -1"),
        (lambda: train.small_cnn((1, 8, 8), 0), "classes must be an integer of at least 1, not 0"),
        (lambda: train.small_cnn((1, 8)), r"shape must be \(channels, height, width\), not \(1, 8\)"),
        (lambda: train.small_cnn((1, 3, 9)), "needs images of at least 4x4 pixels, not 3x9"),
        (lambda: train.conv8((1, 8, 8), width=True), "width must be an integer of at least 1, not True"),
        (lambda: train.vgg16(width=0), "width must be an integer of at least 1, not 0"),
        (lambda: train.vgg16(hidden=(3, 0)), r"hidden\[1\] must be an integer of at least 1, not 0"),
        (lambda: train.alexnet(dropout=1.0), "dropout must be a share from 0 to below 1, not 1.0"),
        (lambda: train.resnet20(shortcut="C"), "shortcut must be 'A' or 'B', not 'C'"),
        (lambda: train.resnet18((3, 0, 4)), "height must be an integer of at least 1, not 0"),
        (lambda: train.vit(width=65), "width must be a multiple of heads=4, not 65"),
    ],
)
def test_bad_sizes(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]
