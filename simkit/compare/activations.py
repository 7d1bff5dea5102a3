"""Records what layers return while a model runs, and leaves the model exactly as it was.

A :class:`Recorder` hooks the layers of one model. Each call of a layer is one row: ``"name"``, ``"name#2"`` for its
second call in the same forward pass, and so on. Features leave the hook at once, before an in-place operation of the
next layer can overwrite them.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from ..arrays import Matrix
from .batches import Call, arrays_in
from .features import NoSamples, Reduce, admitted, first_tensor, reduced, samples_of, time_major
from .layers import Layers, check_model, compiler_loaded, owns_weights, select, unwrap

Sink: TypeAlias = Callable[[str, Matrix], None]
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # how torch's modules refuse their input


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Restore the global random state of Python, NumPy and torch (CPU and every CUDA device in use) afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's global state is the point
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, eager execution; every train/eval flag and buffer is restored exactly.

    Flags are set one by one, not by ``eval()``: a model may override ``train`` to do more than set them.
    """
    flags = [(module, module.training) for module in root.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in root.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad(), _eager():
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


def _eager() -> AbstractContextManager[None]:
    """Compiled modules ignore hooks that came after their compilation: run what they were made from."""
    return torch.compiler.set_stance("force_eager") if compiler_loaded() else nullcontext()


def device_of(root: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model without any."""
    for tensors in (root.parameters(), root.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def dtype_of(root: nn.Module) -> torch.dtype:
    """The type of the first floating-point parameter; float32 for a model without any."""
    return next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)


def check_device(device: object) -> torch.device:
    """A usable device with its index, or ValueError with torch's reason."""
    try:
        return torch.empty(0, device=torch.device(device)).device  # type: ignore[call-overload]
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from None


class Recorder:
    """Features of chosen layers of one model, batch by batch; use it as a context.

    ``rows`` are the names of what is recorded, known after the first batch: in the order asked for, or for
    ``layers=None`` and predicates in the order of the calls. ``skipped`` names the layers without features and why.
    """

    def __init__(self, model: object, layers: Any, *, what: str, reduce: Reduce, device: object = None) -> None:
        checked = check_model(model, what)
        self.root = unwrap(checked)
        self.device = device_of(self.root) if device is None else check_device(device)
        if device is not None and any(t.device != self.device for t in [*self.root.parameters(), *self.root.buffers()]):
            # A copy goes to the device: moving the caller's model would break its optimizer and its own device.
            checked, layers = self._moved(checked, layers, what)
            self.root = unwrap(checked)
        self.dtype = dtype_of(self.root)
        self.rows: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self._layers: Layers = select(checked, layers, what)
        self._what = what
        self._reduce = reduce
        self._stack = ExitStack()
        self._fired: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._expected: Counter[str] | None = None
        self._seen = 0
        self._run: tuple[int, int, Sink] | None = None
        self._ours: Exception | None = None  # what a hook raised, as opposed to the model

    def _moved(self, model: nn.Module, layers: Any, what: str) -> tuple[nn.Module, Any]:
        select(model, layers, what)
        memo: dict[int, Any] = {}
        try:
            moved = copy.deepcopy(model, memo).to(self.device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{what} cannot be copied to {self.device}: {error}") from None
        if isinstance(layers, nn.Module):
            layers = [layers]
        if isinstance(layers, list | tuple):
            layers = [memo.get(id(entry), entry) for entry in layers]
        elif isinstance(layers, dict):
            layers = {label: memo.get(id(entry), entry) for label, entry in layers.items()}
        return moved, layers

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.root))
            for name, module in self._layers.modules.items():
                handle = module.register_forward_hook(partial(self._hook, name))
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def skip(self, samples: int) -> None:
        """Count samples that need no run because their features are known."""
        self._seen += samples

    def run(self, call: Call, keep: int, sink: Sink) -> None:
        """Run the model on one batch and hand the features of its first ``keep`` samples to ``sink``, row by row.

        Raises:
            ValueError: the model refuses the batch; a layer that was named never ran, ran another number of times than
                before, does not have the samples in dimension 0, or is not finite.
        """
        self._counts = Counter()
        self._run = (call.samples, keep, sink)
        try:
            self.root(*call.args, **call.kwargs)
        except _REFUSALS as error:
            if error is self._ours or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self._what} cannot run a batch of {_shapes(call)}: {reason}") from error
        finally:
            self._run = self._ours = None
        self._seen += keep
        if self._expected is None:
            self._settle()
        elif self._counts != self._expected:
            name = next(iter((self._expected - self._counts) | (self._counts - self._expected)))
            raise self._changed(name)

    def _hook(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        if self._run is None:  # another model that shares this module is running
            return
        try:
            self._take(name, module, output)
        except Exception as error:
            self._ours = error
            raise

    def _take(self, name: str, module: nn.Module, output: Any) -> None:
        beneath = self._layers.beneath
        if self._expected is None:
            self._fired.add(id(module))
            if beneath is not None and name not in self._counts and beneath[id(module)] & self._fired:
                return
        elif name not in self._expected:
            if beneath is None:
                raise self._changed(name)
            return
        self._counts[name] += 1
        call = self._counts[name]
        if self._expected is not None and call > self._expected[name]:
            raise self._changed(name)
        row = name if call == 1 else f"{name}#{call}"
        if row not in self.skipped:
            self._record(row, module, output)

    def _record(self, row: str, module: nn.Module, output: Any) -> None:
        assert self._run is not None
        n, keep, sink = self._run
        layer = self._called(row)
        try:
            tensor = samples_of(output, n, layer).detach()[:keep]
        except NoSamples as error:
            if not self._layers.lenient or self._expected is not None or time_major(first_tensor(output), n):
                raise
            self.skipped[row] = str(error).removeprefix(f"{layer} ")
            return
        features = reduced(tensor, self._reduce, module, layer)
        positions = max(1, features.shape[0] // max(1, keep))
        matrix = admitted(features, layer, first=self._seen, positions=positions)
        if self._expected is None:
            self.rows += (row,)
        sink(row, matrix.renamed(row))

    def _settle(self) -> None:
        """After the first batch: the order of the rows, and the layers that never ran."""
        self._expected = self._counts
        silent = [name for name in self._layers.modules if name not in self._counts]
        if not self._layers.lenient:
            if silent:
                raise ValueError(f"{self._called(silent[0])} never ran in the forward pass: nothing to compare")
            place = {name: i for i, name in enumerate(self._layers.modules)}
            self.rows = tuple(sorted(self.rows, key=lambda row: place[row if row in place else row.rpartition("#")[0]]))
            return
        for name in silent:
            if self._layers.beneath is None or self._unused_leaf(self._layers.modules[name]):
                self.skipped[name] = "it never ran in the forward pass"
        if not self.rows:
            raise ValueError(
                f"no layer of {self._what} gave features: {'; '.join(self.skipped.values()) or 'none ran'}"
            )

    def _unused_leaf(self, module: nn.Module) -> bool:
        """Whether it holds weights that no recorded module around it used."""
        beneath = self._layers.beneath or {}
        recorded = (self._layers.modules[name] for name in self._counts)
        return (
            owns_weights(module)
            and id(module) not in self._fired
            and not any(id(module) in beneath[id(outer)] for outer in recorded)
        )

    def _called(self, row: str) -> str:
        return f"{self._what} layer {row!r}"

    def _changed(self, name: str) -> ValueError:
        before = 0 if self._expected is None else self._expected[name]
        return ValueError(
            f"{self._called(name)} ran {self._counts[name]} times in a batch and {before} times in the first: "
            "its calls cannot be matched across batches"
        )


def _shapes(call: Call) -> str:
    """The inputs of a call in words: ``shape (128, 3, 32, 32), float32``."""
    inputs = list(arrays_in((call.args, call.kwargs)))
    return " and ".join(f"shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}" for x in inputs)
