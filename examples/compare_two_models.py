"""Do two networks that start from different weights learn the same layers? Digits, small CNNs, exact debiased CKA.

Run: python compare_two_models.py [--out heatmap.png]
"""

import argparse

import torch

from simkit import train
from simkit.compare.models import compare
from simkit.experiments.outputs import PICTURES, output_argument


def main() -> None:
    """Train two networks, compare all of their layers over the test images, name the best match of each."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--out", type=output_argument(*PICTURES), help="also draw the heatmap to this file (needs matplotlib)"
    )
    out = arguments.parse_args().out
    torch.set_num_threads(1)  # networks this small are slower on more

    data = train.digits()
    models = []
    for seed in (0, 1):
        model = train.small_cnn(data.shape, data.classes, seed=seed)
        train.fit(model, data.train, train.TrainOptions(epochs=6, lr=0.05, schedule="cosine", seed=seed))
        print(f"seed {seed}: test accuracy {train.evaluate(model, data.test).accuracy:.1%}")
        models.append(model)

    # Outputs of the hidden layers after their activation, and the logits.
    layers = {"conv1": "relu1", "conv2": "relu2", "conv3": "relu3", "fc1": "relu4", "fc2": "fc2"}
    m = compare(*models, data=data.test_x, layers=layers)

    print(f"\n{m.measure} over {m.samples} test images\n")
    print("seed 0 \\ seed 1", *(f"{name:>7}" for name in m.columns))
    for name, scores in zip(m.rows, m.values, strict=True):
        best = m.columns[scores.argmax()]
        print(f"{name:>15}", *(f"{score:7.3f}" for score in scores), f"  most like {best}")
    if out:
        m.plot(out)
        print(f"\nheatmap: {out}")


if __name__ == "__main__":
    main()
