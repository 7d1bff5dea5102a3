"""Tensors of a module and the attributes that repeat their sizes: change both together."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

Sized: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d | nn.PReLU


def size_attributes(module: nn.Module) -> dict[str, int]:
    """Attribute name -> the value that the module's tensors imply; ValueError for a module of another kind."""
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return {"in_channels": module.weight.shape[1] * module.groups, "out_channels": module.weight.shape[0]}
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        per_channel = module.weight if module.affine else module.running_mean
        return {} if per_channel is None else {"num_features": per_channel.shape[0]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    raise ValueError(f"{type(module).__name__} is not a module whose sizes can be changed")


def replace_tensor(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put ``value`` in the place of a parameter (keeping requires_grad) or buffer, and renew the size attributes."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(module, leaf, value)
    for attribute, size in size_attributes(module).items():
        setattr(module, attribute, size)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
