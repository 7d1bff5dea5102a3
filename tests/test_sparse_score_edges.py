"""Criteria where they have been wrong: dead weights, norms, half precision, shared layers, odd data."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scored_networks import batch, entries, mlp, slope_of_scaling  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import MaskGrowth  # noqa: E402
from simkit.graph import quiet_copy  # noqa: E402
from simkit.pruning.sparse.masks import score_all  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")

NAMES = ("0.weight", "2.weight")


class Kept:
    """Scores of another criterion, remembered."""

    def __init__(self, score: Any) -> None:
        self.score = score
        self.scores: dict[str, Tensor] = {}

    def weights(self, network: Any) -> dict[str, Tensor]:
        self.scores = self.score.weights(network)
        return self.scores


def test_grasp_leaves_dead_weights_out_of_the_gradient() -> None:
    """Of the masked network θ ⊙ m, whose dead weights have no gradient."""
    model = mlp()
    data = batch(model)
    previous = P.masks(model, amount=0.5)
    with torch.no_grad():
        for name, mask in previous.items():
            model.get_parameter(name).mul_(mask)
    weights = [model.get_parameter(name) for name in NAMES]

    def half_norm() -> float:
        slopes = torch.autograd.grad(functional.cross_entropy(model(data[0]) / 2.0, data[1]), weights)
        return 0.5 * sum(float((g * previous[n]).square().sum()) for n, g in zip(NAMES, slopes, strict=True))

    kept = Kept(P.GraSP(temperature=2.0))
    P.masks(model, score=kept, amount=0.7, data=data, previous=previous)
    for name, weight in zip(NAMES, weights, strict=True):
        for place in entries(weight):
            slope = slope_of_scaling(half_norm, weight, place)
            assert float(kept.scores[name][place]) == pytest.approx(slope, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grasp_scores_half_precision_in_single(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    inputs, labels = batch(model)
    inputs = inputs.to(dtype)
    found = score_all(model, P.GraSP(), data=(inputs, labels))
    expected = score_all(quiet_copy(model).train().float(), P.GraSP(), data=(inputs.float(), labels))
    for name in NAMES:
        assert found[name].dtype == torch.float64
        assert (found[name] != 0).all()
        assert torch.equal(found[name], expected[name])


def test_both_passes_of_grasp_see_the_same_dropout() -> None:
    seen: list[Tensor] = []

    class Watched(nn.Dropout):
        def forward(self, values: Tensor) -> Tensor:
            found = super().forward(values)
            seen.append(found == 0)
            return found

    model = nn.Sequential(nn.Linear(4, 6), Watched(0.5), nn.Linear(6, 3)).double()
    score_all(model, P.GraSP(), data=batch(model))
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


class Token(nn.Module):
    """A small network with a norm that measures its own input."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(2, 6, 1), norm, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(x.movedim(1, 2)).movedim(1, 2) if isinstance(self.norm, nn.LayerNorm) else self.norm(x)
        return self.last(torch.relu(x).mean(dim=2))


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6), nn.LayerNorm(6, elementwise_affine=False), nn.GroupNorm(2, 6), nn.InstanceNorm1d(6),
        nn.InstanceNorm1d(6, affine=True), nn.BatchNorm1d(6, track_running_stats=False),
    ],
)  # fmt: skip
def test_norms_are_factors_of_the_synaptic_flow(norm: nn.Module) -> None:
    model = Token(norm)
    gamma = getattr(norm, "weight", None)
    if gamma is not None:
        nn.init.normal_(gamma)
    flows = score_all(model, P.SynFlow((2, 5)))
    scale = torch.ones(6) if gamma is None else gamma.detach().abs()
    first, last = model.first.weight.detach().double().abs(), model.last.weight.detach().double().abs()
    torch.testing.assert_close(flows["first.weight"], first * (scale.double() * last.sum(dim=0))[:, None, None])
    torch.testing.assert_close(flows["last.weight"], last * (scale.double() * first.sum(dim=(1, 2))))


