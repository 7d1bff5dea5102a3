"""Training in three functions: :func:`train_epoch`, :func:`evaluate`, :func:`fit`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..graph import preserved_rng
from .batches import Data, batches, count
from .checkpoint import TrainState, load_checkpoint, save_checkpoint
from .config import Precision, TrainOptions
from .optimizers import make_optimizer, set_rate, step
from .precision import autocast, loss_scaler
from .randomness import Randomness
from .records import EpochRecord, Evaluation, History

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
DEFAULT_OPTIONS = TrainOptions()


def train_epoch(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    loss: Loss = functional.cross_entropy,
    clip_norm: float | None = None,
    rate: Callable[[float], float] | None = None,
    accumulate: int = 1,
    precision: Precision = "float32",
    scaler: torch.amp.GradScaler | None = None,
) -> Evaluation:
    """One pass over the data in train mode, a step of the optimiser per ``accumulate`` batches; the mode is put back.

    Args:
        model: trained in place.
        data: (inputs, labels) tensors, or a DataLoader of such pairs.
        optimizer: of the model's parameters.
        batch_size: for a pair of tensors.
        generator: shuffles a pair of tensors; without one they are taken in order.
        loss: of (outputs, labels), a mean over the batch.
        clip_norm: largest norm of the whole gradient.
        rate: the learning rate by the share of the epoch that is done; None leaves it to the optimiser.
        accumulate: batches whose gradients are averaged into one step; at the end of an epoch they may be fewer.
        precision: of the model's run, as in :class:`TrainOptions`.
        scaler: of the loss, for float16.

    Returns:
        Loss and accuracy over the epoch, as they were when each batch was seen.

    Raises:
        ValueError: the loss is not finite, labels that are no class numbers of the outputs ``[n, classes, ...]``, or
            there is no data.
    """
    device = _device(model)
    steps = count(data, batch_size)
    tally = _Tally()
    with _mode(model, training=True):
        stream = batches(data, batch_size, generator)
        done = 0
        while group := list(islice(stream, accumulate)):
            if rate is not None:
                set_rate(optimizer, rate(done / steps if steps else 0.0))
            optimizer.zero_grad(set_to_none=True)
            for inputs, labels in group:
                target = labels.to(device)
                with autocast(device, precision):
                    outputs = model(inputs.to(device))
                    value = loss(outputs, target)
                tally.add(outputs, target, value)
                part = value / len(group)
                (part if scaler is None else scaler.scale(part)).backward()  # type: ignore[no-untyped-call]
            step(model, optimizer, scaler, clip_norm)
            done += len(group)
    return tally.result("train on")


def evaluate(
    model: nn.Module, data: Data, *, batch_size: int = 512, loss: Loss = functional.cross_entropy
) -> Evaluation:
    """Mean loss and accuracy in eval mode without gradients; the model's mode and the random states are put back.

    Raises:
        ValueError: as :func:`train_epoch`.
    """
    device = _device(model)
    tally = _Tally()
    with _mode(model, training=False), torch.no_grad(), preserved_rng():
        for inputs, labels in batches(data, batch_size):
            target = labels.to(device)
            outputs = model(inputs.to(device))
            tally.add(outputs, target, loss(outputs, target))
    return tally.result("evaluate")


def fit(
    model: nn.Module,
    train: Data,
    options: TrainOptions = DEFAULT_OPTIONS,
    *,
    validation: Data | None = None,
    loss: Loss = functional.cross_entropy,
    progress: Callable[[EpochRecord], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    stop_after: int | None = None,
) -> History:
    """Train the model in place; also the way to fine-tune a pruned one.

    Where ``options.patience`` stops it early, the model keeps the weights of the last epoch, not of the best.

    The same seed, data and options give the same weights, bit for bit on one device with the same number of threads.
    Sample order and dropout draw from own random states, so torch's global ones neither matter nor change.

    Args:
        model: trained in place, and moved to ``options.device`` if that is set; its mode is put back.
        train: (inputs, labels) tensors, or a DataLoader of such pairs.
        options: see :class:`TrainOptions`.
        validation: evaluated after every epoch; ``options.patience`` needs it.
        loss: of (outputs, labels), a mean over the batch.
        progress: called with every finished epoch.
        checkpoint: a folder. After every epoch the whole state is written there; a run that finds such a state of the
            same options continues from it and ends with the same weights as one that was never interrupted.
        stop_after: leave off after this epoch count, as if interrupted; the schedule stays that of all epochs.

    Raises:
        ValueError: nothing to train, a loss that is not finite, patience without validation, or a checkpoint of
            other options.
    """
    if options.patience is not None and validation is None:
        raise ValueError(f"patience={options.patience} needs validation data")
    if options.device is not None:
        model.to(options.device)
    device = _device(model)
    state = TrainState(
        model, make_optimizer(model, options), Randomness(options.seed, device), loss_scaler(device, options.precision)
    )
    records: list[EpochRecord] = []
    if checkpoint is not None:
        records = load_checkpoint(checkpoint, state, options)
    last = options.epochs if stop_after is None else min(stop_after, options.epochs)
    while options.first_epoch + len(records) < last and not _stalled(records, options.patience):
        epoch = options.first_epoch + len(records)
        records.append(_one_epoch(state, train, options, epoch, validation, loss))
        if checkpoint is not None:
            save_checkpoint(checkpoint, state, options, [asdict(record) for record in records])
        if progress is not None:
            progress(records[-1])
    return History(tuple(records), _stalled(records, options.patience))


def _one_epoch(
    state: TrainState, train: Data, options: TrainOptions, epoch: int, validation: Data | None, loss: Loss
) -> EpochRecord:
    with state.randomness.active():
        seen = train_epoch(
            state.model,
            train,
            state.optimizer,
            batch_size=options.batch_size,
            generator=state.randomness.order,
            loss=loss,
            clip_norm=options.clip_norm,
            rate=lambda fraction: options.rate(epoch, fraction),
            accumulate=options.accumulate,
            precision=options.precision,
            scaler=state.scaler,
        )
    held_out = None if validation is None else evaluate(state.model, validation, loss=loss)
    return EpochRecord(epoch, float(state.optimizer.param_groups[0]["lr"]), seen, held_out)


def _stalled(records: list[EpochRecord], patience: int | None) -> bool:
    """Whether the last ``patience`` epochs all failed to go below the lowest validation loss before them."""
    losses = [record.validation.loss for record in records if record.validation is not None]
    return patience is not None and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


class _Tally:
    """Loss and hits summed over batches, in float64."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.hits = 0
        self.labels = 0
        self.samples = 0

    def add(self, outputs: Tensor, labels: Tensor, loss: Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"the loss became {value} after {self.samples} samples; a lower learning rate may help")
        if (outputs.shape[:1] + outputs.shape[2:], outputs.dim() > 1) != (labels.shape, True):
            raise ValueError(
                f"labels {tuple(labels.shape)} are no class numbers for outputs {tuple(outputs.shape)}: a label for "
                "every position of [n, classes, ...] is needed"
            )
        self.loss += value * len(labels)
        self.hits += int((outputs.detach().argmax(dim=1) == labels).sum())
        self.labels += labels.numel()
        self.samples += len(labels)

    def result(self, purpose: str) -> Evaluation:
        if self.samples == 0:
            raise ValueError(f"there are no samples to {purpose}")
        return Evaluation(self.loss / self.samples, self.hits / self.labels, self.samples)
