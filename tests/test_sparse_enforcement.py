"""Masked weights are exactly 0 after every step, whatever steps them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import RevivedWeights  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")

OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3)
    )


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 1, 6, 6), torch.randint(3, (16,))


def backward(model: nn.Module, scale: float = 1.0) -> None:
    inputs, labels = batch()
    (scale * functional.cross_entropy(model(inputs), labels)).backward()


def zeros(model: nn.Module, masks: dict[str, Tensor]) -> bool:
    """All masked weights are +0, and the others are not."""
    weights = {name: model.get_parameter(name).detach() for name in masks}
    dead = torch.cat([weights[name][~masks[name]] for name in masks])
    alive = torch.cat([weights[name][masks[name]] for name in masks])
    return bool((dead == 0).all() and not dead.signbit().any() and (alive != 0).all())


def warmed(name: str) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """A model and an optimiser with momentum from dense training, which would revive what a mask removes."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_are_zero_after_every_step(name: str) -> None:
    model, optimizer = warmed(name)
    masks = P.masks(model, amount=0.7)
    with P.Sparsifier(model, masks, optimizer):
        assert zeros(model, masks)
        for _ in range(5):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            assert zeros(model, masks)
    assert zeros(model, masks)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_are_zero_with_accumulation_and_clipping(name: str) -> None:
    model, optimizer = warmed(name)
    masks = P.masks(model, amount=0.7)
    with P.Sparsifier(model, masks, optimizer):
        for _ in range(3):
            for _ in range(3):
                backward(model, 1 / 3)
                assert all((model.get_parameter(n).grad[~m] == 0).all() for n, m in masks.items())
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            assert zeros(model, masks)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_are_zero_under_autocast_with_a_scaler_that_skips(name: str) -> None:
    model, optimizer = warmed(name)
    masks = P.masks(model, amount=0.7)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with P.Sparsifier(model, masks, optimizer):
        for step in range(4):
            optimizer.zero_grad()
            inputs, labels = batch()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = functional.cross_entropy(model(inputs), labels)
            before = copy.deepcopy(model.state_dict())
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            assert zeros(model, masks)
            same = all(torch.equal(model.state_dict()[n], before[n]) for n in masks)
            assert same == (step == 1)


def test_a_masked_network_trains_as_the_network_without_these_weights() -> None:
    """Equal to a model that multiplies by the mask in its forward pass, under Adam with the gradient clipped."""
    masks = P.masks(network(), amount=0.6)

    class Masked(nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.mask

    torch.manual_seed(1)
    first = network()
    second = copy.deepcopy(first)
    for name, mask in masks.items():
        layer = second.get_submodule(name.rpartition(".")[0])
        nn.utils.parametrize.register_parametrization(layer, "weight", Masked(mask))
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (first, second)]
    with P.Sparsifier(first, masks, optimizers[0]):
        for _ in range(10):
            inputs, labels = batch()
            for model, optimizer in zip((first, second), optimizers, strict=True):
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs), labels).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    for name in masks:
        path = name.rpartition(".")[0]
        torch.testing.assert_close(first.get_submodule(path).weight, second.get_submodule(path).weight)


def test_masks_travel_in_the_state_dict() -> None:
    model, optimizer = warmed("adam")
    names = list(model.state_dict())
    masks = P.masks(model, amount=0.5)
    with P.Sparsifier(model, masks, optimizer):
        state = copy.deepcopy(model.state_dict())
        assert set(state) - set(names) == {f"{name}_mask" for name in masks}
    assert list(model.state_dict()) == names
    found = P.masks_of(state)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)

    fresh = network()
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    with P.Sparsifier(fresh, P.masks(fresh, amount=0.9, score=P.Random()), optimizer) as sparsifier:
        fresh.load_state_dict(state)
        assert all(torch.equal(sparsifier.masks[name], masks[name]) for name in masks)
        backward(fresh)
        optimizer.step()
        assert zeros(fresh, masks)


def test_nothing_is_left_behind() -> None:
    model, optimizer = warmed("adam")
    masks = P.masks(model, amount=0.5)
    with P.Sparsifier(model, masks, optimizer):
        plain = P.Sparsifier(model, masks, optimizer).model
        assert plain is model
    assert not optimizer._optimizer_step_post_hooks
    assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert not [name for name, _ in model.named_buffers() if name.endswith("_mask")]
    backward(model)
    optimizer.step()
    assert not zeros(model, masks)


def test_dense_is_a_plain_copy() -> None:
    model, optimizer = warmed("momentum")
    masks = P.masks(model, amount=0.5)
    with P.Sparsifier(model, masks, optimizer) as sparsifier:
        backward(model)
        optimizer.step()
        dense = sparsifier.dense()
    assert list(dense.state_dict()) == list(network().state_dict())
    assert zeros(dense, masks)
    assert all(not parameter._post_accumulate_grad_hooks for parameter in dense.parameters())
    inputs, _ = batch()
    assert torch.equal(dense.eval()(inputs), model.eval()(inputs))


