"""Procedures as the code of three papers ran them, by name, and how each differs from what simkit would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .compensation import Compensation, LiveBias, Merge
from .scores import L1, CKADamage, Redundancy, Score


@dataclass(frozen=True)
class Preset:
    """Options for :func:`plan`: ``plan(model, example, data=..., amount=..., **PRESETS["seed001"].options)``.

    ``differs`` says what the procedure does that its description, or this package by default, does not.
    """

    score: Score
    scope: str
    compensate: Compensation | None
    source: str
    differs: str

    @property
    def options(self) -> dict[str, Any]:
        """Criterion, scope and compensation, by the names of :func:`plan`'s arguments."""
        return {"score": self.score, "scope": self.scope, "compensate": self.compensate}


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "seed001": Preset(
            score=CKADamage(mode="oneshot", activation="pre"),
            scope="layer",
            compensate=LiveBias(),
            source='"Representation Aware Pruning with Centered Kernel Alignment"',
            differs="Every unit is scored once against the original activations, where the text recomputes the scores "
            'after every removal (mode="greedy"); activations are taken before the ReLU; only weights are set to '
            "zero, so that a removed unit still emits its bias.",
        ),
        "seed002": Preset(
            score=Redundancy(
                threshold=0.023, norm="sqrt_fan_in", estimator="total_degree", step="two_sqrt", fan_in="whole"
            ),
            scope="global",
            compensate=None,
            source="CENG501 reproduction of Wang, Li, Wang 2021, arXiv:2104.03438",
            differs="Distances are divided by the square root of the fan-in, so that at this threshold every graph "
            "is complete and redundancy measures the width of a layer; filters go in bunches of 2 sqrt(r); the "
            "covering number is estimated by total degree; weights for filters that have gone still count. "
            "Redundancy() calibrates the threshold, removes one unit at a time and leaves these weights out.",
        ),
        "seed003": Preset(
            score=L1(),
            scope="layer",
            compensate=Merge(bn_scale="reference", compensate_bias=False),
            source="Kim et al. 2020, Neuron Merging, as its published code and the reproduction compute it",
            differs="Gamma, beta, mean and variance of the two units are exchanged, the variance stands for the "
            "standard deviation, eps is dropped, negative scales are admitted, and what stays constant of a merged "
            "unit is lost. Merge() has the exact algebra.",
        ),
    }
)
