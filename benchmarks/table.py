"""Writes the benchmark tables from the newest full results: ``python -m benchmarks.table [--check]`` in a clone.

The README has one row for each workload, ``docs/benchmarks.md`` beside it has everything. Needs nothing but Python.
``--check`` writes nothing and ends with 1 when either is stale.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cells import error_cell, how, line, missing_line, origin, ratio_cell, time_cell
from .requirements import FORWARD, MOVED, REQUIRED, Verdict, of, too_small, verdicts

ROOT = Path(__file__).resolve().parent.parent
NONE = "No results yet: `pytest benchmarks --full`."
HEAD = (
    "# Benchmarks\n\nGenerated from `benchmarks/results/*.json` by `python -m benchmarks.table`; how: "
    "`benchmarks/README.md`."
)
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
GPU_BEGIN, GPU_END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
Result = dict[str, Any]


def newest(folder: Path) -> dict[str, Result]:
    """The newest full result of every benchmark by its key, each with the run it comes from."""
    found: dict[str, Result] = {}
    for path in sorted(folder.glob("*.json")):  # names are dates
        found |= {key: result for key, result in one_run(path).items() if result.get("full", True)}
    return found


def one_run(path: Path) -> dict[str, Result]:
    """The results of one record by their keys, each with the run it comes from."""
    run = json.loads(path.read_text(encoding="utf-8"))
    if run.get("format") != "simkit.benchmarks.1":
        raise ValueError(f"{path.name} is not a benchmark record of simkit")
    about = {name: run[name] for name in ("date", "commit", "machine", "versions")}
    return {result["key"]: result | {"run": about} for result in run["results"]}


def summary(results: dict[str, Result]) -> str:
    """What the README shows: the hazards, and a row for each workload."""
    parts = [hazards(result) for result in results.values() if result["kind"] == "hazards"]
    workloads = sorted((r for r in results.values() if r["kind"] == "workload"), key=_order)
    if workloads:
        parts.append(speed(workloads))
    others = verdicts(results, [key for key, result in results.items() if result["kind"] != "workload"])
    if not all(one.kept or one.asserted for one in others):
        named = [replace(one, asked=replace(one.asked, words=f"{one.asked.key}: {one.asked.words}")) for one in others]
        parts.append(f"Asked of the planner, growth, start-up and accuracy: {_in_short(named)}.")
    return "\n\n".join(parts) or NONE


def speed(results: Sequence[Result]) -> str:
    """One row for each workload: simkit's time, share of the limit and error, beside the fastest other contestant."""
    lines = [
        "**Speed, with the error beside it.** × limit: the time over that of the least multiply-adds of the exact"
        " answer at the rate of matrix products measured around each sample. Beside simkit stands whatever else gave an"
        " answer in the least time in the same run, right or not: its × limit over simkit's, and its error. Asked: what"
        " stands for each workload in `benchmarks/requirements.py`; what falls short is named.",
        "",
        line(["", "workload", "simkit", "× limit", "error", "the fastest other", "× simkit", "its error", "asked"]),
        line(["---", "---", *["---:"] * 3, "---", *["---:"] * 2, "---"]),
    ]
    for result in results:
        rows = [row for row in result["contestants"] if "seconds" in row]
        own = next(row for row in rows if row["ratio_to_simkit"] == 1.0)
        others = [row for row in rows if not row["name"].startswith("simkit") and row["name"] not in FORWARD]
        cells = [
            result["key"].split()[0],
            result["title"],
            time_cell(own["seconds"]),
            ratio_cell(own["ratio_to_limit"]),
            error_cell(own["error"]),
        ]
        best = min(others, key=lambda row: float(row["seconds"]), default=None)
        cells += ["", "", ""] if best is None else [
            best["name"], ratio_cell(best["ratio_to_simkit"]), error_cell(best["error"])
        ]  # fmt: skip
        lines.append(line([*cells, _in_short(verdicts({result["key"]: result}, [result["key"]]))]))
    return "\n".join([*lines, "", _runs(results)])


def _runs(results: Sequence[Result]) -> str:
    """Which workloads come from which run."""
    keys: dict[str, dict[str, None]] = {}
    for result in results:
        run = f"commit {result['run']['commit']}, {result['run']['date']}"
        keys.setdefault(run, {})[result["key"].split()[0]] = None
    return "<sub>" + "; ".join(f"{', '.join(names)}: {run}" for run, names in keys.items()) + "</sub>"


