"""Small architectures of every kind that pruning meets, with parameters and statistics that are not trivial.

A model that is freshly built hides mistakes: BatchNorm passes its input on, biases are zero, layer scales vanish.
So all that is one or zero in a new model is drawn at random here, always from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import zoo_attention
import zoo_awkward
import zoo_convolutional
import zoo_mobile
import zoo_plain
import zoo_residual
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Built = tuple[nn.Module, tuple[Any, ...]]
FAMILIES = (zoo_residual, zoo_convolutional, zoo_mobile, zoo_attention, zoo_plain, zoo_awkward)
ZOO: Mapping[str, Callable[[], Built]] = {
    make.__name__: make for family in FAMILIES for make in family.ARCHITECTURES
}  # fmt: skip
GAIN = 1.7  # PyTorch's own initialisation shrinks activations by about this factor per layer


def build(name: str, dtype: torch.dtype = torch.float64) -> Built:
    """A model of the zoo in eval mode and inputs it runs on; every call gives the same, whatever the global RNG."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model, inputs = ZOO[name]()
        randomise(model)
    return model.to(dtype).eval(), cast(inputs, dtype)


def randomise(model: nn.Module) -> None:
    """Draw scales (some negative), shifts, biases and running statistics; widen the weights."""
    seen: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                if id(value) not in seen:
                    _redraw(module, name, value)
                seen.add(id(value))
            for name, value in module.named_buffers(recurse=False):
                if name == "running_mean":
                    value.normal_(0, 0.3)
                elif name == "running_var":
                    value.uniform_(0.4, 1.6)
                elif name == "num_batches_tracked":
                    value.fill_(17)


def _redraw(module: nn.Module, name: str, value: Tensor) -> None:
    if isinstance(module, nn.PReLU):
        value.uniform_(0.05, 0.5)
    elif value.dim() == 1 and (name in ("weight", "gamma")):
        value.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(value) < 0.2, -1, 1))
    elif value.dim() == 1:
        value.add_(torch.randn_like(value), alpha=0.2)
    elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        value.mul_(GAIN)


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """The inputs with floating-point tensors in ``dtype``."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


def fresh(inputs: tuple[Any, ...], batch: int, seed: int) -> tuple[Any, ...]:
    """Other inputs of the same kind: ``batch`` samples, values drawn anew (integers below the example's maximum)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        shape = (batch, *x.shape[1:])
        if x.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=x.dtype)
        return torch.randint(0, int(x.max()) + 1, shape, generator=generator, dtype=x.dtype)

    drawn: tuple[Any, ...] = tree_map(draw, inputs)
    return drawn
