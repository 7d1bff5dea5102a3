"""A signal handler that updates another stream, on the thread that is adding a block of this one."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Literal

import numpy as np
import pytest
from streams import Array, Layers, rows_of, same_state

import simkit as sk

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")


def added(layers: Layers, products: Literal["float64", "float32"]) -> dict[str, Array]:
    stream = sk.StreamingCKA(products=products, threads=2)
    for first in range(0, 2048, 512):
        stream.update(rows_of(layers, slice(first, first + 512)))
    return stream.state_dict()


@pytest.mark.parametrize("products", ["float64", "float32"])
def test_a_handler_may_update_a_wider_stream(products: Literal["float64", "float32"]) -> None:
    r = np.random.default_rng(0)
    layers = {"x": r.standard_normal((2048, 3000)).astype(np.float32)}
    wider = {"y": r.standard_normal((1024, 3200)).astype(np.float32)}
    want, want_wider = added(layers, products), sk.StreamingCKA(products=products, threads=1)
    want_wider.update(wider)
    seen: list[sk.StreamingCKA] = []

    def handler(_number: int, _frame: FrameType | None) -> None:
        if len(seen) < 3:
            seen.append(sk.StreamingCKA(products=products, threads=1))
            seen[-1].update(wider)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        found = added(layers, products)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    assert same_state(found, want)
    for stream in seen:
        assert same_state(stream.state_dict(), want_wider.state_dict())
