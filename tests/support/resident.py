"""What a process of its own has resident at most, as a text that its script begins with.

Not ``ru_maxrss``: a child's begins with its parent's, so that beside a large test runner it never grows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

# glibc keeps freed memory in an arena per thread, so that what stays resident depends on which thread asked first.
# Blocks from this size on are mapped alone and given back when freed: what is resident is then what was asked for.
AS_ASKED = {"MALLOC_MMAP_THRESHOLD_": "32768"}

COUNTED = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the pages of a process")

RESIDENT = """
def _resident(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def now():  # bytes resident; the peak counts from here
    import ctypes, gc
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _resident("VmRSS")

def peak():  # bytes resident at most since then, or since the process began
    return _resident("VmHWM")
"""
