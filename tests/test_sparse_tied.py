"""Parameters with several names, and layers whose weights are computed: which are open, and by what name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.pruning.sparse.network import open_weights  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    return model


class Language(nn.Module):
    def __init__(self, *, first: str) -> None:
        super().__init__()
        parts = {"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7)}
        for name in sorted(parts, key=lambda one: one != first):
            self.add_module(name, parts[name])
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


def test_any_name_of_a_tied_parameter_will_do() -> None:
    model = tied()
    for keep in (["2"], ["2.weight"], ["0"]):
        assert list(open_weights(model, keep)) == ["3.weight"]
    assert list(open_weights(model, (), ["2.weight"])) == ["0.weight"]
    expected = P.masks(model, scope="layer", amount={"0.weight": 0.5})
    for name in ("2", "2.weight", "0"):
        found = P.masks(model, scope="layer", amount={name: 0.5})
        assert all(torch.equal(found[one], expected[one]) for one in expected)
    with pytest.raises(ValueError, match=r"amount names '0\.weight' twice"):
        P.masks(model, scope="layer", amount={"0": 0.5, "2": 0.5})
    found = P.masks(model, amount=0.8, previous={"2.weight": expected["0.weight"]})
    assert list(found) == ["0.weight", "3.weight"]
    assert not (found["0.weight"] & ~expected["0.weight"]).any()


@pytest.mark.parametrize("first", ["embedding", "head"])
def test_a_tied_weight_is_open_whichever_layer_is_first(first: str) -> None:
    model = Language(first=first)
    assert list(open_weights(model)) == [f"{first}.weight"]


def test_masks_come_back_from_the_state_of_a_shared_module() -> None:
    layer = nn.Linear(5, 5)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    masks = P.masks(model, amount=0.5)
    with P.Sparsifier(model, masks):
        found = P.masks_of(model.state_dict())
    assert list(found) == ["0.weight", "2.weight"]
    with P.Sparsifier(model, found) as again:
        assert list(again.masks) == ["0.weight"]
        assert torch.equal(again.masks["0.weight"], masks["0.weight"])
    found["2.weight"] = ~found["2.weight"]
    with pytest.raises(ValueError, match=r"the masks of '2\.weight' and of '0\.weight' differ, but they are one"):
        P.Sparsifier(model, found)


def test_new_weights_keep_the_signs_of_tied_ones() -> None:
    model = tied()
    (one,) = P.rounds(model, amount=0.5, train=lambda own: None, retrain=P.Reinit(keep_signs=True))
    for name in ("0.weight", "3.weight"):
        kept = one.masks[name]
        new, old = one.model.get_parameter(name), model.get_parameter(name)
        assert torch.equal(new[kept].sign(), old[kept].sign())
        assert (new[kept] != old[kept]).all()
    assert one.model[2].weight is one.model[0].weight


def test_parametrised_layers_are_not_left_out_in_silence() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(NotImplementedError, match="the weights of '0' are parametrised: name it in keep="):
        P.masks(model, amount=0.5)
    assert list(P.masks(model, amount=0.5, keep=["0"])) == ["2.weight"]
    with pytest.warns(FutureWarning, match="weight_norm"):
        older = nn.Sequential(nn.Linear(4, 6), nn.utils.weight_norm(nn.Linear(6, 3)))
    with pytest.raises(NotImplementedError, match="the weights of '1' are parametrised: name it in keep="):
        P.masks(older, amount=0.5)
