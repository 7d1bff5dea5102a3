"""W9: two residual networks compared end to end, exactly over all images; and two trained ones on Fashion-MNIST."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import pytest

import simkit as sk

from .conftest import Measure
from .protocol import Contestant, Workload
from .rivals import from_package, package
from .truth import Array, Floats, cka_table

torch = pytest.importorskip("torch")
nn = torch.nn


@dataclass(frozen=True)
class Models:
    """Two models on the same images, in batches of one tensor each; ``layers`` names what is compared."""

    first: Any
    second: Any
    images: Any
    layers: Sequence[str]
    batch: int = 128

    def batches(self, *, pairs: bool = False) -> Any:
        """A DataLoader of image tensors, or of tuples, which some packages need."""
        from torch.utils.data import DataLoader, TensorDataset

        if pairs:
            return DataLoader(TensorDataset(self.images), batch_size=self.batch)
        return DataLoader(self.images, batch_size=self.batch)


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    """Two convolutions and a shortcut that subsamples and pads (He et al. 2016, option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.added = stride, after - before

    def forward(self, x: Any) -> Any:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        short = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return torch.relu(out + short)


def residual_network(seed: int, width: int, blocks: int) -> Any:
    """Three stages of ``blocks`` residual blocks; (16, 3) is ResNet-20."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = [width] * blocks + [2 * width] * blocks + [4 * width] * blocks
        parts = [Residual(a, b, 1 if a == b else 2) for a, b in zip([width, *widths], widths, strict=False)]
        stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
        return nn.Sequential(*stem, *parts, *head).eval()


def convolutions(model: Any, count: int) -> list[str]:
    """The names of the first ``count`` convolutions."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][:count]


def test_w9_compare(measure: Measure, full: bool) -> None:
    """Exact over the whole set, where packages average batches; the bare forward passes beside it."""
    n, width, blocks, count, side = (1024, 16, 3, 16, 32) if full else (96, 4, 1, 4, 12)
    first, second = (residual_network(seed, width, blocks) for seed in range(2))
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 3, side, side)).astype(np.float32))
    models = Models(first, second, images, convolutions(first, count), batch=128 if full else 32)
    result = measure(
        _workload("W9", f"compare two ResNet-{6 * blocks + 2}, {count} layers each, {n} images", models),
        Contestant("simkit, exact over all images", _exact),
        [
            Contestant("the forward passes alone", _forward, error=lambda _: 0.0, note="computes no similarity"),
            Contestant("simkit, minibatch estimate", _estimate),
            from_package("cka", Contestant("pytorch-cka (mean over batches)", _pytorch_cka)),
            from_package("torch_cka", Contestant("torch_cka (mean over batches)", _torch_cka)),
        ],
    )
    _beyond_forward(result)


@pytest.mark.slow
def test_fashion_mnist(measure: Measure, full: bool) -> None:
    """Two trained networks, every layer, exactly over the 10,000 test images."""
    from simkit import train

    try:
        data = train.fashion_mnist()
    except ValueError as absent:
        pytest.skip(str(absent))
    kept = 20_000 if full else 2_000
    test = data.test_x if full else data.test_x[:2_000]
    networks = []
    for seed in range(2):
        model = train.small_cnn(data.shape, data.classes, seed=seed)
        train.fit(model, (data.train_x[:kept], data.train_y[:kept]), train.TrainOptions(epochs=1, seed=seed))
        networks.append(model.eval())
    accuracy = [train.evaluate(model, (test, data.test_y[: len(test)])).accuracy for model in networks]
    models = Models(networks[0], networks[1], test, ("relu1", "pool2", "pool3", "relu4", "fc2"))
    title = f"Fashion-MNIST: compare two trained CNNs, {len(models.layers)} layers each, {len(test)} test images"
    result = measure(
        _workload("Fashion", title, models),
        Contestant("simkit, exact over all images", _exact),
        [
            Contestant("the forward passes alone", _forward, error=lambda _: 0.0, note="computes no similarity"),
            Contestant("simkit, minibatch estimate", _estimate),
            from_package("cka", Contestant("pytorch-cka (mean over batches)", _pytorch_cka)),
            from_package("torch_cka", Contestant("torch_cka (mean over batches)", _torch_cka, once=full)),
        ],
    )
    _beyond_forward(result)
    result["notes"].append("test accuracy after one epoch: " + " and ".join(f"{share:.1%}" for share in accuracy))


