"""The backends that a parametrised test runs on: the processor's, the reference, and a device's where there is one.

On a device such a test takes the arrays of the host that all others take, copied there because the backend is named.
Not on it, by what a test does: kernels of a user's own, which no device runs; options that one backend alone has
(``tile``, ``team``); plans that name the processor; and results that several backends together give. These use
``HOST``, or say where they stand what a device answers instead.
"""

from __future__ import annotations

import pytest

HOST = ("native_cpu", "reference")
DEVICE = pytest.param("native_cuda", marks=pytest.mark.gpu)
CHOSEN = [None, "reference", DEVICE]  # None: what simkit chooses, native_cpu for arrays of the host
NAMED = [*HOST, DEVICE]
ANY = [None, *NAMED]
