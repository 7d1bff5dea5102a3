"""Which layers of a model are compared, and what they are called: names without wrappers, checked with suggestions."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils import parametrize

Selection: TypeAlias = Mapping[str, "str | nn.Module"] | Sequence["str | nn.Module"] | Callable[[str, nn.Module], bool]

_HOLDERS = (nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Layers:
    """The modules to record, by the name of their row.

    ``lenient``: chosen by a rule (None or a predicate), so rows follow the order of the calls, and a layer without
    features is reported instead of raised. ``beneath`` is filled for None alone: the ids of the modules with weights
    inside each module, because only modules that call none of those count as leaves.
    """

    modules: dict[str, nn.Module]
    lenient: bool
    beneath: dict[int, frozenset[int]] | None = None


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    peeled = _peel(model)
    return model if peeled is None else unwrap(peeled[1])


def _peel(module: nn.Module) -> tuple[str, nn.Module] | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module", module.module
    if compiler_loaded() and isinstance(module, torch._dynamo.OptimizedModule):
        return "_orig_mod", module._orig_mod
    return None


def compiler_loaded() -> bool:
    """Whether anything can be compiled: torch's compiler takes a second to import, so it is never imported here."""
    return "torch._dynamo" in sys.modules


def check_model(model: object, what: str) -> nn.Module:
    """Return ``model`` when its layers can be hooked.

    Raises:
        TypeError: no ``nn.Module``. NotImplementedError: TorchScript, or an inner DataParallel over several devices.
        ValueError: parameters without values (lazy modules, meta device).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what} must be a torch.nn.Module, not {type(model).__name__}")
    for name, module in unwrap(model).named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotImplementedError(f"{what} is TorchScript at {name!r}, which hooks cannot see: pass the nn.Module")
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise NotImplementedError(f"{what} has a DataParallel over several devices at {name!r}: unwrap it")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter) or parameter.device.type == "meta":
            raise ValueError(f"{what} has no values in {name!r} yet: initialise it before comparing")
    return model


def named_layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Modules by their name without wrappers, and other spellings ``{"module.conv1": "conv1"}`` of those names.

    A module with several parents appears under every one of its names. The model itself is called by its class.
    """
    modules: dict[str, nn.Module] = {}
    spellings: dict[str, str] = {}
    root = unwrap(model)
    root_name = type(root).__name__
    if root_name in root._modules:
        root_name = ""

    def walk(module: nn.Module, name: str, raw: str) -> None:
        while (peeled := _peel(module)) is not None:
            raw = _join(raw, peeled[0])
            module = peeled[1]
        modules[name or root_name] = module
        spellings[raw] = name or root_name
        for child_name, child in module._modules.items():
            if child is not None and not (child_name == "parametrizations" and parametrize.is_parametrized(module)):
                walk(child, _join(name, child_name), _join(raw, child_name))

    walk(model, "", "")
    return modules, spellings


def _first_names(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every module once, under its first name."""
    names: dict[int, str] = {}
    return {name: module for name, module in modules.items() if names.setdefault(id(module), name) == name}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def select(model: nn.Module, layers: Any, what: str) -> Layers:
    """The layers to record: None (leaves with weights), names, a mapping of labels to names, or a predicate.

    Raises:
        ValueError: an unknown name (the nearest are offered), one module named twice, one label for two modules,
            nothing selected.
        TypeError: something that is neither name nor module.
    """
    modules, spellings = named_layers(model)
    if layers is None:
        return _with_weights(_first_names(modules), what)
    if callable(layers) and not isinstance(layers, nn.Module):
        chosen = {name: module for name, module in _first_names(modules).items() if layers(name, module)}
        if not chosen:
            raise ValueError(f"layers selected none of the {len(modules)} modules of {what}")
        return Layers(chosen, lenient=True)
    if isinstance(layers, str | nn.Module):
        layers = [layers]
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers must be names, a mapping or a callable, not {layers!r}")
    wanted = list(layers.items()) if isinstance(layers, Mapping) else [(None, entry) for entry in layers]
    if not wanted:
        raise ValueError("layers is empty: name at least one, or pass None for every layer with weights")
    found: dict[str, nn.Module] = {}
    first_names: dict[int, str] = {}
    for label, entry in wanted:
        name = _resolve(entry, modules, spellings, what)
        module = modules[name]
        row = name if label is None else str(label)
        if id(module) in first_names:
            raise ValueError(f"layers {first_names[id(module)]!r} and {row!r} are one module of {what}: name it once")
        if row in found:
            raise ValueError(f"layers has two labels that read {row!r}: give each layer of {what} its own")
        first_names[id(module)] = row
        found[row] = module
    return Layers(found, lenient=False)


def _resolve(entry: object, modules: dict[str, nn.Module], spellings: dict[str, str], what: str) -> str:
    if isinstance(entry, nn.Module):
        wanted = unwrap(entry)
        for name, module in modules.items():
            if module is wanted:
                return name
        raise ValueError(f"layers holds a {type(entry).__name__} that is no module of {what}")
    if not isinstance(entry, str):
        raise TypeError(f"layers must hold names or modules, not {entry!r}")
    if entry in modules:
        return entry
    if entry in spellings:
        return spellings[entry]
    near = difflib.get_close_matches(entry, modules, n=3, cutoff=0.5)
    leaves = [repr(name) for name, module in modules.items() if not list(module.children())]
    listed = ", ".join(leaves[:6] + ["..."] * (len(leaves) > 6))
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"its layers are {listed}"
    raise ValueError(f"{what} has no layer {entry!r}: {hint}")


def _with_weights(modules: dict[str, nn.Module], what: str) -> Layers:
    weighted = {
        name: module
        for name, module in modules.items()
        if not isinstance(module, _HOLDERS) and next(module.parameters(), None) is not None
    }
    if not weighted:
        raise ValueError(f"{what} has no layer with weights: name layers")
    ids = {id(module) for module in weighted.values()}
    beneath = {
        id(module): frozenset(id(inner) for inner in module.modules() if inner is not module) & ids
        for module in weighted.values()
    }
    return Layers(weighted, lenient=True, beneath=beneath)


def owns_weights(module: nn.Module) -> bool:
    """Whether the module itself, not one inside it, holds parameters."""
    return parametrize.is_parametrized(module) or next(module.parameters(recurse=False), None) is not None
