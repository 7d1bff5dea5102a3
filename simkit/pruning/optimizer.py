"""An optimiser for the cut model that goes on where the one of the dense model was."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .decisions import PruningPlan


def rebind(
    optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, plan: PruningPlan
) -> torch.optim.Optimizer:
    """A new optimiser of the same class and options over the parameters of ``small = apply(model, plan, ...)``.

    Its state (momentum, second moments, ...) is that of ``optimizer`` with the removed entries left out; state that is
    not shaped like its parameter (step counts) is copied. ``optimizer`` itself stays as it is and goes on to hold the
    dense parameters, which ``small`` no longer has: do not step it.

    Raises:
        TypeError: ``optimizer`` is no torch optimiser.
        ValueError: a parameter of the optimiser is none of the model's, or ``small`` does not fit the plan.
        NotImplementedError: the optimiser's class cannot be made from its parameter groups and defaults, or keeps state
            that is not entry by entry (Adafactor, L-BFGS).
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    names: dict[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
    target = dict(small.named_parameters())
    gone = _removed(plan, model)
    groups: list[dict[str, Any]] = []
    pairs: list[tuple[Tensor, nn.Parameter, dict[int, set[int]]]] = []
    for group in optimizer.param_groups:
        mine: list[nn.Parameter] = []
        for old in group["params"]:
            name = names.get(id(old))
            if name is None or name not in target:
                raise ValueError(
                    f"the optimiser holds a parameter of shape {tuple(old.shape)} that is none of the model's"
                )
            dims = gone.get(id(old), {})
            left = tuple(size - len(dims.get(dim, ())) for dim, size in enumerate(old.shape))
            if tuple(target[name].shape) != left:
                raise ValueError(
                    f"{name!r} has shape {tuple(target[name].shape)} and not {left}, as the plan would leave it"
                )
            mine.append(target[name])
            pairs.append((old, target[name], dims))
        groups.append({**group, "params": mine})
    new = _alike(optimizer, groups)
    for old, parameter, dims in pairs:
        if old in optimizer.state:
            new.state[parameter] = {
                key: _sliced(optimizer, key, value, old, dims) for key, value in optimizer.state[old].items()
            }
    return new


def _alike(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    known = inspect.signature(type(optimizer).__init__).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in known}
    try:
        new: torch.optim.Optimizer = type(optimizer)(groups, **options)
    except TypeError as error:
        raise NotImplementedError(f"{type(optimizer).__name__} cannot be made anew: {error}") from error
    return new


def _removed(plan: PruningPlan, model: nn.Module) -> dict[int, dict[int, set[int]]]:
    """Parameter -> dimension -> removed positions; by identity, as a tied parameter has several names."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, dict[int, set[int]]] = {}
    for slot in (slot for layer in plan.layers for slot in layer.slots):
        if slot.tensor in tensors:
            dims = found.setdefault(id(tensors[slot.tensor]), {})
            dims.setdefault(slot.dim, set()).update(slot.positions)
    return found


def _sliced(optimizer: torch.optim.Optimizer, key: str, value: Any, old: Tensor, dims: dict[int, set[int]]) -> Any:
    shaped = isinstance(value, Tensor) and value.dim() > 0 and value.shape != old.shape
    if shaped or isinstance(value, (list, tuple, dict)):
        name = type(optimizer).__name__
        raise NotImplementedError(f"the state {key!r} of {name} is not entry by entry like its parameter")
    if not isinstance(value, Tensor):
        return value
    value = value.detach().clone()
    if value.shape == old.shape:
        for dim, positions in dims.items():
            kept = [position for position in range(old.shape[dim]) if position not in positions]
            value = value.index_select(dim, torch.tensor(kept, device=value.device))
    return value
