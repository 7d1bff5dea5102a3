"""Work on a model without leaving a trace: its own copy to run, and every global random state put back."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and torch (CPU, and CUDA where it is in use) on leaving."""
    # The global states must be read through the legacy interfaces: they are what is being protected.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cpu = torch.get_rng_state()
    cuda = _cuda_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def _cuda_states() -> list[torch.Tensor] | None:
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if in_use else None


def own_copy(model: nn.Module) -> nn.Module:
    """A deep copy of the model, in the mode it is in; NotImplementedError with the reason where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotImplementedError(f"{type(model).__name__} cannot be deep-copied: {reason}") from error


def _hooks(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def quiet_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode without hooks, so that running it calls none of the user's code but forward."""
    quiet = own_copy(model).eval()
    for module in quiet.modules():
        for hooks in _hooks(module):
            hooks.clear()
        module._forward_hooks_with_kwargs.clear()
        module._forward_pre_hooks_with_kwargs.clear()
        module._forward_hooks_always_called.clear()
    return quiet
