"""All layers of a VGG-16 scored by CKA damage: full greedy orders, beside the forward passes of the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from time import process_time
from typing import Any, Literal

import numpy as np
import pytest

from .conftest import Measure
from .protocol import Contestant, Workload
from .truth import Array, Floats, centred, greedy_order, order_error, unit_products

torch = pytest.importorskip("torch")
nn = torch.nn

WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
BATCH = 256
CHOICE = 1e-6  # float32 activations: every choice within this of the best
COLUMNS = 4096  # up to so many, products of columns are the cheaper reference

Order = tuple[Array, Floats]


@dataclass(frozen=True)
class Scored:
    """A network, images, and the subject of the criterion (made beforehand: it is the same for every criterion)."""

    model: Any
    images: Any
    subject: Any
    counts: Mapping[str, int]


@pytest.mark.parametrize("reduce", ["flatten", "positions"])
def test_vgg16(measure: Measure, full: bool, reduce: Literal["flatten", "positions"]) -> None:
    """Orders of every convolution; at full size three of them are checked, else all."""
    from simkit import pruning as P

    scored = _network(full)
    layers = list(scored.counts)
    checked = [layers[0], layers[6], layers[-1]] if full else layers
    products = {name: _products(values, reduce) for name, values in _values(scored, checked)}
    score = P.CKADamage(reduce=reduce, samples=len(scored.images))

    def orders(of: Scored) -> dict[str, Order]:
        found = score.rank(of.subject, of.counts)
        return {name: (np.array(one.order), 1.0 - np.array(one.scores)) for name, one in found.items()}

    def error(answer: Mapping[str, Order]) -> float:
        return max(_error(products[name], answer[name]) for name in checked)

    n, sizes = len(scored.images), _sizes(scored)
    forward = n * scored.subject.graph.macs()
    result = measure(
        Workload(
            key=f"VGG16-{reduce}",
            title=f'CKADamage(reduce="{reduce}"), full greedy orders of {len(layers)} layers of a VGG-16, {n} images',
            sizes={"n": n, "units": [units for units, _ in sizes], "positions": [area for _, area in sizes]},
            inputs=[scored],
            error=error,
            tolerance=CHOICE,
            precision="float32",
            multiply_adds=forward + sum(_least(n, *size, reduce) for size in sizes),
            bytes=4 * n * sum(units * area for units, area in sizes),
        ),
        Contestant("simkit", orders),
        [
            Contestant("the forward passes alone", _forward, error=lambda _: 0.0, note="scores nothing"),
            Contestant("hooks + NumPy, closed form, float32", lambda of: _by_numpy(of, reduce), once=full),
        ],
    )
    _note(result, scored)


def _note(result: dict[str, Any], scored: Scored) -> None:
    from simkit import pruning as P

    rows = {row["name"]: row for row in result["contestants"]}
    if "seconds" in rows["simkit"]:
        bare = rows["the forward passes alone"]["ratio_to_limit"]
        result["notes"].append(f"simkit takes {rows['simkit']['ratio_to_limit'] / bare:.2f} × the forward passes")
        start = process_time()
        P.trace(scored.model, scored.images[:2])
        spent = process_time() - start
        result["notes"].append(f"tracing the network, once for all criteria, takes {spent:.1f} s of processor time")


@cache
def _network(full: bool) -> Scored:
    """VGG-16 with BatchNorm for images of 32 × 32, its statistics those of the images."""
    from simkit import pruning as P
    from simkit.pruning.scores import Subject

    images = _images(2000 if full else 20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts: list[Any] = []
        before = 1
        for width in WIDTHS:
            if isinstance(width, int):
                after = width if full else width // 16
                parts += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
                before = after
            else:
                parts.append(nn.MaxPool2d(2))
        model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(before, 10)).eval()
    model = P.recalibrated(model, images[:BATCH])
    graph = P.trace(model, images[:2])
    counts = {group.name: group.units - 1 for group in graph.prunable}
    return Scored(model, images, Subject(model, graph, graph.prunable, images[:2], images), counts)


def _images(count: int) -> Any:
    """The first test images of Fashion-MNIST on a black frame; where it is not installed, noise of the same shape."""
    from simkit import train

    try:
        images = train.fashion_mnist().test_x[:count]
    except ValueError:
        images = torch.from_numpy(np.random.default_rng(0).standard_normal((count, 1, 28, 28), dtype=np.float32))
    return nn.functional.pad(images, (2, 2, 2, 2))


def _values(scored: Scored, layers: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Channels ``[n, units, h, w]`` after BatchNorm and ReLU, one layer at a time, by hooks of our own."""
    for name in layers:
        held: list[Array] = []

        def keep(_module: object, _inputs: object, output: Any, held: list[Array] = held) -> None:
            held.append(output.numpy().copy())

        hook = scored.model[int(name) + 2].register_forward_hook(keep)  # the ReLU after its BatchNorm
        _forward(scored)
        hook.remove()
        yield name, np.concatenate(held)


