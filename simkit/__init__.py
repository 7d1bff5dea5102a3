"""simkit: the similarity engine for neural networks.

How alike are these representations? Exactly, fast and safely; and what can be pruned because of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .compare.matrix import SimilarityMatrix, similarity_matrix
from .compare.models import compare
from .compare.stream import StreamingCKA
from .errors import DegenerateWarning, EstimateWarning, SimkitWarning
from .kernels import RBF, Cosine, Laplacian, Linear, Polynomial
from .metrics.cka import CKA, cka, hsic
from .metrics.greedy import Elimination, greedy_cka

if TYPE_CHECKING:
    from . import pruning
    from .metrics.cca import CCA, R2CCA, MeanCCA, cca
    from .metrics.linear_regression import LinearRegression, linear_regression
    from .metrics.nbs import NBS, nbs
    from .metrics.procrustes import Procrustes, procrustes
    from .metrics.pwcca import PWCCA, pwcca
    from .metrics.svcca import SVCCA, svcca

__version__ = "0.1.0"

__all__ = [
    "CCA",
    "CKA",
    "NBS",
    "PWCCA",
    "R2CCA",
    "RBF",
    "SVCCA",
    "Cosine",
    "DegenerateWarning",
    "Elimination",
    "EstimateWarning",
    "Laplacian",
    "Linear",
    "LinearRegression",
    "MeanCCA",
    "Polynomial",
    "Procrustes",
    "SimilarityMatrix",
    "SimkitWarning",
    "StreamingCKA",
    "cca",
    "cka",
    "compare",
    "greedy_cka",
    "hsic",
    "linear_regression",
    "nbs",
    "procrustes",
    "pruning",
    "pwcca",
    "similarity_matrix",
    "svcca",
]

# Imported when first used: they need SciPy's linear algebra or torch, which `import simkit` does not wait for.
_LATER = {
    "CCA": "metrics.cca",
    "MeanCCA": "metrics.cca",
    "R2CCA": "metrics.cca",
    "cca": "metrics.cca",
    "LinearRegression": "metrics.linear_regression",
    "linear_regression": "metrics.linear_regression",
    "NBS": "metrics.nbs",
    "nbs": "metrics.nbs",
    "Procrustes": "metrics.procrustes",
    "procrustes": "metrics.procrustes",
    "PWCCA": "metrics.pwcca",
    "pwcca": "metrics.pwcca",
    "SVCCA": "metrics.svcca",
    "svcca": "metrics.svcca",
}


def __getattr__(name: str) -> Any:
    if name == "pruning":
        return importlib.import_module(".pruning", __name__)
    if name in _LATER:
        value = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'simkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
