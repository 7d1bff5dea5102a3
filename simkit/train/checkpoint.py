"""Checkpoints that survive a kill at any moment: two numbered files, then one pointer that is replaced atomically.

The model is a safetensors file; the optimiser and the random states are read with ``weights_only=True``.
"""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialize
from torch import nn

from ..files import is_draft, write_atomically
from .config import TrainOptions
from .randomness import Randomness

FORMAT = "simkit checkpoint 1"
POINTER = "checkpoint.json"
_STATE = re.compile(r"epoch-\d{5,}\.(safetensors|pt)")


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    randomness: Randomness,
    options: TrainOptions,
    records: list[dict[str, Any]],
) -> None:
    """Write the state after ``len(records)`` epochs; the folder is made if need be, older states are removed last."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    weights, state = f"epoch-{len(records):05d}.safetensors", f"epoch-{len(records):05d}.pt"
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    rest = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "random": randomness.states()}, rest)
    write_atomically(place / weights, serialize(tensors))
    write_atomically(place / state, rest.getvalue())
    pointer = {
        "format": FORMAT,
        "weights": weights,
        "state": state,
        "options": _comparable(options),
        "epochs": records,
    }
    write_atomically(place / POINTER, json.dumps(pointer, indent=1, allow_nan=False).encode())
    for old in place.iterdir():
        ours = is_draft(old) or _STATE.fullmatch(old.name)
        if ours and old.name not in (weights, state):  # older states, and what a killed run left half written
            old.unlink(missing_ok=True)


def load_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    randomness: Randomness,
    options: TrainOptions,
) -> list[dict[str, Any]]:
    """Put model, optimiser and random states where the folder's checkpoint has them; its epoch records, or [].

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
        tensors = parse((place / pointer["weights"]).read_bytes())
        rest = torch.load(place / pointer["state"], weights_only=True, map_location="cpu")
        model.load_state_dict(tensors)
        optimizer.load_state_dict(rest["optimizer"])
        randomness.restore(rest["random"])
    except Exception as error:  # a damaged file may raise anything, torch's unpickling errors included
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the checkpoint in {str(place)!r} does not fit or is damaged: {reason}") from error
    records: list[dict[str, Any]] = pointer["epochs"]
    return records


def _pointer(place: Path) -> dict[str, Any]:
    try:
        pointer = json.loads((place / POINTER).read_text())
    except ValueError as error:
        raise ValueError(f"{str(place / POINTER)!r} is not JSON: {error}") from error
    parts = {"weights": str, "state": str, "options": dict, "epochs": list}
    given = pointer if isinstance(pointer, dict) else {}
    if given.get("format") != FORMAT or any(not isinstance(given.get(part), kind) for part, kind in parts.items()):
        raise ValueError(f"{str(place / POINTER)!r} is not a checkpoint of format {FORMAT!r}")
    return given


def _comparable(options: TrainOptions) -> dict[str, Any]:
    """What must be equal for a resumed run to end where an uninterrupted one ends."""
    return {name: value for name, value in asdict(options).items() if name != "device"}
