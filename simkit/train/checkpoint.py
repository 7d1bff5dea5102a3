"""Checkpoints that survive a kill at any moment: two numbered files, then one pointer that is replaced atomically.

The model is a safetensors file; the optimiser and the random states are read with ``weights_only=True``. The pointer
holds the digests of both, for a single wrong bit of a weight would otherwise change every number after it.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialize
from torch import Tensor, nn

from ..errors import first_line
from ..files import is_draft, write_atomically
from .config import TrainOptions
from .randomness import Randomness
from .records import EpochRecord, as_record

FORMAT = "simkit checkpoint 2"
POINTER = "checkpoint.json"
_STATE = re.compile(r"epoch-\d{5,}\.(safetensors|pt)")


@dataclass(frozen=True, eq=False)
class TrainState:
    """Everything that a training run changes as it goes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    randomness: Randomness
    scaler: torch.amp.GradScaler | None

    def rest(self) -> dict[str, Any]:
        """All but the model's tensors."""
        found: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "random": self.randomness.states()}
        return found if self.scaler is None else {**found, "scaler": self.scaler.state_dict()}


def save_checkpoint(
    folder: str | os.PathLike[str], state: TrainState, options: TrainOptions, records: list[dict[str, Any]]
) -> None:
    """Write the state after ``len(records)`` epochs; the folder is made if need be, older states are removed last."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    weights, others = f"epoch-{len(records):05d}.safetensors", f"epoch-{len(records):05d}.pt"
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.model.state_dict().items()}
    rest = io.BytesIO()
    torch.save(state.rest(), rest)
    files = serialize(tensors), rest.getvalue()
    write_atomically(place / weights, files[0])
    write_atomically(place / others, files[1])
    pointer = {
        "format": FORMAT,
        "weights": weights,
        "state": others,
        "sha256": _digests(*files),
        "options": _comparable(options),
        "epochs": records,
    }
    write_atomically(place / POINTER, json.dumps(pointer, indent=1, allow_nan=False).encode())
    for old in place.iterdir():
        ours = is_draft(old) or _STATE.fullmatch(old.name)
        if ours and old.name not in (weights, others):  # older states, and what a killed run left half written
            old.unlink(missing_ok=True)


def load_checkpoint(folder: str | os.PathLike[str], state: TrainState, options: TrainOptions) -> list[EpochRecord]:
    """Put the state where the folder's checkpoint has it, or leave all of it as it is; its epoch records, or [].

    Raises:
        ValueError: a checkpoint of other options, of another model, or one that is damaged.
    """
    place = Path(folder)
    if not (place / POINTER).is_file():
        return []
    pointer = _pointer(place)
    for name, value in _comparable(options).items():
        made = pointer["options"].get(name)
        if made != value:
            raise ValueError(f"the checkpoint in {str(place)!r} was made with {name}={made!r}, not {value!r}")
    try:
        weights, others = ((place / pointer[part]).read_bytes() for part in ("weights", "state"))
        tensors = parse(weights)
        rest = torch.load(io.BytesIO(others), weights_only=True, map_location="cpu")
        _check_tensors(state.model, tensors)
        _check_optimizer(state.optimizer, rest["optimizer"])
        state.randomness.check(rest["random"])
        if state.scaler is not None:
            copy.copy(state.scaler).load_state_dict(rest["scaler"])
        if _digests(weights, others) != pointer["sha256"]:
            raise ValueError("its files are not what was written")
    except Exception as error:  # a damaged file may raise anything, torch's unpickling errors included
        raise ValueError(f"the checkpoint in {str(place)!r} does not fit or is damaged: {first_line(error)}") from error
    state.model.load_state_dict(tensors)
    state.optimizer.load_state_dict(rest["optimizer"])
    state.randomness.restore(rest["random"])
    if state.scaler is not None:
        state.scaler.load_state_dict(rest["scaler"])
    records: list[EpochRecord] = pointer["epochs"]
    return records


def finished_epochs(folder: str | os.PathLike[str]) -> list[EpochRecord]:
    """The records of the epochs whose state the folder holds, or []; ValueError if its checkpoint is damaged."""
    place = Path(folder)
    records: list[EpochRecord] = _pointer(place)["epochs"] if (place / POINTER).is_file() else []
    return records


def _check_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ValueError at the first tensor that is not the model's in name, shape and type."""
    own = model.state_dict()
    odd = sorted(set(own) ^ set(tensors))
    if odd:
        raise ValueError(f"tensor {odd[0]!r} is missing from {'the checkpoint' if odd[0] in own else 'the model'}")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(
                f"tensor {name!r} is {tuple(tensor.shape)} of {tensor.dtype} and not {tuple(own[name].shape)} of "
                f"{own[name].dtype}"
            )


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """ValueError unless the saved state is of an optimiser like this one: groups, their options, shapes of state."""
    own = optimizer.state_dict()["param_groups"]
    groups = saved["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in own]:
        raise ValueError("the optimiser's parameters are others")
    if [set(group) for group in groups] != [set(group) for group in own]:
        raise ValueError("the optimiser's options are others")
    shapes = {
        index: tensor.shape
        for group, numbers in zip(optimizer.param_groups, own, strict=True)
        for index, tensor in zip(numbers["params"], group["params"], strict=True)
    }
    for index, entries in saved["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != shapes[index]:
                raise ValueError(f"the optimiser's {name!r} of parameter {index} is {tuple(value.shape)}")


def _digests(weights: bytes, others: bytes) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in (("weights", weights), ("state", others))}


def _pointer(place: Path) -> dict[str, Any]:
    try:
        pointer = json.loads((place / POINTER).read_text())
    except ValueError as error:
        raise ValueError(f"{str(place / POINTER)!r} is not JSON: {error}") from error
    parts = {"weights": str, "state": str, "sha256": dict, "options": dict, "epochs": list}
    given = pointer if isinstance(pointer, dict) else {}
    if given.get("format") != FORMAT or any(not isinstance(given.get(part), kind) for part, kind in parts.items()):
        raise ValueError(f"{str(place / POINTER)!r} is not a checkpoint of format {FORMAT!r}")
    try:
        given["epochs"] = [as_record(entry) for entry in given["epochs"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(place / POINTER)!r} is damaged: the record of an epoch is not whole") from error
    return given


def _comparable(options: TrainOptions) -> dict[str, Any]:
    """What must be equal for a resumed run to end where an uninterrupted one ends."""
    return {name: value for name, value in asdict(options).items() if name != "device"}
