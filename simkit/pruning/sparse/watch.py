"""What happens inside a training function that knows nothing of rounds: its optimisers' steps, counted and checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ...errors import StaleOptimizer
from ...graph import preserved_rng
from .enforcement import stepped


class StepWatch:
    """Counts the optimiser's steps on a model while it is trained, and calls ``reached`` after step number ``step``.

    Where several optimisers step the model's parameters, the steps of the first are counted. A call of ``step``
    is one, however often it evaluates the model (LBFGS).

    Raises:
        StaleOptimizer: at its first step, an optimiser has state of earlier steps; unless ``resumed``.
    """

    def __init__(self, model: nn.Module, *, step: int | None, reached: Callable[[], object], resumed: bool) -> None:
        self.steps = 0
        self._model = model
        self._step = step
        self._reached = reached
        self._resumed = resumed
        self._seen: list[torch.optim.Optimizer] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Watch all optimisers that step a parameter of the model."""
        before = register_optimizer_step_pre_hook(self._before_step)
        after = register_optimizer_step_post_hook(self._after_step)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _mine(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        parameters = {id(parameter) for parameter in self._model.parameters()}
        return [parameter for parameter in stepped(optimizer) if id(parameter) in parameters]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(one is optimizer for one in self._seen):
            return
        mine = self._mine(optimizer)
        if not mine:
            return
        used = sum(_used(optimizer.state.get(parameter, {})) for parameter in mine)
        if used and (not self._resumed or self._step is not None):
            kind = type(optimizer).__name__
            raise StaleOptimizer(f"{kind} begins a round with the state of earlier steps for {used} parameters")
        self._seen.append(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        skipped = getattr(optimizer, "found_inf", None)  # set by a GradScaler that leaves skipping to the optimiser
        if self._seen and self._seen[0] is optimizer and not (skipped is not None and float(skipped)):
            self.steps += 1
            if self.steps == self._step:
                self._reached()


@contextmanager
def seeded(seed: int, number: int) -> Iterator[None]:
    """Every global random state set from a seed and a number inside, and put back outside."""
    drawn = np.random.SeedSequence([seed, number]).generate_state(2)
    if torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]  # else what is first used inside is neither seeded nor put back
    with preserved_rng():
        random.seed(int(drawn[0]))
        np.random.seed(int(drawn[0]))  # noqa: NPY002  (the global state is what training functions draw from)
        torch.default_generator.manual_seed(int(drawn[1]))
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(int(drawn[1]))
        yield


def derived_seed(seed: int, number: int) -> int:
    """A seed of 64 bits from two numbers: no two pairs share theirs, but by chance."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def _used(state: dict[str, Any]) -> bool:
    """Whether an optimiser's state of one parameter comes from a step; some optimisers make it beforehand."""
    return float(state["step"]) > 0 if "step" in state else bool(state)