def test_any_optimizer_is_found_where_none_is_named() -> None:
    model = network()
    masks = P.masks(model, amount=0.5)
    other = nn.Linear(2, 2)
    with P.Sparsifier(model, masks):
        halves = [list(model.parameters())[:3], list(model.parameters())[3:]]
        for part in halves:
            optimizer = torch.optim.SGD(part, lr=0.1, momentum=0.9, weight_decay=0.1)
            backward(model)
            optimizer.step()
            assert zeros(model, masks)
        torch.optim.SGD(other.parameters(), lr=0.1).step()


def test_several_optimizers_share_the_model() -> None:
    model = network()
    masks = P.masks(model, amount=0.5)
    parts = [torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1) for layer in (model[0], model[4], model[6])]
    with P.Sparsifier(model, masks, parts):
        backward(model)
        for part in parts:
            part.step()
            assert zeros(model, masks)


def test_revived_weights_are_an_error_that_names_them() -> None:
    model, optimizer = warmed("sgd")
    masks = P.masks(model, amount=0.5)
    total = int((~masks["4.weight"]).sum())
    sparsifier = P.Sparsifier(model, masks, optimizer)
    with (
        pytest.raises(RevivedWeights, match=rf"1 of the {total} masked weights of '4\.weight' are not 0"),
        sparsifier,
        torch.no_grad(),
    ):
        model[4].weight[tuple((~masks["4.weight"]).nonzero()[0])] = float("nan")
    assert list(model.state_dict()) == list(network().state_dict())
    with pytest.raises(KeyError, match="mine"), P.Sparsifier(model, masks, optimizer):
        raise KeyError("mine")


def test_infinite_and_nan_weights_become_zero_too() -> None:
    model, optimizer = warmed("sgd")
    masks = P.masks(model, amount=0.5)
    with torch.no_grad():
        model[4].weight[~masks["4.weight"]] = float("nan")
    with P.Sparsifier(model, masks, optimizer):
        assert zeros(model, masks)


def test_frozen_and_tied_weights_are_masked() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    model[3].weight.requires_grad_(False)
    masks = P.masks(model, amount=0.5)
    assert list(masks) == ["0.weight", "3.weight"]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    with P.Sparsifier(model, masks, optimizer):
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
        assert (model[2].weight[~masks["0.weight"]] == 0).all()
        assert (model[3].weight[~masks["3.weight"]] == 0).all()


def test_masks_follow_a_model_that_was_moved_before() -> None:
    model = nn.Linear(4, 3)
    sparsifier = P.Sparsifier(model, P.masks(model, amount=0.5))
    model.to("meta")
    sparsifier.attach()
    assert sparsifier.masks["weight"].device.type == "meta"
    sparsifier.detach()


def test_moving_the_model_takes_masks_along() -> None:
    model, optimizer = warmed("sgd")
    masks = P.masks(model, amount=0.5)
    with P.Sparsifier(model, masks, optimizer), warnings.catch_warnings():
        model.to(torch.float64)
        assert model.get_buffer("4.weight_mask").dtype == torch.bool
        assert zeros(model, masks)


def test_mistakes_get_one_sentence() -> None:
    model, optimizer = warmed("sgd")
    masks = P.masks(model, amount=0.5)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer or several, not str"):
        P.Sparsifier(model, masks, ["sgd"])
    with pytest.raises(TypeError, match="not int"):
        P.Sparsifier(model, masks, 3)
    with pytest.raises(ValueError, match=r"no optimiser given holds the masked parameter '4\.weight'"):
        P.Sparsifier(model, masks, torch.optim.SGD(model[0].parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"name '9\.weight', which is no parameter"):
        P.Sparsifier(model, {"9.weight": masks["4.weight"]}, optimizer)
    with P.Sparsifier(model, masks, optimizer) as sparsifier:
        with pytest.raises(ValueError, match="attached already"):
            sparsifier.attach()
        with pytest.raises(ValueError, match=r"the layer of '0\.weight' has 'weight_mask' already"):
            P.Sparsifier(model, masks, optimizer).attach()
    for odd in (masks["4.weight"].to("meta"), masks["4.weight"].to_sparse()):
        with pytest.raises(TypeError, match=r"the mask of '4\.weight' must hold its entries, not be torch\."):
            P.Sparsifier(model, {"4.weight": odd}, optimizer)
    for call in (
        lambda: P.Sparsifier("model", masks),
        lambda: P.masks("model"),
        lambda: P.rounds("model", train=print, amount=0.5),
    ):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not str"):
            call()


def test_what_fails_while_it_is_attached_leaves_nothing_behind() -> None:
    class Failing(P.Sparsifier):
        def enforce(self) -> None:
            raise RuntimeError("no")

    model, optimizer = warmed("momentum")
    masks, names = P.masks(model, amount=0.5), list(model.state_dict())
    with pytest.raises(RuntimeError, match="no"):
        Failing(model, masks, optimizer).attach()
    assert list(model.state_dict()) == names
    with P.Sparsifier(model, masks, optimizer):
        backward(model)
        optimizer.step()
    assert zeros(model, masks)
