"""Normalisation over channels some of which are removed: what the cut model computes, in a model of full size."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .decisions import LayerPlan


def leave_out_of_statistics(model: nn.Module, layers: Iterable[LayerPlan]) -> None:
    """Let LayerNorm, RMSNorm and GroupNorm over one group of all channels ignore removed channels, in place."""
    for size in (size for layer in layers for size in layer.sizes):
        module = model.get_submodule(size.module)
        gone = [position for start, stop in size.removed for position in range(start, stop)]
        kept = torch.tensor([position for position in range(size.size) if position not in set(gone)])
        if isinstance(module, nn.GroupNorm) and size.attribute == "num_channels" and module.num_groups == 1:
            module.forward = partial(_on_kept, module, kept, 1)  # type: ignore[method-assign]
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) == 1:
            module.forward = partial(_on_kept, module, kept, -1)  # type: ignore[method-assign]


def _on_kept(module: Any, kept: Tensor, dim: int, values: Tensor) -> Tensor:
    where = kept.to(values.device)
    part = values.index_select(dim, where)
    weight = None if module.weight is None else module.weight.index_select(0, where)
    bias = None if getattr(module, "bias", None) is None else module.bias.index_select(0, where)
    if isinstance(module, nn.GroupNorm):
        part = functional.group_norm(part, 1, weight, bias, module.eps)
    elif isinstance(module, nn.LayerNorm):
        part = functional.layer_norm(part, (len(where),), weight, bias, module.eps)
    else:
        part = functional.rms_norm(part, (len(where),), weight, module.eps)
    return torch.zeros_like(values).index_copy(dim, where, part)
