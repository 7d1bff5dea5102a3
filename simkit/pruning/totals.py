"""Sums without a weight, and statistics, some of whose terms are removed: the captured operations run without them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx, nn

from ..graph import preserved_rng
from ..graph.capture import Captured, capture, plain_attention
from .decisions import LayerPlan, TotalPlan


class _Silenced(fx.Interpreter):
    """Runs a captured model; what some operations add up has zeros in the place of removed units, or nothing."""

    def __init__(self, captured: Captured, totals: Iterable[TotalPlan]) -> None:
        super().__init__(captured.module)
        self.totals: dict[str, list[TotalPlan]] = {}
        for total in totals:
            self.totals.setdefault(total.node, []).append(total)

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.totals:
            return super().run_node(n)
        (source,) = n.all_input_nodes
        value = self.env[source]
        gone: dict[tuple[int, bool], set[int]] = {}
        for total in self.totals[n.name]:
            positions = (position for start, stop in total.removed for position in range(start, stop))
            gone.setdefault((total.dim, total.kept), set()).update(positions)
        for (dim, kept), terms in gone.items():
            self.env[source] = _without(self.env[source], dim, terms) if kept else _zeroed(self.env[source], dim, terms)
        try:
            return super().run_node(n)
        finally:
            self.env[source] = value


def _zeroed(value: torch.Tensor, dim: int, gone: Iterable[int]) -> torch.Tensor:
    return value.index_fill(dim, torch.tensor(sorted(gone), device=value.device), 0)


def _without(value: torch.Tensor, dim: int, gone: Collection[int]) -> torch.Tensor:
    stays = [position for position in range(value.shape[dim]) if position not in gone]
    return value.index_select(dim, torch.tensor(stays, device=value.device))


def without_terms(model: nn.Module, layers: Iterable[LayerPlan], inputs: tuple[Any, ...]) -> Any:
    """What the model returns, as a flat tuple, if removed units count nothing in sums and statistics."""
    captured = capture(model, inputs)
    runner = _Silenced(captured, (total for layer in layers for total in layer.totals))
    with torch.no_grad(), preserved_rng(), plain_attention():
        return runner.run(*captured.arguments(inputs), enable_io_processing=False)
