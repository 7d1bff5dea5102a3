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
            "taylor": lambda seed, samples: P.Taylor(),
        },
        "unstructured": {
            "magnitude": lambda seed, samples: P.Magnitude(),
            "distribution": lambda seed, samples: P.Distribution(),
            "unit-magnitude": lambda seed, samples: P.UnitMagnitude(),
            "gradient-magnitude": lambda seed, samples: P.GradientMagnitude(),
            "taylor": lambda seed, samples: P.Taylor(),
            "fisher": lambda seed, samples: P.Fisher(),
            "obd": lambda seed, samples: P.OBD(),
            "snip": lambda seed, samples: P.SNIP(),
            "synflow": lambda seed, samples: P.SynFlow(),
            "grasp": lambda seed, samples: P.GraSP(),
            "obs": lambda seed, samples: P.OBS(),
            "small-final": lambda seed, samples: P.Zhou("small_final"),
            "large-init": lambda seed, samples: P.Zhou("large_init"),
            "small-init": lambda seed, samples: P.Zhou("small_init"),
            "large-init-large-final": lambda seed, samples: P.Zhou("large_init_large_final"),
            "small-init-small-final": lambda seed, samples: P.Zhou("small_init_small_final"),
            "large-final-same-sign": lambda seed, samples: P.Zhou("large_final_same_sign"),
            "large-final-diff-sign": lambda seed, samples: P.Zhou("large_final_diff_sign"),
            "magnitude-increase": lambda seed, samples: P.Zhou("magnitude_increase"),
            "movement": lambda seed, samples: P.Zhou("movement"),
            "random": lambda seed, samples: P.Random(seed=seed),
        },
    }
)
"""Kind -> name -> the criterion of one seed that sees so many samples; Zhou's ``large_final`` is ``magnitude``.

The weights that OBS leaves move as it says, where training goes on from them (``"finetune"``, ``"rewind-lr"``,
``"none"``)."""
SUPERVISED = frozenset({"taylor"})  # structured criteria that need labels; unstructured ones get them anyway
