"""What a criterion for single weights is given, and which weights of a model are open to it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

Masks: TypeAlias = dict[str, Tensor]
"""Parameter name -> bool tensor of the parameter's shape, True where the weight stays."""

_WEIGHTED = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Network:
    """The model under judgement, a copy that the criterion may run and must leave as it is.

    Attributes:
        model: in the mode of the caller's model, without forward hooks, its weights masked by ``masks``.
        names: the parameters to score.
        masks: of these, and of parameters masked before; what is False is gone already.
        data: (inputs, targets), or batches of them, if given.
        initial: parameter name -> value at initialisation, if given.
    """

    model: nn.Module
    names: tuple[str, ...]
    masks: Masks
    data: object
    initial: Mapping[str, Tensor] | None

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters to score, by name."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name] for name in self.names}


def open_weights(
    model: nn.Module, keep: Collection[str] = (), parameters: Collection[str] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters that may be masked, in the order of the model; a tied one under its first name.

    By default the weights, not the biases, of linear, bilinear, convolutional, attention and recurrent layers.

    Args:
        model: any.
        keep: names of parameters, layers or containers that stay whole.
        parameters: names of parameters, which replace the default.

    Raises:
        ValueError: an unknown name, or nothing is open.
    """
    known = dict(model.named_parameters())
    if parameters is not None:
        _check_names(parameters, "parameters", known)
    wanted = _default(model, known) if parameters is None else parameters
    _check_collection(keep, "keep")
    for name in keep:
        if not any(_inside(one, name) for one in known):
            raise ValueError(f"keep names {name!r}, which holds no parameter of the model{_near(name, known)}")
    found = {name: known[name] for name in known if name in wanted and not any(_inside(name, one) for one in keep)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no weights that can be pruned")
    return found


def weight_name(name: str, weights: Collection[str], option: str) -> str:
    """The parameter that an option means by its own name or by that of its layer; ValueError if none or several."""
    if name in weights:
        return name
    inside = [one for one in weights if _inside(one, name)]
    if len(inside) == 1:
        return inside[0]
    what = f"has {len(inside)} weights: name one" if inside else "is no open weight of the model"
    raise ValueError(f"{option} names {name!r}, which {what}{_near(name, inside or weights)}")


def zero_masked(parameter: Tensor, mask: Tensor) -> None:
    """Set what a mask removes to +0, in place; also where it is infinite or NaN."""
    with torch.no_grad():
        parameter.masked_fill_(mask.logical_not(), 0)


def unit_dim(model: nn.Module, name: str) -> int:
    """The dimension of a weight that counts its layer's output units; NotImplementedError where none does."""
    layer = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(layer, _TRANSPOSED):
        return 0
    if layer.groups > 1:
        raise NotImplementedError(f"no dimension of {name!r} counts units: its layer has {layer.groups} groups")
    return 1


def _default(model: nn.Module, known: Mapping[str, nn.Parameter]) -> list[str]:
    return [
        name
        for name, parameter in known.items()
        if parameter.dim() >= 2 and isinstance(model.get_submodule(name.rpartition(".")[0]), _WEIGHTED)
    ]


def _inside(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def _check_collection(names: Collection[str], option: str) -> None:
    if isinstance(names, str):
        raise TypeError(f"{option} must be a collection of names, not the string {names!r}")


def _check_names(names: Collection[str], option: str, known: Collection[str]) -> None:
    _check_collection(names, option)
    for name in names:
        if name not in known:
            raise ValueError(f"{option} names {name!r}, which is no parameter of the model{_near(name, known)}")


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.4) or list(known)[:3]
    return f"; near names are {', '.join(map(repr, near))}" if near else ""
