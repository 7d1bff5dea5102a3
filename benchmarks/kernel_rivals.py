"""Kernels by NumPy, torch, ckatorch, repsim and KeOps: all pairs of layers, and every candidate of a greedy step.

A kernel is named "RBF", "Laplacian" or "polynomial", with simkit's defaults: bandwidth 1/2 in units of the median
squared distance; degree 3, 1 / p and 1.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from .rivals import debiased_from_sums, package, tensors
from .truth import Array, Floats

# KeOps compiles a formula when it is called; without these flags its exponentials are fifteen times as slow.
os.environ.setdefault("CXXFLAGS", "-march=native -ffast-math")
AT_ONCE = 4  # candidates of torch: with fewer its threads wait for one another

# What of each kernel costs one multiply-add or as much, beside its inner products and sums.
EVALUATION = {
    "RBF": 8,  # 1 for the distance, 7 for the exponential
    "Laplacian": 11,  # a root, from an estimate by one step, takes 3 more
    "polynomial": 3,  # 1 to scale and shift, 2 for the cube
}


# --- NumPy ------------------------------------------------------------------------------------------------------------


def _pairs(z: Array, kernel: str) -> Array:
    """Inner products of all rows, or their squared distances."""
    products: Array = z @ z.T
    if kernel == "polynomial":
        return products
    norms = np.einsum("ij,ij->i", z, z)
    products *= -2
    products += norms[:, None]
    products += norms
    np.fill_diagonal(products, 0)  # whose rounding a root would make a thousand times as large
    return np.maximum(products, 0, out=products)


def _length(pairs: Array, kernel: str, width: int) -> float:
    """What scales the pairs, or their roots, in the kernel."""
    if kernel == "polynomial":
        return float(width)
    median = float(np.median(pairs))
    return 0.5 * median if kernel == "RBF" else 0.5 * median**0.5


def _evaluate(pairs: Array, kernel: str, length: float) -> Array:
    """The kernel of pairs, in place."""
    if kernel == "polynomial":
        pairs *= pairs.dtype.type(1 / length)
        pairs += 1
        pairs *= pairs * pairs
        return pairs
    if kernel == "Laplacian":
        np.sqrt(pairs, out=pairs)
    pairs *= pairs.dtype.type(-1 / length)
    return np.exp(pairs, out=pairs)


def _rows(x: Array, kernel: str, dtype: Any) -> Array:
    """Centred where that changes no distance, for the digits of a float32."""
    return x.astype(dtype) if kernel == "polynomial" else (x - x.mean(axis=0, dtype=np.float64)).astype(dtype)


def numpy_kernels_once(models: Sequence[Sequence[Array]], kernel: str) -> Floats:
    """Debiased CKA of all pairs: one float32 kernel matrix a layer, all pairs as one product."""
    rows, columns = models
    n = len(rows[0])
    grams = np.empty((len(rows) + len(columns), n, n), dtype=np.float32)
    for layer, gram in zip([*rows, *columns], grams, strict=True):
        pairs = _pairs(_rows(layer, kernel, np.float32), kernel)
        gram[:] = _evaluate(pairs, kernel, _length(pairs, kernel, layer.shape[1]))
        np.fill_diagonal(gram, 0)
    sums = grams.sum(axis=2, dtype=np.float64)
    flat = grams.reshape(len(grams), -1)
    return debiased_from_sums((flat @ flat.T).astype(np.float64), sums, n)[: len(rows), len(rows) :]


@dataclass(frozen=True)
class Prepared:
    """What a loop over candidates does once: the layer's pairs, the bandwidth, its centred kernel and the norm of that.

    ``space`` was written before, so that no candidate pays for its memory.
    """

    z: Any
    pairs: Any
    length: float
    original: Any
    own: float
    space: Any


def numpy_prepared(x: Array, kernel: str, dtype: Any) -> Prepared:
    """For :func:`numpy_candidates`."""
    z = _rows(x, kernel, dtype)
    pairs = _pairs(z, kernel)
    length = _length(pairs, kernel, x.shape[1])
    original = _evaluate(pairs.copy(), kernel, length)
    original -= original.mean(axis=0)
    original -= original.mean(axis=1)[:, None]
    return Prepared(z, pairs, length, original, float(np.vdot(original, original)), pairs.copy())


def numpy_candidates(of: Prepared, counted: int, kernel: str) -> Floats:
    """Biased CKA(all units, all but one) for the first ``counted``: the pairs are kept, one unit's part subtracted."""
    z, pairs, work, n = of.z, of.pairs, of.space, len(of.z)
    scores = np.empty(counted)
    for k in range(counted):
        column = np.ascontiguousarray(z[:, k])
        if kernel == "polynomial":
            np.multiply(column[:, None], column, out=work)
        else:
            np.subtract(column[:, None], column, out=work)
            np.multiply(work, work, out=work)
        np.subtract(pairs, work, out=work)
        if kernel == "Laplacian":  # rounding may leave less than nothing under its root
            np.maximum(work, 0, out=work)
        _evaluate(work, kernel, of.length)
        rows = work.sum(axis=0, dtype=np.float64)
        squares = float(np.vdot(work, work)) - 2 / n * float(rows @ rows) + float(rows.sum()) ** 2 / n**2
        scores[k] = float(np.vdot(work, of.original)) / np.sqrt(squares * of.own)
    return scores


