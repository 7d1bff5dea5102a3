"""Prune the fully connected layers of a small AlexNet, merge the neurons instead, or repair their readers from data.

No retraining: what is compared is what each way keeps. Neurons merge where their weights are alike (a cosine of 0.45,
as published); where none are, merging is pruning.

Run: python merge_neurons.py [--data fashion_mnist] [--out accuracy.png]
"""

import argparse
import warnings

import torch
from torch import nn

from simkit import pruning as P
from simkit import train
from simkit.errors import OverfitWarning
from simkit.experiments.outputs import PICTURES, output_argument

RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
WAYS = {"prune": None, "merge": P.Merge(), "least squares": P.LeastSquares(samples=2000)}
FULLY_CONNECTED = ("classifier.1", "classifier.4")


class AlexNet(nn.Module):
    """Krizhevsky et al. 2012 for small grey images: five convolutions and three linear layers, narrow."""

    def __init__(self, side: int, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 48, 3, padding=1), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(48 * (side // 4) ** 2, 400), nn.ReLU(),
            nn.Dropout(0.3), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, classes),
        )  # fmt: skip

        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of ``images [n, 1, side, side]``."""
        return self.classifier(self.features(images).flatten(1))


def main() -> None:
    """Train once; then cut, with and without making up for it, at every ratio."""
    warnings.simplefilter("ignore", OverfitWarning)  # 1,438 digits for hundreds of unknowns: the test images judge
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", choices=("digits", "fashion_mnist"), default="digits")
    arguments.add_argument("--epochs", type=int, default=6)
    arguments.add_argument(
        "--out", type=output_argument(*PICTURES), help="also draw the accuracies to this file (needs matplotlib)"
    )
    chosen = arguments.parse_args()
    torch.set_num_threads(1)

    data = getattr(train, chosen.data)()
    torch.manual_seed(0)
    model = AlexNet(data.shape[-1])
    train.fit(model, data.train, train.TrainOptions(epochs=chosen.epochs, lr=0.02, schedule="cosine"))
    model.eval()
    print(f"dense: test accuracy {train.evaluate(model, data.test).accuracy:.1%}\n")

    example = data.train_x[:2]
    print("ratio  " + "  ".join(f"{way:>13}" for way in WAYS) + "    units merged  parameters left")
    accuracies: dict[str, list[float]] = {way: [] for way in WAYS}
    for ratio in RATIOS:
        amounts = dict.fromkeys(FULLY_CONNECTED, ratio)
        plans = {
            name: P.plan(model, example, data=data.train_x, score=P.L1(), amount=amounts, compensate=way)
            for name, way in WAYS.items()
        }
        for name, plan in plans.items():
            accuracies[name].append(train.evaluate(P.apply(model, plan, example), data.test).accuracy)
        cells = "  ".join(f"{found[-1]:>13.1%}" for found in accuracies.values())
        layers, left = plans["merge"].layers, plans["merge"].params_after / plans["merge"].params_before
        merged = f"{sum(map(units_merged, layers))} of {sum(len(layer.removed) for layer in layers)}"
        print(f"{ratio:>5.0%}  {cells}    {merged:>12}  {left:>15.0%}")
    if chosen.out:
        draw(accuracies, chosen.out)
        print(f"\naccuracies: {chosen.out}")


def units_merged(layer: P.LayerPlan) -> int:
    """Removed units that a kept one has absorbed; the others have no partner that is like them."""
    return max((int(one.mixing.array().any(axis=1).sum()) for one in layer.repairs), default=0)


def draw(accuracies: dict[str, list[float]], out: str) -> None:
    """The accuracy left at every ratio, a line for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="neurons removed from the fully connected layers", ylabel="test accuracy")
    for name, values in accuracies.items():
        axes.plot(RATIOS, values, marker="o", label=name)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
