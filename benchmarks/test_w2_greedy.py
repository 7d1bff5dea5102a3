"""W2 and W3: the full order in which a layer's units can go at the least CKA damage."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import simkit as sk

from .conftest import FromNumba, Measure
from .features import cold_sets, relu_layers
from .protocol import Contestant, Workload
from .requirements import memory_kept
from .rivals import compiled, from_package
from .truth import Array, Floats, centred, greedy_order, order_error, unit_products

ONCE = "the products of the original formed once, their time added as it is"
CHOICE = 1e-6  # float32 activations: every choice within this of the best


def test_w2_greedy(measure: Measure, full: bool, from_numba: FromNumba) -> None:
    """Columns of a dense layer, against the source paper's loop and the closed form in NumPy.

    Unlike the paper's code, the loop forms the products of the original once, not again for every candidate.
    """
    n, p = (10_000, 512) if full else (500, 24)
    evaluations = p * (p + 1) // 2 - 1
    counted = min(8, p) if full else p
    sets = cold_sets(lambda seed: relu_layers(seed, n, (p,), models=1)[0][0], 4 * n * p)
    products = unit_products(sets[0], p)
    first_scores = _first_scores(products)
    workload = Workload(
        key="W2",
        title=f"greedy CKA order of {p} neurons, n = {n}",
        sizes={"n": n, "p": p},
        inputs=sets,
        error=lambda answer: order_error(products, *answer),
        tolerance=CHOICE,
        precision="float32",
        multiply_adds=n * p * (p + 1) // 2,
        bytes=4 * n * p,
    )
    result = measure(
        workload,
        Contestant("simkit", lambda x: _order(sk.greedy_cka(x))),
        [
            Contestant(
                "the loop over candidates (Kornblith's feature-space CKA)",
                partial(_loop, counted=counted),
                prepare=_loop_prepared,
                error=lambda scores: float(np.abs(scores - first_scores[:counted]).max()),
                scale=evaluations / counted,
                once=full,
                note=f"{counted} of {evaluations} evaluations timed and scaled, {ONCE}; its error is of their CKA",
            ),
            Contestant("NumPy, closed form, float32", _closed_form),
            Contestant("NumPy, closed form, float64", _closed_form_double),
            from_numba(Contestant("numba, closed form, float32", partial(compiled, "greedy_columns"))),
            from_package("torch", Contestant("torch, closed form, float32", _closed_form_torch)),
        ],
    )
    own = sk.greedy_cka(np.float64(sets[0])).order
    assert own.tolist() == greedy_order(products)[0].tolist()
    same = np.mean(sk.greedy_cka(sets[0]).order == own)
    result["notes"].append(f"{100 * same:g}% of the float32 order is that of float64, which is the reference's")


def test_w3_greedy_channels(measure: Measure, full: bool) -> None:
    """Channels of a convolution: each unit is a block of h·w columns."""
    n, channels, area = (2048, 256, 256) if full else (256, 12, 16)
    p = channels * area
    evaluations = channels * (channels + 1) // 2 - 1
    counted = 2 if full else channels
    sets = [relu_layers(seed, n, (p,), models=1)[0][0] for seed in range(1 if full else 2)]  # 0.5 GB each at full size
    products = unit_products(sets[0], channels)
    workload = Workload(
        key="W3",
        title=f"greedy CKA order of {channels} channels of {area} positions, n = {n}",
        sizes={"n": n, "channels": channels, "positions": area},
        inputs=sets,
        error=lambda answer: order_error(products, *answer),
        tolerance=CHOICE,
        precision="float32",
        multiply_adds=min(n * n * p // 2 + n * n * channels * channels // 4, n * p * (p + 1) // 2),
        bytes=4 * n * p,
    )
    result = measure(
        workload,
        Contestant("simkit", lambda x: _order(sk.greedy_cka(x, units=channels))),
        [
            Contestant(
                "the loop over candidates (CKA of Gram matrices)",
                partial(_channel_loop, channels=channels, counted=counted),
                prepare=_channel_loop_prepared,
                error=lambda scores: float(np.abs(scores - _first_scores(products)[:counted]).max()),
                scale=evaluations / counted,
                once=full,
                note=f"{counted} of {evaluations} evaluations timed and scaled, {ONCE}; its error is of their CKA",
            ),
            Contestant(
                "NumPy, Gram matrix of each channel, float32", partial(_channel_grams, channels=channels), once=full
            ),
            from_package(
                "torch",
                Contestant(
                    "torch, Gram matrix of each channel, float32",
                    partial(_channel_grams_torch, channels=channels),
                    once=full,
                ),
            ),
        ],
    )
    memory_kept(result)


def _order(found: Any) -> tuple[Array, Floats]:
    return found.order, found.cka


def _loop_prepared(x: Array) -> tuple[Array, float]:
    """The centred columns, which stay centred when some are zeroed, and the norm of their products."""
    original = x - x.mean(axis=0)
    return original, float(np.linalg.norm(original.T @ original))


def _loop(prepared: tuple[Array, float], counted: int) -> Floats:
    """CKA(original, one column zeroed) for the first ``counted`` columns, each from two cross-products."""
    original, norm = prepared
    scores = np.empty(counted)
    for k in range(counted):
        pruned = original.copy()
        pruned[:, k] = 0
        scores[k] = np.linalg.norm(original.T @ pruned) ** 2 / (norm * np.linalg.norm(pruned.T @ pruned))
    return scores


def _channel_loop_prepared(x: Array) -> tuple[Array, Array, float]:
    """The centred columns, their Gram matrix and its norm."""
    original = x - x.mean(axis=0)
    gram = original @ original.T
    return original, gram, float(np.linalg.norm(gram))


def _channel_loop(prepared: tuple[Array, Array, float], channels: int, counted: int) -> Floats:
    """As :func:`_loop` for blocks of columns, by Gram matrices: there are more columns than samples."""
    original, gram, norm = prepared
    area = original.shape[1] // channels
    scores = np.empty(counted)
    for k in range(counted):
        pruned = original.copy()
        pruned[:, k * area : (k + 1) * area] = 0
        second = pruned @ pruned.T
        scores[k] = np.vdot(gram, second) / (norm * np.linalg.norm(second))
    return scores


def _first_scores(products: Floats) -> Floats:
    r, total = products.sum(axis=1), products.sum()
    scores: Floats = (total - r) / np.sqrt(total * (total - 2 * r + np.diagonal(products)))
    return scores


def _closed_form(x: Array) -> tuple[Array, Floats]:
    z = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    return greedy_order(np.square(z.T @ z, dtype=np.float64))


def _closed_form_torch(x: Array) -> tuple[Array, Floats]:
    """The product by torch; the loop by NumPy, whose calls on 512 numbers cost less than torch's."""
    import torch

    with torch.inference_mode():
        t = torch.from_numpy(x)
        z = t - t.mean(dim=0)
        return greedy_order((z.T @ z).double().square_().numpy())


def _closed_form_double(x: Array) -> tuple[Array, Floats]:
    z = centred(x)
    return greedy_order(np.square(z.T @ z))


def _channel_grams(x: Array, channels: int) -> tuple[Array, Floats]:
    z = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    blocks = z.reshape(len(z), channels, -1).transpose(1, 0, 2)
    grams = np.empty((channels, len(z), len(z)), dtype=x.dtype)
    for block, gram in zip(blocks, grams, strict=True):
        np.matmul(block, block.T, out=gram)
    flat = grams.reshape(channels, -1)
    return greedy_order((flat @ flat.T).astype(np.float64))


def _channel_grams_torch(x: Array, channels: int) -> tuple[Array, Floats]:
    """As :func:`_channel_grams`."""
    import torch

    with torch.inference_mode():
        t = torch.from_numpy(x)
        blocks = (t - t.mean(dim=0)).unflatten(1, (channels, -1)).transpose(0, 1)
        grams = torch.empty(channels, len(x), len(x))
        for block, gram in zip(blocks, grams, strict=True):
            torch.mm(block, block.T, out=gram)
        flat = grams.flatten(1)
        return greedy_order((flat @ flat.T).double().numpy())
