"""Accuracy against multiply-adds: criteria × compensation × fine-tuning, on Fashion-MNIST, several seeds.

    python benchmarks/pruning_curves.py run OUT.jsonl     trains what is missing, appends a line per result; resumable
    python benchmarks/pruning_curves.py report OUT.jsonl  writes docs/pruning.md and docs/pruning.png

10,000 training images, 5 epochs; then every network is cut by every criterion at every amount, with and without making
up for it, and measured before and after one epoch of fine-tuning. About two seconds a result on two cores, an hour in
all. A run that is killed goes on with the first result that is missing.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simkit import pruning as P
from simkit import train
from simkit.experiments.statistics import Interval, mean_interval
from simkit.files import write_atomically

DOCS = Path(__file__).resolve().parent.parent / "docs"
IMAGES, EPOCHS, SEEDS = 10_000, 5, (0, 1, 2)
AMOUNTS = (0.3, 0.5, 0.7)
SCORES: dict[str, Callable[[int], tuple[Any, str]]] = {
    "CKA damage": lambda seed: (P.CKADamage(reduce="positions", samples=1000), "layer"),
    "redundancy": lambda seed: (P.Redundancy(), "global"),
    "L1": lambda seed: (P.L1(), "layer"),
    "random": lambda seed: (P.Random(seed), "layer"),
}
WAYS = {"none": None, "merge": P.Merge(), "least squares": P.LeastSquares(samples=1000)}


class Block(nn.Module):
    """A residual block with a 1x1 shortcut where the shape changes (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, before, h, w]`` to ``[n, after, h/stride, w/stride]``."""
        return torch.relu(self.shortcut(x) + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def resnet20(width: int = 8) -> nn.Module:
    """ResNet-20 for grey images."""
    widths = [width] * 3 + [2 * width] * 3 + [4 * width] * 3
    parts = [Block(a, b, 1 if a == b else 2) for a, b in zip([width, *widths], widths, strict=False)]
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def small_vgg() -> nn.Module:
    """Six convolutions with BatchNorm, two pools, two linear layers."""
    parts: list[nn.Module] = []
    before = 1
    for width in (16, 16, 0, 32, 32, 0, 64, 64):
        if width:
            parts += [nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        else:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"VGG": small_vgg, "ResNet-20": resnet20}


def run(out: Path) -> None:
    """Compute what the file lacks."""
    data = train.fashion_mnist()
    images = data.train_x[:IMAGES], data.train_y[:IMAGES]
    done = {tuple(json.loads(line)["key"]) for line in out.read_text().splitlines()} if out.exists() else set()
    for network, seed in product(NETWORKS, SEEDS):
        keys = [("dense", "none", 0.0), *list(product(SCORES, WAYS, AMOUNTS))]
        wanted = [key for key in keys if (network, seed, *key) not in done]
        if not wanted:
            continue
        model = _trained(network, seed, images, out.with_suffix(f".{network}.{seed}.pt"))
        for key in wanted:
            line = {"key": [network, seed, *key], **_measured(model, seed, key, images, data.test)}
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


def _trained(network: str, seed: int, images: tuple[Tensor, Tensor], path: Path) -> nn.Module:
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train.fit(model, images, train.TrainOptions(epochs=EPOCHS, lr=0.05, schedule="cosine", seed=seed))
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        write_atomically(path, buffer.getvalue())
    return model.eval()


def _measured(
    model: nn.Module,
    seed: int,
    key: tuple[str, str, float],
    images: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> dict[str, float]:
    name, way, amount = key
    example = images[0][:2]
    if name == "dense":
        return {"macs": P.trace(model, example).macs(), "cut": train.evaluate(model, test).accuracy}
    score, scope = SCORES[name](seed)
    plan = P.plan(model, example, data=images[0], score=score, scope=scope, amount=amount, compensate=WAYS[way])
    small = P.apply(model, plan, example)
    cut = train.evaluate(small, test).accuracy
    train.fit(small, images, train.TrainOptions(epochs=1, lr=0.01, schedule="cosine", seed=seed))
    return {"macs": plan.macs_after, "cut": cut, "tuned": train.evaluate(small, test).accuracy}


def report(out: Path) -> None:
    """The table and the picture of a finished (or half-finished) run."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    text = ["# Pruning: accuracy against multiply-adds", "", *_header(), ""]
    text += [*_found(lines), ""]
    for network in NETWORKS:
        text += [*_table(network, [line for line in lines if line["key"][0] == network]), ""]
    DOCS.mkdir(exist_ok=True)
    write_atomically(DOCS / "pruning.md", "\n".join(text).encode())
    _draw(lines, DOCS / "pruning.png")


def _header() -> list[str]:
    return [
        "Generated by `benchmarks/pruning_curves.py report`. Fashion-MNIST, 10,000 training images, 5 epochs, test",
        "accuracy in per cent over all 10,000 test images: mean and half the 95% interval (Student t) over seeds,",
        "as cut and after one epoch of fine-tuning. `redundancy` decides how many filters each layer loses, the others",
        "take the same share of every layer; so compare at equal multiply-adds (MACs, share of the dense network).",
    ]


