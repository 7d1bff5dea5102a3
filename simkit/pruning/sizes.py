"""Tensors of a module and the attributes that repeat their sizes: change both together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .attention import attention_sizes, settle_attention

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def size_attributes(module: nn.Module) -> dict[str, int]:
    """Attribute name -> the value that the module's tensors imply; nothing for a module of another kind."""
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, _CONVOLUTIONS):
        return {"in_channels": module.weight.shape[1] * module.groups, "out_channels": module.weight.shape[0]}
    if isinstance(module, _TRANSPOSED):
        return {"in_channels": module.weight.shape[0], "out_channels": module.weight.shape[1] * module.groups}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    return attention_sizes(module)


def norm_sizes(module: nn.Module) -> dict[str, int]:
    """The same of normalisation layers that keep a tensor, for sizes that are one number."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        name = "num_features"
    elif isinstance(module, nn.GroupNorm):
        name = "num_channels"
    else:
        return {}
    own = [getattr(module, leaf, None) for leaf in ("weight", "running_mean")]
    kept = next((tensor for tensor in own if isinstance(tensor, torch.Tensor)), None)
    return {} if kept is None else {name: kept.shape[0]}


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tied one under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def replace_tensors(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Put values in the place of parameters (keeping requires_grad) and buffers, and renew the size attributes.

    Names that shared a tensor share the new one.
    """
    tensors = named_tensors(model)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    for name, value in values.items():
        old = tensors[name]
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for path, _, leaf in (alias.rpartition(".") for alias in names[id(old)]):
            setattr(model.get_submodule(path), leaf, new)
    renew_attributes(model, (alias for name in values for alias in names[id(tensors[name])]))


def renew_attributes(model: nn.Module, names: Iterable[str]) -> None:
    """Set the size attributes of the modules that own the named tensors; attention of other widths gets its class."""
    paths = dict.fromkeys(name.rpartition(".")[0] for name in names)
    for path in paths:
        module = model.get_submodule(path)
        for attribute, size in {**size_attributes(module), **norm_sizes(module)}.items():
            setattr(module, attribute, size)
    for path in dict.fromkeys([*paths, *(path.rpartition(".")[0] for path in paths)]):
        settle_attention(model, path)


def read_size(model: nn.Module, module: str, attribute: str, index: int | None) -> int:
    """The value of an integer attribute, or of an entry of a tuple; ValueError where there is none."""
    place = f"attribute {attribute!r} of module {module!r}"
    try:
        value = vars(model.get_submodule(module)).get(attribute)
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no module {module!r}") from None
    if index is not None:
        if not isinstance(value, (tuple, list)) or not 0 <= index < len(value):
            raise ValueError(f"{place} has no entry {index} but is {value!r}")
        value = value[index]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{place} is not an integer but {value!r}")
    return value


def write_size(model: nn.Module, module: str, attribute: str, index: int | None, size: int) -> None:
    """Change an integer attribute, or an entry of a tuple or list (a new one, as copies may share it)."""
    owner = model.get_submodule(module)
    if index is None:
        setattr(owner, attribute, size)
        return
    entries = list(getattr(owner, attribute))
    entries[index] = size
    setattr(owner, attribute, type(getattr(owner, attribute))(entries))
