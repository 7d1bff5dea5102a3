"""Torch-Pruning, a tool with a channel graph of its own, cuts to the same models where it is known to be right."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from masking_oracle import relative_gap
from torch import nn
from zoo import build, fresh

from simkit import pruning as P

tp = pytest.importorskip("torch_pruning", reason="torch-pruning, the oracle of these tests, is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

AGREES = (
    "vgg16_bn",
    "resnet20_projected",
    "se_resnet",
    "densenet",
    "mobilenet_v2",
    "alexnet",
    "preact_resnet",
)
SLOWER = ("vgg16", "resnet18", "mobilenet_v1", "mobilenet_v3", "inception", "mlp_batch_norm", "siamese")


def cut_by_rival(model: nn.Module, inputs: tuple[Any, ...], plan: P.PruningPlan) -> nn.Module:
    """The model with the same channels of the same layers pruned by Torch-Pruning, layer after layer."""
    model = copy.deepcopy(model)
    for layer in plan.layers:
        slot = next(slot for slot in layer.slots if slot.role == "producer" and slot.tensor == f"{layer.name}.weight")
        module = model.get_submodule(layer.name)
        prune = tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(
                model, example_inputs=inputs[0] if len(inputs) == 1 else inputs
            )
        group = graph.get_pruning_group(module, prune, idxs=list(slot.positions))
        assert graph.check_pruning_group(group)
        group.prune()
    return model.eval()


@pytest.mark.parametrize("name", [*AGREES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWER)])
def test_both_cut_to_the_same_model(name: str) -> None:
    model, inputs = build(name)
    plan = P.plan(model, inputs, score=P.Random(seed=2), amount=0.4)
    small = P.apply(model, plan, inputs)
    other = cut_by_rival(model, inputs, plan)
    values = fresh(inputs, 3, seed=8)
    with torch.no_grad():
        assert relative_gap(other(*values), small(*values)) < 1e-10
    count = sum(parameter.numel() for parameter in other.parameters())
    assert plan.params_after == count < plan.params_before
