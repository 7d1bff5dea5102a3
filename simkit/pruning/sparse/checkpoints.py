"""The state of a run of rounds in a folder: whole after a kill at any moment.

Files are written first, then named with their digest in ``rounds.json``, which is replaced atomically; what is not
named there does not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load, save
from torch import Tensor

from ...files import is_draft, write_atomically
from .network import Masks

FORMAT = "simkit rounds 1"
POINTER = "rounds.json"
State: TypeAlias = dict[str, Tensor]


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    return hashlib.sha256(_bytes(state)).hexdigest()


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
        results = {**self._content["results"], name: result}
        files = {**self._content["files"], name: hashlib.sha256(data).hexdigest()}
        content = {**self._content, "files": files, "results": results}
        text = json.dumps(content, indent=1, allow_nan=False)
        write_atomically(self._place / f"{name}.safetensors", data)
        write_atomically(self._place / POINTER, text.encode())
        self._content = content

    def result(self, name: str) -> Any:
        """What training returned, as JSON has it."""
        return self._content["results"][name]

    def workplace(self, name: str, *, empty: bool) -> Path:
        """A folder for the checkpoints of training itself, made if need be."""
        place = self._place / f"{name}-train"
        if empty and place.exists():
            shutil.rmtree(place)
        place.mkdir(exist_ok=True)
        return place


def as_json(result: object) -> Any:
    """What a round trip through JSON leaves; TypeError for what has no JSON form, NaN included."""
    try:
        return json.loads(json.dumps(result, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"with checkpoints=, train must return JSON data, not {result!r}: {error}") from None


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