def test_a_flow_that_is_none_is_refused() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x - x.mean(dim=1, keepdim=True))

    model = nn.Sequential(nn.Linear(4, 6), Centred(), nn.Linear(6, 3))
    with pytest.raises(NotImplementedError, match=r"\d+ of the 24 synaptic flows through '0\.weight' are negative"):
        score_all(model, P.SynFlow((4,)))
    with pytest.raises(ValueError, match="SynFlow cannot rank weights: the synaptic flow through them sums to"):
        score_all(nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)), P.SynFlow((4,)))
    deep = nn.Sequential(*(nn.Linear(8, 8) for _ in range(40)))
    with torch.no_grad():
        for layer in deep:
            layer.weight.mul_(1e-10)
    with pytest.raises(ValueError, match=r"the synaptic flow through the network is 0\.0, beyond float64"):
        P.masks(deep, score=P.SynFlow((8,)), amount=0.5)


def test_steps_fall_geometrically() -> None:
    seen: list[int] = []

    class Stepping:
        iterations = 4

        def weights(self, network: Any) -> dict[str, Tensor]:
            seen.append(sum(int(mask.sum()) for mask in network.masks.values()))
            return {name: weight.detach().abs() for name, weight in network.weights.items()}

    model = nn.Linear(40, 25)
    P.masks(model, score=Stepping(), amount=0.9)
    assert seen == [1000, round(1000 * 0.1**0.25), round(1000 * 0.1**0.5), round(1000 * 0.1**0.75)]
    previous = P.masks(model, amount=0.9)
    with pytest.raises(MaskGrowth, match="900 of 1000 weights are gone already: only 500 gone would revive 400"):
        P.masks(model, score=Stepping(), amount=0.5, previous=previous)


def test_dead_weights_are_no_part_of_a_distribution() -> None:
    model = mlp()
    previous = P.masks(model, amount=0.5)
    kept = Kept(P.Distribution(standardize=True))
    P.masks(model, score=kept, amount=0.7, previous=previous)
    for name in NAMES:
        weight, alive = model.get_parameter(name).detach(), previous[name]
        expected = (weight - weight[alive].mean()).abs() / weight[alive].std(correction=0)
        torch.testing.assert_close(kept.scores[name][alive], expected[alive])


@pytest.mark.parametrize(
    "score", [P.OBD(), P.OBD(diagonal="exact"), P.OBD(diagonal="hutchinson", samples=2), P.OBS(form="full")], ids=repr
)
def test_curvature_does_not_depend_on_the_batches(score: Any) -> None:
    model = mlp()
    inputs, labels = batch(model, 13)
    split = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]
    torch.testing.assert_close(
        score_all(model, score, data=split), score_all(model, score, data=(inputs, labels)), rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("score", [P.OBD, P.OBS])
def test_losses_that_weigh_samples_are_no_means(score: Any) -> None:
    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 5.0]).to(outputs))

    options = {"form": "full"} if score is P.OBS else {}
    model = mlp()
    for loss in (weighted, lambda out, labels: functional.cross_entropy(out, labels, reduction="sum")):
        with pytest.raises(ValueError, match=r"loss must be a mean over the samples: it is .* by samples"):
            score_all(model, score(loss=loss, **options), data=batch(model))


def test_shapes_of_inputs_are_checked() -> None:
    for shape in (784, (2.7,), (), (0, 3), "ab"):
        with pytest.raises(ValueError, match=r"shape must be the sizes of one input, such as .*, not "):
            P.SynFlow(shape)
    with pytest.raises(ValueError, match=r"SynFlow cannot run the model on shape=\(5,\): mat1 and mat2 shapes"):
        score_all(mlp(), P.SynFlow((5,)))
    with pytest.raises(ValueError, match="masks must hold a mask at least"):
        P.kept_share({})


