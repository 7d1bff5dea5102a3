"""What a criterion for single weights is given, and which weights of a model are open to it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

Masks: TypeAlias = dict[str, Tensor]
"""Parameter name -> bool tensor of the parameter's shape, True where the weight stays."""

_WEIGHTED = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
_UNITS = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
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


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> its first: a tied parameter has several."""
    firsts: dict[int, str] = {}
    return {
        name: firsts.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def open_weights(
    model: nn.Module, keep: Collection[str] = (), parameters: Collection[str] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters that may be masked, in the order of the model; a tied one under its first name.

    By default the weights, not the biases, of linear, bilinear, convolutional, attention and recurrent layers; of tied
    ones, if one of the layers is such.

    Args:
        model: any.
        keep: names of parameters, layers or containers that stay whole.
        parameters: names of parameters, which replace the default.

    Raises:
        ValueError: an unknown name, or nothing is open. NotImplementedError: a parametrised layer, unless kept.
        TypeError: no module.
    """
    require_module(model)
    known = dict(model.named_parameters())
    aliases = first_names(model)
    if parameters is not None:
        _check_names(parameters, "parameters", aliases)
    _check_collection(keep, "keep")
    for name in keep:
        if not any(_inside(one, name) for one in aliases):
            raise ValueError(f"keep names {name!r}, which holds no parameter of the model{_near(name, known)}")
    kept = {aliases[one] for one in aliases if any(_inside(one, name) for name in keep)}
    wanted = {aliases[one] for one in (_default(model, keep) if parameters is None else parameters)}
    found = {name: known[name] for name in known if name in wanted and name not in kept}
    if not found:
        raise ValueError(f"{type(model).__name__} has no weights that can be pruned")
    return found


def require_module(model: object) -> None:
    """TypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def weight_name(name: str, weights: Collection[str], option: str, aliases: Mapping[str, str]) -> str:
    """The parameter that an option means by a name of its own or of its layer; ValueError if none or several."""
    if aliases.get(name) in weights:
        return aliases[name]
    inside = list(dict.fromkeys(first for one, first in aliases.items() if _inside(one, name) and first in weights))
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
    layer, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    if leaf != "weight" or not isinstance(layer, _UNITS):
        raise NotImplementedError(f"{name!r} is no weight of a linear or convolutional layer: name it in keep=")
    if not isinstance(layer, _TRANSPOSED):
        return 0
    if layer.groups > 1:
        raise NotImplementedError(f"no dimension of {name!r} counts units: its layer has {layer.groups} groups")
    return 1


def _default(model: nn.Module, keep: Collection[str]) -> list[str]:
    for name, module in model.named_modules():
        computed = is_parametrized(module) or "weight_g" in module._parameters  # the latter by the older weight_norm
        if isinstance(module, _WEIGHTED) and computed and not any(_inside(name, one) for one in keep):
            raise NotImplementedError(f"the weights of {name!r} are parametrised: name it in keep=")
    return [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
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
