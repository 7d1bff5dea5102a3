"""What must hold of masks and of the weights under them; what does not is raised by its name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import ControlEqualsCriterion, InexactRewind, InexactSparsity, MaskGrowth, NothingPruned, RevivedWeights
from .network import Masks


def checked_masks(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Masks:
    """The masks on the devices of their parameters, those of tied ones under their first name.

    Args:
        parameters: by all names that they have.
        masks: parameter name -> bool tensor; for several names of one parameter, equal ones.

    Raises:
        TypeError: a mask that is no bool tensor, or masks that are no mapping.
        ValueError: the name of no parameter, a mask of another shape, or two masks of one parameter.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks must be a mapping of parameter names, not {type(masks).__name__}")
    found: Masks = {}
    firsts: dict[int, str] = {}
    for name, parameter in parameters.items():
        firsts.setdefault(id(parameter), name)
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"the masks name {name!r}, which is no parameter of the model")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"the mask of {name!r} must be a bool tensor, not {kind}")
        if mask.is_meta or mask.layout != torch.strided:
            raise TypeError(f"the mask of {name!r} must hold its entries, not be {mask.layout} on {mask.device}")
        if mask.shape != parameters[name].shape:
            raise ValueError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, not {tuple(parameters[name].shape)} as the weight"
            )
        first, mine = firsts[id(parameters[name])], mask.to(parameters[name].device)
        if first in found and not torch.equal(found[first], mine):
            raise ValueError(f"the masks of {name!r} and of {first!r} differ, but they are one parameter")
        found[first] = mine
    return found


def require_exact(masks: Mapping[str, Tensor], kept: int) -> None:
    """InexactSparsity unless the masks keep exactly so many entries together."""
    found = sum(int(mask.sum()) for mask in masks.values())
    if found != kept:
        raise InexactSparsity(f"the masks keep {found} weights, not {kept}")


def require_subset(masks: Mapping[str, Tensor], previous: Mapping[str, Tensor]) -> None:
    """MaskGrowth unless every entry that the masks keep was kept by ``previous``, which they cover."""
    for name, before in previous.items():
        if name not in masks:
            raise MaskGrowth(f"the masks leave out {name!r}, of which {int((~before).sum())} weights were gone")
        grown = int((masks[name].to(before.device) & ~before).sum())
        if grown:
            raise MaskGrowth(f"the mask of {name!r} keeps {grown} weights that were gone before")


def require_change(previous: Mapping[str, Tensor], masks: Mapping[str, Tensor], what: str) -> None:
    """NothingPruned unless something that was kept before has gone."""
    if all(torch.equal(previous[name], mask) if name in previous else bool(mask.all()) for name, mask in masks.items()):
        kept = sum(int(mask.sum()) for mask in masks.values())
        raise NothingPruned(f"{what} would prune nothing: all {kept} weights that are left stay")


def require_zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """RevivedWeights naming the first parameter of which a masked entry is not exactly 0 (NaN counts as revived)."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters[name].detach()
        revived = int((weight[mask.logical_not().to(weight.device)] != 0).sum())
        if revived:
            raise RevivedWeights(f"{revived} of the {int((~mask).sum())} masked weights of {name!r} are not 0")


def require_equal(state: Mapping[str, Tensor], stored: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """InexactRewind unless a state has the stored values bit for bit wherever no mask removes them."""
    for name, value in stored.items():
        mine, theirs = state[name].detach().cpu(), value.detach().cpu()
        if name in masks:
            kept = masks[name].cpu()
            mine, theirs = mine[kept], theirs[kept]
        if mine.dtype != theirs.dtype or mine.shape != theirs.shape or not _same_bits(mine, theirs):
            raise InexactRewind(f"{name!r} is not what was stored to rewind to")


def require_different(control: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """ControlEqualsCriterion if a random control keeps the very weights that the criterion keeps."""
    if control.keys() == masks.keys() and all(torch.equal(control[n].cpu(), masks[n].cpu()) for n in masks):
        raise ControlEqualsCriterion(
            f"the random control keeps the same {sum(int(mask.sum()) for mask in masks.values())} weights as the "
            "criterion: it controls nothing"
        )


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Equality that tells 0 from -0 and takes NaN for equal to itself."""
    raw = (first.contiguous().view(-1).view(torch.uint8), second.contiguous().view(-1).view(torch.uint8))
    return torch.equal(*raw)
