"""``nearest_rows`` of the module ``_cuda`` over the emulator of ``tests/native``, for the host's memory."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
from emulated_cuda import Array, run

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
ROOM = 2**30


def nearest_rows(
    programs: Any,
    order: int,
    *,
    x: Array,
    norms: Floats,
    last: Floats | None,
    residues: Floats | None,
    same_sign: bool,
    balance: float,
    rows: Indices,
    others: Indices,
    k: int,
    room: int = ROOM,
    undecided: Indices | None = None,
) -> tuple[Indices, Floats, Floats]:
    """As ``_cuda.nearest_rows``; ``undecided``: where to write how many rows were compared with all others."""
    shape = len(rows), k
    left = np.empty(1, dtype=np.int64) if undecided is None else undecided
    row, cosine, score = np.full(shape, -3), np.empty(shape), np.empty(shape)
    run(
        programs,
        "nearest_rows",
        ctypes.byref(x.matrix()),
        *(norms, last, residues, int(same_sign), ctypes.c_double(balance)),
        *(rows, ctypes.c_int64(len(rows)), others, ctypes.c_int64(len(others))),
        *(ctypes.c_int64(k), ctypes.c_int64(room), order, row, cosine, score, left),
    )
    return row, cosine, score


def module(programs: Any, partners: Any, order: int = 0, room: int = ROOM) -> Any:
    """As :func:`emulated_cuda.module`, with the nearest rows of the library ``partners``; ``undecided`` of the last."""
    whole = emulated_cuda.module(programs, order)
    whole.undecided = np.empty(1, dtype=np.int64)
    whole.nearest_rows = partial(nearest_rows, partners, order, room=room, undecided=whole.undecided)
    return whole
