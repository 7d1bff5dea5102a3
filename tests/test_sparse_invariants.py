"""What a sparse network promises is raised by its name when it does not hold."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from simkit import errors  # noqa: E402
from simkit import pruning as P  # noqa: E402
from simkit.pruning.sparse import invariants  # noqa: E402
from simkit.pruning.sparse.rounds import _Run  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def of(*values: int) -> dict[str, Tensor]:
    return {"w": torch.tensor(values) > 0}


def test_every_invariant_is_a_value_error_of_its_own() -> None:
    kinds = {kind.__name__ for kind in errors.InvariantError.__subclasses__()}
    assert kinds == {
        "RevivedWeights", "MaskGrowth", "InexactSparsity", "InexactRewind", "StaleOptimizer", "NothingPruned",
        "ControlEqualsCriterion",
    }  # fmt: skip
    assert issubclass(errors.InvariantError, ValueError)
    assert issubclass(errors.LayerCollapseWarning, errors.SimkitWarning)


def test_sparsity_is_exact() -> None:
    invariants.require_exact(of(1, 0, 1), 2)
    with pytest.raises(errors.InexactSparsity, match="the masks keep 2 weights, not 1"):
        invariants.require_exact(of(1, 0, 1), 1)


def test_masks_only_shrink() -> None:
    invariants.require_subset(of(1, 0, 0), of(1, 0, 1))
    with pytest.raises(errors.MaskGrowth, match="the mask of 'w' keeps 1 weights that were gone before"):
        invariants.require_subset(of(1, 1, 0), of(1, 0, 1))
    with pytest.raises(errors.MaskGrowth, match="the masks leave out 'w', of which 1 weights were gone"):
        invariants.require_subset({}, of(1, 0, 1))


@pytest.mark.parametrize("value", [1e-30, float("nan"), float("inf"), -1.0])
def test_masked_weights_are_zero(value: float) -> None:
    model = nn.Linear(2, 2)
    masks = {"weight": torch.tensor([[True, False], [True, True]])}
    with torch.no_grad():
        model.weight[0, 1] = 0.0
    invariants.require_zero(model, masks)
    with torch.no_grad():
        model.weight[0, 1] = value
    with pytest.raises(errors.RevivedWeights, match="1 of the 1 masked weights of 'weight' are not 0"):
        invariants.require_zero(model, masks)


def test_a_rewind_tells_bits_apart() -> None:
    stored = {"w": torch.tensor([0.0, float("nan"), 1.0])}
    invariants.require_equal({"w": stored["w"].clone()}, stored, {})
    for place, value in ((0, -0.0), (2, 1.0 + 2**-23)):
        changed = stored["w"].clone()
        changed[place] = value
        with pytest.raises(errors.InexactRewind, match="'w' is not what was stored to rewind to"):
            invariants.require_equal({"w": changed}, stored, {})
        hidden = torch.ones(3, dtype=torch.bool)
        hidden[place] = False
        invariants.require_equal({"w": changed}, stored, {"w": hidden})
    with pytest.raises(errors.InexactRewind):
        invariants.require_equal({"w": stored["w"].double()}, stored, {})


def test_a_layer_that_does_not_load_what_it_saved_is_an_inexact_rewind() -> None:
    class Rounding(nn.Linear):
        def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
            state[f"{prefix}weight"] = state[f"{prefix}weight"].half().float()
            super()._load_from_state_dict(state, prefix, *rest)

    model = nn.Sequential(Rounding(4, 4), nn.Linear(4, 2))
    with pytest.raises(errors.InexactRewind, match=r"'0\.weight' is not what was stored"):
        list(P.rounds(model, train=lambda own: None, amount=0.5, retrain=P.RewindWeights()))


def test_stored_weights_that_change_are_an_inexact_rewind(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _Run.first

    def spoilt(run: _Run, trained: Any) -> Any:
        found = first(run, trained)
        run._rewind["0.weight"][0, 0] += 1.0
        return found

    monkeypatch.setattr(_Run, "first", spoilt)
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(errors.InexactRewind, match=r"RewindWeights\(step=0\) goes back to are no longer those"):
        list(P.rounds(model, train=lambda own: None, amount=0.5, retrain=P.RewindWeights()))


def test_masks_are_checked_against_the_model() -> None:
    model = nn.Linear(2, 2)
    parameters = dict(model.named_parameters())
    with pytest.raises(TypeError, match="the mask of 'weight' must be a bool tensor, not list"):
        invariants.checked_masks(parameters, {"weight": [True]})
