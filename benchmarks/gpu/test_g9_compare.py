"""G9: two residual networks on the device, compared end to end, exactly over all images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import simkit as sk

from .. import truth as host
from ..rivals import package
from ..test_w9_compare import convolutions, residual_network
from ..truth import Floats
from . import truth
from .conftest import Measure
from .device import Device
from .inputs import generator_on, on_host
from .protocol import Contestant, Workload
from .rivals import from_package, in_each_mode
from .test_g1_all_pairs import gram_once, values_of

FORWARD = "the forward passes alone"


@dataclass(frozen=True)
class Models:
    """Two models on the device and images on the host, in batches of one tensor each; ``layers`` are compared."""

    first: Any
    second: Any
    images: Any
    layers: Sequence[str]
    batch: int

    def batches(self, *, pairs: bool = False) -> Any:
        """A DataLoader of image tensors, or of tuples, which some packages need."""
        return DataLoader(TensorDataset(self.images) if pairs else self.images, batch_size=self.batch)

    @property
    def where(self) -> Any:
        """The device of the models."""
        return next(self.first.parameters()).device


def test_g9_compare(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """Exact over the whole set, where packages average batches; the bare forward passes beside it."""
    models = make(device, *((4096, 16, 3, 16, 32, 256) if at_full_size else SMALL))
    feasible = make(device, 40, 3, 1, 3, 10, 16)
    with float32_convolutions():
        features = features_of(models)
        n, widths = len(models.images), [layer.shape[1] for layer in features[0]]
        del features
        layers = len(widths)
        sample = n * n * sum(widths) + n * n * (layers * layers + 2 * layers) // 2
        columns = n * sum(widths) ** 2 + n * sum(p * p for p in widths)
        workload = Workload(
            key="G9",
            title=f"compare two residual networks, {layers} layers each, {n:,} images",
            sizes={"n": n, "widths": widths, "batch": models.batch},
            inputs=[models],
            feasible=feasible,
            host_truth=lambda models: host.cka_table(*on_host(features_of(models))),
            truth=lambda models: truth.cka_table(*features_of(models)),
            difference=lambda a, b: float(np.abs(a - b).max()),
            error=lambda table, exact: float(np.abs(values_of(table) - exact).max()),
            tolerance=1e-6,
            precision="float32",
            multiply_adds=min(sample, columns),
            bytes=8 * n * sum(widths),
            programs="as G1, after the models",
            besides=FORWARD,
        )
        result = gpu_measure(
            workload,
            Contestant("simkit, exact over all images", simkit, plan=lambda matrix: [matrix.plan]),
            [
                Contestant(FORWARD, forward, lambda *_: None, note="computes no similarity"),
                Contestant("simkit, minibatch estimate", partial(simkit, mode="minibatch")),
                *in_each_mode("torch, hooks and each Gram matrix once", by_hooks),
                from_package("cka", Contestant("pytorch-cka (mean over batches)", pytorch_cka_models)),
                from_package("torch_cka", Contestant("torch_cka (mean over batches)", torch_cka_models)),
            ],
        )
    rows = {row["name"]: row for row in result["contestants"]}
    own, bare = rows["simkit, exact over all images"], rows[FORWARD]
    result["notes"].append(f"simkit takes {own['wall'] / bare['wall']:.2f} × the forward passes, end to end")
    result["notes"].append("convolutions are float32's, not TF32's, for all")


SMALL = (48, 4, 1, 4, 12, 16)


def make(device: Device, n: int, width: int, blocks: int, count: int, side: int, batch: int) -> Models:
    """Two networks of 6 · ``blocks`` + 2 layers, and images."""
    first, second = (residual_network(seed, width, blocks) for seed in range(2))
    images = torch.randn((n, 3, side, side), generator=generator_on(device, 0), device=device.where).cpu()
    layers = convolutions(first, count)
    return Models(first.to(device.where), second.to(device.where), images, layers, batch)


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """No TF32, and one algorithm for one shape, so that features are the same in every pass."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def features_of(models: Models) -> list[list[Any]]:
    """Flattened outputs of the layers over all images, on the device, by hooks of our own."""
    return [_features(model, models) for model in (models.first, models.second)]


def _features(model: Any, models: Models) -> list[Any]:
    held: dict[str, list[Any]] = {name: [] for name in models.layers}
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(
            lambda _module, _inputs, output, name=name: held[name].append(output.detach().flatten(1).clone())
        )
        for name in models.layers
    ]
    with torch.inference_mode():
        for batch in models.batches():
            model(batch.to(models.where))
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in held.values()]


def simkit(models: Models, mode: Any = "exact") -> Any:
    """The models where they are, the images from the host."""
    return sk.compare(
        models.first, models.second, data=models.batches(), layers=models.layers, mode=mode, progress=False
    )


def forward(models: Models) -> None:
    """Both models on every batch."""
    with torch.inference_mode():
        for batch in models.batches():
            there = batch.to(models.where)
            models.first(there)
            models.second(there)


def by_hooks(models: Models, precision: str) -> Floats:
    """Features held on the device, then as in G1."""
    return gram_once(features_of(models), precision)


def pytorch_cka_models(models: Models) -> Floats:
    """pytorch-cka on two models: the mean over batches."""
    found = package("cka").compute_cka(
        models.first,
        models.second,
        models.batches(),
        layers=list(models.layers),
        device=str(models.where),
        progress=False,
    )
    table: Floats = found[0].double().cpu().numpy()
    return table


def torch_cka_models(models: Models) -> Floats:
    """torch_cka on two models: the mean over batches."""
    first, second, names = models.first, models.second, list(models.layers)
    hooked = [*first.modules(), *second.modules()]
    before = [dict(module._forward_hooks) for module in hooked]
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        comparison = package("torch_cka").CKA(first, second, "a", "b", names, names, device=str(models.where))
        try:
            comparison.compare(models.batches(pairs=True))
        finally:  # it never removes its hooks
            for module, hooks in zip(hooked, before, strict=True):
                module._forward_hooks.clear()
                module._forward_hooks.update(hooks)
    table: Floats = comparison.export()["CKA"].double().cpu().numpy()
    return table
