"""What is asked, judged: every quantity, kept and short, on results made by hand and on the records."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from . import table
from .requirements import MEASURED, MOVED, REQUIRED, Elsewhere, Quantity, Required, memory_kept, of, verdicts
from .test_growth import series_of

ROOT = Path(__file__).parent.parent


def _workload(key: str, *rows: dict[str, Any], notes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"kind": "workload", "key": key, "full": True, "contestants": list(rows), "notes": list(notes)}


def _row(name: str, ratio: float, to_simkit: float = 1.0, *, error: float = 0.0, extra: int = 0) -> dict[str, Any]:
    timed = {"seconds": ratio, "ratio_to_limit": ratio, "ratio_to_simkit": to_simkit}
    return {"name": name, "error": error, "extra_bytes": extra, **timed}


def _said(result: dict[str, Any]) -> dict[str, str]:
    return {
        one.asked.words: f"{one.measured} {one.words}" for one in verdicts({result["key"]: result}, [result["key"]])
    }


def test_every_cell_is_read_from_a_record() -> None:
    """Time, rivals, memory and error of one workload: kept at the bound, short beyond it, by so much."""
    rivals = [
        _row("torch_cka (its arithmetic)", 60.0, 60.0),
        _row("pytorch-cka (features)", 3.0, 3.0),
        _row("NumPy, each Gram matrix once, float32", 1.4, 1.4, extra=800_000_000),
    ]
    said = _said(_workload("W1", _row("simkit", 1.15, error=2e-8, extra=96_000_000), *rivals))
    assert said == {
        "≤ 1.15 × limit": "1.15 kept",
        "≥ 4 × the fastest package": "3.00 (pytorch-cka) short by 25%",
        "≥ 1.4 × NumPy, each Gram matrix once": "1.40 kept",
        "≤ 1/8 of that NumPy version's memory": "1/8.3 kept",
        "≤ 48 MB beyond the features": "96 MB short by 100%",
        "error ≤ 1e-8": "2e-8 short by 100%",
    }


def test_notes_growth_routes_and_seconds() -> None:
    """What is no contestant's time."""
    notes = ("extra memory by rows: 10,000: 10.0 MiB, 100,000: 12.0 MiB, 1,000,000: 11.5 MiB",)
    said = _said(_workload("W5", _row("simkit, exact", 1.0), notes=notes))
    assert said["memory flat: at 10⁵ and 10⁶ rows ≤ 1.1 × that at 10⁴"] == "1.20 short by 9.1%"
    fast = _said(_workload("W5 float32", _row("simkit, float32 products", 1.2, error=1e-8)))
    assert fast == {"≥ 90% of the float32 limit: ≤ 1.11 ×": "1.20 short by 8.0%", "error ≤ 1e-6": "1e-8 kept"}
    assert said["any order within 1e-9"].endswith("test_any_order_gives_the_same_digits` asserted")
    said = _said(_workload("W2", _row("simkit", float("nan")), notes=("99% of the float32 order is that of float64",)))
    assert said["the order of float64 sums, 100%"] == "99% short by 1.0%"
    assert said["≤ 1.25 × limit"] == "nan short: nan"
    rows = [
        {"name": "W5, a stream", "variable": "n", "expected": 1, "exponent": 0.7, "expected_memory": 0, "memory": 0.1}
    ]
    said = _said({"key": "growth", "rows": rows})
    assert said["W5: time in n, within 0.2 of the counted exponent"] == "0.70 (counted 1.00) short by 50%"
    assert said["W5: memory at most n⁰, within 0.2"] == "0.10 kept"
    assert said["W1: time in n, within 0.2 of the counted exponent"] == "not measured not measured"
    grid = {"key": "routes", "protocol": "medians", "worst": 1.5, "cells": [{"ratio": 1.5}, {"ratio": 1.0}]}
    assert _said(grid) == {"≤ 1.2 × the best route, every shape of the grid": "1.50; 1 of 2 above 1.2 short by 25%"}
    del grid["protocol"]
    assert "above 1.2, when those above it were timed again" in next(iter(_said(grid).values()))
    said = _said({"key": "W10", "rows": [{"name": "import simkit", "seconds": 0.1}]})
    assert said == {"`import simkit` ≤ 0.15 s": "100.0 ms kept", "`simkit --help` ≤ 0.3 s": "not timed not measured"}
    forward = _row("the forward passes alone", 1.0)
    said = _said(_workload("W9", _row("simkit, exact", 2.0), forward, _row("simkit, minibatch estimate", 1.38)))
    assert said["≤ 1.3 × limit beyond the forward passes"] == "1.00 kept"
    assert said["minibatch estimate ≤ 1.15 × the forward passes"] == "1.38 short by 20%"


def test_small_sizes_keep_nothing() -> None:
    """Requirements are of full sizes."""
    small = _workload("W1", _row("simkit", 1.0)) | {"full": False}
    assert {one.kept for one in verdicts({"W1": small}, ["W1"])} == {None}
    memory_kept(small)


def test_memory_is_asserted() -> None:
    """The full run fails where memory falls short, by name and number."""
    memory_kept(_workload("W3", _row("simkit", 9.0, extra=64_000_000)))
    with pytest.raises(AssertionError, match="≤ 64 MB beyond the features', '65 MB'"):
        memory_kept(_workload("W3", _row("simkit", 1.0, extra=65_000_000)))


def test_the_list_is_whole() -> None:
    """Every workload and quantity occurs; a test that is named exists."""
    assert {one.key.split()[0] for one in REQUIRED} >= {f"W{i}" for i in range(1, 11)}
    used = {one.quantity for one in REQUIRED if isinstance(one, Required)}
    assert used == set(MEASURED) == set(get_args(Quantity))
    assert of("W1", "faster").bound == 4.0
    cells = {one.rivals for one in REQUIRED if isinstance(one, Required) and one.quantity == "growth"}
    assert {row[:2] for row in MOVED} < cells
    measured = [(series.kind.name[:2], series.variable) for series in series_of(full=True)]
    assert sorted(measured) == sorted(cells)


@pytest.mark.parametrize("one", [one for one in REQUIRED if isinstance(one, Elsewhere)], ids=lambda one: one.test)
def test_what_tests_assert_they_run(one: Elsewhere) -> None:
    """A test that is named exists, and nothing skips it or expects it to fail."""
    file, name = one.test.split("::")
    module = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    (test,) = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name)
    marks = [node for node in module.body if "pytestmark" in ast.dump(node)]
    for node in [*test.decorator_list, *marks, *test.body]:
        assert not re.search(r"skip|xfail|\bslow\b|\bgpu\b", ast.unparse(node)), ast.unparse(node)


def test_the_records_show_them() -> None:
    """What is asked of the workloads can be read from what their benchmarks write."""
    results = table.newest(ROOT / "benchmarks" / "results")
    if not results:
        pytest.skip("no records here")
    absent = [one for one in verdicts(results) if one.words == "not measured" and one.measured != "less than 4 MiB"]
    assert [(one.asked.key, one.asked.words) for one in absent] == []
