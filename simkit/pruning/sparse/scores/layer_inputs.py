"""The inputs of linear and convolutional layers as their weights meet them: ``X Xᵀ / n``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..network import Network
from .supervision import supervised


def input_products(network: Network, who: str) -> dict[str, list[Tensor]]:
    """For every weight to score ``X Xᵀ / n`` ``[inputs, inputs]`` in float64, one for each group of its layer.

    A column of X is what one row of the (flattened) weight is multiplied with at one position of one sample; n counts
    these. Batches stream: X itself is never whole.

    Raises:
        NotImplementedError: a weight of another layer than linear or convolutional (1-D and 2-D, zero padding).
        ValueError: missing data, or a layer that the model does not run.
    """
    layers = {name: network.model.get_submodule(name.rpartition(".")[0]) for name in network.names}
    for name, layer in layers.items():
        _require_known(name, layer)
    sums = {name: _Sums() for name in layers}
    handles = [layer.register_forward_pre_hook(sums[name].add) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for inputs, _, _ in supervised(network, who):
                network.model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, found in sums.items():
        if not found.columns:
            raise ValueError(f"the model does not run the layer of {name!r}")
    return {name: [products / found.columns for products in found.products] for name, found in sums.items()}


class _Sums:
    """X Xᵀ of each group, and the number of columns of X, over all calls."""

    def __init__(self) -> None:
        self.products: list[Tensor] = []
        self.columns = 0

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        columns = _columns(module, args[0].detach().double())
        new = [group @ group.T for group in columns]
        self.products = [a + b for a, b in zip(self.products, new, strict=True)] if self.products else new
        self.columns += columns[0].shape[1]


def _columns(module: nn.Module, inputs: Tensor) -> list[Tensor]:
    """X ``[inputs, positions · samples]`` of each group."""
    if isinstance(module, nn.Linear):
        return [inputs.reshape(-1, inputs.shape[-1]).T]
    if isinstance(module, nn.Conv1d):
        inputs = inputs.unsqueeze(2)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    kernel, dilation, stride = ((1, *size)[-2:] for size in (module.kernel_size, module.dilation, module.stride))
    left = module._reversed_padding_repeated_twice
    padded = functional.pad(inputs, (*left, 0, 0) if isinstance(module, nn.Conv1d) else tuple(left))
    unfolded = functional.unfold(padded, kernel, dilation=dilation, stride=stride)  # [n, inputs · groups, positions]
    return [part.movedim(1, 0).flatten(1) for part in torch.chunk(unfolded, module.groups, dim=1)]


def _require_known(name: str, layer: nn.Module) -> None:
    convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.padding_mode == "zeros"
    if name.rpartition(".")[2] != "weight" or not (convolution or isinstance(layer, nn.Linear)):
        raise NotImplementedError(f"the inputs of {name!r} of a {type(layer).__name__} are unknown: name it in keep=")
