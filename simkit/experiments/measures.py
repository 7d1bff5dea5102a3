"""Measures by the names that commands and configs use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..kernels import RBF, Cosine, Kernel, Laplacian, Linear, Polynomial
from ..metrics.cca import R2CCA, MeanCCA
from ..metrics.cka import CKA
from ..metrics.linear_regression import LinearRegression
from ..metrics.measure import Measure
from ..metrics.nbs import NBS
from ..metrics.procrustes import Procrustes
from ..metrics.pwcca import PWCCA
from ..metrics.svcca import SVCCA

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "cka": CKA(),
        "nbs": NBS(),
        "procrustes": Procrustes(),
        "cca": MeanCCA(),
        "r2-cca": R2CCA(),
        "svcca": SVCCA(),
        "pwcca": PWCCA(),
        "linear-regression": LinearRegression(),
    }
)


def chosen_measure(name: str, estimator: str | None, kernel: str | None) -> Measure:
    """The measure object that the options of ``simkit compare`` name.

    Raises:
        ValueError: an option of CKA with another measure, or no such kernel.
    """
    if name == "cka":
        return CKA(_kernel("linear" if kernel is None else kernel), "biased" if estimator == "biased" else "debiased")
    for option, value in (("--estimator", estimator), ("--kernel", kernel)):
        if value is not None:
            raise ValueError(f"{option} {value} belongs to --measure cka, not to {name}")
    return MEASURES[name]


def _kernel(text: str) -> Kernel:
    """A kernel from its name, with its one parameter after a colon."""
    name, colon, parameter = text.partition(":")
    plain: dict[str, type[Linear | Cosine]] = {"linear": Linear, "cosine": Cosine}
    scaled: dict[str, type[RBF | Laplacian]] = {"rbf": RBF, "laplacian": Laplacian}
    try:
        if name in plain and not colon:
            return plain[name]()
        if name in scaled:
            return scaled[name](_number(parameter, float)) if colon else scaled[name]()
        if name == "polynomial":
            return Polynomial(int(_number(parameter, int))) if colon else Polynomial()
    except ValueError as error:
        raise ValueError(f"--kernel {text}: {error}") from None
    raise ValueError(
        f"--kernel {text or repr(text)} is none of linear, cosine, rbf[:BANDWIDTH], laplacian[:BANDWIDTH], "
        "polynomial[:DEGREE]"
    )


def _number(text: str, kind: type[float]) -> float:
    """A number from the command line; ValueError in words that hold it."""
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
