"""Units that masks have emptied are cut out, and the smaller model computes the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import NothingPruned  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    return P.Sparsifier(model, masks).attach().dense()


def test_units_without_weights_and_biases_go() -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    masks = P.masks(model, score=P.UnitMagnitude(), amount=0.5, scope="layer", keep=["4"])
    sparse = masked(model, masks)
    inputs = torch.randn(5, 6)
    small = P.without_dead_units(sparse, inputs)
    assert [(small[k].in_features, small[k].out_features) for k in (0, 2, 4)] == [(6, 5), (5, 4), (4, 3)]
    torch.testing.assert_close(small(inputs), sparse(inputs))
    assert sparse[0].out_features == 10


def test_units_that_nobody_reads_go_layer_by_layer() -> None:
    """Behind a BatchNorm, whose shift would keep a silent unit; then what only they had read."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28, 2)
    ).eval()
    with torch.no_grad():
        model[1].bias.normal_()
        model[6].weight[:, : 3 * 4] = 0.0  # channels 0, 1, 2 of the second convolution are not read
        model[3].weight[3:, 5] = 0.0  # channel 5 of the first is read by those alone
    inputs = torch.randn(3, 1, 6, 6)
    small = P.without_dead_units(model, inputs)
    assert (small[0].out_channels, small[3].out_channels, small[6].in_features) == (5, 4, 16)
    torch.testing.assert_close(small(inputs), model(inputs))


def test_a_shift_keeps_a_silent_unit() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    ).eval()
    inputs = torch.randn(3, 1, 6, 6)
    with torch.no_grad():
        model[0].weight[:2] = 0.0
        model[1].bias[1] = 0.5
    small = P.without_dead_units(model, inputs)
    assert small[0].out_channels == 3
    torch.testing.assert_close(small(inputs), model(inputs))


def test_activations_that_move_zero_keep_a_silent_unit() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.0
    with pytest.raises(NothingPruned, match="no unit of the model is dead"):
        P.without_dead_units(model, torch.randn(2, 4))


def test_coupled_layers_lose_a_unit_together() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return self.c(x + self.b(x))

    model, inputs = Residual(), torch.randn(4, 5)
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight[:2], layer.bias[:2] = 0.0, 0.0
        model.b.weight[2], model.b.bias[2] = 0.0, 0.0  # but a computes it
    small = P.without_dead_units(model, inputs)
    assert small.a.out_features == small.b.out_features == 4
    torch.testing.assert_close(small(inputs), model(inputs))


def test_every_layer_keeps_a_unit() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    inputs = torch.randn(2, 4)
    small = P.without_dead_units(model, inputs)
    assert small[0].out_features == 1
    torch.testing.assert_close(small(inputs), model(inputs))
