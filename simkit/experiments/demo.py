"""``simkit demo``: the whole story on data that ships in a wheel, left in one folder."""

from __future__ import annotations

import re
from pathlib import Path

from .demo_report import is_ours, write_results
from .demo_runs import METHODS, DemoOptions, DemoResult, run
from .outputs import staged


def demo(options: DemoOptions) -> DemoResult:
    """Run everything and leave ``heatmap.png``, ``pruning.png``, ``results.csv``, ``results.json`` and ``models/``.

    The same options give the same numbers on one machine. An earlier demo's files are replaced, and only when all of
    the new ones are there.

    Raises:
        ValueError: ``out`` holds something else. OSError: it cannot be written to.
    """
    out = Path(options.out)
    with staged(out, ours=is_ours) as stage:
        models = stage / "models"
        models.mkdir()
        result = run(options, models)
        write_results(result, stage)
    _remove_stale_models(out / "models", result.options.seeds)
    return result


def _remove_stale_models(folder: Path, seeds: int) -> None:
    """Networks of an earlier demo with more seeds."""
    own = re.compile(rf"seed(\d+)-(dense|{'|'.join(METHODS)})\.safetensors")
    for file in folder.iterdir():
        found = own.fullmatch(file.name)
        if found and int(found[1]) >= seeds:
            file.unlink()
