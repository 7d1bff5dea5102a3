"""What each ATen operation does to labels: one rule per kind of operation, all in one table."""

from __future__ import annotations

from ..flow import Rule
from . import contraction, convolution, elementwise, gating, normalisation, reduction, selection, shape

RULES: dict[str, Rule] = {
    **contraction.RULES,
    **convolution.RULES,
    **elementwise.RULES,
    **gating.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **selection.RULES,
    **shape.RULES,
}

__all__ = ["RULES"]
