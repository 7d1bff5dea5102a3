"""One directory for every run: its config, what it measured, its checkpoints, and at last its result.

``config.json`` is written first and ``result.json`` last: where that is, the run is done. A run's name ends in a hash
of all that decides its numbers, so the same config finds its runs again, and another one never overwrites them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..files import is_draft, write_atomically
from ..train import EpochRecord
from .outputs import as_json

FORMAT = "simkit run 1"
CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
CHECKPOINTS, TRAINING = "checkpoints", "training"
LOCK = ".lock"
REMEDY = "remove the folder of that run, and it is carried out anew"
_LARGEST = 1e300  # of any number; NaN is not below it
_RANGES = {"accuracy": (0.0, 1.0), "parameters": (0, _LARGEST), "macs": (0, _LARGEST), "latency": (0.0, _LARGEST)}
_MEASURED = {"accuracy": float, "parameters": int, "macs": (int, type(None)), "latency": float}
_DENSE: dict[str, Any] = {"seed": int, "experiment": str, "title": str, "name": str, "loss": float, **_MEASURED}
_PRUNED: dict[str, Any] = {
    "seed": int, "experiment": str, "title": str, "name": str, "arm": str, "control": bool, "retrain": str,
    "compensate": str, "amount": float, "dense": dict, "rounds": list,
}  # fmt: skip
_ROUND: dict[str, Any] = {"round": int, "similarity": dict, **_MEASURED}


def identity(content: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file of this module's; ValueError if it is damaged or of another format."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{str(file)!r} is not of the format {FORMAT!r}")
    return content


def read_result(file: Path) -> dict[str, Any]:
    """What a run found; ValueError unless the file is whole and belongs to the run whose folder it lies in."""
    content = _read(file)
    kind = content.get("kind")
    missing = {"dense": _DENSE, "prune": _PRUNED}.get(kind) if isinstance(kind, str) else None
    wrong = "kind" if missing is None else _wrong(content, missing)
    if wrong is None and kind == "prune":
        dense, rounds = content["dense"], content["rounds"]
        wrong = None if _wrong(dense, {"run": str, **_MEASURED}) is None else "dense"
        wrong = wrong or (None if rounds and all(map(_whole, rounds)) else "rounds")
    if wrong is not None:
        raise ValueError(f"{str(file)!r} is damaged: its {wrong!r} is missing or wrong; {REMEDY}")
    if not file.parent.name.endswith(f"-{content.get('id')}"):
        raise ValueError(f"{str(file)!r} is the result of another run, {content.get('id')!r}; {REMEDY}")
    if file.parent.name != content["name"]:  # counted twice, a run would pass for two seeds
        raise ValueError(
            f"{str(file)!r} is of the run {content['name']!r}: move its folder elsewhere if it is a copy, or name it so"
        )
    return content


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except ValueError as error:
        raise ValueError(f"{first_line(error)}; {REMEDY}") from error


def _wrong(content: Any, kinds: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]] = _RANGES) -> str | None:
    """The first of the names whose value is not there, not of its kind (an integer is a float as well) or none that
    can be."""
    if not isinstance(content, dict):
        return "object"
    for name, kind in kinds.items():
        value = content.get(name)
        allowed = (int, float) if kind is float else kind
        if name not in content or not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            return name
        least, most = ranges.get(name, (-_LARGEST, _LARGEST))
        if isinstance(value, (int, float)) and not (least <= value <= most and abs(value) < _LARGEST):
            return name
    return None


def read_round(file: Path) -> dict[str, Any]:
    """What was measured after a round; ValueError unless the file is whole."""
    content = _read(file)
    record = {name: value for name, value in content.items() if name not in ("format", "digest")}
    if not _whole(record) or content.get("digest", identity(record)) != identity(record):
        raise ValueError(f"{str(file)!r} is damaged: something is missing or wrong; {REMEDY}")
    return record


def write_round(file: Path, record: Mapping[str, Any]) -> None:
    """Write what :func:`read_round` reads, with a digest: a wrong digit would be taken for a measurement."""
    write_json(file, {**record, "digest": identity(record)})


def _whole(measured: Any) -> bool:
    """Whether a round's record is what it should be; of the similarity: measure -> layer -> a number, or None."""
    if _wrong(measured, _ROUND) is not None:
        return False
    for layers in measured["similarity"].values():
        defined = [name for name, value in layers.items() if value is not None] if isinstance(layers, dict) else []
        if not isinstance(layers, dict) or _wrong(layers, dict.fromkeys(defined, float), {}) is not None:
            return False
    return True


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object that :func:`read_json` reads; the file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, as_json({"format": FORMAT, **content}))


class RunDirectory:
    """The directory of the run that ``content`` (plain data) decides, under ``out``."""

    def __init__(self, out: str | os.PathLike[str], label: str, content: Mapping[str, Any]) -> None:
        self.id = identity(content)
        self.name = f"{label}-{self.id}"
        self.path = Path(out) / self.name
        self.content = dict(content)

    @property
    def checkpoints(self) -> Path:
        """Where finished models are kept."""
        return self.path / CHECKPOINTS

    @property
    def training(self) -> Path:
        """Where training keeps what it needs to go on; gone when the run is done."""
        return self.path / TRAINING

    def result(self) -> dict[str, Any] | None:
        """What the run found, or None while it is not done; ValueError for a damaged file."""
        file = self.path / RESULT
        return read_result(file) if file.is_file() else None

    @contextmanager
    def open(self) -> Iterator[Metrics]:
        """Make the directory and hold it; nobody else may run the same run meanwhile.

        Raises:
            ValueError: another process holds it, or its files are damaged. OSError: it cannot be written to.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with _held(self.path / LOCK, self.name):
            for file in (*self.path.iterdir(), *self.checkpoints.iterdir()):
                if is_draft(file):  # of a process that was killed while it wrote
                    file.unlink()
            write_json(self.path / CONFIG, {"id": self.id, **self.content})
            with Metrics(self.path / METRICS) as metrics:
                yield metrics

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the result, then remove what only an unfinished run needs."""
        content = {"format": FORMAT, "id": self.id, "name": self.name, **result}
        write_json(self.path / RESULT, content)
        self.tidy()
        return content

    def tidy(self, stage: str = "") -> None:
        """Remove the working state of a run that is done, or of one stage of its training."""
        shutil.rmtree(self.training / stage, ignore_errors=True)
        if self.training.is_dir() and not any(self.training.iterdir()):
            self.training.rmdir()


class Metrics:
    """An append-only file of one JSON object per finished epoch; none is written twice, a torn line is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[tuple[str, int]] = set()

    def __enter__(self) -> Metrics:
        self._path.touch()
        with self._path.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):  # the process was killed while it wrote
                file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                self._known.add((entry["stage"], entry["epoch"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"line {number} of {str(self._path)!r} is damaged; remove the line, and the run goes on"
                ) from None
        self._file = self._path.open("ab")
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()

    def add(self, stage: str, record: EpochRecord) -> None:
        """Append one finished epoch of a stage, unless it is there."""
        if (stage, record.epoch) in self._known:
            return
        entry: dict[str, Any] = {"stage": stage, "epoch": record.epoch, "lr": record.lr}
        for part, found in (("train", record.train), ("validation", record.validation)):
            if found is not None:
                entry |= {f"{part}_loss": found.loss, f"{part}_accuracy": found.accuracy}
        self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._known.add((stage, record.epoch))


@contextmanager
def _held(file: Path, name: str) -> Iterator[None]:
    """A lock that the system gives back however the process ends."""
    import fcntl

    with file.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work on the run {name!r}") from None
        yield
