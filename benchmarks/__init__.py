"""Benchmarks: every contestant's answer is checked against a float64 reference, then timed at the machine's rate."""

import os
import sys

# OpenBLAS threads spin for 100 ms after each NumPy call and take a core from whoever runs next. Only read when NumPy is
# loaded, so it must be set before.
SET_IN_TIME = "numpy" not in sys.modules or "OPENBLAS_THREAD_TIMEOUT" in os.environ
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")