def _in_short(found: Sequence[Verdict]) -> str:
    """How many requirements are kept, how many tests assert, and every one that is not, with what was measured."""
    judged = [one for one in found if not one.asserted]
    others = [f"{one.words} ({one.asked.words}): {one.measured}" for one in judged if not one.kept]
    kept = f"{len(judged) - len(others)} of {len(judged)} kept" if judged else ""
    asserted = f", {len(found) - len(judged)} asserted by tests" if len(judged) < len(found) else ""
    return "; ".join([kept + asserted, *others])


def required(results: dict[str, Result]) -> str:
    """Every requirement of the design, what was measured, and whether that keeps it."""
    found = verdicts(results, list(results))
    absent = [key for key in dict.fromkeys(one.key for one in REQUIRED) if key not in results]
    kept, short = (sum(one.kept is state for one in found) for state in (True, False))
    asserted = sum(one.asserted for one in found)
    lines = [
        f"**What is asked** of these workloads, the planner and growth (`benchmarks/requirements.py`): {kept} kept,"
        f" {short} short, {asserted} asserted by tests, {len(found) - kept - short - asserted} not measured. Times"
        " are medians within one run, the newest that measured a row; it stands under its table, with its commit. What"
        " is kept or missed by a few per cent may turn out otherwise in the next.",
        "",
        line(["", "required", "measured", ""]),
        line(["---"] * 4),
    ]
    for one in found:
        verdict = one.words if one.kept or one.asserted else f"**{one.words}**"
        lines.append(line([one.asked.key, one.asked.words, one.measured, verdict]))
    return "\n".join([*lines, *(["", f"No full record: {', '.join(absent)}."] if absent else [])])


def render(results: dict[str, Result]) -> str:
    """Every table.

    Raises:
        ValueError: a result of a kind that has no table.
    """
    kinds = {
        "hazards": hazards,
        "workload": None,
        "errors": errors,
        "routes": routes,
        "growth": growth,
        "correspondence": correspondence,
        "import": imports,
    }
    strange = next((result for result in results.values() if result["kind"] not in kinds), None)
    if strange is not None:
        raise ValueError(f"there is no table for {strange['key']!r} of kind {strange['kind']!r}")
    parts = [required(results)] if any(result.get("full") for result in results.values()) else []
    workloads = sorted((r for r in results.values() if r["kind"] == "workload"), key=_order)
    for kind, function in kinds.items():
        if function is None:
            parts += [workload_table(workloads)] if workloads else []
        else:
            parts += [function(result) for result in results.values() if result["kind"] == kind]
    return "\n\n".join(parts) or NONE


def hazards(result: Result) -> str:
    """Values of one pair of representations under shifts and scales, wrong ones in bold."""
    columns = result["columns"]
    lines = [
        "**The same two representations, shifted and scaled.** Debiased linear CKA and its error (rsatoolbox: biased,"
        f" against that truth); what is off by more than {_power(result['wrong'])} is bold.",
        "",
        line(["", "float64 truth", *columns]),
        line(["---"] * (len(columns) + 2)),
    ]
    for row in result["rows"]:
        cells = [_cell(row["cells"][name], result["wrong"]) for name in columns]
        lines.append(line([row["name"], "undefined" if row["truth"] is None else _six(row["truth"]), *cells]))
    return "\n".join([*lines, "", *missing_line(result["missing"]), origin(result)])


def _cell(cell: Result, wrong: float) -> str:
    if "refused" in cell:
        return "refused" if cell["refused"].startswith("Degenerate") else f"**{cell['refused'].split(':')[0]}**"
    value = float(cell["value"])
    text = "NaN" if math.isnan(value) else _six(value)
    if "error" not in cell:
        return f"**{text}**"
    error = float(cell["error"])
    return f"{text} ({error_cell(error)})" if error <= wrong else f"**{text}**"


def workload_table(results: Sequence[Result]) -> str:
    """Time against the machine's limit and against every rival, errors and memory beside it."""
    lines = [
        "**Speed, with the error beside it.** Limit: the least multiply-adds of the exact answer at the rate of matrix"
        " products measured around each sample. × simkit: × limit over simkit's, medians both.",
    ]
    for result in results:
        limit = result["limit"]
        work = f"{limit['multiply_adds']:.2g} {limit['precision']} multiply-adds"
        lines += [
            "",
            f"{result['key']}: {result['title']} ({work})",
            "",
            line(["", "time", "× limit", "× simkit", "error", "extra memory"]),
            line(["---", *["---:"] * 5]),
        ]
        lines += [_contestant(row) for row in result["contestants"] if "missing" not in row]
        lines += ["", *[f"{row['name']}: {note}." for row in result["contestants"] if (note := how(row))]]
        lines += [f"{note}." for note in result["notes"]]
        lines += missing_line([row for row in result["contestants"] if "missing" in row])
        lines.append(origin(result))
    return "\n".join(lines)


