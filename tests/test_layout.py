"""The house rules, as tests: which room a line of code belongs to, and what is not allowed anywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from simkit import kernels
from simkit.backends import base, cuda_device, damage_room, mapped, preparing, routes
from simkit.backends.choose import PREFERENCE

ROOT = Path(__file__).parents[1]
PYTHON = sorted((ROOT / "simkit").rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".hpp", ".cu", ".cuh"))
EVERYTHING = [
    *PYTHON,
    *NATIVE,
    *(path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")),
]
DRAWERS = {"util", "utils", "helper", "helpers", "common", "misc"}
LONGEST = 450  # lines; the budget is about 400
NUMERICAL = ("metrics", "streaming", "backends", "arrays", "kernels", "errors")
FRAMEWORKS = {"torch", "cupy", "jax", "matplotlib", "pydantic", "sklearn"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(node: ast.AST) -> set[str]:
    """Top-level packages that one statement imports from outside simkit."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module.partition(".")[0]}
    return set()


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when a module is imported: not in functions, not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_at_import(child)


NODES = [(path, node) for path in PYTHON for node in ast.walk(_tree(path))]


def test_the_tree_is_here() -> None:
    assert len(PYTHON) > 20
    assert len(NATIVE) > 20


def test_no_drawers() -> None:
    """No file and no folder is named for being used everywhere."""
    for path in EVERYTHING:
        words = re.split(r"[_./]", _name(path).lower())
        assert not set(words) & DRAWERS, _name(path)


def test_files_are_short() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_only_bind_includes_python() -> None:
    include = re.compile(r"#include\s*[<\"](pybind11|Python\.h|bind/)")
    outside = [path for path in NATIVE if path.parent.name != "bind"]
    assert not [_name(path) for path in outside if include.search(path.read_text(encoding="utf-8"))]


SEEN_FROM = {
    "bind": {"bind", "ops", "core"},
    "ops": {"ops", "core"},
    "cpu": {"cpu", "ops", "core"},
    "cuda": {"cuda", "ops", "core"},
    "core": {"core"},
}


@pytest.mark.parametrize("room", SEEN_FROM)
def test_native_rooms_see_only_those_below(room: str) -> None:
    include = re.compile(r'#include\s*"(\w+)/')
    files = [path for path in NATIVE if path.parent.name == room]
    assert files
    for path in files:
        assert set(include.findall(path.read_text(encoding="utf-8"))) <= SEEN_FROM[room], _name(path)


def test_every_op_header_has_an_implementation_and_a_binding() -> None:
    """Of what the processor runs; where NumPy's products serve as well there, of what a device runs."""
    for header in sorted((ROOT / "csrc" / "ops").glob("*.hpp")):
        include = f'#include "ops/{header.name}"'
        of = {
            folder: [
                path
                for path in (ROOT / "csrc" / folder).glob(f"{header.stem}*.[ch]*")
                if include in path.read_text(encoding="utf-8")
            ]
            for folder in ("cpu", "cuda")
        }
        assert of["cpu"] or of["cuda"], header.name
        prefix = "bind_" if of["cpu"] else "cuda_"
        assert include in _text(ROOT / "csrc" / "bind" / f"{prefix}{header.stem}.cpp"), header.name


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_every_source_is_built() -> None:
    listed = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert not [_name(path) for path in NATIVE if path.suffix in (".cpp", ".cu") and _name(path) not in listed]


@pytest.mark.parametrize("backend", PREFERENCE)
def test_every_backend_has_its_ops(backend: str) -> None:
    module = importlib.import_module(f"simkit.backends.{backend}")
    for op in (*module.OPS, "unsupported_reasons"):
        function = getattr(module, op, None)
        assert inspect.isfunction(function), op
        rooms = (module.__name__, "simkit.backends.cuda_") if backend == "native_cuda" else (module.__name__,)
        assert function.__module__.startswith(rooms), op  # on a device a file for each noun
    assert module.OPS == base.OPS or (backend == PREFERENCE[0] and set(module.OPS) < set(base.OPS))


def test_the_op_table_documents_every_op() -> None:
    assert base.__doc__ is not None
    documented = re.findall(r"^(\w+) {2,}", base.__doc__, flags=re.MULTILINE)
    assert tuple(name for name in documented if name != "op") == base.OPS


Parameters = tuple[list[str], set[str]] | None  # by place and by name; None: a property


def _declared(node: ast.FunctionDef) -> Parameters:
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
        return None
    by_place = [argument.arg for argument in node.args.args]
    return by_place[by_place[:1] == ["self"] :], {argument.arg for argument in node.args.kwonlyargs}


def _stub_functions(stub: ast.Module) -> Iterator[tuple[str, Parameters]]:
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, _declared(node)
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef):
                yield f"{node.name}.{method.name}", _declared(method)  # type: ignore[attr-defined]


def _compiled_functions(module: object) -> Iterator[tuple[str, Parameters]]:
    """By the signatures that pybind11 writes into the docstrings."""
    for name, member in vars(module).items():
        if inspect.isclass(member):
            for method, held in vars(member).items():
                if isinstance(held, property):
                    yield f"{name}.{method}", None
                elif not method.startswith("_") or str(held.__doc__).startswith("__init__("):  # else Python makes none
                    yield f"{name}.{method}", _signature(getattr(member, method))
        elif callable(member):
            yield name, _signature(member)


