"""Cut half of a CNN's channels by CKA damage, check what that costs, and train what is left a little more.

Run: python prune_and_finetune.py [--out small.safetensors]
"""

import argparse

import torch

from simkit import pruning as P
from simkit import train
from simkit.experiments.outputs import output_argument


def main() -> None:
    """Score, plan, apply: three separate steps; then fine-tune the network that is left, and save it."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--out", type=output_argument(".safetensors"), help="also save the pruned network to this safetensors file"
    )
    out = arguments.parse_args().out
    torch.set_num_threads(1)  # networks this small are slower on more

    data = train.digits()
    model = train.small_cnn(data.shape, data.classes, seed=0)
    train.fit(model, data.train, train.TrainOptions(epochs=8, lr=0.05, schedule="cosine"))
    print(f"dense:            test accuracy {train.evaluate(model, data.test).accuracy:.1%}\n")

    example = data.train_x[:2]
    plan = P.plan(model, example, data=data.train_x, score=P.CKADamage(), amount=0.5)
    print(plan.explain(), end="\n\n")

    small = P.apply(model, plan, example)  # a smaller copy, verified against the masked model
    print(f"cut:              test accuracy {train.evaluate(small, data.test).accuracy:.1%}")
    train.fit(small, data.train, train.TrainOptions(epochs=3, lr=0.01, schedule="cosine"))
    print(f"after fine-tuning: test accuracy {train.evaluate(small, data.test).accuracy:.1%}")
    if out:
        P.save(small, out)
        print(f"\nsaved: {out}; load it with P.load({out!r}, train.small_cnn)")


if __name__ == "__main__":
    main()
