"""What a cut model must put out: the whole model, with the removed channels zero wherever something reads them.

Nothing here comes from simkit. Layers get forward pre-hooks that zero channels of their input; parameters that the code
reads without a layer's forward (F.linear, matmul, transposed, nn.MultiheadAttention's own) have the columns that would
meet those channels zeroed in a cloned state dict. The values of a removed channel are left as they are, so a reader
that the plan does not know is found out. Where normalisation over the channels makes a cut approximate, its
statistics can be taken over the kept channels, which is what the cut model does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

Hook = Callable[..., Any]
_Norm = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


@dataclass(frozen=True)
class Removed:
    """Indices along one dimension of a named parameter or buffer, or of what a named module puts out."""

    name: str
    dim: int
    positions: tuple[int, ...]

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


def masked_run(
    model: nn.Module,
    inputs: Sequence[Any],
    consumers: Iterable[Removed],
    *,
    silenced: Iterable[Removed] = (),
    norms: Iterable[Removed] = (),
) -> Any:
    """What ``model(*inputs)`` returns in eval mode when the consumers read zero in place of removed channels.

    Args:
        model: any model; it is copied, and neither changed nor run.
        inputs: positional inputs.
        consumers: weights and the indices along their contracted dimension that meet removed channels.
        silenced: outputs of named modules to be zeroed (``name`` is the module's), for readers without a parameter.
        norms: scales of LayerNorm, RMSNorm or GroupNorm with one group whose statistics leave the indices out.

    Raises:
        ValueError: an unknown name; indices that repeat or lie outside; a norm of another kind.
    """
    consumers, silenced, norms = list(consumers), list(silenced), list(norms)
    for removed in (*consumers, *norms):
        _check(model, removed)
    hooked = [removed for removed in consumers if _reads_input(model, removed)]
    bare = [removed for removed in consumers if removed not in hooked]
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would not call the layers inside
    try:
        called, result = _run(model, inputs, hooked, bare, silenced, norms)
        idle = [removed for removed in hooked if removed.module not in called]
        if idle:
            hooked = [removed for removed in hooked if removed.module in called]
            _, result = _run(model, inputs, hooked, bare + idle, silenced, norms)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return result


def relative_gap(expected: Any, found: Any) -> float:
    """The largest difference between two results, tensor by tensor, over the largest value of that tensor.

    Infinite where their structure, a shape, a dtype or an integer tensor differs, or a value is not a number.
    """
    pairs = list(zip(tensors(expected), tensors(found), strict=False))
    if len(pairs) != len(tensors(expected)) or len(pairs) != len(tensors(found)):
        return float("inf")
    return max((_gap(a, b) for a, b in pairs), default=0.0)


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, whatever holds them."""
    return [leaf.detach() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _gap(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    if a.numel() == 0:
        return 0.0
    gap = float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny))
    return float("inf") if math.isnan(gap) else gap


def _check(model: nn.Module, removed: Removed) -> None:
    tensor = _named(model).get(removed.name)
    if tensor is None:
        raise ValueError(f"{type(model).__name__} has no tensor {removed.name!r}")
    size = tensor.shape[removed.dim]
    if len(set(removed.positions)) != len(removed.positions) or not all(0 <= p < size for p in removed.positions):
        raise ValueError(f"{removed.name!r} has {size} indices along {removed.dim}, not {list(removed.positions)}")


def _named(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _reads_input(model: nn.Module, removed: Removed) -> bool:
    """Whether the indices are input channels of a layer, which its own pre-hook can zero."""
    layer = model.get_submodule(removed.module)
    if not removed.name.endswith("weight") or getattr(layer, "weight", None) is not _named(model)[removed.name]:
        return False
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return removed.dim == 0
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and removed.dim == 1


def _run(
    model: nn.Module,
    inputs: Sequence[Any],
    hooked: Iterable[Removed],
    bare: Iterable[Removed],
    silenced: Iterable[Removed],
    norms: Iterable[Removed],
) -> tuple[set[str], Any]:
    quiet = copy.deepcopy(model).eval()
    called: set[str] = set()
    for removed in hooked:
        layer = quiet.get_submodule(removed.module)
        layer.register_forward_pre_hook(_zero_input(removed, called), with_kwargs=True)
    for removed in silenced:
        quiet.get_submodule(removed.name).register_forward_hook(_zero_output(removed))
    for removed in norms:
        quiet.get_submodule(removed.module).register_forward_hook(_kept_statistics(removed))
    named, state = _named(quiet), {}
    for removed in bare:
        tensor = named[removed.name]
        zeroed = _fill(state.get(removed.name, tensor.detach()), removed.dim, removed.positions)
        # A tensor under several names is one tensor: all of them see the zeros.
        state.update({name: zeroed for name, value in named.items() if value is tensor})
    with torch.no_grad():
        return called, functional_call(quiet, state, tuple(inputs), tie_weights=False)


def _fill(x: Tensor, dim: int, positions: Sequence[int]) -> Tensor:
    return x.index_fill(dim, torch.tensor(positions, dtype=torch.int64, device=x.device), 0)


def _zero_input(removed: Removed, called: set[str]) -> Hook:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        called.add(removed.module)
        x = args[0] if args else kwargs["input"]
        x = _fill(x, _channel_axis(layer, x), _input_channels(layer, removed.positions))
        return (x, *args[1:]), {key: value for key, value in kwargs.items() if key != "input"}

    return hook


def _channel_axis(layer: nn.Module, x: Tensor) -> int:
    assert isinstance(layer.weight, Tensor)
    return x.dim() - 1 if isinstance(layer, nn.Linear) else x.dim() - layer.weight.dim() + 1


def _input_channels(layer: nn.Module, positions: Sequence[int]) -> list[int]:
    """Input channels that meet these columns: in a grouped convolution every group has the column once."""
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvTransposeNd):
        return list(positions)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    each = layer.in_channels // layer.groups
    return [group * each + position for group in range(layer.groups) for position in positions]


def _zero_output(removed: Removed) -> Hook:
    return lambda module, args, output: _fill(output, removed.dim, removed.positions)


def _kept_statistics(removed: Removed) -> Hook:
    def hook(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not isinstance(norm, _Norm) or (isinstance(norm, nn.GroupNorm) and norm.num_groups != 1):
            raise ValueError(
                f"{removed.name!r} belongs to a {type(norm).__name__} that does not norm over all channels"
            )
        x: Tensor = args[0]
        scale, shift = norm.weight, getattr(norm, "bias", None)
        dims = list(range(x.dim() - scale.dim(), x.dim()))
        if isinstance(norm, nn.GroupNorm):
            dims = list(range(1, x.dim()))
            scale, shift = (v if v is None else v.reshape(-1, *[1] * (x.dim() - 2)) for v in (scale, shift))
        assert scale is not None
        counts = _fill(torch.ones_like(scale), removed.dim, removed.positions).expand(x.shape[dims[0] :])
        centre = x * 0 if isinstance(norm, nn.RMSNorm) else (x * counts).sum(dims, keepdim=True) / counts.sum()
        square = ((x - centre) ** 2 * counts).sum(dims, keepdim=True) / counts.sum()
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        y = (x - centre) / (square + eps).sqrt() * scale
        return y if shift is None else y + shift

    return hook
