"""Gated linear units: one half of the channels times the sigmoid of the other."""

from __future__ import annotations

import numpy as np
from torch import fx

from ..capture import bound
from ..flow import Flow, Rule, shape_of


def _glu(flow: Flow, node: fx.Node) -> None:
    source = node.args[0]
    dim = int(bound(node)["dim"]) % len(shape_of(source))
    labels = []
    for label in flow.labels(source):
        if label.shape[dim] > 1:
            first, second = np.split(label, 2, axis=dim)
            flow.unite(first, second)
            labels.append(first)
        else:
            labels.append(label)
    flow.pass_on(node, labels, "other", "activation")


RULES: dict[str, Rule] = {"glu": _glu}