def _found(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Paired differences over seeds: what a choice is worth after fine-tuning, and in how many rows that is clear."""
    between = list(product([(a, b) for a in ("CKA damage", "redundancy") for b in ("L1", "random")], WAYS))
    rows = [(f"{a} − {b}", f", {'without' if way == 'none' else way}", (a, way), (b, way)) for (a, b), way in between]
    rows += [(f"{way} − none", f", {name}", (name, way), (name, "none")) for way in list(WAYS)[1:] for name in SCORES]
    signs: dict[str, list[int]] = {}
    table = []
    for network in NETWORKS:
        own = {tuple(line["key"][1:]): line for line in lines if line["key"][0] == network}
        for what, where, key, other in rows:
            found = [_difference(own, (*key, amount), other) for amount in AMOUNTS]
            signs.setdefault(what, []).extend(one.sign for one in found if one is not None)
            table.append(f"| {network} | {what}{where} | {' | '.join(map(_signed, found))} |")
    yield "## What is found"
    yield ""
    yield "Differences of accuracy after fine-tuning, in points, paired by seed, with 95% intervals; **bold** where the"
    yield "interval excludes 0 (not corrected for the number of rows). Between criteria: beside the other at the same"
    yield "multiply-adds, on the straight line between its points and the dense network. How often it excludes 0:"
    yield ""
    for what, all_signs in signs.items():
        yield f"* {what}: above 0 in {all_signs.count(1)}, below in {all_signs.count(-1)} of {len(all_signs)}"
    yield ""
    yield f"| network | difference | {' | '.join(f'{amount:.0%} removed' for amount in AMOUNTS)} |"
    yield f"|---|---|{'---:|' * len(AMOUNTS)}"
    yield from table


def _difference(
    own: Mapping[tuple[Any, ...], dict[str, Any]], key: tuple[str, str, float], other: tuple[str, str]
) -> Interval | None:
    points = []
    for seed in SEEDS:
        line, dense = own.get((seed, *key)), own.get((seed, "dense", "none", 0.0))
        curve = [one for one in (own.get((seed, *other, amount)) for amount in AMOUNTS) if one is not None]
        if line is None or dense is None or len(curve) < len(AMOUNTS):
            return None
        known = sorted([(one["macs"], one["tuned"]) for one in curve] + [(dense["macs"], dense["cut"])])
        macs, tuned = zip(*known, strict=True)
        if line["macs"] < macs[0]:  # nothing is known of so few, and the other seeds alone would be a chosen few
            return None
        points.append(100 * (line["tuned"] - float(np.interp(line["macs"], macs, tuned))))
    return mean_interval(points)


def _signed(found: Interval | None) -> str:
    if found is None:
        return ""
    text = f"{found.mean:+.1f}" if math.isnan(found.low) else f"{found.mean:+.1f} ± {found.half_width:.1f}"
    return f"**{text}**" if found.sign else text


def _table(network: str, lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    dense = [line for line in lines if line["key"][2] == "dense"]
    if not dense:
        return
    base = dense[0]["macs"]
    yield f"## {network}: dense {_cell([line['cut'] for line in dense])}, {base:,} multiply-adds"
    yield ""
    yield "| criterion | compensation | removed | MACs | as cut | fine-tuned |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, way, amount in product(SCORES, WAYS, AMOUNTS):
        found = [line for line in lines if line["key"][2:] == [name, way, amount]]
        if found:
            macs = sum(line["macs"] for line in found) / len(found) / base
            cells = (_cell([line[part] for line in found]) for part in ("cut", "tuned"))
            yield f"| {name} | {way} | {amount:.0%} | {macs:.0%} | {' | '.join(cells)} |"


def _cell(values: Sequence[float]) -> str:
    found = mean_interval([100 * value for value in values])
    return f"{found.mean:.1f}" if math.isnan(found.low) else f"{found.mean:.1f} ± {found.half_width:.1f}"


def _draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(len(NETWORKS), 2, squeeze=False, sharey="row")
    for row, network in zip(grid, NETWORKS, strict=True):
        own = [line for line in lines if line["key"][0] == network]
        for axes, part in zip(row, ("cut", "tuned"), strict=True):
            for (colour, name), (style, way) in product(enumerate(SCORES), zip((":", "--", "-"), WAYS, strict=True)):
                look = {"color": f"C{colour}", "linestyle": style, "label": f"{name}, {way}"}
                _curve(axes, own, (name, way), part, look)
            axes.set_title(f"{network}, {'as cut' if part == 'cut' else 'fine-tuned for an epoch'}", fontsize=10)
            axes.set_xlabel("multiply-adds, share of the dense network")
            axes.grid(alpha=0.3)
            axes.set_ylim(0, 100)
        row[0].set_ylabel("test accuracy (%)")
    grid[0][1].legend(fontsize=6, ncols=2)
    figure.savefig(path, dpi=120)


def _curve(axes: Any, own: Sequence[dict[str, Any]], key: tuple[str, str], part: str, look: dict[str, str]) -> None:
    base = next((line["macs"] for line in own if line["key"][2] == "dense"), 1)
    groups = [[line for line in own if line["key"][2:] == [*key, amount]] for amount in AMOUNTS]
    groups = [group for group in groups if group]
    if groups:
        accuracies = [mean_interval([100 * line[part] for line in group]) for group in groups]
        axes.errorbar(
            [sum(line["macs"] for line in group) / len(group) / base for group in groups],
            [one.mean for one in accuracies],
            yerr=[0.0 if math.isnan(one.low) else one.half_width for one in accuracies],
            marker=".",
            capsize=2,
            **look,
        )


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    {"run": run, "report": report}[chosen.command](chosen.out)


if __name__ == "__main__":
    main()
