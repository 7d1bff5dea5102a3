"""Tensors that a run keeps for itself: safetensors files whose metadata hold a checksum of what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load as parse
from safetensors.torch import save as serialize
from torch import Tensor

from ..errors import first_line
from ..files import write_atomically
from ..pruning.storage import checksum

_CHECKSUM = "checksum"


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors; the file appears whole or not at all. Raises OSError."""
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}  # tied ones share memory
    write_atomically(file, serialize(own, metadata={_CHECKSUM: checksum(own)}))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors, by name in ascending order; ValueError if the file is missing or a bit of them is not as written."""
    try:
        data = file.read_bytes()
        tensors = dict(sorted(parse(data).items()))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found = checksum(tensors)
        intact = header.get("__metadata__", {}).get(_CHECKSUM, found) == found  # a version before this one wrote none
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{str(file)!r} is damaged: {first_line(error)}") from error
    if not intact:
        raise ValueError(f"{str(file)!r} is damaged: it is not what was written")
    return tensors
