"""simkit: the similarity engine for neural networks.

How alike are these representations? Exactly, fast and safely; and what can be pruned because of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .compare.matrix import SimilarityMatrix, similarity_matrix
from .compare.stream import StreamingCKA
from .errors import DegenerateWarning, EstimateWarning, SimkitWarning
from .kernels import RBF, Cosine, Laplacian, Linear, Polynomial
from .metrics.cka import CKA, cka, hsic
from .metrics.greedy import Elimination, greedy_cka

if TYPE_CHECKING:
    from . import pruning
    from .compare.models import compare

__version__ = "0.1.0"

__all__ = [
    "CKA",
    "RBF",
    "Cosine",
    "DegenerateWarning",
    "Elimination",
    "EstimateWarning",
    "Laplacian",
    "Linear",
    "Polynomial",
    "SimilarityMatrix",
    "SimkitWarning",
    "StreamingCKA",
    "cka",
    "compare",
    "greedy_cka",
    "hsic",
    "pruning",
    "similarity_matrix",
]

_LAZY = {"compare": "simkit.compare.models", "pruning": "simkit.pruning"}


def __getattr__(name: str) -> Any:
    """Names that need torch are imported when first used."""
    import importlib

    if name == "pruning":
        return importlib.import_module("simkit.pruning")
    if name == "compare":
        return importlib.import_module("simkit.compare.models").compare
    raise AttributeError(f"module 'simkit' has no attribute {name!r}")
