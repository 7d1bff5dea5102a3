"""Save a cut model as safetensors with a JSON recipe of its shapes, and build it again. No pickle anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from ..files import check_safetensors_name, writable, write_atomically
from ..graph.preserve import own_copy, preserved_rng
from .apply import KEPT
from .sizes import named_tensors, replace_tensor, size_attributes

METADATA = "simkit"  # one key: safetensors writes several in an order that changes from process to process
FORMAT: Final = "simkit.PrunedModel.1"


class ModuleRecipe(BaseModel):
    """One module: the shapes of its tensors, the attributes that repeat them, and the units kept of the dense layer."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, int]
    kept: tuple[int, ...] | None
    trained: dict[str, bool]


class Recipe(BaseModel):
    """All modules that own tensors, by path."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal["simkit.PrunedModel.1"]
    modules: dict[str, ModuleRecipe]


def save(small: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the model's state to one safetensors file whose metadata holds the recipe (module path -> shapes, size
    attributes, kept units). The file appears whole or not at all; equal models give equal bytes.

    Raises:
        TypeError: no module. ValueError: parameters that share memory; a name that does not end in ``.safetensors``.
        OSError: it cannot be written.
    """
    if not isinstance(small, nn.Module):
        raise TypeError(f"save writes a torch.nn.Module, such as apply returns, not a {type(small).__name__}")
    check_safetensors_name(path)
    target = writable(path)
    state = {name: tensor.detach().contiguous() for name, tensor in small.state_dict().items()}
    recipe = Recipe(format=FORMAT, modules=_modules(small, set(state)))
    try:
        data = serialize(state, metadata={METADATA: recipe.model_dump_json()})
    except RuntimeError as error:
        raise ValueError(f"{type(small).__name__} cannot be saved: {str(error).strip().splitlines()[0]}") from None
    write_atomically(target, data)


def load(path: str | os.PathLike[str], model_factory: Callable[[], nn.Module]) -> nn.Module:
    """Build the dense model with ``model_factory()``, shrink a copy of it to the recipe and load the saved state.

    The result is on the device of the factory's model, in its mode; dtypes and requires_grad are those saved.

    Raises:
        ValueError: the file is no such file, or does not fit the factory's model (the message names the tensor).
        FileNotFoundError: there is no file. TypeError: ``model_factory`` does not make a module.
    """
    recipe, state = _read(Path(path))
    with preserved_rng():  # initialising a model draws weights that are thrown away here
        dense = model_factory()
    if not isinstance(dense, nn.Module):
        raise TypeError(f"model_factory must return a torch.nn.Module, not {type(dense).__name__}")
    small = own_copy(dense)
    current = named_tensors(small)
    names = set(small.state_dict())
    odd = sorted(names ^ set(state))
    if odd:
        where = "the file" if odd[0] in names else f"the factory's {type(dense).__name__}"
        raise ValueError(f"tensor {odd[0]!r} is missing from {where}")
    with torch.no_grad():
        for name, value in state.items():
            _place(small, name, current[name], value)
    _finish(small, recipe)
    return small


def _place(small: nn.Module, name: str, old: torch.Tensor, value: torch.Tensor) -> None:
    if value.dim() != old.dim() or any(new > size for new, size in zip(value.shape, old.shape, strict=True)):
        raise ValueError(f"tensor {name!r} of shape {tuple(value.shape)} does not fit into {tuple(old.shape)}")
    path, _, leaf = name.rpartition(".")
    owner = small.get_submodule(path)
    value = value.to(old.device)
    if value.shape != old.shape:
        replace_tensor(small, name, value)
    elif isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, value)


def _finish(small: nn.Module, recipe: Recipe) -> None:
    """Take over kept units and requires_grad, and check that the recipe says what the tensors say."""
    found = _modules(small, set(small.state_dict()))
    for path, module in recipe.modules.items():
        if path not in found or found[path].shapes != module.shapes or found[path].attributes != module.attributes:
            raise ValueError(f"the recipe of module {path!r} does not describe the tensors in the file")
        if module.kept is not None and len(module.kept) != module.shapes["weight"][0]:
            raise ValueError(f"the recipe of module {path!r} keeps {len(module.kept)} units, its weight does not")

        for leaf, trained in module.trained.items():
            small.get_submodule(path).get_parameter(leaf).requires_grad_(trained)
    kept = {path: module.kept for path, module in recipe.modules.items() if module.kept is not None}
    if kept:
        setattr(small, KEPT, kept)


def _modules(model: nn.Module, stored: set[str]) -> dict[str, ModuleRecipe]:
    kept: dict[str, tuple[int, ...]] = getattr(model, KEPT, {})
    recipes: dict[str, ModuleRecipe] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        shapes = {leaf: tuple(tensor.shape) for leaf, tensor in own.items() if f"{prefix}{leaf}" in stored}
        if shapes:
            trained = {leaf: own[leaf].requires_grad for leaf in shapes if isinstance(own[leaf], nn.Parameter)}
            attributes = _attributes(module)
            recipes[path] = ModuleRecipe(shapes=shapes, attributes=attributes, kept=kept.get(path), trained=trained)
    return recipes


def _attributes(module: nn.Module) -> dict[str, int]:
    try:
        return size_attributes(module)
    except ValueError:
        return {}  # a module whose sizes pruning never changes


def _read(path: Path) -> tuple[Recipe, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(METADATA, "")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file: {error}") from None
    try:
        return Recipe.model_validate_json(written), state
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["loc"] in ((), ("format",)):  # no JSON object, or one of another format
        raise ValueError(f"{str(path)!r} was not written by simkit.pruning.save")
    where = ".".join(map(str, first["loc"]))
    raise ValueError(f"the recipe in {str(path)!r} is invalid at {where}: {first['msg']}")
