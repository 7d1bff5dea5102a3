"""Why simkit exists: one pair of representations, shifted, scaled, widened, and what each package says of it.

The data of every row is one pair of float32 ReLU representations (n = 512, p = 64) whose debiased CKA is 0.787368; an
error is the distance to the float64 value of the row's exact inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import simkit as sk

from .protocol import Missing, finite
from .rivals import ckatorch_pair, notebook_pair, package, pytorch_cka_pair, rsatoolbox_pair, torch_cka_pair
from .truth import Array, cka

WRONG = 1e-4
Pair = tuple[Array, Array]

# name shown, package to import or None, debiased?, call
COLUMNS: tuple[tuple[str, str | None, bool, Callable[[Array, Array], float]], ...] = (
    ("simkit", None, True, sk.cka),
    ("torch_cka", "torch_cka", True, torch_cka_pair),
    ("pytorch-cka", "cka", True, pytorch_cka_pair),
    ("ckatorch (float64)", "ckatorch.core", True, ckatorch_pair),
    ("Kornblith's notebook formula", None, True, notebook_pair),
    ("rsatoolbox (biased)", "rsatoolbox", False, rsatoolbox_pair),
)


def hazards() -> dict[str, Pair]:
    """The rows: float32 pairs."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((512, 8))

    def layer() -> Array:
        mixed = latent @ rng.standard_normal((8, 64)) + rng.standard_normal((512, 64))
        return np.maximum(mixed, 0).astype(np.float32)

    x, y = layer(), layer()
    wide = rng.standard_normal((64, 2048)).astype(np.float32), rng.standard_normal((64, 2048)).astype(np.float32)
    rows = {"plain": (x, y)}
    rows |= {f"+ {shift}": (x + np.float32(shift), y + np.float32(shift)) for shift in (100, 1000)}
    rows |= {f"× {scale}": (x * np.float32(scale), y * np.float32(scale)) for scale in ("1e-4", "1e4", "1e6")}
    rows["independent, n = 64, p = 2048"] = wide
    rows["one constant layer"] = (x, np.full_like(y, 3.0))
    return rows


def test_hazard_table(benchmark: Any, keep: Callable[[dict[str, Any]], None]) -> None:
    """Simkit within 1e-6 of the truth in every row that has one; rivals beside it, right or wrong."""
    pairs = hazards()
    calls: dict[str, tuple[bool, Callable[[Array, Array], float]]] = {}
    missing = []
    for name, module, debiased, call in COLUMNS:
        found = package(module) if module else None
        if isinstance(found, Missing):
            missing.append({"name": name, "missing": found.reason})
        else:
            calls[name] = (debiased, call)
    rows = [_row(label, pair, calls) for label, pair in pairs.items()]
    assert math.isclose(rows[0]["truth"], 0.787368, abs_tol=5e-7)
    for row in rows:
        own = row["cells"]["simkit"]
        assert own.get("error", 0.0) is not None
        assert ("refused" in own) == (row["truth"] is None), row
        assert float(own.get("error", 0.0)) < 1e-6, row
    benchmark.pedantic(sk.cka, args=pairs["plain"], rounds=5)
    keep(
        {"kind": "hazards", "key": "hazards", "columns": list(calls), "rows": rows, "missing": missing, "wrong": WRONG}
    )


def _row(label: str, pair: Pair, calls: dict[str, tuple[bool, Callable[[Array, Array], float]]]) -> dict[str, Any]:
    constant = any(float(np.ptp(x)) == 0.0 for x in pair)
    truths = {debiased: None if constant else cka(*pair, debiased=debiased) for debiased in (True, False)}
    cells = {name: _cell(call, pair, truths[debiased]) for name, (debiased, call) in calls.items()}
    return {"name": label, "truth": truths[True], "truth_biased": truths[False], "cells": cells}


def _cell(call: Callable[[Array, Array], float], pair: Pair, truth: float | None) -> dict[str, Any]:
    try:
        value = call(*pair)
    except Exception as failure:
        return {"refused": f"{type(failure).__name__}: {failure}".splitlines()[0]}
    cell: dict[str, Any] = {"value": finite(value)}
    return cell if truth is None else cell | {"error": finite(abs(value - truth))}