def test_a_control_moves_weights_as_its_criterion_does() -> None:
    model = mlp()
    data = batch(model)
    control = P.Shuffled(P.OBS(), seed=1)
    masks = P.masks(model, score=control, amount=0.5, data=data)
    found = P.updated(model, masks, score=control, data=data)
    expected = P.updated(model, masks, score=P.OBS(), data=data)
    for name, mask in masks.items():
        assert torch.equal(found.get_parameter(name), expected.get_parameter(name))
        assert not torch.equal(found.get_parameter(name), model.get_parameter(name) * mask)
    with pytest.raises(TypeError, match="score must be a criterion that updates weights"):
        P.updated(model, masks, score=P.Shuffled(), data=data)


def test_everything_may_go_in_steps() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.warns(Warning, match="layer collapse"):
        found = P.masks(model, score=P.SynFlow((4,)), amount=1.0)
    assert not any(mask.any() for mask in found.values())


@pytest.mark.parametrize("score", [P.Taylor(), P.Fisher()])
def test_rows_that_are_no_samples_are_refused(score: Any) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            n, t, d = x.shape
            return self.last(self.layer(x.reshape(n * t, d)).reshape(n, t, 5).mean(dim=1))

    with pytest.raises(NotImplementedError, match="layer 'layer' has 14 outputs for 7 samples: which are whose"):
        score_all(Flat(), score, data=(torch.randn(7, 2, 4), torch.arange(7) % 3))


@pytest.mark.parametrize("score", [P.SNIP(iterations=2), P.GraSP(), P.Oracle()])
def test_data_that_ends_is_refused(score: Any) -> None:
    model = mlp()
    with pytest.raises(TypeError, match=r"data= must be iterable again and again, .* not generator"):
        P.masks(model, score=score, data=(batch(model) for _ in range(2)))


def test_a_copy_to_run_has_no_backward_hooks() -> None:
    model, calls = mlp(), []
    model[2].register_full_backward_hook(lambda *args: calls.append("backward"))
    model[2].register_full_backward_pre_hook(lambda *args: calls.append("before"))
    for score in (P.SNIP(), P.GraSP(), P.Taylor()):
        score_all(model, score, data=batch(model))
    assert calls == []
    functional.cross_entropy(model(batch(model)[0]), batch(model)[1]).backward()
    assert calls == ["before", "backward"]


def test_a_threshold_is_not_rounded_to_the_type_of_the_weights() -> None:
    model = nn.Linear(3, 1).bfloat16()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 1.0078125]]))
    assert P.masks(model, amount=P.Threshold(1.003))["weight"].tolist() == [[False, True, True]]


def test_the_oracle_takes_any_layout() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 3)).double()
    data = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.arange(5) % 3
    expected = score_all(model, P.Oracle(units=False), data=data)
    other = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(score_all(other, P.Oracle(units=False), data=data), expected)


@pytest.mark.parametrize("layer", [nn.RNN(3, 4), nn.MultiheadAttention(4, 2)])
def test_units_of_layers_without_such_weights_are_refused(layer: nn.Module) -> None:
    with pytest.raises(NotImplementedError, match="is no weight of a linear or convolutional layer: name it in keep="):
        P.masks(layer, score=P.UnitMagnitude(), amount=0.5)


def test_biases_have_no_units() -> None:
    with pytest.raises(NotImplementedError, match=r"'0\.bias' is no weight of a linear or convolutional layer"):
        P.masks(mlp(), score=P.UnitMagnitude(), amount=0.5, parameters=["0.bias"])


def test_masks_are_no_views_of_the_masks_before() -> None:
    model = mlp()
    previous = P.masks(model, amount=0.5, keep=["0"])
    previous["0.weight"] = torch.ones_like(model[0].weight, dtype=torch.bool)
    found = P.masks(model, amount=0.8, scope="layer", keep=["0"], previous=previous)
    found["0.weight"].zero_()
    assert previous["0.weight"].all()
