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
    stream = sk.StreamingCKA(products=products, threads=1)
    for first in range(0, 1536, 512):
        stream.update(rows_of(layers, slice(first, first + 512)))
    return stream.state_dict()


@pytest.mark.parametrize("products", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_handler_may_update_a_wider_stream(products: Literal["float64", "float32"]) -> None:
    r = np.random.default_rng(0)
    layers = {"x": r.standard_normal((1536, 4500)).astype(np.float32)}
    wider = {"y": r.standard_normal((1024, 4700)).astype(np.float32)}
    want = added(layers, products)
    seen: list[dict[str, Array]] = []
    inside: list[bool] = []

    def handler(_number: int, _frame: FrameType | None) -> None:
        if not inside and len(seen) < 5:
            inside.append(True)
            other = sk.StreamingCKA(products=products, threads=1)
            other.update(wider)
            seen.append(other.state_dict())
            inside.pop()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        found = added(layers, products)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    assert same_state(found, want)
    want_wider = sk.StreamingCKA(products=products, threads=1)
    want_wider.update(wider)
    for state in seen:
        assert same_state(state, want_wider.state_dict())
