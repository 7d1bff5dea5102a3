"""Weights as they come out of torch modules."""

from __future__ import annotations

import numpy as np
import pytest

import simkit as sk
from simkit.metrics.merging import merging

torch = pytest.importorskip("torch")


def test_parameters_of_modules() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 6, 3, 3), (40, 54)):
        weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
        before = weight.detach().clone()
        graph = sk.filter_graph(weight, threshold=1.35)
        expected = sk.filter_graph(weight.detach().numpy().copy(), threshold=1.35)
        assert np.array_equal(graph.bits, expected.bits)
        assert sk.redundancy(weight, threshold=1.35).value == sk.redundancy(expected).value
        assert torch.equal(weight, before)
        assert weight.grad is None


def test_a_tensor_of_no_dimension_is_a_threshold_and_one_of_many_is_none() -> None:
    weight = torch.randn((20, 5), generator=torch.Generator().manual_seed(3))
    graphs = sk.filter_graph(weight, threshold=torch.tensor([0.5, 0.75]))
    for value, graph in zip((0.5, 0.75), graphs, strict=True):
        for scalar in (torch.tensor(value), torch.nn.Parameter(torch.tensor(value).bfloat16()), np.array(value)):
            found = sk.filter_graph(weight, threshold=scalar)
            assert found.threshold == value
            assert np.array_equal(found.bits, graph.bits)
    with pytest.raises(
        TypeError, match=r"^threshold has shape \(2, 1\): it must be a number or a sequence of numbers$"
    ):
        sk.filter_graph(weight, threshold=torch.ones(2, 1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(dtype: str) -> None:
    weight = torch.randn((50, 70), generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    graph = sk.filter_graph(weight, threshold=1.38)
    widened = sk.filter_graph(weight.double(), threshold=1.38)
    assert np.array_equal(graph.bits, widened.bits)
    assert 0 < graph.edge_density < 1


def test_channels_last_memory() -> None:
    weight = torch.randn((30, 8, 3, 3), generator=torch.Generator().manual_seed(2))
    strided = weight.to(memory_format=torch.channels_last)
    assert np.array_equal(sk.filter_graph(strided).bits, sk.filter_graph(weight).bits)


def test_merging_reads_parameters() -> None:
    """As they stand in a module: with gradients, in bfloat16."""
    w, bias = torch.nn.Parameter(torch.randn(20, 5)), torch.nn.Parameter(torch.randn(20).bfloat16())
    kept = torch.arange(20) % 2 == 0
    found = merging(w, kept, bias=bias)
    want = merging(w.detach().numpy(), kept.numpy(), bias=bias.detach().float().numpy())
    assert found.partner.tolist() == want.partner.tolist()
