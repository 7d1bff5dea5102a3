"""What is saved beside the arrays of a stream: its options and its layers, as JSON, checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

FORMATS = {"float64": "simkit.StreamingCKA.1", "float32": "simkit.StreamingCKA.2"}  # by the products


def options(estimator: str, mode: str, products: str) -> str:
    """What two streams must have in common to add."""
    return f"{estimator}, {mode}" + ("" if products == "float64" else f", {products} products")


def read_meta(arrays: object) -> dict[str, Any]:
    """The JSON beside the arrays of a state, with every key that is read."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"a state is a mapping of names to arrays, not {type(arrays).__name__}")
    if "meta" not in arrays:
        raise ValueError("it has no array 'meta'")
    try:
        meta = json.loads(bytes(np.asarray(arrays["meta"], dtype=np.uint8)))
    except (TypeError, ValueError, OverflowError):  # bytes that are no UTF-8, or no JSON
        raise ValueError("its array 'meta' does not hold JSON") from None
    if not isinstance(meta, dict) or meta.get("format") not in FORMATS.values():
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise ValueError(f"its format is {found!r}, not {' or '.join(map(repr, FORMATS.values()))}")
    missing = [key for key in ("estimator", "mode", "rows", "columns", "exponents") if key not in meta]
    if missing:
        raise ValueError(f"its meta has no {' and no '.join(map(repr, missing))}")
    meta.setdefault("products", "float64")  # older states have no other
    if meta["products"] not in ("float64", "float32"):
        raise ValueError(f"its products are {meta['products']!r}, not float64 or float32")
    if meta["format"] != FORMATS[meta["products"]]:
        raise ValueError(f"its format is {meta['format']!r}, and its products are {meta['products']}")
    return meta


def named_widths(meta: Mapping[str, Any], key: str) -> tuple[tuple[str, int], ...]:
    """The names and widths of one side's layers."""
    layers = meta[key]
    sound = isinstance(layers, list) and all(
        isinstance(layer, list) and [type(part) for part in layer] == [str, int] and layer[1] > 0 for layer in layers
    )
    if not sound:
        raise ValueError(f"its {key} are {layers!r}, not names with widths")
    return tuple((name, width) for name, width in layers)
