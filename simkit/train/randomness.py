"""The random states of one training run: its own, swapped in for an epoch and out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Randomness:
    """Sample order from a generator of its own; dropout from torch's global ones, set to this run's state meanwhile."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.order = torch.Generator().manual_seed(seed)
        self.cpu = torch.Generator().manual_seed(seed).get_state()
        self.device = device if device.type == "cuda" else None
        self.cuda = torch.Generator(device).manual_seed(seed).get_state() if self.device else None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Torch draws from this run's states inside, from its own again outside."""
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self.device) if self.device else None
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and self.device:
            torch.cuda.set_rng_state(self.cuda, self.device)
        try:
            yield
        finally:
            self.cpu = torch.get_rng_state()
            torch.set_rng_state(cpu)
            if cuda is not None and self.device:
                self.cuda = torch.cuda.get_rng_state(self.device)
                torch.cuda.set_rng_state(cuda, self.device)

    def states(self) -> dict[str, Tensor]:
        """All states by name, to be saved."""
        states = {"order": self.order.get_state(), "cpu": self.cpu}
        return states if self.cuda is None else {**states, "cuda": self.cuda}

    def check(self, states: Mapping[str, Tensor]) -> None:
        """KeyError or RuntimeError, and nothing changed, unless :meth:`restore` can take these states."""
        for name in ("order", "cpu"):
            torch.Generator().set_state(states[name].cpu())

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Continue from saved states."""
        self.order.set_state(states["order"].cpu())
        self.cpu = states["cpu"].cpu()
        if self.device and "cuda" in states:
            self.cuda = states["cuda"].cpu()
