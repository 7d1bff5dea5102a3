"""The proof that cutting equals masking: both models run in float64, module by module."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import preserved_rng
from ..graph.capture import as_inputs
from .decisions import LayerPlan, PruningPlan

RELATIVE = 1e-9  # of the largest value of an output; float64 sums in another order differ by about 1e-14 of it


def require_equal(silent: nn.Module, small: nn.Module, plan: PruningPlan, example_inputs: Any) -> None:
    """ValueError naming the first module at which the masked and the cut model (both float64) differ on the inputs."""
    inputs = tuple(_double(value) for value in as_inputs(example_inputs))
    names = dict.fromkeys(slot.module for layer in plan.layers for slot in layer.slots)
    expected = _outputs(silent, list(names), inputs)
    found = _outputs(small, list(names), inputs)
    if expected.error is not None:
        raise ValueError(f"the model does not run on example_inputs: {expected.error}") from expected.error
    for name, value in expected.outputs.items():
        for layer in plan.layers:
            value = _kept_part(silent, name, layer, value)  # noqa: PLW2901
        if name in found.outputs:
            _require_close(value, found.outputs[name], f"module {name!r}")
    if found.error is not None:
        last = list(found.outputs)[-1:] or ["the input"]
        raise ValueError(f"the cut model fails after {last[0]!r}: {found.error}; its forward may hard-code a size")
    _require_close(expected.result, found.result, "the model's result")


class _Outputs:
    """What named modules put out in one run, in the order in which they ran, and what the model returned or raised."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.result: Any = None
        self.error: Exception | None = None

    def keep(self, name: str, module: nn.Module, args: object, output: Tensor) -> None:
        self.outputs[name] = output.detach().clone()


def _outputs(model: nn.Module, names: list[str], inputs: tuple[Any, ...]) -> _Outputs:
    seen = _Outputs()
    for name in names:
        model.get_submodule(name).register_forward_hook(partial(seen.keep, name))
    with torch.no_grad(), preserved_rng():
        try:
            seen.result = model(*inputs)
        except Exception as error:  # a user's forward may raise anything; require_equal reports it
            seen.error = error
    return seen


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _kept_part(silent: nn.Module, name: str, layer: LayerPlan, value: Tensor) -> Tensor:
    for slot in layer.slots:
        if slot.module == name and slot.role != "consumer":
            axis = value.dim() - 1 if isinstance(silent.get_submodule(name), nn.Linear) else 1
            return value.index_select(axis, slot.indices(layer.kept, value.device))
    return value


def _require_close(expected: Any, found: Any, place: str) -> None:
    pairs = list(zip(_tensors(expected), _tensors(found), strict=True))
    for masked, cut in pairs:
        if masked.shape != cut.shape:
            raise ValueError(f"{place} has shape {tuple(cut.shape)} in the cut model and not {tuple(masked.shape)}")
        if masked.numel() == 0:
            continue
        scale, gap = float(masked.abs().amax()), float((masked - cut).abs().amax())
        if not gap <= RELATIVE * scale:
            raise ValueError(f"{place} differs between the masked and the cut model by {gap:.3g} of {scale:.3g}")


def _tensors(value: Any) -> list[Tensor]:
    return [leaf.to(torch.float64) for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