def _signature(function: object) -> Parameters:
    """Of a function for several types: the one that all of them have."""
    first, *others = str(function.__doc__).splitlines()
    found = re.findall(r"^\d+\. (.*)$", "\n".join(others), re.MULTILINE) if "*args" in first else [first]
    nodes = [ast.parse(f"def {line}: ...").body[0] for line in found]
    taken = [_declared(node) for node in nodes if isinstance(node, ast.FunctionDef)]
    assert all(other == taken[0] for other in taken), first
    return taken[0]


def _compiled(name: str) -> object:
    module = importlib.import_module(f"simkit.backends.{name}") if name == "_core" else cuda_device.load()[0]
    return module or pytest.skip("this build has no CUDA code")


@pytest.mark.parametrize("name", ["_core", "_cuda"])
def test_the_stub_names_what_the_module_has(name: str) -> None:
    module = _compiled(name)
    stub = _tree(ROOT / "simkit" / "backends" / f"{name}.pyi")
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    named |= {
        node.target.id for node in stub.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert named == {name for name in dir(module) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["_core", "_cuda"])
def test_the_stub_takes_what_the_module_takes(name: str) -> None:
    compiled = dict(_compiled_functions(_compiled(name)))
    declared = dict(_stub_functions(_tree(ROOT / "simkit" / "backends" / f"{name}.pyi")))
    assert declared == compiled


def test_every_op_on_a_device_goes_through_what_knows_of_full_memory() -> None:
    """`at_place`, or `with_memory` on machines made there; only device.cuh and place.cu allocate."""
    for path in NATIVE:
        if path.suffix == ".cu":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\bMachine \w+[({]", text), _name(path)
            assert path.name == "place.cu" or not re.search(r"cuda(Malloc|Free)\w*\(", text), _name(path)


def test_the_numerical_half_imports_no_framework() -> None:
    for path in PYTHON:
        if path.relative_to(ROOT / "simkit").parts[0].removesuffix(".py") in NUMERICAL:
            loaded = {package for node in _run_at_import(_tree(path)) for package in _imports(node)}
            assert not loaded & FRAMEWORKS, _name(path)


def test_nothing_unpickles_or_evaluates() -> None:
    """No pickle module, no np.load(allow_pickle=True), torch.load only with weights_only=True; no eval or exec."""
    for path, node in NODES:
        where = f"{_name(path)}:{getattr(node, 'lineno', 0)}"
        assert not _imports(node) & PICKLES, where
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert options.get("allow_pickle", "False") == "False", where
            assert called not in ("eval", "exec"), where
            assert called != "torch.load" or options.get("weights_only") == "True", where


def test_one_place_chooses_a_backend() -> None:
    """Nowhere but in choose.py is a backend's name compared with anything."""
    for path, node in NODES:
        if path.name == "choose.py" or not isinstance(node, ast.Compare | ast.MatchValue):
            continue
        parts = list(ast.walk(node))
        strings = {part.value for part in parts if isinstance(part, ast.Constant)}
        names = {getattr(part, "attr", getattr(part, "id", "")) for part in parts}
        where = f"{_name(path)}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
        assert not strings & {"native_cpu", "native_cuda"}, where
        assert "reference" not in strings or not any("backend" in name for name in names), where


def test_no_two_programs_have_one_name() -> None:
    """They end in one module, whose linker would keep one of two kernels of the same name."""
    declared = re.compile(r"^(?:struct|class)(?: alignas\(\d+\))? (\w+)(?! ?;)[^;]*\{", re.MULTILINE)
    seen: dict[str, str] = {}
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.[ch]*")):
        for name in set(declared.findall(path.read_text(encoding="utf-8"))):
            assert seen.setdefault(name, path.name) == path.name, f"{name}: {seen[name]} and {path.name}"
    assert len(seen) > 50


@pytest.mark.parametrize(
    ("value", "file", "name"),
    [
        (mapped.FOLIO, "core/pack.hpp", "kFolio"),
        (mapped.PASSING[0], "core/pack.hpp", "kPassing"),
        (mapped.PASSING[1], "core/pack.hpp", "kPassingRows"),
        (preparing.PIECE, "cpu/columns.cpp", "kElements"),
        (routes.PILOT, "cpu/hsic_sample.cpp", "kPilot"),
        (routes.PILOT, "cuda/pilot.hpp", "kPilot"),
        (routes.CHUNK, "cpu/gram_tile.hpp", "kChunk"),
        (routes.CHUNK, "cpu/hsic_feature.cpp", "kDepth"),
        (routes.ROWS, "cpu/hsic_feature.cpp", "kRows"),
        (routes.WIDEST, "core/micro_kernel.hpp", "kWidest"),
        (kernels.LARGEST, "cpu/gram_tile.hpp", "kLargest"),
        (damage_room.TILE, "cpu/candidate_pass.hpp", "kCandidateTile"),
        (damage_room.STRIP, "cpu/candidate_pass.hpp", "kCandidateRows"),
        (damage_room.COLUMNS, "cpu/columns.cpp", "kTile"),
        (damage_room.DEPTH, "cpu/columns.cpp", "kDepth"),
        (damage_room.GROUP, "cpu/columns.cpp", "kRows"),
    ],
)
def test_what_plans_count_with_is_what_the_engine_does(value: float, file: str, name: str) -> None:
    """Python plans where the compiled module may be missing, so that both say these numbers."""
    text = (ROOT / "csrc" / file).read_text(encoding="utf-8")
    (said,) = re.findall(rf"constexpr [\w:]+ {name} = ([^;]+);", text)
    shifted = re.fullmatch(r"std::int64_t\{1\} << (\d+)", said)
    assert (2 ** int(shifted[1]) if shifted else float(said)) == value
