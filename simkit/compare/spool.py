"""Features of any number of samples, kept in memory and then on disk: plain row-major files, one per layer.

Rows are appended with ``write``, never through a mapping, so that written pages belong to the page cache and not to
this process; finished files are read as read-only maps whose pages the engine lets go of.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix

_ON_DISK = {"bfloat16": "uint16"}


@dataclass
class Stored:
    """The rows ``[n, p]`` of one layer so far: in ``held`` while in memory, after that in ``file`` or at ``path``."""

    name: str
    dtype: str
    p: int
    path: Path
    n: int = 0
    held: npt.NDArray[np.uint8] | None = None  # room for more rows than it has
    file: IO[bytes] | None = None  # without a name: gone with the process, however that ends

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.p * np.dtype(_ON_DISK.get(self.dtype, self.dtype)).itemsize


class Spool:
    """Appends features layer by layer: to memory up to ``ram`` bytes in all, then everything to files.

    Args:
        ram: bytes that may stay in memory; 0 writes through from the first row.
        expected: bytes in all, if known, to find out early that the disk is too small.
        rows: of each layer, if known, to take their memory at once.
        directory: where the files go and stay; None makes files without names, of which even SIGKILL leaves nothing.
    """

    def __init__(
        self, *, ram: int, expected: int | None = None, rows: int | None = None, directory: Path | None = None
    ) -> None:
        self.layers: dict[str, Stored] = {}
        self.bytes = 0
        self._ram = ram
        self._expected = expected
        self._rows = rows if expected is not None and expected <= ram else None
        self._directory = directory
        if directory is not None or (expected is not None and expected > ram):
            self._check_space()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def on_disk(self) -> bool:
        """Whether rows have gone to files."""
        return any(layer.held is None for layer in self.layers.values())

    def append(self, name: str, features: Matrix) -> None:
        """Append the rows of a batch ``[b, p]`` to a layer.

        Raises:
            ValueError: another number of features or another type than before. OSError: the disk is full, or there are
                more layers than open files allowed.
        """
        layer = self.layers.get(name)
        if layer is None:
            layer = self._add(name, features)
        check_same_width(name, (layer.p, layer.dtype), features)
        rows = np.ascontiguousarray(features.values)
        if layer.held is not None and self.bytes + rows.nbytes > self._ram:
            self.to_disk()
        if layer.held is None:
            self._write(layer, rows, more=rows.nbytes)
        else:
            layer.held = self._room(layer, features.n)
            at = layer.n * layer.row_bytes
            layer.held[at : at + rows.nbytes].view(rows.dtype)[...] = rows.reshape(-1)
        layer.n += features.n
        self.bytes += rows.nbytes

    def matrices(self) -> dict[str, Matrix]:
        """The finished layers ``[n, p]``: views of memory, or read-only maps of the files. Appending ends here."""
        out: dict[str, Matrix] = {}
        for name, layer in self.layers.items():
            dtype = np.dtype(_ON_DISK.get(layer.dtype, layer.dtype))
            values: npt.NDArray[Any]
            if layer.held is None:
                with self._as_many_files():
                    values = np.memmap(layer.file or layer.path, dtype=dtype, mode="r", shape=(layer.n, layer.p))
                if layer.file is not None:
                    layer.file.close()  # the map holds a descriptor of its own
            else:
                values = layer.held[: layer.n * layer.row_bytes].view(dtype).reshape(layer.n, layer.p)
                values.flags.writeable = False
            out[name] = Matrix(name, values, layer.dtype)
        return out

    def to_disk(self) -> None:
        """Move every layer from memory to its file, freeing one at a time; views of the memory must be gone for that.

        Raises:
            OSError: as :meth:`append`.
        """
        self._check_space()
        for layer in self.layers.values():
            if layer.held is not None:
                self._place(layer)
                rows, layer.held = layer.held[: layer.n * layer.row_bytes], None
                self._write(layer, rows)

    def restore(self, layers: Mapping[str, Stored]) -> None:
        """Continue files that an earlier process left in the directory, cut to their recorded rows."""
        for name, layer in layers.items():
            os.truncate(layer.path, layer.n * layer.row_bytes)
            self.layers[name] = layer
            self.bytes += layer.n * layer.row_bytes

    def close(self) -> None:
        """Let go of everything; files without names are gone."""
        for layer in self.layers.values():
            if layer.file is not None:
                layer.file.close()
        self.layers = {}

    def _add(self, name: str, features: Matrix) -> Stored:
        in_memory = self._ram > 0 and not self.on_disk
        path = Path(f"{len(self.layers):05d}.rows")  # names of layers are no file names
        layer = Stored(name, features.dtype, features.p, path, held=np.empty(0, dtype=np.uint8) if in_memory else None)
        if not in_memory:
            self._place(layer)
        self.layers[name] = layer
        return layer

    def _place(self, layer: Stored) -> None:
        """Give the layer its file: one without a name stays open, as the map that it becomes does."""
        if self._directory is not None:
            layer.path = self._directory / layer.path
            return
        with self._as_many_files():
            layer.file = tempfile.TemporaryFile(buffering=0, prefix="simkit-")  # noqa: SIM115, closed by close()

    @contextmanager
    def _as_many_files(self) -> Iterator[None]:
        """Too few open files are said with what to do about them."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise OSError(
                error.errno,
                f"{len(self.layers)} layers or more on disk take as many open files, more than are allowed here: raise "
                "that (ulimit -n), give more memory= or fewer layers=",
            ) from None

    def _room(self, layer: Stored, more: int) -> npt.NDArray[np.uint8]:
        """The memory of the layer, with room for so many more rows."""
        assert layer.held is not None
        needed = layer.n + more
        if needed * layer.row_bytes <= len(layer.held):
            return layer.held
        # Taken in few large pieces, which come in large pages: page by page would take longer than the copying.
        room = max(needed, self._rows or layer.n * 5 // 4)
        grown = np.empty(room * layer.row_bytes, dtype=np.uint8)
        np.copyto(grown[: layer.n * layer.row_bytes], layer.held[: layer.n * layer.row_bytes])
        return grown

    def _write(self, layer: Stored, rows: npt.NDArray[Any], *, more: int = 0) -> None:
        """Append rows to the layer's file, ``more`` bytes of which are not counted yet."""
        try:
            with layer.path.open("ab", buffering=0) if layer.file is None else nullcontext(layer.file) as file:
                left = rows.data.cast("B")
                while left:
                    left = left[file.write(left) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._full(more, self._free()) from None

    def _check_space(self) -> None:
        """Raise OSError where the disk is too small for what is there and what is expected."""
        free = self._free()
        if max(self._expected or 0, self.bytes) > free:
            raise self._full(0, free)

    def _free(self) -> int:
        return shutil.disk_usage(self._directory or tempfile.gettempdir()).free

    def _full(self, more: int, free: int) -> OSError:
        needed = max(self._expected or 0, self.bytes + more)
        folder, least = self._directory or tempfile.gettempdir(), "" if needed == self._expected else "more than "
        return OSError(
            errno.ENOSPC,
            f"the features need {least}{needed} bytes of disk and {folder} has {free} free: set "
            "TMPDIR to a larger disk, give more memory=, fewer samples= or layers=",
        )


def check_same_width(name: str, before: tuple[int, str], features: Matrix) -> None:
    """Raise ValueError when a batch of a layer has another width or type than the batches before."""
    if features.p != before[0]:
        raise ValueError(
            f"{name!r} has {features.p} features in one batch and {before[0]} in another: "
            'pad the inputs to one size, or use reduce="mean"'
        )
    if features.dtype != before[1]:
        raise ValueError(f"{name!r} is {features.dtype} in one batch and {before[1]} in another")
