"""What removing a unit does to the loss of every sample, to first order: activations times their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....kernels import as_number
from ..network import Network, unit_dim
from .supervision import Loss, eval_mode, loss_of, supervised

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class UnitProducts:
    """Of one batch and layer: ``Σ_positions a·∂L_n/∂a [n, units]`` for each sample n, and the number of positions."""

    products: Tensor
    positions: int


def unit_products(
    model: nn.Module, layers: Iterable[str], loss: Loss, batches: Iterable[tuple[Any, Any, int]]
) -> Iterator[dict[str, UnitProducts]]:
    """For every batch and layer, the products of a unit's output and the gradient of its own sample's loss.

    The model runs in eval mode, as samples must not mix; its modes are put back. A layer that runs several times adds
    up. Outputs are those of the layer itself, before any normalisation or activation.

    Raises:
        NotImplementedError: a layer that is neither linear nor convolutional, or whose outputs are not one a sample.
        ValueError: a layer that the model does not run.
    """
    modules = {name: model.get_submodule(name) for name in layers}
    for name, module in modules.items():
        if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            raise NotImplementedError(f"layer {name!r} of type {type(module).__name__} has no outputs by unit")
    outputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    handles = [module.register_forward_hook(_recorder(outputs[name])) for name, module in modules.items()]
    try:
        with eval_mode(model), torch.enable_grad():
            for inputs, targets, count in batches:
                for kept in outputs.values():
                    kept.clear()
                yield _products(loss_of(loss, model(inputs), targets), outputs, modules, count)
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class UnitMeans:
    """Of one weight: the mean over the samples ``[units]``, and millions of multiply-adds of a unit for a sample."""

    values: Tensor
    cost: float


def unit_means(
    network: Network, loss: Loss, criterion: str, term: Callable[[UnitProducts], Tensor]
) -> dict[str, UnitMeans]:
    """Weight -> the mean over all samples of ``term(products) [n, units]``.

    Raises:
        NotImplementedError: a parameter that is no layer's weight with units first, and as :func:`unit_products`.
        ValueError: missing data, and as :func:`unit_products`.
    """
    layers = _layers_of(network)
    sums: dict[str, Tensor] = {}
    samples: dict[str, int] = dict.fromkeys(layers, 0)
    costs: dict[str, float] = {}
    for found in unit_products(network.model, layers, loss, supervised(network, criterion)):
        for layer, here in found.items():
            part = term(here).sum(dim=0)
            sums[layer] = sums[layer] + part if layer in sums else part
            samples[layer] += len(here.products)
            costs[layer] = network.weights[layers[layer]].numel() / len(part) * here.positions / 1e6
    return {name: UnitMeans(sums[layer] / samples[layer], costs[layer]) for layer, name in layers.items()}


def check_cost(cost: object) -> None:
    """ValueError unless it is a finite number of at least 0."""
    if not 0.0 <= as_number(cost) < float("inf"):
        raise ValueError(f"cost must be a number of at least 0, not {cost!r}")


def _layers_of(network: Network) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in network.names:
        unit_dim(network.model, name)
        found[name.rpartition(".")[0]] = name
    return found


def _recorder(kept: list[Tensor]) -> Any:
    def record(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_(True)
        kept.append(output)
        return output.clone()  # what follows may work in place

    return record


def _products(
    value: Tensor, outputs: Mapping[str, list[Tensor]], modules: Mapping[str, nn.Module], count: int
) -> dict[str, UnitProducts]:
    for name, kept in outputs.items():
        if not kept:
            raise ValueError(f"the model does not run layer {name!r}")
    flat = [(name, output) for name, kept in outputs.items() for output in kept]
    slopes = torch.autograd.grad(value, [output for _, output in flat], allow_unused=True, materialize_grads=True)
    found: dict[str, UnitProducts] = {}
    for (name, output), slope in zip(flat, slopes, strict=True):
        if output.shape[0] != count:
            raise NotImplementedError(
                f"layer {name!r} has {output.shape[0]} outputs for {count} samples: which are whose is unknown"
            )
        units = 1 if isinstance(modules[name], _CONVOLUTIONS) else output.dim() - 1
        product = (output.detach().double() * slope.double()).movedim(units, 1)
        product = product.reshape(*product.shape[:2], -1)
        # The loss is a mean over the samples; each sample's own loss is wanted.
        here = UnitProducts(product.sum(dim=2) * count, product.shape[2])
        before = found.get(name)
        found[name] = (
            here if before is None else UnitProducts(before.products + here.products, before.positions + here.positions)
        )
    return found
