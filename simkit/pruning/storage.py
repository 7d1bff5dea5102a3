"""Save a cut model as safetensors with a JSON recipe of its shapes, and build it again. No pickle anywhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from ..files import check_safetensors_name, writable, write_atomically
from ..graph.preserve import own_copy, preserved_rng
from .apply import KEPT, SIZES
from .recalibrate import RECALIBRATED
from .sizes import named_tensors, norm_sizes, read_size, renew_attributes, size_attributes, write_size

METADATA = "simkit"  # one key: safetensors writes several in an order that changes from process to process
FORMAT: Final = "simkit.PrunedModel.3"
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
    """All modules that own tensors, by path; changed sizes; tied tensors, by the name under which they are stored.

    ``recalibrated`` is the number of samples on which BatchNorm statistics were estimated after the last cut.
    ``checksum`` is of all the rest: whether a size is right that only the model's code reads, nothing else could tell.
    ``tensors`` is that of the tensors, None in a file of a version that wrote none.
    """

    model_config: ClassVar[ConfigDict] = _STRICT

    format: Literal["simkit.PrunedModel.3"]
    modules: dict[str, ModuleRecipe]
    sizes: tuple[SizeRecipe, ...]
    tied: dict[str, str]
    recalibrated: Annotated[int, Field(ge=2)] | None
    tensors: str | None = None
    checksum: str = ""

    def sealed(self) -> Recipe:
        """The recipe with the checksum that it should have."""
        written = self.model_dump_json(exclude={"checksum", *(() if self.tensors else ("tensors",))})
        return self.model_copy(update={"checksum": hashlib.sha256(written.encode()).hexdigest()})


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
        recalibrated=getattr(small, RECALIBRATED, None),
        tensors=checksum(state),
    )
    try:
        data = serialize(state, metadata={METADATA: recipe.sealed().model_dump_json()})
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
        ValueError: the file is no such file, contradicts itself, or does not fit the factory's model (the message names
            the tensor, module or attribute).
        FileNotFoundError: there is no file. TypeError: ``model_factory`` is a module, or does not make one.
    """
    if isinstance(model_factory, nn.Module):
        raise TypeError(f"model_factory must make a torch.nn.Module, not be one: {type(model_factory).__name__}")
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
    _check_ties(recipe, state, current)
    for size in recipe.sizes:
        _resize(small, size)
    with torch.no_grad():
        placed = {name: _placed(name, current[name], value) for name, value in state.items()}
    for name in current:
        place, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(place), leaf, placed[recipe.tied.get(name, name)])
    changed = [name for name, tensor in current.items() if placed[recipe.tied.get(name, name)].shape != tensor.shape]
    renew_attributes(small, changed)
    _check_modules(small, recipe)
    _check_sizes(small, recipe, {name.rpartition(".")[0] for name in changed})
    _finish(small, recipe, {name: tuple(tensor.shape) for name, tensor in current.items()})
    if recipe.tensors not in (None, checksum(state)):
        raise ValueError(
            f"the tensors in {os.fspath(path)!r} were changed after they were saved: their checksum differs"
        )
    return small


