"""simkit: the similarity engine for neural networks.

How alike are these representations? Exactly, fast and safely; and what can be pruned because of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .compare.matrix import SimilarityMatrix, similarity_matrix
from .compare.models import compare
from .errors import DegenerateWarning, OverfitWarning, SimkitWarning, SlowBackendWarning
from .kernels import RBF, Cosine, CustomKernel, Laplacian, Linear, Polynomial
from .metrics.cka import CKA, cka, hsic

if TYPE_CHECKING:
    from . import pruning
    from .compare.stream import StreamingCKA
    from .metrics.cca import CCA, R2CCA, MeanCCA, cca
    from .metrics.covering import Covering
    from .metrics.filter_graph import FilterGraph, filter_graph
    from .metrics.greedy import Elimination, greedy_cka
    from .metrics.linear_regression import LinearRegression, linear_regression
    from .metrics.nbs import NBS, nbs
    from .metrics.procrustes import Procrustes, procrustes
    from .metrics.pwcca import PWCCA, pwcca
    from .metrics.redundancy import Redundancy, redundancy
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
    "Covering",
    "CustomKernel",
    "DegenerateWarning",
    "Elimination",
    "FilterGraph",
    "Laplacian",
    "Linear",
    "LinearRegression",
    "MeanCCA",
    "OverfitWarning",
    "Polynomial",
    "Procrustes",
    "Redundancy",
    "SimilarityMatrix",
    "SimkitWarning",
    "SlowBackendWarning",
    "StreamingCKA",
    "cca",
    "cka",
    "compare",
    "filter_graph",
    "greedy_cka",
    "hsic",
    "linear_regression",
    "nbs",
    "procrustes",
    "pruning",
    "pwcca",
    "redundancy",
    "similarity_matrix",
    "svcca",
]

# Imported when first used, so that `import simkit` waits for none of them; most need SciPy's linear algebra or torch.
_LATER = {
    "StreamingCKA": "compare.stream",
    "CCA": "metrics.cca",
    "MeanCCA": "metrics.cca",
    "R2CCA": "metrics.cca",
    "cca": "metrics.cca",
    "Covering": "metrics.covering",
    "FilterGraph": "metrics.filter_graph",
    "filter_graph": "metrics.filter_graph",
    "Elimination": "metrics.greedy",
    "greedy_cka": "metrics.greedy",
    "LinearRegression": "metrics.linear_regression",
    "linear_regression": "metrics.linear_regression",
    "NBS": "metrics.nbs",
    "nbs": "metrics.nbs",
    "Procrustes": "metrics.procrustes",
    "procrustes": "metrics.procrustes",
    "PWCCA": "metrics.pwcca",
    "pwcca": "metrics.pwcca",
    "Redundancy": "metrics.redundancy",
    "redundancy": "metrics.redundancy",
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