# --- torch ------------------------------------------------------------------------------------------------------------


def _torch_pairs(z: Any, kernel: str) -> Any:
    import torch

    if kernel == "polynomial":
        return z @ z.T
    norms = z.square().sum(dim=1)
    return torch.addmm(norms[:, None] + norms, z, z.T, alpha=-2).clamp_(min=0).fill_diagonal_(0)


def _torch_length(pairs: Any, kernel: str, width: int) -> float:
    if kernel == "polynomial":
        return float(width)
    median = float(np.median(pairs.numpy()))  # torch's is as slow, and the lower of the middle two
    return 0.5 * median if kernel == "RBF" else 0.5 * median**0.5


def _torch_evaluate(pairs: Any, kernel: str, length: float) -> Any:
    if kernel == "polynomial":
        return pairs.mul_(1 / length).add_(1).pow_(3)
    if kernel == "Laplacian":
        pairs.sqrt_()
    return pairs.mul_(-1 / length).exp_()


def torch_kernels_once(models: Sequence[Sequence[Array]], kernel: str) -> Floats:
    """As :func:`numpy_kernels_once`."""
    import torch

    rows, columns = models
    n = len(rows[0])
    with torch.inference_mode():
        grams = torch.empty((len(rows) + len(columns), n, n))
        for layer, gram in zip(tensors([*rows, *columns]), grams, strict=True):
            pairs = _torch_pairs(layer if kernel == "polynomial" else layer - layer.mean(dim=0), kernel)
            gram.copy_(_torch_evaluate(pairs, kernel, _torch_length(pairs, kernel, layer.shape[1])))
            gram.fill_diagonal_(0)
        sums = grams.sum(dim=2, dtype=torch.float64).numpy()
        flat = grams.flatten(1)
        products = (flat @ flat.T).double().numpy()
    return debiased_from_sums(products, sums, n)[: len(rows), len(rows) :]


def torch_prepared(x: Array, kernel: str) -> Prepared:
    """For :func:`torch_candidates`."""
    import torch

    with torch.inference_mode():
        z = torch.from_numpy(_rows(x, kernel, np.float32))
        pairs = _torch_pairs(z, kernel)
        length = _torch_length(pairs, kernel, x.shape[1])
        original = _torch_evaluate(pairs.clone(), kernel, length)
        original -= original.mean(dim=0)
        original -= original.mean(dim=1, keepdim=True)
        own = float(original.flatten().dot(original.flatten()))
        return Prepared(z, pairs, length, original, own, torch.zeros(AT_ONCE, *pairs.shape))


def torch_candidates(of: Prepared, counted: int, kernel: str) -> Floats:
    """As :func:`numpy_candidates` in float32, several candidates at once."""
    import torch

    z, pairs, n = of.z, of.pairs, len(of.z)
    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, counted, AT_ONCE):
            some = z.T[start : min(start + AT_ONCE, counted)].contiguous()
            work = of.space[: len(some)]
            if kernel == "polynomial":
                torch.mul(some[:, :, None], some[:, None], out=work)
            else:
                torch.sub(some[:, :, None], some[:, None], out=work).square_()
            torch.sub(pairs, work, out=work)
            if kernel == "Laplacian":
                work.clamp_(min=0)
            _torch_evaluate(work, kernel, of.length)
            rows = work.sum(dim=1).double()
            flat = work.flatten(1)
            squares = torch.linalg.vector_norm(flat, dim=1).double().square()
            squares += rows.sum(dim=1).square() / n**2 - 2 / n * rows.square().sum(dim=1)
            scores += ((flat @ of.original.flatten()).double() / (squares * of.own).sqrt()).tolist()
    return np.array(scores)


