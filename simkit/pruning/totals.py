"""Sums without a weight some of whose terms are removed: the captured operations run with these terms at zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from ..graph import preserved_rng
from ..graph.capture import Captured, capture, plain_attention
from .decisions import LayerPlan, TotalPlan


class _Silenced(fx.Interpreter):
    """Runs a captured model; what some operations add up has zeros in the place of removed units."""

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
        masked = value
        for total in self.totals[n.name]:
            gone = [position for start, stop in total.removed for position in range(start, stop)]
            masked = masked.index_fill(total.dim, torch.tensor(gone, device=masked.device), 0)
        self.env[source] = masked
        try:
            return super().run_node(n)
        finally:
            self.env[source] = value


def without_terms(model: nn.Module, layers: Iterable[LayerPlan], inputs: tuple[Any, ...]) -> Any:
    """What the model returns, as a flat tuple, if removed units count nothing in sums."""
    captured = capture(model, inputs)
    runner = _Silenced(captured, (total for layer in layers for total in layer.totals))
    with torch.no_grad(), preserved_rng(), plain_attention():
        return runner.run(*captured.arguments(inputs), enable_io_processing=False)
