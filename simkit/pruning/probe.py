"""Does the code of the model follow when channels go? Cut one unit of every group of a copy, run it, and see.

Sizes that a forward writes out (views, splits, head counts) are not in the tensors. Where the cut model fails or
differs from the masked one, integer attributes that hold the old size are changed too; where no change helps, the group
is frozen and the size is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice, product
from typing import Any

import torch
from torch import nn

from ..graph import ChannelGraph, Group, SizeAttribute, preserved_rng, quiet_copy
from ..graph import trace as captured_graph
from ..graph.capture import as_inputs, plain_attention
from ..graph.trace import Side
from .apply import cut, mask
from .layers import layer_plan
from .sizes import size_attributes
from .verify import require_equal

ATTEMPTS = 64  # combinations of attributes tried for one group
WRITES_SIZES = (
    (
        "view",
        "reshape",
        "_unsafe_view",
        "unflatten",
        "split",
        "split_with_sizes",
        "expand",
        "slice",
        "narrow",
        "repeat",
    ),
    ("layer_norm", "group_norm", "rms_norm"),
)
"""Operations whose sizes a forward writes out, those first that are to blame more often."""


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """The channel graph of any model that ``torch.export`` captures, with groups frozen that its code cannot lose.

    Copies of the model run on ``example_inputs`` (a tensor or a tuple) in eval mode: once captured, then with one unit
    of every group masked and cut. The model itself is not touched. Channels that an unknown operation touches are
    frozen, and it is named. Raises ValueError if the model does not run on the inputs or has no layer with channels,
    NotImplementedError with the reason if it cannot be captured.
    """
    graph = probed(model, example_inputs, captured_graph(model, example_inputs))
    ties = _ties(graph)
    if not ties:
        return graph
    joint = probed(model, example_inputs, captured_graph(model, example_inputs, ties=ties))
    lost = {group.name for group in graph.prunable} - {group.name for group in joint.prunable}
    return joint if len(joint.prunable) > len(graph.prunable) and not lost else graph


def _ties(graph: ChannelGraph) -> list[tuple[Side, Side]]:
    """Dimensions of one length, read in one module, of two groups that its code does not let go by themselves.

    Attention that takes the width of its heads to be ``C // num_heads`` loses a head if it loses as many channels of
    its input.
    """
    stuck = [group for group in graph.groups if group.frozen is not None and group.consumers]
    found: list[tuple[Side, Side]] = []
    for first, second in combinations(stuck, 2):
        for one, other in product(first.consumers, second.consumers):
            alike = len(one.units) == len(other.units) and min(one.units.min(), other.units.min()) >= 0
            if alike and one.module.rpartition(".")[0] == other.module.rpartition(".")[0]:
                found.append(((one.tensor, one.dim), (other.tensor, other.dim)))
    return found


def probed(model: nn.Module, example_inputs: Any, graph: ChannelGraph) -> ChannelGraph:
    """The graph with the attributes that the model's code needs changed; groups that it does not allow are frozen."""
    model = _unsettled(model)
    if _agrees(model, example_inputs, graph.prunable):
        return graph
    known: dict[str, Group] = {group.name: _settled(model, example_inputs, group) for group in graph.prunable}
    together: list[Group] = []
    free = [group for group in known.values() if group.frozen is None]
    if _agrees(model, example_inputs, free):
        together = free
    for group in free if not together else ():
        if _agrees(model, example_inputs, [*together, group]):
            together.append(group)
        else:
            reason = "its channels cannot be cut together with those of the layers before it"
            known[group.name] = dataclasses.replace(group, frozen=reason)
    return dataclasses.replace(graph, groups=tuple(known.get(group.name, group) for group in graph.groups))


def _unsettled(model: nn.Module) -> nn.Module:
    """A copy with a little noise on all parameters: zeros, or values that are no numbers, would hide errors."""
    copy = quiet_copy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.nan_to_num_(posinf=1.0, neginf=-1.0)
            spread = float(parameter.double().std()) if parameter.numel() > 1 else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * (0.01 + 0.1 * spread)
            parameter.add_(noise.to(parameter))
    return copy


