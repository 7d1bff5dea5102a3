"""What an experiment is, as frozen data: the sections of a config file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..train import LOADERS, TrainOptions
from ..train.config import Optimizer, Precision, Schedule
from ..train.networks import check_call
from .methods import METHODS, Kind
from .threads import MOST_THREADS

Retrain = Literal["finetune", "rewind-lr", "rewind-weights", "rewind-init", "reinit", "none"]
Compensate = Literal["none", "merge", "least-squares"]
MeasureName = Literal["cka", "cca", "r2-cca", "svcca", "pwcca", "nbs", "procrustes", "linear-regression"]
_OWNED = (
    ("momentum", "optimizer", "sgd"),
    ("step_epochs", "schedule", "step"),
    ("step_factor", "schedule", "step"),
)
_CUT_SHORT = frozenset({"finetune", "rewind-lr", "rewind-weights"})  # ways that prune.epochs decides
MOST_ROUNDS = 10_000  # more only fill the memory with the shares of each
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(BaseModel):
    """The network: a name of :data:`simkit.train.NETWORKS` or ``"package.module:factory"``, and its options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name: arguments of the factory."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _callable(self) -> ModelConfig:
        if "seed" in self.options:
            raise ValueError(f"seed={self.options['seed']!r} does not belong to the network: run.seeds are its seeds")
        check_call(self.name, self.options)
        return self


