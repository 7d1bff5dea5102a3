"""Synaptic flow: the product of absolute weights along all paths through a weight. Needs no data, only a shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....graph.preserve import own_copy
from ..network import Network
from .gradient_magnitude import check_iterations
from .supervision import first_inputs

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class SynFlow:
    """``∂R/∂θ ⊙ θ`` with ``R = 1ᵀ(Π|θ_l|)1``: the network of absolute weights on an input of ones, in float64.

    The mask is reached in 100 steps, after each of which the flow is measured again; the share that is kept after step
    k of n is ``ρ^(-k/n)``, ρ the compression. What is no factor of a path counts for nothing: additive parameters
    (biases) and running means are 0, running variances are what they are, and layers run in eval mode. Scores of what
    enters a hidden unit sum to those of what leaves it, where activations are ReLU-like.

    Args:
        shape: of one input, without the batch; None takes it from ``data``.
        iterations: steps; 1 is known to collapse layers.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (2020).
    """

    shape: tuple[int, ...] | None = None
    iterations: int = 100

    def __post_init__(self) -> None:
        check_iterations(self.iterations)
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The flows, in float64; ValueError for an unknown shape, or a flow beyond float64."""
        inputs = torch.ones(1, *self._shape(network), dtype=torch.float64, device=_device(network.model))
        model = _flow(network.model)
        parameters = dict(model.named_parameters())
        weights = [parameters[name] for name in network.names]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        outputs = model(inputs)
        if not isinstance(outputs, Tensor):
            raise ValueError(f"SynFlow needs a model that returns one tensor, not {type(outputs).__name__}")
        total = outputs.sum()
        if not math.isfinite(float(total.detach())):
            raise ValueError(f"the synaptic flow through the network is {float(total.detach())}, beyond float64")
        slopes = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
        return {
            name: slope * weight.detach() for name, slope, weight in zip(network.names, slopes, weights, strict=True)
        }

    def _shape(self, network: Network) -> tuple[int, ...]:
        if self.shape is not None:
            return self.shape
        if network.data is None:
            raise ValueError("SynFlow needs shape=, the shape of one input, or data= to take it from")
        inputs = first_inputs(network.data, "SynFlow()")
        if not inputs.is_floating_point():
            raise ValueError(f"SynFlow needs inputs of real numbers, not {inputs.dtype}")
        return tuple(inputs.shape[1:])


def _flow(model: nn.Module) -> nn.Module:
    """A copy in float64 eval mode: multiplying parameters absolute, additive ones and running means 0."""
    flow = own_copy(model).double().eval()
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "bias" in name.rpartition(".")[2]:
                parameter.zero_()
            parameter.abs_()
        for module in flow.modules():
            if isinstance(module, _BATCH_NORMS) and module.running_mean is not None:
                module.running_mean.zero_()
    return flow


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