def _workload(key: str, title: str, models: Models) -> Workload:
    features = [_features(model, models) for model in (models.first, models.second)]
    truth = _truth(features)
    n, widths = len(models.images), [layer.shape[1] for layer in features[0]]
    size = 4 * n * sum(widths) * 2
    del features
    layers = len(widths)
    sample = n * n * sum(widths) + n * n * (layers * layers + 2 * layers) // 2
    columns = n * sum(widths) ** 2 + n * sum(p * p for p in widths)
    return Workload(
        key=key,
        title=title,
        sizes={"n": n, "widths": widths, "batch": models.batch},
        inputs=[models],
        error=lambda table: float(np.abs(np.asarray(table) - truth).max()),
        tolerance=1e-6,
        precision="float32",
        multiply_adds=min(sample, columns),
        bytes=size,
    )


def _features(model: Any, models: Models) -> list[Array]:
    """Flattened outputs of the layers over all images, by hooks of our own."""
    held: dict[str, list[Array]] = {name: [] for name in models.layers}
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(
            lambda _module, _inputs, output, name=name: held[name].append(output.detach().flatten(1).numpy().copy())
        )
        for name in models.layers
    ]
    with torch.inference_mode():
        for batch in models.batches():
            model(batch)
    for hook in hooks:
        hook.remove()
    return [np.concatenate(parts) for parts in held.values()]


def _truth(features: Sequence[Sequence[Array]]) -> Floats:
    if len(features[0][0]) <= 4096:
        return cka_table(*features)
    return _by_strips(features)


def _by_strips(features: Sequence[Sequence[Array]], rows: int = 250) -> Floats:
    """As :func:`cka_table`, with no n × n matrix: strips of the Gram matrices' upper halves, in float64."""
    left = len(features[0])
    z = [layer - layer.mean(axis=0, dtype=np.float64) for side in features for layer in side]
    n, count = len(z[0]), len(z)
    squares = np.stack([np.einsum("ij,ij->i", layer, layer) for layer in z])
    products = np.zeros((count, count))
    for start in range(0, n, rows):
        strip = np.stack([layer[start : start + rows] @ layer[start:].T for layer in z])
        strip[:, :, rows:] *= np.sqrt(2.0)  # stands for its mirror image too
        products += strip.reshape(count, -1) @ strip.reshape(count, -1).T
    sums = squares.sum(axis=1)
    hsic = products - n / (n - 2) * (squares @ squares.T) + np.outer(sums, sums) / ((n - 1) * (n - 2))
    own = np.sqrt(np.diagonal(hsic))
    return (hsic / np.outer(own, own))[:left, left:]


def _exact(models: Models, mode: Any = "exact") -> Any:
    return sk.compare(
        models.first, models.second, data=models.batches(), layers=models.layers, mode=mode, progress=False
    ).values


_estimate: Callable[[Models], Any] = partial(_exact, mode="minibatch")


def _forward(models: Models) -> None:
    with torch.inference_mode():
        for batch in models.batches():
            models.first(batch)
            models.second(batch)


def _pytorch_cka(models: Models) -> Any:
    layers = list(models.layers)
    found = package("cka").compute_cka(
        models.first, models.second, models.batches(), layers=layers, device="cpu", progress=False
    )
    return found[0].double().numpy()


def _torch_cka(models: Models) -> Any:
    names = list(models.layers)
    hooked = [*models.first.modules(), *models.second.modules()]
    before = [dict(module._forward_hooks) for module in hooked]
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        comparison = package("torch_cka").CKA(models.first, models.second, "a", "b", names, names, device="cpu")
        try:
            comparison.compare(models.batches(pairs=True))
        finally:  # it never removes its hooks
            for module, hooks in zip(hooked, before, strict=True):
                module._forward_hooks.clear()
                module._forward_hooks.update(hooks)
    return comparison.export()["CKA"].double().numpy()


def _beyond_forward(result: dict[str, Any]) -> None:
    """Note what simkit takes beyond the forward passes, in limits of its engine."""
    rows = {row["name"]: row for row in result["contestants"]}
    own, bare = rows["simkit, exact over all images"], rows["the forward passes alone"]
    if "seconds" in own:
        beyond = own["ratio_to_limit"] - bare["ratio_to_limit"]
        estimate = rows["simkit, minibatch estimate"]["ratio_to_limit"] / bare["ratio_to_limit"]
        result["notes"].append(
            f"beyond the forward passes simkit takes {beyond:.2f} × the limit of its engine; "
            f'mode="minibatch" takes {estimate:.2f} × the forward passes'
        )