class DataConfig(BaseModel):
    """The data set, where its files lie, and which share of the training samples only validates."""

    model_config = _STRICT

    name: Literal["digits", "fashion-mnist", "mnist", "cifar10", "svhn", "folder"]
    path: str = ""
    size: int | None = Field(default=None, ge=1)
    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    validation: float = Field(default=0.0, ge=0.0, lt=1.0)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the loader."""
        takes = {"digits": ("test_fraction",), "folder": ("path", "size", "test_fraction")}.get(self.name, ("path",))
        return {name: getattr(self, name) for name in takes}

    @model_validator(mode="after")
    def _belongs(self) -> DataConfig:
        assert self.name in LOADERS
        for option in self.model_fields_set - {"name", "validation"} - set(self.options):
            if option != "path" or self.path:
                raise ValueError(f"{option}={getattr(self, option)!r} does not belong to the data set {self.name!r}")
        return self


class TrainConfig(BaseModel):
    """How to train: the fields of :class:`simkit.train.TrainOptions`, where they are explained."""

    model_config = _STRICT

    epochs: int = 10
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    step_epochs: int = 10
    step_factor: float = 0.1
    warmup_epochs: int = 0
    precision: Precision = "float32"
    accumulate: int = 1
    clip_norm: float | None = None
    patience: int | None = None

    def training(self, seed: int, device: str | None = None) -> TrainOptions:
        """The training of one seed."""
        return TrainOptions(**self.model_dump(), seed=seed, device=device)

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        for option, owner, wanted in _OWNED:
            if option in self.model_fields_set and getattr(self, owner) != wanted:
                raise ValueError(
                    f"{option}={getattr(self, option)!r} belongs to {owner}={wanted!r}, not to {getattr(self, owner)!r}"
                )
        self.training(0)
        return self


class PruneConfig(BaseModel):
    """What to prune: every method, with every amount, in so many rounds.

    Attributes:
        kind: whole units are cut out, or single weights are masked.
        methods: criteria, by the names of :data:`simkit.experiments.methods.METHODS`.
        amounts: shares of the units (of the weights) that are gone after the last round.
        rounds: in how many steps; after every one the network is trained again.
        schedule: how much of the amount is gone after every round.
        scope: within each layer, or over all; None: as is usual for the kind and possible for the method.
        keep: layers that stay whole.
        start: from the trained network, or from the one before any training (pruning at initialisation, whose training
            is then ``retrain="rewind-lr"``).
        retrain: one way or several. ``"finetune"`` goes on at the last learning rate of the training; ``"rewind-lr"``
            runs its last epochs again; ``"rewind-weights"`` does that from the weights of that time; ``"rewind-init"``
            trains the first weights as long as the dense network (lottery tickets); ``"reinit"`` does that with new
            ones, removing round by round what the same method's run of the first other way removes, which alone is
            fine-tuning (the control of lottery tickets); ``"none"`` only prunes.
        epochs: of retraining after every round; None: as many as of the training. Of ``"rewind-init"`` and ``"reinit"``
            it says nothing, which train as long as the dense network, nor of ``"none"``.
        lr: of fine-tuning; None: that of the training's last epoch.
        compensate: how the layers that read removed units make up for them; one way or several.
        samples: training samples that a criterion or a compensation sees.
    """

    model_config = _STRICT

    kind: Kind = "structured"
    methods: tuple[str, ...] = Field(min_length=1)
    amounts: tuple[float, ...] = Field(min_length=1)
    rounds: int = Field(default=1, ge=1, le=MOST_ROUNDS)
    schedule: Literal["exponential", "linear", "cubic"] = "exponential"
    scope: Literal["layer", "global"] | None = None
    keep: tuple[str, ...] = ()
    start: Literal["trained", "initial"] = "trained"
    retrain: tuple[Retrain, ...] = Field(default=("finetune",), min_length=1)
    epochs: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0.0)
    compensate: tuple[Compensate, ...] = Field(default=("none",), min_length=1)
    samples: int = Field(default=2000, ge=4)

    @field_validator("retrain", "compensate", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        return ("finetune", "reinit") if several == ("reinit",) else several

    @field_validator("amounts")
    @classmethod
    def _shares(cls, amounts: tuple[float, ...]) -> tuple[float, ...]:
        for amount in amounts:
            if not 0.0 < amount < 1.0:
                raise ValueError(f"amounts must lie between 0 and 1, both excluded, not {amount!r}")
        return _distinct("amounts", amounts)

    @model_validator(mode="after")
    def _goes_together(self) -> PruneConfig:
        for name in ("methods", "retrain", "compensate"):
            _distinct(name, getattr(self, name))
        for method in self.methods:
            if method not in METHODS[self.kind]:
                known = ", ".join(METHODS[self.kind])
                raise ValueError(f"methods of kind={self.kind!r} are {known}, and not {method!r}")
        if self.lr is not None and "finetune" not in self.retrain:
            raise ValueError(f"lr={self.lr} is of fine-tuning, and retrain is {self.retrain[0]!r}")
        if not _CUT_SHORT & set(self.retrain):
            self.__dict__["epochs"] = None  # of none of these ways: the same runs with it and without
        self._check_scope()
        repairs = next((way for way in self.compensate if way != "none"), None)
        lost = next((way for way in self.retrain if way in ("rewind-weights", "rewind-init", "reinit")), None)
        if repairs and self.kind == "unstructured":
            raise ValueError(f"compensate={repairs!r} is for units, and kind is 'unstructured'")
        if repairs and lost:
            raise ValueError(f"compensate={repairs!r} is lost on weights that {lost!r} replaces")
        return self

    def _check_scope(self) -> None:
        if self.scope is None or self.kind == "unstructured":
            return
        for method in dict.fromkeys((*self.methods, "random")):
            scopes = METHODS[self.kind][method](0, self.samples).scopes
            if self.scope not in scopes:
                raise ValueError(
                    f"scope={self.scope!r} does not go with the method {method!r}, which takes {scopes[0]!r}"
                )


class CompareConfig(BaseModel):
    """The similarity of every layer of a pruned network to that of the dense one, after every round.

    Attributes:
        measures: by the names of ``simkit compare``; CKA is the debiased linear one.
        samples: test samples, at most.
        reduce: how activations become features, as in :func:`simkit.compare`.
        layers: their names; empty: all that have weights.
        memory: workspace; a number that does not depend on what is free gives the same bits every time.
    """

    model_config = _STRICT

    measures: tuple[MeasureName, ...] = ("cka",)
    samples: int = Field(default=2000, ge=4)
    reduce: Literal["flatten", "mean", "positions"] = "flatten"
    layers: tuple[str, ...] = ()
    memory: str = "1 GB"

    @field_validator("measures")
    @classmethod
    def _once(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct("measures", measures)


class RunConfig(BaseModel):
    """Seeds, where the results go, the device, torch's threads (None: as they are)."""

    model_config = _STRICT

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    out: str = Field(default="runs", min_length=1)
    device: str | None = None
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)

    @field_validator("seeds")
    @classmethod
    def _counted(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        for seed in seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seeds must be integers from 0 to 2^32 - 1, not {seed}")
        return _distinct("seeds", seeds)


class ExperimentConfig(BaseModel):
    """A whole config file."""

    model_config = _STRICT

    model: ModelConfig
    data: DataConfig
    train: TrainConfig = TrainConfig()
    prune: PruneConfig | None = None
    compare: CompareConfig = CompareConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _goes_together(self) -> ExperimentConfig:
        if self.train.patience is not None and self.data.validation == 0.0:
            raise ValueError(f"train.patience={self.train.patience} needs data.validation above 0")
        rewinds = {"rewind-lr", "rewind-weights"}
        if self.prune is None or not rewinds & set(self.prune.retrain):
            return self
        if {"rewind-init", "rewind-weights"} <= set(self.prune.retrain) and (
            self.prune.epochs in (None, self.train.epochs)
        ):
            raise ValueError(
                "prune.retrain names 'rewind-init' and 'rewind-weights', which are the same where all "
                f"train.epochs={self.train.epochs} are run again: set prune.epochs"
            )
        if (self.prune.epochs or 0) > self.train.epochs:
            raise ValueError(
                f"prune.epochs={self.prune.epochs} goes back further than the training of {self.train.epochs} epochs"
            )
        return self


def _distinct(name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ValueError(f"{name} names {twice!r} twice")
    return values
