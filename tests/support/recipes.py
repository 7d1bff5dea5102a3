"""Edited recipes of saved models, as someone would write them who knows the format."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from simkit.pruning.storage import Recipe


def sealed(data: Any) -> str:
    """The edited recipe with the checksum that belongs to it, or as it is where it is no recipe any more."""
    text = json.dumps(data)
    try:
        return Recipe.model_validate_json(text).sealed().model_dump_json()
    except ValidationError:
        return text
