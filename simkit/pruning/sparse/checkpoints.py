"""The state of a run of rounds in a folder: whole after a kill at any moment.

Files are written first, then named with their digest in ``rounds.json``, which is replaced atomically; what is not
named there does not exist.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load, save
from torch import Tensor

from ...files import is_draft, write_atomically
from .network import Masks

FORMAT = "simkit rounds 2"
POINTER = "rounds.json"
State: TypeAlias = dict[str, Tensor]
_LONGEST = 400  # characters of an option in words


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    return hashlib.sha256(_bytes(state)).hexdigest()


def described(value: object) -> str:
    """An option in words that are the same in every process: functions by name, tensors by digest, objects by type."""
    text = _described(value, ())
    return text if len(text) <= _LONGEST else f"{type(value).__name__}({hashlib.sha256(text.encode()).hexdigest()})"


class Checkpoints:
    """Reads and writes the states of one run.

    Raises:
        ValueError: the folder holds a run of other options, or a file that is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
        self._place = Path(folder)
        self._place.mkdir(parents=True, exist_ok=True)
        self._content: dict[str, Any] = {"format": FORMAT, "options": dict(options), "files": {}, "results": {}}
        pointer = self._place / POINTER
        if pointer.is_file():
            self._content = _read_pointer(pointer, self._content["options"])
        for old in self._place.iterdir():
            if is_draft(old):  # what a killed run left half written; the folder belongs to one run
                old.unlink(missing_ok=True)
        self._found = frozenset(self._content["files"])

    def found(self, name: str) -> bool:
        """Whether a state was here when the run began."""
        return name in self._found

    def has(self, name: str) -> bool:
        """Whether a state is here."""
        return name in self._content["files"]

    def read(self, name: str) -> tuple[State, Masks]:
        """The model's state and the masks of a name that is here."""
        path = self._place / f"{name}.safetensors"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"the checkpoint file {str(path)!r} is gone") from None
        if hashlib.sha256(data).hexdigest() != self._content["files"][name]:
            raise ValueError(f"the checkpoint file {str(path)!r} is damaged: it is not what was written")
        tensors = load(data)
        parts: dict[str, State] = {"state": {}, "mask": {}}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(":")
            parts[kind][rest] = tensor
        return parts["state"], parts["mask"]

    def write(self, name: str, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], result: object = None) -> None:
        """Store a state, and what training returned; TypeError if that is not JSON."""
        named = {f"state:{key}": value for key, value in state.items()}
        data = _bytes({**named, **{f"mask:{key}": value for key, value in masks.items()}})
        results = {**self._content["results"], name: json.dumps(result)}  # as text: NaN is no JSON by itself
        files = {**self._content["files"], name: hashlib.sha256(data).hexdigest()}
        content = {**self._content, "files": files, "results": results}
        text = json.dumps(content, indent=1, allow_nan=False)
        write_atomically(self._place / f"{name}.safetensors", data)
        write_atomically(self._place / POINTER, text.encode())
        self._content = content

    def result(self, name: str) -> Any:
        """What training returned, as JSON has it."""
        return json.loads(self._content["results"][name])

    def workplace(self, name: str, *, empty: bool) -> Path:
        """A folder for the checkpoints of training itself, made if need be."""
        place = self._place / f"{name}-train"
        if empty and place.exists():
            shutil.rmtree(place)
        place.mkdir(exist_ok=True)
        return place


def as_json(result: object) -> Any:
    """What a round trip through JSON leaves, NaN and infinities included; TypeError for what has no JSON form."""
    try:
        return json.loads(json.dumps(result))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"with checkpoints=, train must return JSON data, not {result!r}: {error}; what it has trained is kept, "
            "and the next run goes on from there, with None for this result"
        ) from None


def _described(value: object, within: tuple[object, ...]) -> str:
    if any(one is value for one in within):
        return "..."
    below = (*within, value)
    if isinstance(value, Tensor):
        return f"{type(value).__name__}({digest({'values': value})})"
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_described(part, below) for part in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_described(part, below)}' for key, part in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial({_described((value.func, value.args, value.keywords), below)})"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _described_object(value, below)


def _described_object(value: object, below: tuple[object, ...]) -> str:
    kind = type(value)
    name = kind.__name__ if dataclasses.is_dataclass(value) else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Iterable):
        return name
    if dataclasses.is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        held = getattr(value, "__dict__", {})
    return f"{name}({', '.join(f'{key}={_described(part, below)}' for key, part in held.items())})"


def _bytes(state: Mapping[str, Tensor]) -> bytes:
    return save({name: value.detach().cpu().contiguous().clone() for name, value in sorted(state.items())})


def _read_pointer(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from None
    given = content if isinstance(content, dict) else {}
    if given.get("format") != FORMAT or any(
        not isinstance(given.get(k), dict) for k in ("options", "files", "results")
    ):
        raise ValueError(f"{str(path)!r} holds no rounds of format {FORMAT!r}")
    for name, value in json.loads(json.dumps(options)).items():
        made = given["options"].get(name)
        if made != value:
            raise ValueError(f"the rounds in {str(path.parent)!r} were made with {name}={made!r}, not {value!r}")
    return given
