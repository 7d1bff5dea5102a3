"""Where a pruned network starts from when it is trained again, and where in its training schedule.

A :class:`Retrain` says which stored weights (None: those it has) and which optimiser step of the first training it goes
back to (None: the end, whose learning rate is then kept). The mask stays in every case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ...graph import preserved_rng
from ...graph.preserve import own_copy
from ...kernels import as_integer


@dataclass(frozen=True)
class FineTune:
    """Keep the weights, train on at the learning rate with which training ended."""

    @property
    def first_step(self) -> int | None:
        """None: after the last."""
        return None


@dataclass(frozen=True)
class RewindLR:
    """Keep the weights, run the learning-rate schedule again from an optimiser step (0 the first).

    Source: Renda et al., "Comparing Rewinding and Fine-tuning in Neural Network Pruning" (2020).
    """

    step: int = 0

    def __post_init__(self) -> None:
        _check_step(self.step)

    @property
    def first_step(self) -> int | None:
        """Where the schedule starts again."""
        return self.step


@dataclass(frozen=True)
class RewindWeights:
    """Weights and buffers go back to what they were after an optimiser step, the schedule with them.

    Source: 0, Frankle & Carbin, "The Lottery Ticket Hypothesis" (2019); later steps (matching tickets), Frankle et al.,
    "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (2020).
    """

    step: int = 0

    def __post_init__(self) -> None:
        _check_step(self.step)

    @property
    def first_step(self) -> int | None:
        """Where the schedule starts again."""
        return self.step


@dataclass(frozen=True)
class Reinit:
    """New random weights under the mask, another draw every round: the control for what the weights are worth.

    Every module is reset by its own ``reset_parameters``; what that leaves alone is as before any training.

    Args:
        seed: of the draws.
        keep_signs: pruned parameters keep the signs that they had before any training (Zhou et al., "Deconstructing
            Lottery Tickets", 2019: these make the ticket); only sizes are drawn.
    """

    seed: int = 0
    keep_signs: bool = False

    def __post_init__(self) -> None:
        seed = as_integer(self.seed)
        if seed is None or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, not {self.seed!r}")
        if not isinstance(self.keep_signs, bool):
            raise ValueError(f"keep_signs must be True or False, not {self.keep_signs!r}")

    @property
    def first_step(self) -> int | None:
        """0: training starts anew."""
        return 0


Retrain: TypeAlias = FineTune | RewindLR | RewindWeights | Reinit


def reinitialised(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The state of a copy whose modules have drawn new parameters, from a generator state of its own.

    Raises:
        NotImplementedError: a module has parameters of its own but no ``reset_parameters``.
    """
    fresh = own_copy(model).cpu()  # where a seed means the same for every device
    with preserved_rng():
        torch.default_generator.manual_seed(seed)
        for name, module in reversed(list(fresh.named_modules())):  # as in constructors, parts before the whole
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise NotImplementedError(
                    f"module {name!r} of type {type(module).__name__} has parameters but no reset_parameters"
                )
    return snapshot(fresh)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU of everything in the model's ``state_dict``; NotImplementedError for what is no tensor."""
    state: Mapping[str, Tensor] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise NotImplementedError(f"{name!r} in the model's state is no tensor but {type(value).__name__}")
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def _check_step(step: object) -> None:
    value = as_integer(step)
    if value is None or value < 0:
        raise ValueError(f"step must be an integer of at least 0, not {step!r}")
