"""What every network factory checks and how it draws its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

Shape = tuple[int, int, int]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator as if it had just been seeded, and put it back."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)


def check_sizes(**sizes: object) -> None:
    """ValueError unless every value is an integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {size!r}")


def check_shape(shape: Shape, smallest: int = 1) -> Shape:
    """``shape`` as (channels, height, width); ValueError for anything else, or sides below ``smallest``."""
    if len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width), not {tuple(shape)!r}")
    check_sizes(channels=shape[0], height=shape[1], width=shape[2])
    if min(shape[1:]) < smallest:
        raise ValueError(
            f"this network needs images of at least {smallest}x{smallest} pixels, not {shape[1]}x{shape[2]}"
        )
    return shape[0], shape[1], shape[2]
