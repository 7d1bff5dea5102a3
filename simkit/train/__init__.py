"""Train small networks, reproducibly: data, networks, and a loop of three plain functions."""

from .config import TrainOptions
from .data import LOADERS, Dataset, digits, fashion_mnist, mnist
from .loop import EpochRecord, Evaluation, History, evaluate, fit, make_optimizer, train_epoch
from .networks import NETWORKS, conv8, lenet5, mlp, small_cnn

__all__ = [
    "LOADERS",
    "NETWORKS",
    "Dataset",
    "EpochRecord",
    "Evaluation",
    "History",
    "TrainOptions",
    "conv8",
    "digits",
    "evaluate",
    "fashion_mnist",
    "fit",
    "lenet5",
    "make_optimizer",
    "mlp",
    "mnist",
    "small_cnn",
    "train_epoch",
]
