"""Train networks, reproducibly: data, networks, and a loop of three plain functions."""

from .checkpoint import finished_epochs
from .cifar import cifar10
from .config import TrainOptions
from .data import LOADERS, digits, fashion_mnist, mnist
from .dataset import Dataset, held_out
from .image_folder import folder
from .loop import evaluate, fit, train_epoch
from .networks import (
    NETWORKS,
    alexnet,
    conv8,
    lenet5,
    make_network,
    mlp,
    resnet18,
    resnet20,
    resnet56,
    small_cnn,
    vgg16,
    vit,
)
from .optimizers import make_optimizer
from .records import EpochRecord, Evaluation, History
from .svhn import svhn

__all__ = [
    "LOADERS",
    "NETWORKS",
    "Dataset",
    "EpochRecord",
    "Evaluation",
    "History",
    "TrainOptions",
    "alexnet",
    "cifar10",
    "conv8",
    "digits",
    "evaluate",
    "fashion_mnist",
    "finished_epochs",
    "fit",
    "folder",
    "held_out",
    "lenet5",
    "make_network",
    "make_optimizer",
    "mlp",
    "mnist",
    "resnet18",
    "resnet20",
    "resnet56",
    "small_cnn",
    "svhn",
    "train_epoch",
    "vgg16",
    "vit",
]
