"""Prune single weights and train again, round by round."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import InexactRewind
from ...graph.preserve import own_copy
from ...kernels import as_integer
from .checkpoints import Checkpoints, as_json, described, digest
from .control import updater_of
from .enforcement import Sparsifier
from .invariants import require_equal, require_exact, require_subset, require_zero
from .masks import DEFAULT_SCORE, as_weight_score, kept_share, masks, require_removals, updated
from .network import Masks, open_weights, zero_masked
from .retrain import FineTune, Reinit, Retrain, RewindLR, RewindWeights, reinitialised, snapshot
from .schedule import Exponential, Schedule, amounts
from .scores import WeightScore
from .selection import Scope, checked_amount
from .watch import StepWatch, derived_seed, seeded

DEFAULT_SCHEDULE = Exponential()
DEFAULT_RETRAIN = FineTune()
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL,
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """What a training function is told about the training that is due.

    Attributes:
        number: 0 for the dense network, then the number of the round.
        first_step: the optimiser step at which the learning-rate schedule starts, 0 from the beginning; None: training
            goes on at the learning rate with which it ends.
        amount: the share of the weights that is gone.
        folder: where training may keep checkpoints of its own, to go on after a kill; None without ``checkpoints=``.
    """

    number: int
    first_step: int | None
    amount: float
    folder: Path | None


@dataclass(frozen=True, eq=False)
class SparseRound:
    """One round: ``number`` from 1, the share of the weights, or units, that was to go, and that of
    the masks' entries that stays (with units their biases count too), the masks, the
    model after training (masked weights are 0), and what ``train`` returned."""

    number: int
    amount: float
    kept: float
    masks: Masks
    model: nn.Module
    result: Any


def rounds(  # noqa: PLR0913  (the public face)
    model: nn.Module,
    *,
    train: Callable[..., Any],
    score: WeightScore = DEFAULT_SCORE,
    amount: float | None = None,
    rounds: int = 1,
    schedule: Schedule | str | Sequence[float] = DEFAULT_SCHEDULE,
    checkpoints: str | os.PathLike[str] | None = None,
    retrain: Retrain = DEFAULT_RETRAIN,
    scope: Scope = "global",
    data: object = None,
    keep: Collection[str] = (),
    dense: nn.Module | None = None,
    seed: int = 0,
) -> Iterator[SparseRound]:
    """Train, then prune and train again in several rounds, until ``amount`` of the weights is gone.

    The dense network is trained first, unless ``dense`` is given. Every round masks more weights of the network that
    the round before has left, puts the others where ``retrain`` says, and trains. Masked weights are 0 after every step
    of every optimiser that ``train`` uses.

    To prune at initialisation, say that there is no first training and that weights stay as they are::

        rounds(model, dense=model, retrain=RewindWeights(), score=SynFlow(shape), amount=0.98, train=train)

    Args:
        model: as it is before any training; it is not changed.
        train: ``train(model, stage)`` (see :class:`Stage`), or ``train(model)``, trains a working copy in place with
            an optimiser of its own, made anew. Global random states are set from ``seed`` and the round before and put
            back after.
        score: the criterion, of every round.
        amount: the share of all open weights that is gone at the end; None where the schedule says.
        rounds: how many.
        schedule: how much is gone after every round: :class:`Exponential` and its kin, their names, or the shares.
        checkpoints: a folder. A run that finds a killed one of the same options there continues it, and ends with the
            same weights bit for bit; rounds that are done are read, not repeated. Functions among the options are
            told apart by name, tensors and lists of them by content, other iterables of data only by type. ``train``
            must then return JSON data; where it does not, its weights are kept all the same, and a run that continues
            has None for that result. Training itself starts its round again, or goes on from what it keeps in
            ``stage.folder``.
        retrain: :class:`FineTune`, :class:`RewindLR`, :class:`RewindWeights` or :class:`Reinit`.
        scope: as for :func:`masks`.
        data: as for :func:`masks`.
        keep: as for :func:`masks`.
        dense: the model after the first training, where that has been done: it is not done again. Weights can then
            be rewound to step 0 only, which ``model`` is.
        seed: of the random states that ``train`` and the criterion draw from.

    Raises:
        NothingPruned: a round would remove nothing. StaleOptimizer: an optimiser begins a round with the state of an
            earlier one. InexactRewind, RevivedWeights, InexactSparsity, MaskGrowth: as their names say.
        ValueError: an impossible option, checkpoints of other options or damaged ones, a step to rewind to that
            training did not reach.
        TypeError: no criterion, no way to retrain, or a result that is not JSON.
    """
    score = as_weight_score(score)
    wanted = amounts(schedule, rounds, amount)
    if isinstance(retrain, type) or not isinstance(retrain, FineTune | RewindLR | RewindWeights | Reinit):
        raise TypeError(f"retrain must be FineTune(), RewindLR(), RewindWeights(step) or Reinit(), not {retrain!r}")
    step = retrain.step if isinstance(retrain, RewindWeights) else 0
    if dense is not None and step > 0:
        raise ValueError(f"{retrain!r} needs the first training to be done here, so dense= must be left out")
    number = as_integer(seed)
    if number is None or number < 0:
        raise ValueError(f"seed must be an integer of at least 0, not {seed!r}")
    names = list(open_weights(model, keep))
    checked_amount(wanted[-1], scope, names, {})
    if data is None and getattr(score, "needs_data", False):
        raise ValueError(f"{score!r} needs data=: (inputs, targets) tensors, or batches of them")
    require_removals(model, score, names, scope, wanted)
    initial = snapshot(model)
    trained = None if dense is None else snapshot(dense)
    options = {
        "score": described(score), "amounts": list(wanted), "retrain": repr(retrain), "scope": scope, "seed": number,
        "parameters": names, "model": digest(initial), "dense": None if trained is None else digest(trained),
    }  # fmt: skip
    if trained is not None and {n: v.shape for n, v in trained.items()} != {n: v.shape for n, v in initial.items()}:
        raise ValueError(f"dense must be the trained model itself, not a {type(dense).__name__} of other shapes")
    store = None
    if checkpoints is not None:
        store = Checkpoints(checkpoints, {**options, "data": described(data)})
    run = _Run(own_copy(model), _caller(train), retrain, initial, store, number)
    choose = {"score": score, "scope": scope, "data": data, "parameters": names}
    return _rounds(run, wanted, trained, choose)


def _rounds(
    run: _Run, wanted: Sequence[float], trained: Mapping[str, Tensor] | None, choose: Mapping[str, Any]
) -> Iterator[SparseRound]:
    current = run.first(trained)
    previous: Masks | None = None
    for number, gone in enumerate(wanted, 1):
        name = f"round-{number:03d}"
        start, chosen = run.start(name, lambda: run.pruned(current, previous, gone, number, choose))  # noqa: B023
        require_subset(chosen, previous or {})
        current, result = run.train(name, start, chosen, Stage(number, run.retrain.first_step, gone, None))
        previous = chosen
        given = {key: mask.clone() for key, mask in chosen.items()}  # the caller's own, as the model is
        yield SparseRound(number, gone, kept_share(chosen), given, run.model(current), result)


class _Run:
    """The working copy, and every state that a round leaves to the next."""

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module, Stage], Any],
        retrain: Retrain,
        initial: dict[str, Tensor],
        store: Checkpoints | None,
        seed: int,
    ) -> None:
        self.retrain = retrain
        self._template = model
        self._train = train
        self._initial = initial
        self._store = store
        self._seed = seed
        self._rewind, self._rewind_digest = initial, digest(initial)

    def model(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A model of its own in a state, bit for bit, in the mode of the caller's."""
        own = own_copy(self._template)
        own.load_state_dict(state)
        require_equal(own.state_dict(), state, {})
        return own

    def first(self, trained: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """The state after dense training."""
        if trained is not None:
            return trained
        step = self.retrain.step if isinstance(self.retrain, RewindWeights) else 0
        start, _ = self.start("dense", lambda: (self._initial, {}))
        done, _ = self.train("dense", start, {}, Stage(0, 0, 0.0, None), snapshot_at=step or None)
        if step and self._store is not None:
            self._rewind = self._store.read("rewind")[0]
            self._rewind_digest = digest(self._rewind)
        return done

    def start(
        self, name: str, decide: Callable[[], tuple[Mapping[str, Tensor], Masks]]
    ) -> tuple[Mapping[str, Tensor], Masks]:
        """Weights and masks that a stage starts from: stored ones, else decided now, and stored."""
        key = f"{name}-start"
        if self._store is not None and self._store.has(key):
            return self._store.read(key)
        state, chosen = decide()
        if self._store is not None:
            self._store.write(key, state, chosen)
        return state, chosen

    def pruned(
        self,
        current: Mapping[str, Tensor],
        previous: Masks | None,
        gone: float,
        number: int,
        choose: Mapping[str, Any],
    ) -> tuple[Mapping[str, Tensor], Masks]:
        """The masks of a round, and the weights it starts from."""
        model = self.model(current)
        with seeded(self._seed, 2 * number):
            chosen = masks(model, amount=gone, previous=previous, initial=self._initial, **choose)
            state = self._compensated(model, chosen, previous, choose) or current
        if isinstance(self.retrain, RewindWeights):
            state = self._rewind
            if digest(state) != self._rewind_digest:
                raise InexactRewind(
                    f"the weights that {self.retrain!r} goes back to are no longer those that it stored"
                )
        elif isinstance(self.retrain, Reinit):
            state = reinitialised(self.model(self._initial), derived_seed(self.retrain.seed, number))
        start = self.model(state)
        parameters = dict(start.named_parameters())
        if isinstance(self.retrain, Reinit) and self.retrain.keep_signs:
            for name in chosen:
                weight = parameters[name].data
                weight.copy_(weight.abs() * self._initial[name].to(weight.device).sign())
        for name, mask in chosen.items():
            zero_masked(parameters[name], mask)
        return snapshot(start), {name: mask.cpu() for name, mask in chosen.items()}

    def _compensated(
        self, model: nn.Module, chosen: Masks, previous: Masks | None, choose: Mapping[str, Any]
    ) -> dict[str, Tensor] | None:
        """The weights as the criterion moves them, where it does and retraining goes on from them."""
        score = choose["score"]
        if updater_of(score) is None or not isinstance(self.retrain, FineTune | RewindLR):
            return None
        return snapshot(updated(model, chosen, score=score, data=choose["data"], previous=previous))

    def train(
        self, name: str, start: Mapping[str, Tensor], chosen: Masks, stage: Stage, snapshot_at: int | None = None
    ) -> tuple[Mapping[str, Tensor], Any]:
        """The state after a stage, and what its training returned; read where it is done already."""
        store = self._store
        if store is not None and store.has(name):
            return store.read(name)[0], store.result(name)
        model = self.model(start)
        resumed = False
        if store is not None:
            if store.has("rewind"):
                snapshot_at = None
            resumed = store.found(f"{name}-start")
            stage = replace(stage, folder=store.workplace(name, empty=snapshot_at is not None or not resumed))
        watch = StepWatch(model, step=snapshot_at, reached=lambda: self._keep(model), resumed=resumed)
        with watch.active(), Sparsifier(model, chosen) as sparsifier, seeded(self._seed, 2 * stage.number + 1):
            result = self._train(model, stage)
        if watch.steps < (snapshot_at or 0) or (stage.number == 0 and not resumed and watch.steps < self._first_step):
            raise ValueError(f"{self.retrain!r} goes back to a step that training did not reach in {watch.steps}")
        require_exact(sparsifier.masks, sum(int(mask.sum()) for mask in chosen.values()))
        require_zero(model, chosen)
        done = snapshot(model)
        if store is not None:
            try:
                result = as_json(result)
            except TypeError:
                store.write(name, done, chosen)  # hours of training are not lost for what it returned
                raise
            store.write(name, done, chosen, result)
        return done, result

    @property
    def _first_step(self) -> int:
        return self.retrain.first_step or 0

    def _keep(self, model: nn.Module) -> None:
        """Store the state to rewind to."""
        self._rewind = snapshot(model)
        self._rewind_digest = digest(self._rewind)
        if self._store is not None:
            self._store.write("rewind", self._rewind, {})


def _caller(train: Callable[..., Any]) -> Callable[[nn.Module, Stage], Any]:
    """The training function as one of two arguments; a second that is optional is given the stage if it is so named."""
    if not callable(train):
        raise TypeError(f"train must be a function of (model, stage), not {train!r}")
    parameters = inspect.signature(train).parameters
    if "stage" in parameters and parameters["stage"].kind is inspect.Parameter.KEYWORD_ONLY:
        return lambda model, stage: train(model, stage=stage)
    places = [one for one in parameters.values() if one.kind in _POSITIONAL]
    second = places[1] if len(places) > 1 else None
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in places) or (
        second is not None and (second.default is inspect.Parameter.empty or second.name == "stage")
    ):
        return train
    return lambda model, stage: train(model)