def _agrees(model: nn.Module, example_inputs: Any, groups: Sequence[Group]) -> bool:
    """Whether the model without the first unit of every group equals the masked one, and without the last."""
    for unit in (0, -1):
        layers = [layer_plan(group, [unit % group.units], [0.0], "probe") for group in groups]
        try:
            require_equal(model, layers, example_inputs, mask=mask, cut=cut)
        except (ValueError, NotImplementedError):
            return False
    return True


def _settled(model: nn.Module, example_inputs: Any, group: Group) -> Group:
    """The group with the attributes that its cut needs, or frozen."""
    if _agrees(model, example_inputs, [group]):
        return group
    candidates = _candidates(model, group)
    for chosen in _choices(candidates):
        changed = dataclasses.replace(group, sizes=(*group.sizes, *chosen))
        if _agrees(model, example_inputs, [changed]):
            return changed
    return dataclasses.replace(group, frozen=_blame(model, example_inputs, group))


def _choices(candidates: Sequence[SizeAttribute]) -> Iterator[tuple[SizeAttribute, ...]]:
    """Each alone, all, then pairs and triples of different attributes; at most ``ATTEMPTS``."""
    ones = ((one,) for one in candidates)
    wholes = [tuple(candidates)] if len(candidates) > 1 else []
    rest = (pick for size in (2, 3) for pick in combinations(candidates, size))
    return islice((pick for pick in chain(ones, wholes, rest) if _distinct(pick)), ATTEMPTS)


def _distinct(chosen: Sequence[SizeAttribute]) -> bool:
    return len({(one.module, one.attribute, one.index) for one in chosen}) == len(chosen)


def _candidates(model: nn.Module, group: Group) -> list[SizeAttribute]:
    """Integer attributes, of the modules in which the group's values are handled or their parents, that hold a size."""
    taken = {(one.module, one.attribute, one.index) for one in group.sizes}
    found: dict[tuple[str, str, int | None, int, int], SizeAttribute] = {}
    for extent in group.extents:
        path = extent.module
        while True:
            for attribute, index in _holding(model.get_submodule(path), len(extent.units)):
                gone = int((extent.units == 0).sum())
                key = (path, attribute, index, len(extent.units), gone)
                if key[:3] not in taken and 0 < gone < len(extent.units):
                    found.setdefault(key, SizeAttribute(path, attribute, index, extent.units))
            if not path:
                break
            path = path.rpartition(".")[0]
    return list(found.values())


def _holding(module: nn.Module, size: int) -> Iterator[tuple[str, int | None]]:
    known = size_attributes(module)
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or attribute in known:
            continue
        entries = list(enumerate(value)) if type(value) in (tuple, list) else [(None, value)]
        for index, entry in entries:
            if type(entry) is int and entry == size:
                yield attribute, index


def _blame(model: nn.Module, example_inputs: Any, group: Group) -> str:
    """Which code writes a size: that in which the cut model fails, or else that of the likeliest operation."""
    module = _failing(cut(quiet_copy(model), [layer_plan(group, [0], [0.0], "probe")]), as_inputs(example_inputs))
    if module is None:
        if not any(one.op in chain(*WRITES_SIZES) for one in group.extents):
            return "the model without them is not the model with zeros in their place, and its code writes no size"
        found = ([one for one in group.extents if one.op in names] for names in WRITES_SIZES)
        module = next(filter(None, found), list(group.extents))[0].module
    here = [one for one in group.extents if one.module == module] or group.extents
    extents = [one for one in here if one.op in chain(*WRITES_SIZES)] or here
    sizes = sorted({len(one.units) for one in extents})
    place = f"module {module!r}" if module else "the model"
    return f"the forward of {place} writes the size {' or '.join(map(str, sizes))} in its code"


def _failing(small: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Path of the innermost module that is running when the model fails; torch's own layers just get what they are
    given. None if it does not fail."""
    running: list[str] = []

    def leave(*_: object) -> None:
        running.pop()

    for path, module in small.named_modules():
        if not _is_layer(module):
            module.register_forward_pre_hook(lambda *_, path=path: running.append(path))
            module.register_forward_hook(leave)
    try:
        with torch.no_grad(), preserved_rng(), plain_attention():
            small(*inputs)
    except Exception:  # whatever the user's forward raises: where it does is asked
        return running[-1] if running else ""
    return None


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())
