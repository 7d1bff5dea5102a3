"""Synaptic flow: the product of absolute weights along all paths through a weight. Needs no data, only a shape."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....graph.preserve import own_copy
from ....kernels import as_integer
from ..network import Network
from .gradient_magnitude import check_iterations
from .supervision import first_inputs

_CHANNEL_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
_NOISE = 1e-9  # of the whole flow


@dataclass(frozen=True)
class SynFlow:
    """``∂R/∂θ ⊙ θ`` with ``R = 1ᵀ(Π|θ_l|)1``: the network of absolute weights on an input of ones, in float64.

    The mask is reached in 100 steps, after each of which the flow is measured again; the share that is kept after step
    k of n is ``ρ^(-k/n)``, ρ the compression. What is no factor of a path counts for nothing: biases and running means
    are 0, running variances are what they are, norms that measure their own input only multiply by their weights, and
    layers run in eval mode. Other additive parameters, such as embeddings of positions, cannot be told from factors:
    they stay. Scores of what enters a hidden unit sum to those of what leaves it, where activations are ReLU-like.

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
            sizes = [as_integer(size) for size in self.shape] if isinstance(self.shape, Sequence) else []
            if not sizes or any(size is None or size < 1 for size in sizes):
                raise ValueError(f"shape must be the sizes of one input, such as (3, 32, 32), not {self.shape!r}")
            object.__setattr__(self, "shape", tuple(sizes))

    @property
    def needs_data(self) -> bool:
        """Whether the shape of an input is to be taken from data."""
        return self.shape is None

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The flows, in float64.

        ValueError for an unknown shape or one that the model does not take, or for a flow that is 0 or beyond float64;
        NotImplementedError for negative flows, which softmax or a mean that is taken off can give.
        """
        inputs = torch.ones(1, *self._shape(network), dtype=torch.float64, device=_device(network.model))
        model = _flow(network.model)
        parameters = dict(model.named_parameters())
        weights = [parameters[name] for name in network.names]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        try:
            outputs = model(inputs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"SynFlow cannot run the model on shape={tuple(inputs.shape[1:])}: {reason}") from error
        if not isinstance(outputs, Tensor):
            raise ValueError(f"SynFlow needs a model that returns one tensor, not {type(outputs).__name__}")
        total = outputs.sum()
        value = float(total.detach())
        if not sys.float_info.min <= abs(value) < math.inf:
            raise ValueError(f"the synaptic flow through the network is {value}, beyond float64")
        slopes = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
        flows = {
            name: slope * weight.detach() for name, slope, weight in zip(network.names, slopes, weights, strict=True)
        }
        return _positive(flows, value)

    def _shape(self, network: Network) -> tuple[int, ...]:
        if self.shape is not None:
            return self.shape
        if network.data is None:
            raise ValueError("SynFlow needs shape=, the shape of one input, or data= to take it from")
        inputs = first_inputs(network.data, "SynFlow()")
        if not inputs.is_floating_point():
            raise ValueError(f"SynFlow needs inputs of real numbers, not {inputs.dtype}")
        return tuple(inputs.shape[1:])


def _positive(flows: dict[str, Tensor], total: float) -> dict[str, Tensor]:
    """The flows without rounding noise around 0; an error where they are no flows."""
    for name, flow in flows.items():
        negative = int((flow < -_NOISE * abs(total)).sum())
        if negative:
            raise NotImplementedError(f"{negative} of the {flow.numel()} synaptic flows through {name!r} are negative")
    whole = sum(float(flow.sum()) for flow in flows.values())
    if not whole > _NOISE * abs(total):
        raise ValueError(f"SynFlow cannot rank weights: the synaptic flow through them sums to {whole}")
    return {name: flow.clamp(min=0.0) for name, flow in flows.items()}


def _flow(model: nn.Module) -> nn.Module:
    """A copy in float64 eval mode: parameters absolute, biases and running means 0, other norms only factors."""
    flow = own_copy(model).double().eval()
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "bias" in name.rpartition(".")[2]:
                parameter.zero_()
            parameter.abs_()
        for module in flow.modules():
            if isinstance(module, _CHANNEL_NORMS) and module.running_mean is not None:
                module.running_mean.zero_()
            elif isinstance(module, (*_CHANNEL_NORMS, nn.GroupNorm)):
                vars(module)["forward"] = _factor(module.weight, channels=True)
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                vars(module)["forward"] = _factor(module.weight, channels=False)
    return flow


def _factor(weight: Tensor | None, *, channels: bool) -> Callable[[Tensor], Tensor]:
    """Multiply by a weight of the channels (dimension 1), or of the last dimensions."""

    def multiply(values: Tensor) -> Tensor:
        if weight is None:
            return values
        return values * (weight.reshape(-1, *[1] * (values.dim() - 2)) if channels else weight)

    return multiply


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
