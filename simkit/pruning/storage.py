"""Save a cut model as safetensors with a JSON recipe of its shapes, and build it again. No pickle anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from ..files import check_safetensors_name, writable, write_atomically
from ..graph.preserve import own_copy, preserved_rng
from .apply import KEPT, SIZES
from .sizes import named_tensors, read_size, renew_attributes, size_attributes, write_size

METADATA = "simkit"  # one key: safetensors writes several in an order that changes from process to process
FORMAT: Final = "simkit.PrunedModel.2"
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class KeptRecipe(BaseModel):
    """Which channels of the first dense model are left along one dimension of a tensor of the module."""

    model_config: ClassVar[ConfigDict] = _STRICT

    tensor: str
    dim: int
    positions: tuple[int, ...]


class ModuleRecipe(BaseModel):
    """One module: the shapes of its tensors, the attributes that repeat them, and what is kept of the dense layer."""

    model_config: ClassVar[ConfigDict] = _STRICT

    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, int]
    kept: tuple[KeptRecipe, ...]
    trained: dict[str, bool]


class SizeRecipe(BaseModel):
    """An integer attribute (entry ``index`` of a tuple) that pruning changed and no tensor implies."""

    model_config: ClassVar[ConfigDict] = _STRICT

    module: str
    attribute: str
    index: int | None
    value: int


class Recipe(BaseModel):
    """All modules that own tensors, by path; changed sizes; tied tensors, by the name under which they are stored."""

    model_config: ClassVar[ConfigDict] = _STRICT

    format: Literal["simkit.PrunedModel.2"]
    modules: dict[str, ModuleRecipe]
    sizes: tuple[SizeRecipe, ...]
    tied: dict[str, str]


def save(small: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write parameters and buffers to one safetensors file whose metadata holds the recipe (module path -> shapes, size
    attributes, kept channels). The file appears whole or not at all; equal models give equal bytes.

    Raises:
        TypeError: no module. ValueError: different parameters that share memory; a name that does not end in
        ``.safetensors``. OSError: it cannot be written.
    """
    if not isinstance(small, nn.Module):
        raise TypeError(f"save writes a torch.nn.Module, such as apply returns, not a {type(small).__name__}")
    check_safetensors_name(path)
    target = writable(path)
    tensors = named_tensors(small)
    tied = _tied(tensors)
    state = {name: tensor.detach().contiguous() for name, tensor in tensors.items() if name not in tied}
    sizes: dict[tuple[str, str, int | None], int] = getattr(small, SIZES, {})
    recipe = Recipe(
        format=FORMAT,
        modules=_modules(small),
        sizes=tuple(
            SizeRecipe(module=module, attribute=attribute, index=index, value=value)
            for (module, attribute, index), value in sizes.items()
        ),
        tied=tied,
    )
    try:
        data = serialize(state, metadata={METADATA: recipe.model_dump_json()})
    except RuntimeError as error:
        raise ValueError(f"{type(small).__name__} cannot be saved: {str(error).strip().splitlines()[0]}") from None
    write_atomically(target, data)


def _tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Second and further names of a tensor -> its first."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: first[id(tensor)] for name, tensor in tensors.items() if first[id(tensor)] != name}


def load(path: str | os.PathLike[str], model_factory: Callable[[], nn.Module]) -> nn.Module:
    """Build the dense model with ``model_factory()``, shrink a copy of it to the recipe and load the saved state.

    The result is on the device of the factory's model, in its mode; dtypes, ties and requires_grad are those saved.

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
    odd = sorted(set(current) ^ {*state, *recipe.tied})
    if odd:
        where = "the file" if odd[0] in current else f"the factory's {type(dense).__name__}"
        raise ValueError(f"tensor {odd[0]!r} is missing from {where}")
    for size in recipe.sizes:
        _resize(small, size)
    with torch.no_grad():
        placed = {name: _placed(name, current[name], value) for name, value in state.items()}
    for name in current:
        place, _, leaf = name.rpartition(".")
        if recipe.tied.get(name, name) not in placed:
            raise ValueError(f"tensor {name!r} is tied to {recipe.tied[name]!r}, which is not in the file")
        setattr(small.get_submodule(place), leaf, placed[recipe.tied.get(name, name)])
    changed = [name for name, tensor in current.items() if placed[recipe.tied.get(name, name)].shape != tensor.shape]
    renew_attributes(small, changed)
    _finish(small, recipe)
    return small


def _resize(small: nn.Module, size: SizeRecipe) -> None:
    before = read_size(small, size.module, size.attribute, size.index)
    if not 0 < size.value <= before:
        raise ValueError(
            f"the recipe makes {size.attribute!r} of module {size.module!r} {size.value}, which is {before} at first"
        )
    write_size(small, size.module, size.attribute, size.index, size.value)


def _placed(name: str, old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if value.dim() != old.dim() or any(new > size for new, size in zip(value.shape, old.shape, strict=True)):
        raise ValueError(f"tensor {name!r} of shape {tuple(value.shape)} does not fit into {tuple(old.shape)}")
    value = value.clone().to(old.device)  # memory of its own, aligned as torch does
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _finish(small: nn.Module, recipe: Recipe) -> None:
    """Take over kept channels and requires_grad, and check that the recipe says what the tensors say."""
    found = _modules(small)
    kept: dict[tuple[str, int], tuple[int, ...]] = {}
    for path, module in recipe.modules.items():
        if path not in found or found[path].shapes != module.shapes or found[path].attributes != module.attributes:
            raise ValueError(f"the recipe of module {path!r} does not describe the tensors in the file")
        for one in module.kept:
            shape = module.shapes.get(one.tensor, ())
            if not 0 <= one.dim < len(shape) or len(one.positions) != shape[one.dim]:
                raise ValueError(
                    f"the recipe of module {path!r} keeps {len(one.positions)} channels, its {one.tensor} does not"
                )
            kept[f"{path}.{one.tensor}" if path else one.tensor, one.dim] = one.positions
        for leaf, trained in module.trained.items():
            small.get_submodule(path).get_parameter(leaf).requires_grad_(trained)
    if kept:
        setattr(small, KEPT, kept)
    if recipe.sizes:
        setattr(small, SIZES, {(size.module, size.attribute, size.index): size.value for size in recipe.sizes})


def _modules(model: nn.Module) -> dict[str, ModuleRecipe]:
    kept: dict[tuple[str, int], tuple[int, ...]] = getattr(model, KEPT, {})
    recipes: dict[str, ModuleRecipe] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        if own:
            recipes[path] = ModuleRecipe(
                shapes={leaf: tuple(tensor.shape) for leaf, tensor in own.items()},
                attributes=size_attributes(module),
                kept=tuple(
                    KeptRecipe(tensor=leaf, dim=dim, positions=positions)
                    for leaf in own
                    for (name, dim), positions in kept.items()
                    if name == f"{prefix}{leaf}"
                ),
                trained={
                    leaf: tensor.requires_grad for leaf, tensor in own.items() if isinstance(tensor, nn.Parameter)
                },
            )
    return recipes


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
