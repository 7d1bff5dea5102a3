"""Arrays whose stream was destroyed, on a GPU: one sentence, and the next call works.

CUDA promises nothing of such a handle, so that each case has a process of its own: one that dies is told of, and ends
no other test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

SENTENCE = "CUDA cannot use the stream that an array came with (was it destroyed?): "
SCRIPT = """
import numpy as np
from gpu_arrays import OnGpu, call, driver, new_stream

import simkit as sk

x = np.random.default_rng(0).standard_normal((600, 30)).astype(np.float32)
y = x[:, :7].copy()
want = sk.cka(OnGpu(x), OnGpu(y))
gone = new_stream()
dead, other = OnGpu(x, stream=gone.value), OnGpu(y, stream={other})
call(driver().cuStreamDestroy_v2, gone)
try:
    {call}
except RuntimeError as error:
    print(error)
else:
    print("no error")
print(sk.cka(OnGpu(x), OnGpu(y)) == want)
"""
CALLS = {
    "the only stream": ("sk.cka(dead, other)", "gone.value"),
    "one of two": ("sk.cka(other, dead)", "new_stream().value"),
    "beside the default stream": ("sk.cka(other, dead)", "None"),
    "greedy orders": ("sk.greedy_cka(dead)", "None"),
    "graphs": ("sk.filter_graph(dead, threshold=1.4)", "None"),
    "streams": ("sk.StreamingCKA().update({'x': dead})", "None"),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_sentence(name: str) -> None:
    code, other = CALLS[name]
    support = Path(__file__).parent / "support"
    paths = os.pathsep.join([str(support), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(call=code, other=other)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, f"the process ends with {done.returncode}: {done.stderr}"
    said, works = done.stdout.splitlines()
    assert said.startswith(SENTENCE)
    assert works == "True"
