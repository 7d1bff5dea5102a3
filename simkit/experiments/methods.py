"""Criteria by the names that a config uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from .. import pruning as P

Kind = Literal["structured", "unstructured"]
METHODS: Mapping[str, Mapping[str, Callable[[int, int], Any]]] = MappingProxyType(
    {
        "structured": {
            "cka": lambda seed, samples: P.CKADamage(samples=samples),
            "l1": lambda seed, samples: P.L1(),
            "l2": lambda seed, samples: P.L2(),
            "redundancy": lambda seed, samples: P.Redundancy(),
            "random": lambda seed, samples: P.Random(seed=seed),
            "geometric-median": lambda seed, samples: P.GeometricMedian(),
            "bn-scale": lambda seed, samples: P.BNScale(),
        },
        "unstructured": {
            "magnitude": lambda seed, samples: P.Magnitude(),
            "random": lambda seed, samples: P.Random(seed=seed),
        },
    }
)
"""Kind -> name -> the criterion of one seed that sees so many samples."""
