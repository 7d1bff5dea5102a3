"""Matrix products at every precision that torch's library offers, and the machine's ceilings by them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ..protocol import finite
from .device import Device

PRECISIONS = ("float64", "float32", "tf32 split", "tf32", "bf16", "fp16")
MODES = PRECISIONS[:4]  # those whose entries keep their exponents and most digits: rivals of exact answers
KEPT_BITS = -(2**13)  # of a float32's pattern: the sign, the exponent and ten digits, which is all that TF32 reads
COPIED = 2**30  # bytes of the array whose copy gives the bandwidth
TRIES = 5


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 matrices may read ten digits only."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product(a: Any, b: Any, precision: str) -> Any:
    """``a @ b``; what "tf32 split" misses is one part in 2²² of the products."""
    if precision == "float64":
        return a.double() @ b.double()
    if precision in ("bf16", "fp16"):
        return _of(a, precision) @ _of(b, precision)
    if precision == "tf32 split":
        return product_of_splits(split(a), split(b))
    with tf32(precision == "tf32"):
        return a @ b


def right_products(b: Any, precision: str) -> Callable[[Any], Any]:
    """``product(a, b, precision)`` as a function of ``a``, for many of them: ``b`` is split once."""
    if precision != "tf32 split":
        return partial(product, b=b, precision=precision)
    parts = split(b)
    return lambda a: product_of_splits(split(a), parts)


def product_of_splits(left: tuple[Any, Any], right: tuple[Any, Any]) -> Any:
    """Three TF32 products for one, each added to those before as it is formed."""
    (high, low), (other, rest) = left, right
    with tf32(True):
        if high.ndim == 2:
            return (high @ rest).addmm_(low, other).addmm_(high, other)
        return (high @ rest).baddbmm_(low, other).baddbmm_(high, other)


def gram(z: Any, precision: str) -> Any:
    """``z @ z.T``; "tf32 split" takes two products of its three, for the third is a transpose."""
    if precision != "tf32 split":
        return product(z, z.T, precision)
    with tf32(True):
        high, low = split(z)
        mixed = high @ low.T
        return (mixed + mixed.T).addmm_(high, high.T)


def split(x: Any) -> tuple[Any, Any]:
    """``x`` as what TF32 reads of it, exactly, and the rest."""
    high = (x.view(torch.int32) & KEPT_BITS).view(torch.float32)
    return high, x - high


def prepared(x: Any, precision: str) -> Any:
    """``x`` in the type that products of this precision take."""
    return x.double() if precision == "float64" else x.float()


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second read and written by a copy, and multiply-adds a second of square products by precision."""

    when: str
    copied: float
    rates: dict[str, float]

    def as_data(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def measure_ceilings(device: Device, when: str, side: int, copied: int = COPIED) -> Ceilings:
    """What this device does right now: medians of five, each from a flushed cache."""
    source = _random(device, copied // 4)
    target = torch.empty_like(source)
    moved = 2 * copied / _median(device, partial(target.copy_, source))
    a, b = (_random(device, side * side, seed).view(side, side) for seed in range(2))
    rates = {}
    for precision in PRECISIONS:
        left, right = (_of(x, precision) for x in (a, b))
        call = partial(product, left, right, precision)
        if precision == "tf32 split":  # of what is split already: a fused kernel splits as it loads
            call = partial(product_of_splits, split(left), split(right))
        rates[precision] = side**3 / _median(device, call)
    return Ceilings(when, moved, rates)


def product_errors(device: Device, side: int) -> dict[str, float | str | None]:
    """‖product - float64 product‖ / ‖float64 product‖ of float32 values, by precision."""
    a, b = (_random(device, side * side, seed).view(side, side) for seed in range(2))
    exact = product(a, b, "float64")
    found = {}
    for precision in PRECISIONS:
        off = product(a, b, precision).double() - exact
        found[precision] = finite(float(off.norm() / exact.norm()))
    return found


def _random(device: Device, count: int, seed: int = 0) -> Any:
    generator = torch.Generator(device=device.where).manual_seed(seed)
    return torch.randn(count, generator=generator, device=device.where)


def _of(x: Any, precision: str) -> Any:
    kinds = {"float64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
    return x.to(kinds.get(precision, torch.float32))


def _median(device: Device, call: Callable[[], Any]) -> float:
    for _ in range(2):
        call()
    seconds = []
    for _ in range(TRIES):
        device.flush()
        seconds.append(device.timed(call).events)
    return max(statistics.median(seconds), 1e-9)
