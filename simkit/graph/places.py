"""Dimensions of parameters and buffers as places of atoms, with the operations that compute and read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from .capture import Captured, where
from .flow import Flow, Use
from .labels import Label, support


@dataclass(frozen=True)
class Place:
    """One dimension of one tensor: its atoms, and who computes and reads them."""

    tensor: str
    names: tuple[str, ...]
    dim: int
    dims: int
    atoms: Label
    made: tuple[Use, ...]
    read: tuple[Use, ...]

    def name(self, node: fx.Node) -> str:
        """Of the names of a tied tensor, the one in the module where it is used."""
        return next((name for name in self.names if name.rpartition(".")[0] == where(node)), self.names[0])

    def plain(self, flow: Flow, uses: Iterable[Use]) -> bool:
        """Whether all these operations read the tensor itself, not what others compute from it."""
        return all(any(flow.captured.tensors.get(one.name) in self.names for one in _roots(flow, use)) for use in uses)


def _roots(flow: Flow, use: Use) -> Iterator[fx.Node]:
    """The weights that the operation reads, before they were reshaped."""
    for node in use.node.all_input_nodes:
        while (flow.kind.get(node), flow.transfer.get(node)) == ("shape", "identity"):
            node = node.all_input_nodes[0]  # noqa: PLW2901
        if node in flow.weights:
            yield node


def places_of(captured: Captured, flow: Flow) -> list[Place]:
    """The places of all tensors that the operations use; tied tensors have one."""
    model = captured.model
    names: dict[int, list[str]] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), []).append(name)
    aliases = {name: tuple(found) for found in names.values() for name in found}
    shapes = {name: tensor.dim() for name, tensor in [*model.named_parameters(remove_duplicate=False),
                                                      *model.named_buffers(remove_duplicate=False)]}  # fmt: skip
    bare = [
        (aliases[tensor][0], support(label)[0], shapes[tensor], label.ravel())
        for tensor, labels in flow.parameters.items()
        for label in labels
    ]
    owner = np.full(flow.count, -1, dtype=np.int64)
    for index, (_, _, _, atoms) in enumerate(bare):
        owner[atoms] = index
    made, read = _by_place(owner, flow.produced), _by_place(owner, flow.consumed)
    return [
        Place(tensor, aliases[tensor], dim, dims, atoms, tuple(made.get(index, ())), tuple(read.get(index, ())))
        for index, (tensor, dim, dims, atoms) in enumerate(bare)
    ]


def _by_place(owner: Label, uses: Iterable[Use]) -> dict[int, list[Use]]:
    found: dict[int, list[Use]] = {}
    for use in uses:
        for index in np.unique(owner[use.atoms]):
            if index >= 0:
                found.setdefault(int(index), []).append(use)
    return found
