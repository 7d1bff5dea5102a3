"""A killed comparison continues: features in a folder, and a small JSON that says how far they are to be trusted.

The folder is used only if it is proven to belong to the same run: the options match, the batches already done are
read again and have the same digest, and the first batch is run again and gives the same features to the bit.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from ..arrays import Matrix
from ..files import is_draft, write_atomically
from ..metrics.measure import Measure
from .batches import Data, arrays_in
from .collect import Side
from .collectors import ToSpool, spooled_name
from .on_device import OnDevice
from .spool import Spool, Stored, check_same_width

FORMAT = "simkit.compare.1"
STATE = "state.json"
COMMIT_EVERY = 1.0  # seconds
_ROWS_FILE = re.compile(r"\d{5}\.rows")


class Checkpoint:
    """The folder of ``resume=``: created, or checked and continued.

    Raises:
        ValueError: the folder holds other things, a damaged state or one of other options, or the data is shuffled
            anew each time.
    """

    def __init__(self, folder: Path, source: Data, options: Mapping[str, Any]) -> None:
        for loader in (source.first, source.second):
            _refuse_shuffling(loader)
        self._folder = folder
        self._options = dict(options)
        self._batches = 0
        self._samples = 0
        self._digest = b""
        self._collector: KeptFeatures | None = None
        self._committed = -COMMIT_EVERY
        self._left = self._read()

    @property
    def continues(self) -> bool:
        """Whether an earlier process left features to continue from."""
        return bool(self._left["batches"])

    def advance(self, batch: Mapping[Side, Any], keep: int) -> bool:
        """Take note of the next batch; True when its features are in the folder already.

        Raises:
            ValueError: the batches done before were others.
        """
        digest = hashlib.blake2b(self._digest, digest_size=16)
        for side in ("a", "b"):
            for array in arrays_in(batch[side]):
                _add(digest, array)
        self._digest = digest.digest()
        self._batches += 1
        self._samples += keep
        if self._batches == self._left["batches"] and (
            self._digest.hex() != self._left["digest"] or self._samples != self._left["done"]
        ):
            raise ValueError(
                f"resume={str(self._folder)!r} was made from other data: its {self._left['batches']} batches of "
                f"{self._left['done']} samples are not the first of this data"
            )
        return self._batches <= int(self._left["batches"])

    def collector(
        self,
        order: Mapping[Side, tuple[str, ...]],
        measure: Measure,
        memory: int,
        there: OnDevice | None = None,
        *,
        expected: int | None,
    ) -> KeptFeatures:
        """The collector that writes into the folder, after what is there."""
        names = [spooled_name(side, name) for side, rows in order.items() for name in rows]
        stored = {
            str(entry["name"]): Stored(
                str(entry["name"]), str(entry["dtype"]), int(entry["p"]), self._folder / entry["file"], int(entry["n"])
            )
            for entry in self._left["layers"]
        }
        if self.continues and list(stored) != names:
            raise ValueError(f"resume={str(self._folder)!r} holds the layers {list(stored)}, not {names}")
        spool = Spool(ram=0, expected=None if expected is None or self.continues else expected, directory=self._folder)
        spool.restore(stored)
        self._collector = KeptFeatures(spool, order, measure, memory, there, self)
        return self._collector

    def commit(self, *, now: bool = False) -> None:
        """Record that every row written so far counts; at most once a second unless ``now``."""
        if self._collector is None or (not now and time.monotonic() - self._committed < COMMIT_EVERY):
            return
        layers = [
            {"name": name, "dtype": layer.dtype, "p": layer.p, "n": layer.n, "file": layer.path.name}
            for name, layer in self._collector.spool.layers.items()
        ]
        if self._batches >= self._left["batches"]:
            self._write(layers)
            self._committed = time.monotonic()

    def finish(self) -> None:
        """The data has ended: record it all.

        Raises:
            ValueError: it ended before what is in the folder.
        """
        if self._batches < self._left["batches"]:
            raise ValueError(
                f"resume={str(self._folder)!r} was made from other data: it holds {self._left['batches']} batches and "
                f"the data ended after {self._batches}"
            )
        self.commit(now=True)

    def remove(self) -> None:
        """The comparison is done: delete what was kept, and the folder if nothing else is in it."""
        (self._folder / STATE).unlink()  # first: rows without a state are known to be nobody's
        for path in self._folder.iterdir():
            if _ours(path):
                path.unlink()
        if not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _write(self, layers: list[dict[str, Any]]) -> None:
        state = {
            "format": FORMAT,
            "options": self._options,
            "batches": self._batches,
            "done": self._samples,
            "digest": self._digest.hex(),
            "layers": layers,
        }
        write_atomically(self._folder / STATE, json.dumps(state, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        """The state an earlier process left, or that of a new folder."""
        where = f"resume={str(self._folder)!r}"
        self._prepare_folder(where)
        try:
            state = self._checked(json.loads((self._folder / STATE).read_text()))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} has a damaged {STATE}: {error}") from None
        if state["options"] != self._options:
            raise ValueError(f"{where} was made with {state['options']}, not {self._options}")
        listed = {entry["file"] for entry in state["layers"]}
        for entry in self._folder.iterdir():  # rows written before the first commit, a state cut short
            if _ours(entry) and entry.name not in listed:
                entry.unlink()
        return state

    def _prepare_folder(self, where: str) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"{where} is a file: give a folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / STATE).exists():
            other = next((entry.name for entry in self._folder.iterdir() if not _ours(entry)), None)
            if other is not None:
                raise ValueError(f"{where} holds {other!r} and no {STATE}: give an empty or a new folder")
            self._write([])

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']!r}")
        for key, kind in (("batches", int), ("done", int), ("digest", str), ("layers", list), ("options", dict)):
            if not isinstance(state[key], kind):
                raise ValueError(f"{key} is {state[key]!r}")
        for entry in state["layers"]:
            self._check_file(entry)
        return state

    def _check_file(self, entry: Mapping[str, Any]) -> None:
        if not _ROWS_FILE.fullmatch(entry["file"]):
            raise ValueError(f"{entry['file']!r} is no file of ours")
        path = self._folder / entry["file"]
        layer = Stored(entry["name"], entry["dtype"], int(entry["p"]), path, int(entry["n"]))
        held = path.stat().st_size if path.is_file() else 0
        if held < layer.n * layer.row_bytes:
            raise ValueError(f"{entry['file']} holds {held} bytes and should hold {layer.n * layer.row_bytes}")


class KeptFeatures(ToSpool):
    """A spool in the folder. In a continued run the first batch is compared with what is there, not appended."""

    def __init__(
        self,
        spool: Spool,
        order: Mapping[Side, tuple[str, ...]],
        measure: Measure,
        memory: int,
        there: OnDevice | None,
        checkpoint: Checkpoint,
    ) -> None:
        super().__init__(spool, order, measure, memory, there)
        self._checkpoint = checkpoint
        self._verifying = checkpoint.continues

    def add(self, side: Side, name: str, features: Matrix) -> None:
        """Append the rows, or check that they are the first rows in the folder.

        Raises:
            ValueError: they differ: another model, other options or another machine.
        """
        if not self._verifying:
            super().add(side, name, features)
            return
        layer = self.spool.layers[spooled_name(side, name)]
        check_same_width(name, (layer.p, layer.dtype), features)
        kept = np.fromfile(layer.path, dtype=features.values.dtype, count=features.n * layer.p)
        if not np.array_equal(kept, features.values.ravel()):
            raise ValueError(
                f"model_{side} layer {name!r} gives other features than those that resume= kept: "
                "the model, its device or the number of threads is not the same"
            )

    def end_batch(self) -> None:
        """Record the batch."""
        self._verifying = False
        self._checkpoint.commit()


def _ours(path: Path) -> bool:
    """Whether a file is rows, or a state that was not written to its end."""
    return bool(_ROWS_FILE.fullmatch(path.name)) or is_draft(path)


def _refuse_shuffling(loader: object) -> None:
    if not isinstance(loader, DataLoader):
        return
    sampler = loader.sampler
    seeded = isinstance(sampler, RandomSampler) and sampler.generator is not None
    if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler) and not seeded:
        raise ValueError("resume= needs the same order every time, and this loader shuffles: use shuffle=False")


def _add(digest: Any, array: Any) -> None:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().contiguous()
        digest.update(f"{tuple(array.shape)} {array.dtype}".encode())
        array = array.reshape(-1).view(torch.uint8).numpy() if array.numel() else np.empty(0, np.uint8)
    else:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.shape} {array.dtype}".encode())
    digest.update(memoryview(array).cast("B") if array.dtype != object else repr(array).encode())
