"""What may not change in a model and around it while something else is done with it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def sized(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def ties(model: nn.Module) -> list[list[str]]:
    """Names of one tensor, together."""
    names: dict[int, list[str]] = {}
    for name, tensor in sized(model).items():
        names.setdefault(id(tensor), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


class Watch:
    """What may not change: bits, gradients, modes, hooks and requires_grad of a model, and the global RNGs."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls = model, 0
        for number, (module, parameter) in enumerate(zip(model.modules(), model.parameters(), strict=False)):
            module.training = number % 3 == 0
            parameter.grad = torch.full_like(parameter, 0.5) if parameter.requires_grad and number % 2 else None
        self.hook = next(model.children()).register_forward_hook(self._call)
        self.before = self._state()

    def _call(self, *args: object) -> None:
        self.calls += 1

    def _state(self) -> dict[str, Any]:
        model = self.model
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        return {
            "tensors": [(name, id(value), value.detach().clone()) for name, value in tensors],
            "versions": [value._version for _, value in tensors],
            "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "hooks": [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()],
            "attributes": [_plain(module) for module in model.modules()],
            "calls": self.calls,
            "torch": torch.get_rng_state(),
            "numpy": str(np.random.get_state()),  # noqa: NPY002
            "python": random.getstate(),
            "threads": torch.get_num_threads(),
            "grad mode": torch.is_grad_enabled(),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
        }

    def changes(self) -> list[str]:
        """The names of what is no longer as it was."""
        after = self._state()
        self.hook.remove()
        return [name for name, value in self.before.items() if not _same(value, after[name])]


def _plain(module: nn.Module) -> dict[str, Any]:
    plain = int | float | str | None
    each = {name: value if isinstance(value, list | tuple) else [value] for name, value in vars(module).items()}
    return {name: value for name, value in each.items() if all(isinstance(one, plain) for one in value)}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