def _forward(scored: Scored) -> None:
    with torch.inference_mode():
        for batch in torch.split(scored.images, BATCH):
            scored.model(batch)


def _sizes(scored: Scored) -> list[tuple[int, int]]:
    """(units, positions) of every layer."""
    return [(group.units, group.post.elements // group.units) for group in scored.subject.graph.prunable]


def _least(n: int, units: int, area: int, reduce: str) -> int:
    if reduce == "positions":
        return n * area * units * (units + 1) // 2
    p = units * area
    return min(n * n * p // 2 + n * n * units * units // 4, n * p * (p + 1) // 2)


def _products(values: Array, reduce: str) -> Floats:
    """⟨K_i, K_j⟩ of all channels, in float64."""
    n, units = values.shape[:2]
    if reduce == "positions":
        return np.square(_scatter(values, np.float64))
    flat = values.reshape(n, -1)
    if flat.shape[1] > COLUMNS:
        return unit_products(flat, units)
    z = centred(flat)
    return np.square(z.T @ z).reshape(units, -1, units, flat.shape[1] // units).sum(axis=(1, 3))


def _scatter(values: Array, dtype: type) -> Floats:
    """XᵀX of centred rows, a row for every position of every sample, by strips."""
    units = values.shape[1]
    rows = values.reshape(len(values), units, -1)
    mean = rows.mean(axis=(0, 2), dtype=np.float64)[:, None]
    found = np.zeros((units, units))
    for strip in rows:
        z = (strip - mean).astype(dtype)
        found += z @ z.T
    return found


def _error(products: Floats, answer: Order) -> float:
    """As ``order_error`` for an order without its last unit."""
    order, cka = answer
    last = np.setdiff1d(np.arange(len(products)), order)
    return order_error(products, [*order.tolist(), *last.tolist()], np.append(cka, np.nan))


def _by_numpy(scored: Scored, reduce: str) -> dict[str, Order]:
    found = {}
    for name, values in _values(scored, list(scored.counts)):
        n, units = values.shape[:2]
        if reduce == "positions":
            products = np.square(_scatter(values, np.float32))
        else:
            flat = values.reshape(n, units, -1)
            z = flat - flat.mean(axis=0, dtype=np.float64).astype(np.float32)
            products = _gram_products(z) if z[0].size > COLUMNS else _column_products(z)
        order, cka = greedy_order(products)
        found[name] = (order[:-1], cka[:-1])
    return found


def _column_products(z: Array) -> Floats:
    n, units, area = z.shape
    flat = z.reshape(n, -1)
    return np.square(flat.T @ flat, dtype=np.float64).reshape(units, area, units, area).sum(axis=(1, 3))


def _gram_products(z: Array) -> Floats:
    """By strips of the Gram matrices of every channel: all of them at once would not fit."""
    units = z.shape[1]
    blocks = np.ascontiguousarray(z.transpose(1, 0, 2))
    found = np.zeros((units, units))
    for start in range(0, len(z), 64):
        strip = (blocks[:, start : start + 64] @ blocks.transpose(0, 2, 1)).reshape(units, -1)
        found += strip @ strip.T
    return found
