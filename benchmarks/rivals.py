"""Other ways to get the same numbers: published packages called at their best, NumPy and torch as a good user writes.

All take lists of float32 layers and return what the workload's error function reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np

from .machine import PACKAGES
from .protocol import Contestant, Missing
from .truth import Array, Floats


def package(name: str) -> Any:
    """The package that is imported as ``name``, or :class:`Missing` with why it does not run here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except Exception as error:
        return Missing(
            PACKAGES.get(name.split(".", maxsplit=1)[0], name), f"not installed ({type(error).__name__}: {error})"
        )


def from_package(name: str, contestant: Contestant) -> Contestant | Missing:
    """The contestant, or why the package it calls does not run here."""
    found = package(name)
    return Missing(contestant.name, found.reason) if isinstance(found, Missing) else contestant


def compiled(function: str, *arguments: Any) -> Any:
    """What a function of :mod:`.numba_rivals` returns, which is imported where numba is installed."""
    return getattr(import_module(".numba_rivals", __package__), function)(*arguments)


def tensors(layers: Sequence[Array]) -> list[Any]:
    """Torch tensors on the same memory."""
    import torch

    return [torch.from_numpy(np.ascontiguousarray(layer)) for layer in layers]


# --- all pairs of layers, debiased linear CKA ---------------------------------------------------------------------


def numpy_gram_once(models: Sequence[Sequence[Array]]) -> Floats:
    """NumPy: centre, one float32 Gram matrix a layer, all pairs as one product; only the upper half would be new."""
    rows, columns = models
    n = len(rows[0])
    grams = np.empty((len(rows) + len(columns), n, n), dtype=np.float32)
    diagonals = np.empty((len(grams), n))
    for layer, gram, diagonal in zip([*rows, *columns], grams, diagonals, strict=True):
        z = layer - layer.mean(axis=0, dtype=np.float64).astype(layer.dtype)
        np.matmul(z, z.T, out=gram)
        diagonal[:] = np.diagonal(gram)
        np.fill_diagonal(gram, 0)
    sums = grams.sum(axis=2, dtype=np.float64)
    flat = grams.reshape(len(grams), -1)
    return debiased_from_sums((flat @ flat.T).astype(np.float64), sums, n)[: len(rows), len(rows) :]


def torch_gram_once(models: Sequence[Sequence[Array]]) -> Floats:
    """torch: as :func:`numpy_gram_once`."""
    import torch

    rows, columns = models
    n = len(rows[0])
    with torch.inference_mode():
        grams = torch.empty((len(rows) + len(columns), n, n))
        for layer, gram in zip(tensors([*rows, *columns]), grams, strict=True):
            z = layer - layer.mean(dim=0)
            torch.mm(z, z.T, out=gram)
            gram.fill_diagonal_(0)
        sums = grams.sum(dim=2, dtype=torch.float64).numpy()
        flat = grams.flatten(1)
        products = (flat @ flat.T).double().numpy()
    return debiased_from_sums(products, sums, n)[: len(rows), len(rows) :]


def debiased_from_sums(products: Floats, sums: Floats, n: int) -> Floats:
    """CKA from ⟨K̃, L̃⟩ of all pairs and the row sums of each K̃ (diagonals zero)."""
    totals = sums.sum(axis=1)
    hsic = products + np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums @ sums.T)
    own = np.sqrt(np.diagonal(hsic))
    result: Floats = hsic / np.outer(own, own)
    return result


def pytorch_cka_features(models: Sequence[Sequence[Array]]) -> Floats:
    """pytorch-cka: its vectorised call for features in memory."""
    import torch

    with torch.inference_mode():
        table = package("cka").cka_from_features(tensors(models[0]), tensors(models[1]))
    result: Floats = table.double().numpy()
    return result