def checksum(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_ties(recipe: Recipe, state: Mapping[str, torch.Tensor], current: Mapping[str, torch.Tensor]) -> None:
    for name, first in recipe.tied.items():
        if first not in state:
            raise ValueError(f"tensor {name!r} is tied to {first!r}, which is not in the file")
        if name in state:
            raise ValueError(f"tensor {name!r} is tied to {first!r} and in the file itself")
        if isinstance(current[name], nn.Parameter) != isinstance(current[first], nn.Parameter):
            raise ValueError(f"tensor {name!r} is tied to {first!r}, of which one is a parameter and the other is none")


def _resize(small: nn.Module, size: SizeRecipe) -> None:
    before = read_size(small, size.module, size.attribute, size.index)
    if not 0 < size.value <= before:
        raise ValueError(
            f"the recipe makes {size.attribute!r} of module {size.module!r} {size.value}, which is {before} at first"
        )
    write_size(small, size.module, size.attribute, size.index, size.value)


def _placed(name: str, old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    smaller = value.dim() == old.dim() and all(
        min(size, 1) <= new <= size for new, size in zip(value.shape, old.shape, strict=True)
    )
    if not smaller:
        raise ValueError(f"tensor {name!r} of shape {tuple(value.shape)} does not fit into {tuple(old.shape)}")
    if (value.is_floating_point(), value.is_complex()) != (old.is_floating_point(), old.is_complex()):
        raise ValueError(f"tensor {name!r} of type {value.dtype} does not stand for one of type {old.dtype}")
    value = value.clone().to(old.device)  # memory of its own, aligned as torch does
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _check_modules(small: nn.Module, recipe: Recipe) -> None:
    """The recipe says of every module what the tensors say."""
    found = _modules(small)
    odd = sorted(found.keys() ^ recipe.modules.keys())
    if odd:
        where = "the recipe" if odd[0] in found else f"what {type(small).__name__} has tensors in"
        raise ValueError(f"module {odd[0]!r} is missing from {where}")
    for path, module in recipe.modules.items():
        if (found[path].shapes, found[path].attributes) != (module.shapes, module.attributes):
            raise ValueError(f"the recipe of module {path!r} does not describe the tensors in the file")
        if found[path].trained.keys() != module.trained.keys():
            raise ValueError(f"the recipe of module {path!r} trains {sorted(module.trained)}, not its parameters")


def _check_sizes(small: nn.Module, recipe: Recipe, changed: set[str]) -> None:
    """Attributes of changed modules are what the tensors imply and what the recipe makes them, each once."""
    places = [(size.module, size.attribute, size.index) for size in recipe.sizes]
    twice = next((place for number, place in enumerate(places) if place in places[:number]), None)
    if twice is not None:
        raise ValueError(f"the recipe makes {twice[1]!r} of module {twice[0]!r} something twice")
    for path in sorted(changed | {size.module for size in recipe.sizes}):
        module = small.get_submodule(path)
        for attribute, value in {**size_attributes(module), **norm_sizes(module)}.items():
            found = read_size(small, path, attribute, None)
            if found != value:
                raise ValueError(f"{attribute!r} of module {path!r} is {found} where its tensors have {value}")
    for size in recipe.sizes:
        found = read_size(small, size.module, size.attribute, size.index)
        if found != size.value:
            raise ValueError(
                f"the recipe makes {size.attribute!r} of module {size.module!r} {size.value}, its tensors {found}"
            )


def _finish(small: nn.Module, recipe: Recipe, dense: Mapping[str, tuple[int, ...]]) -> None:
    """Take over requires_grad and marks; ``dense`` are the shapes of the factory's tensors."""
    for path, module in recipe.modules.items():
        for leaf, trained in module.trained.items():
            parameter = small.get_submodule(path).get_parameter(leaf)
            if trained and not (parameter.is_floating_point() or parameter.is_complex()):
                raise ValueError(f"the recipe of module {path!r} trains {leaf!r} of type {parameter.dtype}")
            parameter.requires_grad_(trained)
    for name, first in recipe.tied.items():
        place, _, leaf = name.rpartition(".")
        if recipe.modules[place].trained.get(leaf) not in (None, named_tensors(small)[first].requires_grad):
            raise ValueError(f"the recipe trains one of {name!r} and {first!r}, which are one tensor")
    marks: dict[str, object] = {
        KEPT: _kept(recipe, dense),
        SIZES: {(size.module, size.attribute, size.index): size.value for size in recipe.sizes},
        RECALIBRATED: recipe.recalibrated,
    }
    for name, value in marks.items():
        if value:
            setattr(small, name, value)


def _kept(recipe: Recipe, dense: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, int], tuple[int, ...]]:
    """Positions kept of the dense model's layers."""
    kept: dict[tuple[str, int], tuple[int, ...]] = {}
    for path, module in recipe.modules.items():
        for one in module.kept:
            name = f"{path}.{one.tensor}" if path else one.tensor
            _check_kept(path, one, module.shapes.get(one.tensor, ()), dense.get(name, ()))
            if (name, one.dim) in kept:
                raise ValueError(f"the recipe of module {path!r} says twice which channels its {one.tensor} keeps")
            kept[name, one.dim] = one.positions
    return kept


def _check_kept(path: str, one: KeptRecipe, shape: tuple[int, ...], dense: tuple[int, ...]) -> None:
    if not 0 <= one.dim < len(shape) or len(one.positions) != shape[one.dim]:
        raise ValueError(
            f"the recipe of module {path!r} keeps {len(one.positions)} channels, its {one.tensor} does not"
        )
    if list(one.positions) != sorted(set(one.positions)) or one.positions[0] < 0 or one.positions[-1] >= dense[one.dim]:
        raise ValueError(
            f"the recipe of module {path!r} keeps channels of {one.tensor} that are no ascending numbers below "
            f"{dense[one.dim]}"
        )


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
        recipe = Recipe.model_validate_json(written)
        if recipe != recipe.sealed():
            raise ValueError(f"the recipe in {str(path)!r} was changed after it was saved: its checksum is another one")
        return recipe, state
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["loc"] in ((), ("format",)):  # no JSON object, or one of another format
        raise ValueError(f"{str(path)!r} was not written by simkit.pruning.save")
    where = ".".join(map(str, first["loc"]))
    raise ValueError(f"the recipe in {str(path)!r} is invalid at {where}: {first['msg']}")
