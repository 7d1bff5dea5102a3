"""Writes the GPU's tables from the newest full results: ``python -m benchmarks.gpu.table [--check]`` in a clone.

``docs/benchmarks.md`` gets everything, ``csrc/cuda/README.md`` the times that the programs' workloads reached, each
between its markers. Needs nothing but Python. ``--check`` writes nothing and ends with 1 when either is stale.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..cells import error_cell, how, line, ratio_cell, time_cell
from ..table import GPU_BEGIN, GPU_END, ROOT, replaced

FORMAT = "simkit.benchmarks.gpu.1"
NO_RUN = "No run yet: nothing has been measured on a GPU."
HOW = (
    "## On one GPU\n\nGenerated from `benchmarks/results/gpu/*.json` by `python -m benchmarks.gpu.table`; how:"
    " `benchmarks/README.md`."
)
TIMES_BEGIN, TIMES_END = "<!-- times:begin -->", "<!-- times:end -->"
PRECISIONS = ("float64", "float32", "tf32 split", "tf32", "bf16", "fp16")
Result = dict[str, Any]
ASKED: dict[str, tuple[Callable[[Any], str], str]] = {  # how a number is shown, and what it is
    "share": (lambda share: f"{share:.0%}", "of the limit's rate"),
    "wall": (time_cell, "end to end"),
    "error": (error_cell, "of error"),
    "float32": (ratio_cell, "× plain float32 products"),
    "rival": (lambda ratio: f"{ratio_cell(ratio)} ×", "the fastest other algorithm"),
}


def newest(folder: Path) -> dict[str, Result]:
    """The newest full result of every benchmark by its key, each with the run it comes from."""
    found: dict[str, Result] = {}
    for path in sorted(folder.glob("*.json")):  # names are dates
        found |= {key: result for key, result in one_run(path).items() if result["full"]}
    return dict(sorted(found.items()))


def one_run(path: Path) -> dict[str, Result]:
    """The results of one record by their keys, each with the run it comes from.

    Raises:
        ValueError: it is no record of a run on a GPU.
    """
    run = json.loads(path.read_text(encoding="utf-8"))
    if run.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a GPU benchmark record of simkit")
    return by_key(run)


def add(folder: Path, results: Path) -> None:
    """Copy the records of a folder to the results; a name is that of one run, whose record grows.

    Raises:
        ValueError: it has none, or what looks like one is none.
    """
    found = sorted(folder.glob("gpu-*.json"))
    if not found:
        raise ValueError(f"{folder} has no record of a run on a GPU")
    for path in found:
        one_run(path)
        results.mkdir(parents=True, exist_ok=True)
        temporary = (results / path.name).with_suffix(".tmp")
        temporary.write_bytes(path.read_bytes())
        temporary.replace(results / path.name)


def by_key(run: Result) -> dict[str, Result]:
    """A run's results by their keys, each with what the run was."""
    about = {name: value for name, value in run.items() if name != "results"}
    return {result["key"]: result | {"run": about} for result in run["results"]}


def render(results: dict[str, Result]) -> str:
    """For every run that has a newest result: its ceilings, a row a workload, and each workload in full."""
    parts = [HOW]
    runs: dict[tuple[str, str], list[Result]] = {}
    for result in results.values():
        runs.setdefault((result["run"]["date"], result["run"]["commit"]), []).append(result)
    for _, group in sorted(runs.items(), reverse=True):
        parts += [ceilings(group), speed(group), *(workload(result) for result in group), origin(group[0]["run"])]
    return "\n\n".join([*parts, *([] if results else [NO_RUN])])


