"""What no path accepts: entries that are not finite, too few samples, and what is no representation."""

from __future__ import annotations

import importlib.util
import math
import re

import numpy as np
import numpy.typing as npt
import pytest
from backend_lists import CHOSEN
from streams import streamed

import simkit as sk

Array = npt.NDArray[np.generic]
CUSTOM = [sk.CustomKernel(lambda product, d: d - product)] if importlib.util.find_spec("numba") else []


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_entries_that_are_not_finite(bad: float, dtype: type[np.floating], backend: str | None) -> None:
    x = np.random.default_rng(0).standard_normal((600, 300)).astype(dtype)
    good = x.copy()
    x[17, 299] = bad
    one = re.escape("has 1 non-finite entry, the first at row 17, column 299")
    with pytest.raises(ValueError, match=f"^y {one}$"):
        sk.cka(good, x, backend=backend)
    with pytest.raises(ValueError, match=f"^x {one}$"):
        sk.hsic(x, good, backend=backend)
    with pytest.raises(ValueError, match=f"^fc2 {one}$"):
        sk.similarity_matrix({"fc1": good}, {"fc2": x}, backend=backend)
    with pytest.raises(ValueError, match=f"^fc2 {one}$"):
        sk.greedy_cka({"fc2": x}, backend=backend)
    for kernel in (sk.RBF(), sk.Cosine(), sk.Polynomial(), *CUSTOM):
        with pytest.raises(ValueError, match=f"^x {one}$"):
            sk.cka(x, good, kernel=kernel, backend=backend)
    x[17, 3] = x[599, 0] = bad
    with pytest.raises(ValueError, match=r"^x has 3 non-finite entries, the first at row 17, column 3$"):
        sk.cka(x, good, backend=backend)


@pytest.mark.parametrize("mode", ["exact", "minibatch"])
def test_entries_that_are_not_finite_on_a_stream(mode: str) -> None:
    """The row is counted from the start of the stream, and the batch leaves no trace."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((1300, 5)) for _ in range(2))
    stream, clean = (sk.StreamingCKA(mode=mode) for _ in range(2))  # type: ignore[arg-type]
    for rows in np.array_split(np.arange(1300), 13):
        if rows[0] == 700:
            for side, name in ((0, "enc"), (1, "dec")):
                batch = [x[rows].copy(), y[rows].copy()]
                batch[side][33, 2] = math.nan
                batch[side][90, 4] = math.inf
                with pytest.raises(
                    ValueError, match=f"^{name} has 2 non-finite entries, the first at row 733, column 2$"
                ):
                    stream.update({"enc": batch[0]}, {"dec": batch[1]})
        for s in (stream, clean):
            s.update({"enc": x[rows]}, {"dec": y[rows]})
    assert stream.compute().values.tolist() == clean.compute().values.tolist()


@pytest.mark.parametrize("backend", CHOSEN)
def test_too_few_samples(backend: str | None) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3))
    for n in (1, 2, 3):
        for call in (
            lambda a: sk.cka(a, a, backend=backend),
            lambda a: sk.hsic(a, a, backend=backend),
            lambda a: sk.similarity_matrix({"x": a}, backend=backend),
            lambda a: sk.greedy_cka(a, estimator="debiased", backend=backend),
            lambda a: streamed({"x": a}, {"y": a}, backend=backend).compute(),
        ):
            with pytest.raises(ValueError, match=f"^the debiased estimator needs at least 4 samples, not {n}$"):
                call(x[:n])
    with pytest.raises(ValueError, match=r"^the biased estimator needs at least 2 samples, not 1$"):
        sk.cka(x[:1], x[:1], estimator="biased", backend=backend)
    assert math.isfinite(sk.cka(x[:2], x[:2], estimator="biased", backend=backend))
    assert math.isfinite(sk.cka(x[:4], x[:4], backend=backend))


def test_different_numbers_of_samples() -> None:
    x = np.zeros((6, 2))
    sentence = "x has 6 samples and y has 5: similarity needs the same samples in the same order"
    for call in (sk.cka, sk.hsic):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            call(x, x[:5])
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        sk.similarity_matrix({"x": x}, {"y": x[:5]})
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        sk.StreamingCKA().update({"x": x, "y": x[:5]})


BAD = {
    "one dimension": (np.zeros(6), ValueError, r"has shape \(6,\): a representation is \[n, p\], .*x\[:, None\]"),
    "no dimension": (np.float64(3.0), ValueError, r"has shape \(\): a representation is \[n, p\]"),
    "no samples": (np.zeros((0, 3)), ValueError, r"has shape \(0, 3\): it is empty"),
    "no features": (np.zeros((6, 0)), ValueError, r"has shape \(6, 0\): it is empty"),
    "complex": (np.zeros((6, 2), dtype=np.complex64), TypeError, "has dtype complex64: similarity of complex features"),
    "objects": (np.array([["a", 1]] * 6, dtype=object), TypeError, "holds Python objects: numbers are needed$"),
    "text": (np.array([["a", "b"]] * 6), TypeError, "holds text: numbers are needed$"),
    "dates": (np.zeros((6, 2), dtype="datetime64[s]"), TypeError, "holds dates: numbers are needed$"),
    "masked": (np.ma.zeros((6, 2)), TypeError, "is a masked array: fill or drop its masked entries first"),
    "None": (None, TypeError, r"is a NoneType: an array \[n, p\] is needed"),
    "a word": ("features", TypeError, r"is a str: an array \[n, p\] is needed"),
    "ragged": ([[1.0, 2.0], [3.0]], TypeError, "cannot be read as an array"),
    "extended": (np.zeros((6, 2), dtype=np.longdouble), TypeError, r"has dtype \w+: float64 is the widest supported"),
    "large integers": (np.full((6, 2), 2**53 + 1), ValueError, f"holds the integer {2**53 + 1}, which float64 cannot"),
}


@pytest.mark.parametrize(("bad", "error", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_is_no_representation(bad: object, error: type[Exception], sentence: str) -> None:
    good = np.random.default_rng(0).standard_normal((6, 2))
    for call in (sk.cka, sk.hsic):
        with pytest.raises(error, match=f"^x {sentence}"):
            call(bad, good)
        with pytest.raises(error, match=f"^y {sentence}"):
            call(good, bad)
    with pytest.raises(error, match=f"^enc.3 {sentence}"):
        sk.similarity_matrix({"enc.3": bad})
    with pytest.raises(error, match=f"^enc.3 {sentence}"):
        sk.StreamingCKA().update({"enc.3": bad})
    with pytest.raises(error, match=f"^enc.3 {sentence}"):
        sk.greedy_cka({"enc.3": bad})
