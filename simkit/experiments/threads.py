"""Torch's threads for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

MOST_THREADS = 256  # more than the system grants ends the process without a word


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """So many threads inside, as many as before again outside; None changes nothing.

    Raises:
        ValueError: fewer than 1, or more than :data:`MOST_THREADS`.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must be from 1 to {MOST_THREADS}, not {threads}")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
