"""All-pairs similarity of named representations, and the result object."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import FloatArray, Matrix, as_matrices, same_samples
from ..backends.base import Plan, Step
from ..backends.choose import check_backend
from ..backends.routes import check_threads, parse_memory
from ..files import check_safetensors_name, write_atomically
from ..metrics.cka import CKA
from ..metrics.measure import Measure, Scores, check_measure, score_pairs


@dataclass(frozen=True)
class SimilarityMatrix:
    """Scores of L row layers against M column layers over the same samples.

    Attributes:
        values: ``[L, M]`` float64; NaN where a layer is degenerate.
        rows, columns: layer names.
        samples: number of samples n.
        measure: the measure and its options, as text.
        degenerate: ``{("row" | "column", name): reason}``.
        plan: what ran and why.
    """

    values: FloatArray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    samples: int
    measure: str
    degenerate: dict[tuple[str, str], str] = field(default_factory=dict)
    plan: Plan = Plan()

    @property
    def backend(self) -> str:
        """The backends that ran."""
        return self.plan.backend

    def __getitem__(self, key: tuple[str, str]) -> float:
        """The score of one named pair: ``m["conv1", "fc"]``.

        Raises:
            TypeError: not a pair. KeyError: no such names.
        """
        if not isinstance(key, tuple) or len(key) != 2:
            raise TypeError(f"a score is m[row, column], the names of two layers, not m[{key!r}]")
        row, column = key
        try:
            return float(self.values[self.rows.index(row), self.columns.index(column)])
        except ValueError:
            raise KeyError(f"no pair {key!r}: rows are {self.rows}, columns are {self.columns}") from None

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the heatmap to ``path`` (PNG, PDF or SVG by its ending); needs matplotlib."""
        from .report import plot

        plot(self, path)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the scores with their names as CSV."""
        from .report import to_csv

        to_csv(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one safetensors file with JSON metadata; atomic, nothing pickled.

        Raises:
            ValueError: ``path`` does not end in ``.safetensors``. OSError: it cannot be written.
        """
        from safetensors.numpy import save

        check_safetensors_name(path, "to_csv writes a table, plot a picture")

        meta = {
            "format": "simkit.SimilarityMatrix.1",
            "rows": self.rows,
            "columns": self.columns,
            "samples": self.samples,
            "measure": self.measure,
            "degenerate": [[side, name, reason] for (side, name), reason in self.degenerate.items()],
            "steps": [asdict(step) for step in self.plan.steps],
            "notes": self.plan.notes,
        }
        data = save({"values": np.ascontiguousarray(self.values)}, metadata={"simkit": json.dumps(meta)})
        write_atomically(path, data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SimilarityMatrix:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is not one of ours. FileNotFoundError: no such file.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
        try:
            with safe_open(os.fspath(path), framework="numpy") as file:
                meta = json.loads((file.metadata() or {})["simkit"])
                values = file.get_tensor("values")
            if meta["format"] != "simkit.SimilarityMatrix.1":
                raise ValueError(meta["format"])
            matrix = SimilarityMatrix(
                np.asarray(values, dtype=np.float64),
                tuple(meta["rows"]),
                tuple(meta["columns"]),
                int(meta["samples"]),
                str(meta["measure"]),
                {(side, name): reason for side, name, reason in meta["degenerate"]},
                Plan(tuple(Step(**step) for step in meta["steps"]), tuple(meta["notes"])),
            )
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            said = f"it has no entry {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{os.fspath(path)!r} is not a saved SimilarityMatrix: {said}") from None
        if matrix.values.shape != (len(matrix.rows), len(matrix.columns)):
            raise ValueError(f"{os.fspath(path)!r} holds {matrix.values.shape} values for other names")
        return matrix


def similarity_matrix(
    layers: Mapping[str, object],
    others: Mapping[str, object] | None = None,
    *,
    measure: Measure = CKA(),
    memory: int | float | str | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> SimilarityMatrix:
    """Similarity of every layer of ``layers`` with every layer of ``others`` (None: with one another).

    Args:
        layers: ``{name: x [n, p]}``; all arrays hold the same n samples in the same order.
        others: the columns of the result; None compares ``layers`` with themselves.
        measure: a measure object, by default debiased linear CKA.
        memory: bytes of workspace beyond the features in memory, as a number or ``"64 MB"``. CKA fits its tiles to it,
            and counts what is resident of mapped files, which sample space reads again for every strip of tiles, the
            sums of columns that prepare a layer, and what all layers keep of that: means, and the cosine kernel's
            scales of rows. The other measures hold a prepared form of every layer and are refused when that takes more.
            On a device that is named for arrays on the host it bounds their copies too: what does not fit is sent in
            strips. Not counted: the float copies that integers, booleans and foreign byte orders are admitted as, a
            device's arrays on the host, and what ``backend="reference"`` takes.
        backend: a backend's name; None lets simkit choose.
        threads: worker threads of CKA; None takes the processors of this process. LAPACK, which the other measures run
            on, has settings of its own.

    Raises:
        ValueError: different numbers of samples, non-finite entries (named), too little memory.
        TypeError: input that is not numeric, or no measure object.
        NotImplementedError: a named backend that cannot run the measure.
    """
    check_measure(measure)
    check_backend(backend)
    check_threads(threads)
    budget = parse_memory(memory)
    rows = as_matrices(layers)
    columns = None if others is None else as_matrices(others, what="others")
    samples = same_samples([*rows, *(columns or ())])
    scores = _scores(measure, rows, columns, memory=budget, backend=backend, threads=threads)
    return SimilarityMatrix(
        scores.values,
        tuple(layer.name for layer in rows),
        tuple(layer.name for layer in (rows if columns is None else columns)),
        samples,
        repr(measure),
        scores.degenerate,
        scores.plan,
    )


def noted(result: SimilarityMatrix, note: str) -> SimilarityMatrix:
    """The matrix, its plan with one note more."""
    return replace(result, plan=replace(result.plan, notes=(*result.plan.notes, note)))


def _scores(measure: Measure, rows: Sequence[Matrix], columns: Sequence[Matrix] | None, **options: Any) -> Scores:
    pairs = getattr(measure, "pairs", None)
    if pairs is None:
        if options["backend"] is not None:
            raise NotImplementedError(f"{measure!r} runs in NumPy only: backend={options['backend']!r} cannot run it")
        return score_pairs(measure, rows, columns, memory=options["memory"])
    scores: Scores = pairs(rows, columns, **options)
    return scores