def torch_cka_arithmetic(models: Sequence[Sequence[Array]]) -> Floats:
    """torch_cka: the loop of its ``compare`` with its own HSIC, on features in memory as one batch."""
    import torch

    hsic = package("torch_cka").CKA._HSIC
    rows, columns = (tensors(layers) for layers in models)
    of = SimpleNamespace(device="cpu")
    table = np.zeros((3, len(rows), len(columns)))
    with torch.inference_mode():
        for i, x in enumerate(rows):
            k = x @ x.t()
            k.fill_diagonal_(0.0)
            table[0, i, :] = hsic(of, k, k)
            for j, y in enumerate(columns):
                gram = y @ y.t()
                gram.fill_diagonal_(0)
                table[1, i, j] = hsic(of, k, gram)
                table[2, i, j] = hsic(of, gram, gram)
    with np.errstate(invalid="ignore"):
        result: Floats = table[1] / (np.sqrt(table[0]) * np.sqrt(table[2]))
    return result


def repsim_table(models: Sequence[Sequence[Array]]) -> Floats:
    """repsim: its debiased HSIC, which it divides by the biased one; all layers of both models with one another."""
    table = package("repsim").cka([*models[0], *models[1]], "linear", "song")
    result: Floats = np.asarray(table)[: len(models[0]), len(models[0]) :]
    return result


def ckatorch_like_pairs(models: Sequence[Sequence[Array]]) -> Floats:
    """ckatorch: its function, in float64, of every layer and the one of its width: their mean cost is that of all."""
    return np.array([ckatorch_pair(x, y) for x, y in zip(*models, strict=True)])


def rsatoolbox_table(models: Sequence[Sequence[Array]]) -> Floats:
    """rsatoolbox: one RDM a layer, all pairs in one call; see :func:`rsatoolbox_pair`."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        rsa = package("rsatoolbox")
        rdms = [
            rsa.rdm.calc_rdm([rsa.data.Dataset(np.float64(x)) for x in side], method="euclidean") for side in models
        ]
        result: Floats = np.asarray(rsa.rdm.compare(*rdms, method="cosine_cov"))
    return result


# --- one pair ---------------------------------------------------------------------------------------------------


def torch_cka_pair(x: Array, y: Array) -> float:
    """torch_cka: models that hand their input on, all samples in one batch."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    loaders = [DataLoader(TensorDataset(t), batch_size=len(t)) for t in tensors([x, y])]
    models = [torch.nn.Sequential(torch.nn.Identity()) for _ in range(2)]
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        comparison = package("torch_cka").CKA(*models, "a", "b", ["0"], ["0"], device="cpu")
        comparison.compare(*loaders)
    return float(comparison.export()["CKA"][0, 0])


def pytorch_cka_pair(x: Array, y: Array) -> float:
    """pytorch-cka."""
    return float(pytorch_cka_features([[x], [y]])[0, 0])


def ckatorch_pair(x: Array, y: Array) -> float:
    """ckatorch: its function, which works in float64."""
    core = package("ckatorch.core")
    return float(core.cka_base(*tensors([x, y]), kernel="linear", unbiased=True))


def rsatoolbox_pair(x: Array, y: Array) -> float:
    """rsatoolbox: whitened cosine of squared Euclidean RDMs, which is *biased* linear CKA."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        rsa = package("rsatoolbox")
        rdms = [rsa.rdm.calc_rdm(rsa.data.Dataset(np.float64(v)), method="euclidean") for v in (x, y)]
        return float(np.squeeze(rsa.rdm.compare(*rdms, method="cosine_cov")))


def notebook_pair(x: Array, y: Array) -> float:
    """The debiased feature-space formula of Kornblith's notebook, in the precision of the input, as often copied."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    n = len(x)
    rows_x, rows_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)

    def debiased(cross: Any, first: Array, second: Array) -> Any:
        return cross - n / (n - 2.0) * first.dot(second) + first.sum() * second.sum() / ((n - 1) * (n - 2))

    with np.errstate(all="ignore"):
        top = debiased(np.linalg.norm(x.T.dot(y)) ** 2, rows_x, rows_y)
        norm_x = np.sqrt(debiased(np.linalg.norm(x.T.dot(x)) ** 2, rows_x, rows_x))
        norm_y = np.sqrt(debiased(np.linalg.norm(y.T.dot(y)) ** 2, rows_y, rows_y))
        return float(top / (norm_x * norm_y))


def repsim_pair(measure: str, inputs: tuple[Array, Array], *options: str) -> float:
    """repsim: one of its measures, by name, in float64."""
    return float(getattr(package("repsim"), measure)(list(inputs), *options)[0, 1])
