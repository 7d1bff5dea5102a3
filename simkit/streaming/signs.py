"""The vectors of signs by which the error of float32 products is seen: for each layer a few, always the same.

The first is all ones: of features that are alike every product is rounded the same way, and the sum over all of them
shows that in full, whatever the luck of the others. Those are bits of a generator whose numbers NumPy keeps as they are
from version to version.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays import FloatArray
from ..backends.moment_sums import PROBES

_SEED = 0x51


def signs_of(widths: Sequence[int]) -> FloatArray:
    """±1 ``[PROBES, p]`` of layers of these widths, by place and width alone."""
    return np.concatenate([_signs(place, width) for place, width in enumerate(widths)], axis=1)


def _signs(place: int, width: int) -> FloatArray:
    signs = np.ones((PROBES, width))
    bits = np.random.PCG64([_SEED, place, width]).random_raw(width)
    for k in range(1, PROBES):
        signs[k] -= 2.0 * ((bits >> np.uint64(64 - k)) & np.uint64(1)).astype(np.float64)
    return signs
