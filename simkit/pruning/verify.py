"""The proof that cutting equals masking: both models run in float64, module by module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..graph import preserved_rng, quiet_copy
from ..graph.capture import as_inputs, plain_attention
from .decisions import LayerPlan
from .norms import leave_out_of_statistics
from .totals import without_terms

RELATIVE = 1e-9  # of the largest value of an output; float64 sums in another order differ by about 1e-14 of it
COARSE = 2000  # the same for other precisions, in units of their rounding, but at most 0.05
Change = Callable[[nn.Module, Sequence[LayerPlan]], nn.Module]


def require_equal(
    model: nn.Module, layers: Sequence[LayerPlan], example_inputs: Any, *, mask: Change, cut: Change
) -> None:
    """ValueError naming the first module at which the masked and the cut model differ on the inputs.

    Both run in float64, or, where the model's code insists on another precision, in the model's own.
    """
    names = list(dict.fromkeys(slot.module for layer in layers for slot in layer.slots))
    for double in (True, False):
        silent, small = mask(_copy(model, double), layers), cut(_copy(model, double), layers)
        if any(layer.approximate is not None for layer in layers):
            leave_out_of_statistics(silent, layers)
        inputs = tuple(_double(value) if double else value for value in as_inputs(example_inputs))
        expected = _outputs(silent, names, inputs)
        if expected.error is None:
            break
    found = _outputs(small, names, inputs)
    if expected.error is None and found.error is None and any(layer.totals for layer in layers):
        expected.result, expected.outputs = without_terms(silent, layers, inputs), {}
    if expected.error is not None:
        raise ValueError(f"the model does not run on example_inputs: {expected.error}") from expected.error
    wrong = None if found.error is not None else _difference(expected.result, found.result)
    if found.error is not None or wrong is not None:
        _raise(expected, found, layers, wrong)


def _raise(expected: _Outputs, found: _Outputs, layers: Sequence[LayerPlan], wrong: str | None) -> NoReturn:
    """Name the first module at which the models differ, or where the cut one failed."""
    for name, value in expected.outputs.items():
        if name in found.outputs:
            theirs = _difference(_kept_part(name, layers, value, found.outputs[name]), found.outputs[name])
            if theirs is not None:
                raise ValueError(f"module {name!r} {theirs}")
    if found.error is not None:
        last = list(found.outputs)[-1:] or ["the input"]
        raise ValueError(f"the cut model fails after {last[0]!r}: {found.error}; its forward may hard-code a size")
    raise ValueError(f"the model's result {wrong}")


def _copy(model: nn.Module, double: bool) -> nn.Module:
    return quiet_copy(model).double() if double else quiet_copy(model)


class _Outputs:
    """What named modules put out in one run, in the order in which they ran, and what the model returned or raised."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.result: Any = None
        self.error: Exception | None = None

    def keep(self, name: str, module: nn.Module, args: object, output: Any) -> None:
        if isinstance(output, Tensor):
            self.outputs[name] = output.detach().clone()


def _outputs(model: nn.Module, names: Sequence[str], inputs: tuple[Any, ...]) -> _Outputs:
    seen = _Outputs()
    for name in names:
        if name:  # the model itself is what it returns
            model.get_submodule(name).register_forward_hook(partial(seen.keep, name))
    with torch.no_grad(), preserved_rng(), plain_attention():
        try:
            seen.result = model(*inputs)
        except Exception as error:  # a user's forward may raise anything; require_equal reports it
            seen.error = error
    return seen


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _kept_part(name: str, layers: Sequence[LayerPlan], value: Tensor, found: Tensor) -> Tensor:
    """The kept channels of a module's output, along the dimension in which the cut model's output is smaller."""
    if value.dim() != found.dim():
        return value
    gone: dict[int, set[int]] = {}
    for slot in (slot for layer in layers for slot in layer.slots):
        if slot.module == name and slot.role != "consumer":
            gone.setdefault(slot.size, set()).update(slot.positions)
    for dim, (size, left) in enumerate(zip(value.shape, found.shape, strict=True)):
        if size != left and size in gone:
            kept = [position for position in range(size) if position not in gone[size]]
            value = value.index_select(dim, torch.tensor(kept, device=value.device))
    return value


def _difference(expected: Any, found: Any) -> str | None:
    """How the cut model's output differs from the masked one's, None if it does not."""
    first, second = _tensors(expected), _tensors(found)
    if len(first) != len(second):
        return f"has {len(second)} tensors in the cut model and not {len(first)}"
    for silent, small in zip(first, second, strict=True):
        if silent.shape != small.shape:
            return f"has shape {tuple(small.shape)} in the cut model and not {tuple(silent.shape)}"
        if silent.numel() == 0:
            continue
        exact, other = silent.to(torch.float64), small.to(torch.float64)
        scale, gap = float(exact.abs().amax()), float((exact - other).abs().amax())
        if not gap <= _tolerance(silent.dtype) * scale:
            return f"differs between the masked and the cut model by {gap:.3g} of {scale:.3g}"
    return None


def _tolerance(dtype: torch.dtype) -> float:
    if not dtype.is_floating_point or dtype == torch.float64:
        return RELATIVE
    return min(COARSE * torch.finfo(dtype).eps, 0.05)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
