"""Two models and data -> the similarity of their layers: run both on the same batches, record, compare, say how."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..backends.routes import parse_memory
from ..kernels import as_integer
from ..metrics.cka import CKA
from ..metrics.measure import Measure, check_measure
from .matrix import SimilarityMatrix

if TYPE_CHECKING:
    from .batches import Data
    from .collect import Side
    from .features import Reduce
    from .resume import Checkpoint
    from .run import Options


def compare(
    model_a: Any,
    model_b: Any = None,
    *,
    data: Any,
    layers: Any = None,
    measure: Measure = CKA(),
    reduce: Reduce = "flatten",
    samples: int | None = None,
    mode: Literal["exact", "minibatch"] = "exact",
    memory: int | float | str | None = None,
    device: str | Any | None = None,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> SimilarityMatrix:
    """Similarity of the layers of ``model_a`` (rows) with those of ``model_b`` (columns; None: with its own).

    The models run in eval mode without gradients, on the same batches; hooks, train/eval flags, buffers and the
    global random state are as before afterwards. The result is exact over all samples.

    Args:
        model_a: a ``torch.nn.Module``; DataParallel, DDP and ``torch.compile`` wrappers are looked through.
        model_b: another, or None.
        data: an iterable of batches (a DataLoader; a generator), one tensor or array ``[n, ...]``, or a pair
            ``(loader_a, loader_b)`` that yields sample ids, which must agree. What a batch may be, and how it carries
            ids: :mod:`simkit.compare.batches`.
        layers: None for every leaf module that has weights, in the order of their calls; names (or modules); a
            mapping ``{label: name}``; a predicate ``f(name, module)``; or a pair of these, one for each model.
            A layer that runs several times in one pass has a row for each: ``"fc"``, ``"fc#2"``. A layer that was
            named and never runs is an error; one chosen by None or a predicate is a NaN row, named in ``degenerate``.
        measure: a measure object.
        reduce: ``"flatten"`` ``[n, ...] -> [n, p]``; ``"mean"`` over the positions of maps ``[n, c, h, w]`` and the
            tokens of ``[n, t, d]``; ``"positions"``, where every position is a sample; or a callable of the output
            tensor that gives ``[n, ...]``. Outputs that are no tensors give ``last_hidden_state``, ``logits`` or their
            first tensor.
        samples: stop after so many samples.
        mode: ``"exact"``, or ``"minibatch"``: the average of per-batch debiased HSIC, an estimate.
        memory: bytes beyond the models and one batch of activations (a number or ``"64 MB"``); None takes a quarter
            of what is free. Features that do not fit, or leave too little for what is computed, go to the folder for
            temporary files. Measures other than CKA hold a prepared form of every layer, for which None lets them take
            what is free. For CKA with a kernel that is not custom, features that all lie on one CUDA device stay there
            where their number is known and they take at most half of what is free there, and 0.4 of ``memory``; else
            what comes to the host is compared there in strips. A device without the memory for either leaves it to the
            host, and the plan says so.
        device: where the models run; None is where each is. A model that is elsewhere is copied, not moved.
        progress: show a progress bar on stderr when it takes a while.
        resume: a folder that keeps the features until the comparison has finished, so that a killed one continues to
            the same bits. The data must come in the same order each time, which is checked.

    Raises:
        ValueError: an unknown layer (the nearest names are offered), loaders that differ, a batch that a model cannot
            run, a layer without samples in dimension 0 or with non-finite features, too few samples, too little memory.
        TypeError: no model, no data, no measure.
        OSError: the disk is full. ImportError: no torch.
    """
    try:
        import torch  # noqa: F401 - the one sentence for everything below
    except ImportError:
        raise ImportError("comparing models needs torch: pip install 'simkit[torch]'") from None
    from .activations import Recorder, untouched_rng
    from .batches import open_data
    from .features import check_reduce
    from .run import Run

    check_reduce(reduce)
    options = _options(measure, mode, samples, memory, reduce)
    layers_a, layers_b = _layer_pair(layers, paired=model_b is not None)
    source = open_data(data, paired=model_b is not None)
    if model_b is model_a and layers_a is layers_b and source.second is None:
        model_b = None
    chosen: dict[Side, tuple[Any, Any]] = {"a": (model_a, layers_a)}
    if model_b is not None:
        chosen["b"] = (model_b, layers_b)
    with ExitStack() as stack:
        stack.enter_context(untouched_rng())
        recorders = {
            side: Recorder(model, names, what=f"model_{side}", reduce=reduce, device=device)
            for side, (model, names) in chosen.items()
        }
        checkpoint = None if resume is None else _checkpoint(resume, source, options)
        for recorder in recorders.values():
            stack.enter_context(recorder)
        result = Run(recorders, source, options, stack, checkpoint).complete(progress=progress)
    if checkpoint is not None:
        checkpoint.remove()
    return result


def _options(measure: object, mode: str, samples: object, memory: Any, reduce: Reduce) -> Options:
    from .collect import linear_cka
    from .run import Options

    checked = check_measure(measure)
    if mode not in ("exact", "minibatch"):
        raise ValueError(f'mode must be "exact" or "minibatch", not {mode!r}')
    if mode == "minibatch" and not (linear_cka(checked) and getattr(checked, "estimator", "") == "debiased"):
        raise ValueError(f'mode="minibatch" estimates debiased linear CKA, not {measure!r}')
    limit = as_integer(samples)
    if samples is not None and (limit is None or limit < 1):
        raise ValueError(f"samples must be a positive integer, not {samples!r}")
    name = reduce if isinstance(reduce, str) else getattr(reduce, "__qualname__", type(reduce).__name__)
    budget = parse_memory(memory)
    asked = "" if budget is None else memory.strip() if isinstance(memory, str) else f"{memory} bytes"
    return Options(checked, mode, limit, budget, asked, str(name))


def _layer_pair(layers: Any, *, paired: bool) -> tuple[Any, Any]:
    """A tuple of two selections is a pair; a tuple of two names or modules is one selection."""
    is_pair = (
        isinstance(layers, tuple)
        and len(layers) == 2
        and not any(isinstance(part, str) or hasattr(part, "register_forward_hook") for part in layers)
    )
    if not is_pair:
        return layers, layers
    if not paired:
        raise ValueError("layers is a pair of selections but there is no model_b")
    return layers[0], layers[1]


def _checkpoint(folder: str | os.PathLike[str], source: Data, options: Options) -> Checkpoint:
    from .resume import Checkpoint

    if options.mode == "minibatch":
        raise ValueError('resume= keeps features and mode="minibatch" has none to keep: use mode="exact"')
    return Checkpoint(Path(folder), source, {"reduce": options.reduce, "samples": options.samples})
