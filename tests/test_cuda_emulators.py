"""The emulated modules take what the compiled module takes, by its stub: a wrapper that fits them fits a device."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import emulated_candidates
import emulated_cuda
import emulated_graphs
import emulated_greedy
import emulated_moments
import emulated_partners
import emulated_strips
import pytest

from simkit.backends import cuda_strips

STUB = ast.parse((Path(cuda_strips.__file__).parent / "_cuda.pyi").read_text(encoding="utf-8"))
MODULES: dict[str, Any] = {
    "cuda": emulated_cuda.module(None),
    "candidates": emulated_candidates.module(None, None),
    "graphs": emulated_graphs.module(None),
    "greedy": emulated_greedy.module(None, None),
    "moments": emulated_moments.module_with_moments(None, None),
    "partners": emulated_partners.module(None, None),
    "strips": emulated_strips.module(None, emulated_strips.Emulated(None)),
}
# What tests ask of an emulator alone: they watch it, or set what the module's code decides.
WATCHED = {"fetched", "calls", "undecided", "Array.matrix", "Bits", "Bits.empty"}
SET = {"distance_median": {"most"}, "eliminate": {"in_registers"}, "nearest_rows": {"room", "undecided"}}
SET |= {"Moments": {"calls"}}

Parameters = tuple[tuple[str, ...], frozenset[str]]  # by place in their order, by name alone


def declared(node: ast.FunctionDef) -> Parameters:
    assert not node.args.kw_defaults or not any(node.args.kw_defaults)
    names = tuple(argument.arg for argument in node.args.args if argument.arg != "self")
    return names, frozenset(argument.arg for argument in node.args.kwonlyargs)


def stub_functions() -> Iterator[tuple[str, Parameters]]:
    """Functions, and methods as ``Class.method``; how a class is made is the class's own."""
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, declared(node)
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            assert isinstance(method, ast.FunctionDef)
            if not any(ast.unparse(decorator) == "property" for decorator in method.decorator_list):
                made = method.name == "__init__"
                yield node.name if made else f"{node.name}.{method.name}", declared(method)  # type: ignore[attr-defined]


def emulated_functions(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(module).items():
        if not callable(member):
            continue
        yield name, member
        made = member.func if isinstance(member, partial) else member
        for method in dir(made) if inspect.isclass(made) else ():
            if not method.startswith("_") and callable(getattr(made, method)):
                static = isinstance(inspect.getattr_static(made, method), staticmethod)
                function = getattr(made, method)
                yield f"{name}.{method}", function if static else partial(function, None)


def taken(function: Callable[..., Any], own: set[str]) -> Parameters:
    """What an emulated function takes, less what is its own; all the rest is needed, as in the compiled module."""
    by_place: list[str] = []
    by_name: set[str] = set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind == parameter.VAR_KEYWORD:
            by_name |= cuda_strips.Strips().options().keys()
        elif name in own:
            assert parameter.default is not parameter.empty, name
        elif parameter.kind == parameter.KEYWORD_ONLY:
            assert parameter.default is parameter.empty, name
            by_name.add(name)
        else:
            assert parameter.default is parameter.empty, name
            by_place.append(name)
    return tuple(by_place), frozenset(by_name)


@pytest.mark.parametrize("name", MODULES)
def test_emulated_functions_take_what_the_compiled_ones_take(name: str) -> None:
    stub = dict(stub_functions())
    for function, emulated in emulated_functions(MODULES[name]):
        if function not in WATCHED:
            assert taken(emulated, SET.get(function, set())) == stub[function], function


def test_every_compiled_function_is_emulated() -> None:
    emulated = {function for module in MODULES.values() for function, _ in emulated_functions(module)}
    assert {function for function, _ in stub_functions()} <= emulated
    assert len(emulated) > 30


def test_a_parameter_that_drifts_is_seen() -> None:
    def renamed(block: Any, *, wide: bool) -> None: ...

    def hidden(*, left: int, tensor: bool = False) -> None: ...

    assert taken(renamed, set()) == (("block",), frozenset({"wide"}))
    with pytest.raises(AssertionError, match="tensor"):
        taken(hidden, set())
