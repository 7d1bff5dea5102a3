"""Small models, what a plain hook says of their layers, and what must be in them as before after a comparison."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simkit.compare.matrix import SimilarityMatrix, similarity_matrix


def images(n: int = 24) -> Tensor:
    return torch.randn(n, 1, 6, 6)


def cnn() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 3, 3),
            bn1=nn.BatchNorm2d(3),
            act=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5),
            conv2=nn.Conv2d(3, 4, 3),
            flat=nn.Flatten(),
            fc=nn.Linear(16, 5),
        )
    )


def features(model: nn.Module, x: Any, *layers: str) -> dict[str, Tensor]:
    """The outputs of named layers by a hook of one line, copied at once."""
    out: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda m, a, o, name=name: out.__setitem__(name, o.clone()))
        for name in layers
    ]
    flags = {module: module.training for module in model.modules()}
    with torch.no_grad():
        model.eval()(x)
    for module, flag in flags.items():
        module.training = flag
    for handle in handles:
        handle.remove()
    return out


def assert_scores(result: SimilarityMatrix, a: dict[str, Tensor], b: dict[str, Tensor] | None = None) -> None:
    want = similarity_matrix(a, b, backend="reference")
    np.testing.assert_allclose(result.values, want.values, atol=1e-6)
    assert (result.rows, result.columns) == (want.rows, want.columns)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def everything(model: nn.Module) -> dict[str, Any]:
    return {
        "hooks": hooks(model),
        "flags": [module.training for module in model.modules()],
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "identity": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "grads": [p.grad for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "versions": [t._version for t in [*model.parameters(), *model.buffers()]],
    }


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    after = everything(model)
    for key, value in before.items():
        if key == "state":
            assert all(torch.equal(tensor, after[key][name]) for name, tensor in value.items())
        else:
            assert value == after[key], key