def ceilings(group: Sequence[Result]) -> str:
    """Bandwidth and rates over all the measurements beside the group's workloads, and the errors of products."""
    run, found = group[0]["run"], [entry for result in group for entry in result["ceilings"]]
    copied = [entry["copied"] / 1e12 for entry in found]
    rates = {name: [2 * entry["rates"][name] / 1e12 for entry in found] for name in PRECISIONS}
    errors = [error_cell(run["product_errors"][name]) for name in PRECISIONS]
    lines = [
        f"**Ceilings of {run['device']['name']}**, measured just before and just after each workload: medians of"
        f" {len(found)}, from least to most in brackets. Copies count bytes read and written; products are square, of"
        f" side {run['side']:,}, two operations a multiply-add; split: three TF32 products for one, of what is split"
        " already; errors are norms relative to the float64 product of float32 values.",
        "",
        line(["", "copy", *PRECISIONS]),
        line(["---", *["---:"] * (1 + len(PRECISIONS))]),
        line(["rate", f"{_spread(copied)} TB/s", *(f"{_spread(rates[name])} TFLOP/s" for name in PRECISIONS)]),
        line(["error", "", *errors]),
    ]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def speed(group: Sequence[Result]) -> str:
    """One row for each workload."""
    lines = [
        "× limit: the time between two events on the device over that of the least multiply-adds (or bytes) of the"
        " exact answer at the ceiling of the product mode in the next column, the fastest of the library that reaches"
        " simkit's error in this workload; where none does, the fastest of those whose products have simkit's error or"
        " that simkit forms; in brackets what is asked of it. × float32: over the time of plain float32 products of the"
        " same count. End to end: until the host has the answer. Kept: all that is asked of simkit.",
        "",
        line(["", "workload", "kept", "simkit", "end to end", "× limit", "limit by", "× float32", "backend", "error",
              "fastest library mode at that error", "× simkit", "fastest other", "× simkit", "its error"]),
        line(["---"] * 3 + ["---:"] * 3 + ["---", "---:", "---", "---:", "---", "---:", "---", "---:", "---:"]),
    ]  # fmt: skip
    for result in group:
        rows = [row for row in result["contestants"] if "seconds" in row]
        own, share = rows[0], result["limit"]["share"]
        others = [row for row in rows[1:] if not row["name"].startswith("simkit") and row["error"] is not None]
        same = next((row for row in rows if row["name"] == result["fastest_same_error"]), None)
        best = min(others, key=lambda row: float(row["wall"]), default=None)
        cells = [
            result["key"],
            result["title"],
            verdict(result),
            time_cell(own["seconds"]),
            time_cell(own["wall"]),
            _to_limit(own) + f" (≤ {1 / share:.2f})",
            result["limit"]["precision"] or "",
            ratio_cell(own["seconds"] / plain) if (plain := result["limit"]["by_precision"].get("float32")) else "",
            own.get("backend", ""),
            error_cell(own["error"]),
        ]
        cells += ["none", ""] if same is None else [same["name"], ratio_cell(same["ratio_to_simkit"])]
        cells += ["", "", ""] if best is None else [
            best["name"], ratio_cell(best["ratio_to_simkit"]), error_cell(best["error"])
        ]  # fmt: skip
        lines.append(line(cells))
    return "\n".join(lines)


def verdict(result: Result) -> str:
    """Whether simkit keeps what is asked of it, or by what it falls short, or what could not be judged."""
    if not result["full"]:
        return "not at full size"
    short = [_asked(entry) for entry in result["asked"] if entry["kept"] is False]
    unknown = [_asked(entry) for entry in result["asked"] if entry["kept"] is None]
    said = [f"falls short: {'; '.join(short)}"] if short else []
    return "; ".join([*said, *(f"not judged: {what}" for what in unknown)]) or "yes"


def _asked(entry: Result) -> str:
    """One number that is asked for, and what was reached."""
    show, what = ASKED[entry["what"]]
    reached = "nothing" if entry["reached"] is None else show(entry["reached"])
    return f"{reached} of {show(entry['bound'])} {what}"


