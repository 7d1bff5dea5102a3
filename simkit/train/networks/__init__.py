"""Networks, initialised from a seed without touching the global random state.

Every factory takes ``shape`` (channels, height, width) or a number of inputs, the number of classes and a ``seed``; the
same seed gives the same weights, bit for bit. Layers have names (``conv1``, ``bn1``, ``fc1``) that read well in a plot.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import first_line
from .plain import conv8, lenet5, mlp, small_cnn
from .resnet import resnet18, resnet20, resnet56
from .sizes import Shape, seeded
from .vgg import alexnet, vgg16
from .vit import vit

__all__ = [
    "NETWORKS",
    "Shape",
    "alexnet",
    "check_call",
    "conv8",
    "lenet5",
    "make_network",
    "mlp",
    "network_factory",
    "resnet18",
    "resnet20",
    "resnet56",
    "seeded",
    "small_cnn",
    "vgg16",
    "vit",
]


def _mlp_on_images(shape: Shape, classes: int, *, hidden: Sequence[int] = (300, 100), seed: int = 0) -> nn.Sequential:
    return mlp(shape[0] * shape[1] * shape[2], hidden, classes, seed=seed)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp_on_images,
    "lenet5": lenet5,
    "small_cnn": small_cnn,
    "conv8": conv8,
    "vgg16": vgg16,
    "alexnet": alexnet,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet18": resnet18,
    "vit": vit,
}
"""Factories by name, all called as ``factory(shape, classes, **options, seed=...)``."""


def network_factory(name: str) -> Callable[..., nn.Module]:
    """The factory of that name, or the function that ``"package.module:function"`` names.

    Raises:
        ValueError: no such network, module or function; the message holds the name.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, or 'package.module:factory', not {name!r}{hint}")
    try:
        with _working_folder_importable():
            found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"the factory {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the user's module may do anything
        raise ValueError(
            f"the factory {name!r} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not callable(found):
        raise ValueError(f"the factory {name!r} is no function but {type(found).__name__}")
    factory: Callable[..., nn.Module] = found
    return factory


def make_network(
    name: str, shape: Shape, classes: int, *, seed: int = 0, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A network by name for images of ``shape`` (channels, height, width).

    A function of the user's is called as ``factory(shape, classes, **options)``, with ``seed=`` too if it has such an
    argument; what it draws from torch is seeded in any case.

    Raises:
        ValueError: an unknown name or option, or what the factory refuses. TypeError: it makes no module.
    """
    factory = network_factory(name)
    given = dict(options or {})
    check_call(name, given)
    if _takes(factory, "seed"):
        given["seed"] = seed
    try:
        with seeded(seed):
            model = factory(shape, classes, **given)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:  # the user's function may do anything
        raise ValueError(f"the factory {name!r} fails: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"the factory {name!r} must return a torch.nn.Module, not {type(model).__name__}")
    return model


def check_call(name: str, options: Mapping[str, Any]) -> None:
    """ValueError unless there is a network of that name with these options, whatever their values."""
    factory = network_factory(name)
    try:
        given = {**options, "seed": 0} if _takes(factory, "seed") else options
        inspect.signature(factory).bind((1, 1, 1), 1, **given)
    except TypeError as error:
        raise ValueError(f"network {name!r} cannot be called with {dict(options)!r}: {error}") from None


def _takes(factory: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    """A console script does not look there; what a user names in a config often lies there."""
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before