def _contestant(row: Result) -> str:
    if "failure" in row:
        return line([row["name"], row["failure"].replace("|", "/"), "", "", "", ""])
    once = " (once)" if row["samples"] == 1 else ""
    memory = "" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 2**20:,.0f} MiB"
    ratio = "" if row["ratio_to_simkit"] == 1.0 else ratio_cell(row["ratio_to_simkit"])
    error = "" if row["name"] in FORWARD else error_cell(row["error"])
    return line(
        [row["name"], time_cell(row["seconds"]) + once, ratio_cell(row["ratio_to_limit"]), ratio, error, memory]
    )


def errors(result: Result) -> str:
    """Errors of every contestant, by measure and condition of the features."""
    rows = result["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["errors"]))
    lines = [
        f"**Accuracy by condition.** Absolute errors for two layers of {result['sizes']['p']}, n ="
        f" {result['sizes']['n']:,}, float64, whose correlations are known by construction; kept: the directions that"
        " simkit took for more than rounding.",
        "",
        line(["measure", "condition", *names, "kept", "simkit's route"]),
        line(["---", "---:", *["---:"] * len(names), "---:", "---"]),
    ]
    for row in rows:
        cells = [error_cell(row["errors"][name]) for name in names]
        lines.append(line([row["measure"], f"{row['condition']:.0e}", *cells, str(row["kept"]), row["route"]]))
    return "\n".join([*lines, "", origin(result)])


def correspondence(result: Result) -> str:
    """Share of layers found again, mean and confidence interval over pairs of networks."""
    features, setting = result["features"], result["setting"]
    heads = [
        f"{name}: n = {size['n']:,}, p = {min(size['p']):,} to {max(size['p']):,}" for name, size in features.items()
    ]
    accuracy = result["test_accuracy"]
    lines = [
        f"**Which measure finds the same layer in another network?** {setting['seeds']} networks of eight convolutions"
        f" from different seeds (`{setting['network']}`, width {setting['width']}) trained on shifted digits (test"
        f" accuracy {min(accuracy):.1%} to {max(accuracy):.1%}): share of layers whose most similar layer is the same;"
        " mean ± 95% confidence interval over ordered pairs. Chance is 12.5%.",
        "",
        line(["", *heads]),
        line(["---", *["---:"] * len(heads)]),
    ]
    spanned = False
    for name, found in result["measures"].items():
        cells = []
        for feature in features:
            share = found[feature]
            spanned = spanned or share is None
            cells.append("undefined¹" if share is None else f"{share['mean']:.1%} ± {share['interval']:.1%}")
        lines.append(line([name, *cells]))
    notes = ["", "¹ A layer has as many directions as samples: the score is 1 whatever it holds."] if spanned else []
    return "\n".join([*lines, *notes, "", origin(result)])


def imports(result: Result) -> str:
    """Seconds to import."""
    lines = [f"**Start-up.** {result['title'][0].upper()}{result['title'][1:]}.", ""]
    lines += [line(["", "time"]), line(["---", "---:"])]
    lines += [line([f"`{row['name']}`", time_cell(row["seconds"])]) for row in result["rows"] if "missing" not in row]
    missing = missing_line([row for row in result["rows"] if "missing" in row])
    return "\n".join([*lines, "", *missing, origin(result)])


def routes(result: Result) -> str:
    """How often another route than the planner's was the better one, and by how much."""
    cells = sorted(result["cells"], key=lambda cell: -float(cell["ratio"]))
    names = list(dict.fromkeys(name for cell in cells for name in cell["seconds"]))
    bound = of("routes", "routes").bound
    above = sum(cell["ratio"] > bound for cell in cells)
    how = result.get("protocol", "least times; a shape above the bound was timed again, up to four times as often")
    lines = [
        f"**The planner.** {len(cells)} shapes of all-pairs CKA, each by every exact route ({', '.join(names)}) that is"
        f" not far from the best ({how}): {above} of {len(cells)} above {bound} × the time of the best one, worst"
        f" {ratio_cell(cells[0]['ratio'])}. {_left_out(cells)} All that are above, or the eight that it fits worst:",
        "",
        line(["samples", "layers × width", "type", "picked", *names, "picked / best"]),
        line(["---:", *["---"] * 3, *["---:"] * (len(names) + 1)]),
    ]
    for cell in cells[: max(8, above)]:
        times = [time_cell(cell["seconds"][name]) if name in cell["seconds"] else "" for name in names]
        shape = [f"{cell['n']:,}", _widths(cell), cell["dtype"], cell["chosen"]]
        lines.append(line([*shape, *times, ratio_cell(cell["ratio"])]))
    return "\n".join([*lines, "", origin(result)])


def _left_out(cells: Sequence[Result]) -> str:
    """How many routes of all shapes took no part in the rounds."""
    if any("far" not in cell for cell in cells):
        return "How many routes were left out was not recorded."
    far, uncalled = (sum(len(cell[name]) for cell in cells) for name in ("far", "uncalled"))
    every = sum(len(cell["multiply_adds"]) for cell in cells)
    return (
        f"Of {every} routes {far} were left with the least of their first calls, as far from the best, and {uncalled}"
        " not called, for their multiply-adds."
    )


def _widths(cell: Result) -> str:
    layers = Counter(cell.get("widths") or [cell["p"]] * cell["layers"])
    return " + ".join(f"{count} × {width:,}" for width, count in layers.items())


def growth(result: Result) -> str:
    """Fitted exponents of time, memory and counted operations beside those that are expected."""
    lines = [
        "**Growth.** Time and extra memory over four sizes, as powers of the size. Counted: the exponent of the"
        " multiply-adds of the exact answer over the same sizes, from a closed form; plan: whether what the plan says,"
        " where it counts, is that closed form to the unit. Both are written by hand: `test_counts.py` counts the"
        " products of scalar loops at small sizes. Memory at most: its leading power; less than 4 MiB counts as so"
        " much, 1 MiB until a run was short, and is not judged where no size takes more. W4 is the graph alone, at one"
        " threshold. Sizes that were moved, and what was seen at those before: "
        + "; ".join(f"{key} in {variable} ({words})" for key, variable, words in MOVED)
        + ".",
        "",
        line(["", "size", "from", "to", "counted", "time", "plan", "memory at most", "memory"]),
        line(["---", "---", *["---:"] * 4, "---", *["---:"] * 2]),
    ]
    for row in result["rows"]:
        ends = [f"{row['sizes'][0]:,}", f"{row['sizes'][-1]:,}"]
        plan = {True: "equal", False: "differs", None: "no count"}[row.get("plan_equal")]
        memory = ["", ""] if row.get("memory") is None else [f"{row['expected_memory']:g}", f"{row['memory']:.2f}"]
        if too_small(row):
            memory[1] = "< 4 MiB"
        exponents = [f"{row['expected']:.3g}", f"{row['exponent']:.2f}", plan, *memory]
        lines.append(line([row["name"], row["variable"], *ends, *exponents]))
    return "\n".join([*lines, "", origin(result)])


def _order(result: Result) -> tuple[int, str]:
    number = re.match(r"W(\d+)", result["key"])
    return (int(number[1]) if number else 1000, result["key"])


def _six(value: float) -> str:
    return f"{value:.6f}" if abs(value) < 1e4 else f"{value:.1e}"


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def replaced(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """The text of the README, or of another page, with a new block between its markers.

    Raises:
        ValueError: the markers are not there exactly once, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page needs one {begin} and, after it, one {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def gpu_section(page: Path) -> str:
    """What ``benchmarks/gpu/table.py`` writes into the page, as it stands there; empty where it stands nowhere."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    _, begin, rest = text.partition(GPU_BEGIN)
    return f"\n{begin}{rest}" if begin else ""


def main() -> int:
    """Rewrite or check the README and docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a table is stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--show", type=Path, metavar="RECORD", help="print the tables of one record instead")
    options = parser.parse_args()
    if options.show:
        print(render(one_run(options.show)))
        return 0
    results = newest(options.results)
    everything = options.readme.parent / "docs" / "benchmarks.md"
    new = {
        options.readme: replaced(options.readme.read_text(encoding="utf-8"), summary(results)),
        everything: f"{HEAD}\n\n{render(results)}\n{gpu_section(everything)}",
    }
    stale = [path for path, text in new.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if stale and options.check:
        print(f"{', '.join(path.name for path in stale)} is stale: run python -m benchmarks.table", file=sys.stderr)
        return 1
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(new[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
