"""Networks: shapes, seeds, and that the chain tracer understands every one of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simkit import pruning as P
from simkit import train

pytestmark = pytest.mark.usefixtures("one_thread")


SHAPES = {"mlp": (1, 8, 8), "lenet5": (1, 28, 28), "small_cnn": (1, 8, 8), "conv8": (1, 8, 8)}


@pytest.mark.parametrize("name", train.NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 13, 17)])
def test_networks_run_on_images_of_many_sizes(name: str, shape: tuple[int, int, int]) -> None:
    if name == "lenet5" and min(shape[1:]) < 12:
        with pytest.raises(ValueError, match="needs images of at least 12x12 pixels, not 8x8"):
            train.lenet5(shape)
        return
    model = train.NETWORKS[name](shape, 7)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", train.NETWORKS)
def test_the_seed_decides_the_weights_and_the_global_state_does_not_change(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = train.NETWORKS[name](SHAPES[name], 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = (train.NETWORKS[name](SHAPES[name], 10, seed=seed) for seed in (3, 4))
    weights = [next(model.parameters()) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", train.NETWORKS)
def test_every_network_can_be_pruned(name: str) -> None:
    model = train.NETWORKS[name](SHAPES[name], 10)
    x = torch.randn(2, *SHAPES[name])
    plan = P.plan(model, x, score=P.L1())
    assert len(plan.layers) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in model.modules()) - 1
    assert P.apply(model, plan, x)(x).shape == (2, 10)


def test_lenet_sizes() -> None:
    assert sum(p.numel() for p in train.mlp(784).parameters()) == 266_610
    assert sum(p.numel() for p in train.lenet5().parameters()) == 61_706
    assert sum(p.numel() for p in train.mlp(784, (512, 512)).parameters()) == 669_706


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
    ],
)
def test_bad_sizes(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]
