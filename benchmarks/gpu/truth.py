"""The float64 references on the device, by torch: for sizes at which the host's (``benchmarks/truth.py``) take minutes.

Each is checked against the host's at a small size before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..truth import Array, Floats

STRIP = 2**27  # elements of the strips of Gram matrices that are held at a time


def centred(x: Any) -> Any:
    """Features in float64 without their column means."""
    values = x.double()
    return values - values.mean(dim=0)


def cka_table(rows: Sequence[Any], columns: Sequence[Any], *, debiased: bool = True, repeats: int = 1) -> Floats:
    """As ``benchmarks.truth.cka_table``: linear CKA of all pairs, as if the samples had been seen ``repeats`` times."""
    z = [centred(x) for x in [*rows, *columns]]
    wide = max(layer.shape[1] for layer in z) > len(z[0])
    hsic = repeats**2 * (_products_by_samples(z) if wide else _products_by_features(z))
    if debiased:
        squares = torch.stack([(layer * layer).sum(dim=1) for layer in z])
        n, sums = len(z[0]) * repeats, squares.sum(dim=1)
        hsic -= n / (n - 2) * repeats * (squares @ squares.T)
        hsic += repeats**2 * torch.outer(sums, sums) / ((n - 1) * (n - 2))
    own = hsic.diagonal().sqrt()
    table: Floats = (hsic / torch.outer(own, own))[: len(rows), len(rows) :].cpu().numpy()
    return table


def _products_by_samples(z: Sequence[Any]) -> Any:
    """⟨K_i, K_j⟩ from strips of the upper halves of the Gram matrices."""
    n, count = len(z[0]), len(z)
    rows = max(1, min(n, STRIP // (count * n)))
    products = torch.zeros((count, count), dtype=torch.float64, device=z[0].device)
    for start in range(0, n, rows):
        strip = torch.stack([layer[start : start + rows] @ layer[start:].T for layer in z])
        strip[:, :, rows:] *= 2**0.5  # stands for its mirror image too
        flat = strip.flatten(1)
        products += flat @ flat.T
    return products


def _products_by_features(z: Sequence[Any]) -> Any:
    """‖X_iᵀX_j‖² from one cross-product of all features."""
    every = torch.cat(list(z), dim=1)
    squares = (every.T @ every).square_()
    of = torch.repeat_interleave(torch.tensor([layer.shape[1] for layer in z], device=every.device))
    rows = torch.zeros((len(z), len(of)), dtype=torch.float64, device=every.device).index_add_(0, of, squares)
    return torch.zeros((len(z), len(z)), dtype=torch.float64, device=every.device).index_add_(1, of, rows)


def unit_products(x: Any, units: int) -> Any:
    """As ``benchmarks.truth.unit_products``: ⟨K_i, K_j⟩ of blocks of neighbouring columns, ``[units, units]``."""
    z = centred(x)
    if units == x.shape[1]:
        return (z.T @ z).square_()
    n = len(z)
    blocks = z.view(n, units, -1).transpose(0, 1)
    rows = max(1, min(n, STRIP // (units * n)))
    products = torch.zeros((units, units), dtype=torch.float64, device=x.device)
    for start in range(0, n, rows):
        strip = (blocks[:, start : start + rows] @ blocks.transpose(1, 2)).flatten(1)
        products += strip @ strip.T
    return products


def order_error(products: Any, order: Sequence[int], reported: Floats) -> float:
    """As ``benchmarks.truth.order_error``: how far a choice fell short of the best, or a reported CKA is off."""
    products = torch.as_tensor(products)
    r, diagonal, total = products.sum(dim=1), products.diagonal(), products.sum()
    top, bottom, q = total, total, r.clone()
    kept = torch.ones(len(r), dtype=torch.bool, device=products.device)
    worst = torch.zeros((), dtype=torch.float64, device=products.device)
    for k, value in zip(np.asarray(order)[:-1].tolist(), reported[:-1].tolist(), strict=True):
        scores = ((top - r) / torch.sqrt(total * (bottom - 2 * q + diagonal))).masked_fill(~kept, -torch.inf)
        chosen = scores[k]
        kept[k] = False
        top, bottom = top - r[k], bottom - 2 * q[k] + diagonal[k]
        worst = torch.maximum(worst, torch.maximum(scores.max() - chosen, (value - chosen).abs()))
        q -= products[k]
    return float(worst)


def graph_measures(w: Any, cosines: Array) -> list[tuple[int, int, int]]:
    """As ``benchmarks.truth.graph_measures``; the products are formed on the device, the rest is SciPy's and NumPy's.

    Once no vertex would cover two that are uncovered, those that are left are chosen one by one: they are counted.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    u = w.double()
    u = u / u.norm(dim=1, keepdim=True)
    similarity = u @ u.T
    similarity.fill_diagonal_(2.0)
    measures = []
    for cosine in np.asarray(cosines, dtype=np.float64):
        ball = (similarity >= float(cosine)).cpu().numpy()
        components, _ = connected_components(csr_array(ball), directed=False)
        gain, uncovered, cover = ball.sum(axis=1), np.ones(len(ball), dtype=bool), 0
        while gain.max() > 1:
            new = ball[gain.argmax()] & uncovered
            gain -= ball[new].sum(axis=0)
            uncovered &= ~new
            cover += 1
        measures.append((int(components), (int(ball.sum()) - len(ball)) // 2, cover + int(uncovered.sum())))
    return measures


def kernel_candidates(x: Any, kept: Array, candidates: Array) -> Floats:
    """As ``benchmarks.truth.kernel_candidates``: CKA(all columns, kept columns without each candidate), RBF kernel."""
    z = centred(x)
    every = _distances(z)
    length = 0.5 * median(every)
    original = _double_centred(torch.exp(every / -length))
    own = (original * original).sum()
    scores = []
    for candidate in candidates:
        columns = z[:, torch.from_numpy(np.setdiff1d(kept, [candidate])).to(z.device)]
        left = _double_centred(torch.exp(_distances(columns) / -length))
        scores.append((original * left).sum() / torch.sqrt(own * (left * left).sum()))
    found: Floats = torch.stack(scores).cpu().numpy()
    return found


def median(values: Any) -> float:
    """As NumPy's: the mean of the middle two where their number is even (torch's is the lower one)."""
    flat, half = values.flatten(), (values.numel() + 1) // 2
    return float(flat.kthvalue(half).values + flat.kthvalue(values.numel() // 2 + 1).values) / 2


def _distances(z: Any) -> Any:
    """Squared distances of centred rows, exactly 0 on the diagonal."""
    norms = (z * z).sum(dim=1)
    found = torch.addmm(norms[:, None] + norms, z, z.T, alpha=-2.0).clamp_(min=0.0)
    return found.fill_diagonal_(0.0)


def _double_centred(k: Any) -> Any:
    return k - k.mean(dim=0) - k.mean(dim=1)[:, None] + k.mean()