def workload(result: Result) -> str:
    """Every contestant of one workload, and what ran in simkit."""
    limit = result["limit"]
    lines = [
        f"{result['key']}: {result['title']} ({limit['multiply_adds']:.2g} multiply-adds, {limit['bytes']:.2g} bytes"
        + (f"; limit {time_cell(limit['seconds'])} by {limit['precision']})" if limit["precision"] else ")"),
        "",
        line(["", "time", "end to end", "× limit", "× simkit", "error"]),
        line(["---", *["---:"] * 5]),
    ]
    lines += [_contestant(row) for row in result["contestants"] if "missing" not in row]
    own = result["contestants"][0]
    steps = [f"{step['op']}: {step['backend']} ({step['reason']})" for step in own.get("steps", ())]
    lines += ["", *([f"simkit ran {'; '.join([*steps, *own['plan_notes']])}."] if steps else [])]
    lines += [f"{row['name']}: {note}." for row in result["contestants"] if (note := how(row))]
    lines += [f"{note}." for note in result["notes"]]
    lines += [f"{row['name']}: {row['missing']}." for row in result["contestants"] if "missing" in row]
    return "\n".join(lines)


def _contestant(row: Result) -> str:
    if "failure" in row:
        return line([row["name"], row["failure"].replace("|", "/"), "", "", "", error_cell(row["error"])])
    once = " (once)" if row["samples"] == 1 else ""
    ratio = "" if row["ratio_to_simkit"] == 1.0 else ratio_cell(row["ratio_to_simkit"])
    times = [time_cell(row["seconds"]) + once, time_cell(row["wall"])]
    return line([row["name"], *times, _to_limit(row), ratio, error_cell(row["error"])])


def _to_limit(row: Result) -> str:
    return "" if row["ratio_to_limit"] is None else ratio_cell(row["ratio_to_limit"])


def origin(run: Result) -> str:
    """Device, driver, versions and commit."""
    device, versions = run["device"], run["versions"]
    shown = [f"{name} {versions[name]}" for name in versions if name != "simkit"]
    return (
        f"<sub>{device['name']}, driver {device['driver']}, CUDA {device['cuda']}; {run['machine']['processor']},"
        f" {run['machine']['cores']} cores; {', '.join(shown)}; commit {run['commit']}, {run['date']}</sub>"
    )


def times(results: dict[str, Result]) -> str:
    """For the page of the programs: what the workloads that they run in take, beside the floor."""
    if not results:
        return NO_RUN
    lines = [
        "Of whole workloads, by `benchmarks/gpu`: a program alone is timed by a profiler.",
        "",
        line(["workload", "programs", "floor", "time reached", "× floor", "backend", "device", "date"]),
        line(["---", "---", *["---:"] * 3, "---", "---", "---"]),
    ]
    for result in results.values():
        own, run = result["contestants"][0], result["run"]
        floor = result["limit"]["seconds"]
        cells = [f"{result['key']}: {result['title']}", result["programs"], "" if floor is None else time_cell(floor)]
        cells += [time_cell(own["seconds"]), _to_limit(own), own.get("backend", "")]
        lines.append(line([*cells, run["device"]["name"], run["date"].split()[0]]))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a page is stale")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "csrc" / "cuda" / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="take the records of this folder to --results first")
    parser.add_argument("--show", type=Path, metavar="RECORD", help="print the tables of one record instead")
    options = parser.parse_args(arguments)
    if options.show:
        print(render(one_run(options.show)))
        return 0
    if options.add:
        add(options.add, options.results)
    results = newest(options.results)
    old = {path: path.read_text(encoding="utf-8") for path in (options.page, options.readme)}
    new = {
        options.page: replaced(old[options.page], render(results), GPU_BEGIN, GPU_END),
        options.readme: replaced(old[options.readme], times(results), TIMES_BEGIN, TIMES_END),
    }
    stale = [path for path, text in new.items() if text != old[path]]
    if stale and options.check:
        print(f"{', '.join(str(path) for path in stale)} is stale: run python -m benchmarks.gpu.table", file=sys.stderr)
        return 1
    for path in stale:
        path.write_text(new[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
