"""Which neurons of a layer can go? Rank them by CKA damage, and see how much of the layer a few of them keep.

Run: python rank_neurons.py [--out damage.png]
"""

import argparse

import numpy as np
import torch

import simkit as sk
from simkit import train
from simkit.experiments.outputs import PICTURES, output_argument


def main() -> None:
    """Train a network on digits, rank the neurons of its hidden layer, and set the order against a random one."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--out", type=output_argument(*PICTURES), help="also draw the damage curve to this file (needs matplotlib)"
    )
    out = arguments.parse_args().out
    torch.set_num_threads(1)  # networks this small are slower on more

    data = train.digits()
    model = train.mlp(64, hidden=(128,), seed=0)
    train.fit(model, data.train, train.TrainOptions(epochs=15, lr=0.05, schedule="cosine"))
    with torch.no_grad():
        x = model[:3](data.train_x).numpy()  # [n, 128]: the hidden layer after its ReLU

    ranking = sk.greedy_cka(x)
    print(f"{x.shape[1]} neurons on {len(x)} images; first to go: {ranking.order[:10].tolist()}")

    order = np.random.default_rng(0).permutation(x.shape[1])
    print("\nneurons removed   CKA damage   of a random order")
    for gone in (13, 32, 64, 96, 115):
        chance = 1 - sk.cka(x, x[:, order[gone:]], estimator="biased")
        print(f"{gone:>8} ({gone / x.shape[1]:.0%}) {ranking.damage[gone - 1]:>12.4f} {chance:>19.4f}")
    if out:
        draw(ranking.damage[:-1], out)
        print(f"\ndamage curve: {out}")


def draw(damage: np.ndarray, out: str) -> None:
    """The damage after every removal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="neurons removed", ylabel="damage: 1 - CKA(layer, kept neurons)")
    axes.plot(range(1, len(damage) + 1), damage)
    axes.set_title("Greedy CKA damage of a hidden layer, digits", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