# --- packages ---------------------------------------------------------------------------------------------------------


def ckatorch_rbf_table(models: Sequence[Sequence[Array]]) -> Floats:
    """ckatorch: its function of a pair for every pair, in float64; its threshold is simkit's bandwidth."""
    base = package("ckatorch.core").cka_base
    rows, columns = (tensors(layers) for layers in models)
    return np.array([[float(base(x, y, kernel="rbf", unbiased=True, threshold=0.5)) for y in columns] for x in rows])


def repsim_rbf_table(models: Sequence[Sequence[Array]]) -> Floats:
    """repsim: its RBF kernel of a bandwidth of its own, and its debiased HSIC, which it divides by the biased one."""
    table = package("repsim").cka([*models[0], *models[1]], "rbf", "song")
    result: Floats = np.asarray(table)[: len(models[0]), len(models[0]) :]
    return result


def keops_prepared(x: Array) -> tuple[Array, float]:
    """For :func:`keops_candidates`: the distances and their median, for the bandwidth, are NumPy's."""
    z = np.ascontiguousarray(x - x.mean(axis=0))
    return z, -1 / _length(_pairs(z, "RBF"), "RBF", x.shape[1])


def keops_candidates(prepared: tuple[Array, float]) -> Floats:
    """KeOps: biased CKA(all units, all but one) for every unit, their sums over pairs of samples in one pass."""
    keops = package("pykeops.numpy")
    z, scale = prepared
    n, units = z.shape
    parts = (keops.Vi(z) - keops.Vj(z)) ** 2
    every = (parts.sum(-1) * scale).exp()
    without = ((parts.sum(-1) - parts) * scale).exp()
    products = every.concat(keops.LazyTensor(1.0)).tensorprod(without)
    with redirect_stdout(StringIO()):
        sums = np.float64(products.concat(without**2).concat(every).concat(every**2).sum(axis=1))
    _keep_denormals()
    cross, rows, squares, original, own = np.split(sums, [units, 2 * units, 3 * units, 3 * units + 1], axis=1)

    def centred(total: Floats, first: Floats, second: Floats) -> Floats:
        """The inner products of centred kernels from those of the kernels and their row sums."""
        outer = first.sum(axis=0) * second.sum(axis=0) / n**2
        return np.asarray(total.sum(axis=0) - 2 / n * (first * second).sum(axis=0) + outer)

    top, bottom = centred(cross, original, rows), centred(squares, rows, rows) * centred(own, original, original)
    result: Floats = top / np.sqrt(bottom)
    return result


def keops_rbf_table(models: Sequence[Sequence[Array]]) -> Floats:
    """KeOps: debiased CKA of all pairs, the sums of all kernels and of their products in one pass over the samples.

    The distances and their medians, for the bandwidths, are NumPy's.
    """
    keops = package("pykeops.numpy")
    rows, columns = models
    n, values = len(rows[0]), None
    for layer in [*rows, *columns]:
        z = _rows(layer, "RBF", np.float32)
        z = np.ascontiguousarray(z / np.float32(_length(_pairs(z, "RBF"), "RBF", z.shape[1]) ** 0.5))
        value = (-keops.Vi(z).sqdist(keops.Vj(z))).exp()
        values = value if values is None else values.concat(value)
    assert values is not None
    with redirect_stdout(StringIO()):
        sums: Floats = np.asarray(values.concat(values.tensorprod(values)).sum(axis=1), dtype=np.float64)
    _keep_denormals()
    layers = len(rows) + len(columns)
    products = sums[:, layers:].sum(axis=0).reshape(layers, layers) - n  # the diagonals, which are 1
    return debiased_from_sums(products, sums[:, :layers].T - 1, n)[: len(rows), len(rows) :]


def _keep_denormals() -> None:
    """What is compiled with -ffast-math drops them everywhere."""
    ctypes.CDLL(None).fesetenv(ctypes.c_void_p(-1))
