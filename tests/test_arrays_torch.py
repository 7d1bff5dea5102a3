"""Tensors at the door: shared memory, half types, strides, gradients, and what is refused by name."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix

torch = pytest.importorskip("torch")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(80, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_tensors_share_their_memory(x: torch.Tensor, kind: str) -> None:
    tensor = x.to(getattr(torch, kind))
    m = as_matrix(tensor)
    assert (m.dtype, m.origin) == (kind, "torch")
    assert np.shares_memory(m.values, tensor.numpy())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_half_types_are_widened_exactly(x: torch.Tensor, kind: str, backend: str | None) -> None:
    half = (x * 100).to(getattr(torch, kind))
    y = x.roll(1, 1) + 0.5 * x
    m = as_matrix(half)
    assert m.dtype == kind
    assert m.float64().tolist() == half.double().tolist()
    for view in (half, half.T.contiguous().T, half.flip(0), half[:, ::2]):
        want = sk.cka(view.float(), y, backend=backend)
        assert sk.cka(view, y, backend=backend) == want
        assert_close(want, oracles.cka(view.double().numpy(), y.numpy(), estimator="debiased"), "cka", kind, 80, 6)
        stream = sk.StreamingCKA(backend=backend)
        stream.update({"x": view}, {"y": y})
        assert stream.compute()["x", "y"] == pytest.approx(want, abs=1e-6)
    assert (
        sk.greedy_cka(half, backend=backend).order.tolist()
        == sk.greedy_cka(half.float(), backend=backend).order.tolist()
    )


def test_every_half_value_is_read_exactly() -> None:
    """All 65,536 patterns of both half types, NaN and infinities aside."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for kind in (torch.float16, torch.bfloat16):
        values = bits.view(kind)
        values = values[values.isfinite()].reshape(-1, 1)
        want = values.double().numpy()
        stats_of = sk.backends.native_cpu.column_stats
        for column in (values, torch.cat([values, values], 1)[:, 1:]):
            stats = stats_of(as_matrix(column.expand(-1, 2)))
            assert stats.max_abs == np.abs(want).max()
        one = as_matrix(values)
        assert one.float64().tolist() == want.tolist()
        row = as_matrix(values.T)
        assert stats_of(row).mean.tolist() == want[:, 0].tolist()  # one sample: the mean is the value, as C++ read it


def test_strided_and_expanded_tensors(x: torch.Tensor) -> None:
    for view in (x.T[:, :6], x[::2], x[:, 1::2], x[:1].expand(9, 6), x.reshape(40, 2, 6).transpose(1, 2)):
        assert np.array_equal(as_matrix(view).float64(), view.reshape(len(view), -1).double().numpy())


def test_gradients_do_not_stand_in_the_way(x: torch.Tensor) -> None:
    leaf = x.clone().requires_grad_()
    assert sk.cka(leaf * 2, leaf) == pytest.approx(1.0)
    assert leaf.grad is None
    assert sk.cka(torch.nn.Parameter(x), x) == pytest.approx(1.0)


def test_integers_and_booleans(x: torch.Tensor) -> None:
    assert as_matrix(x > 0).dtype == "float32"
    assert as_matrix((x * 10).to(torch.uint8)).dtype == "float32"
    assert as_matrix((x * 10).long()).dtype == "float64"


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_what_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"^x is a torch.sparse_coo tensor: pass a dense one$"):
        as_matrix(x.to_sparse())
    with pytest.raises(TypeError, match=r"^x has dtype complex64: similarity of complex features is not defined here$"):
        as_matrix(torch.complex(x, x))
    half = torch.complex(x, x).to(torch.complex32)
    with pytest.raises(TypeError, match=r"^x has dtype complex32: similarity of complex features is not defined here$"):
        as_matrix(half)
    with pytest.raises(TypeError, match=r"^x is a meta tensor of shape \(80, 6\): it has no values$"):
        as_matrix(x.to("meta"))
    with pytest.raises(TypeError, match=r"^x, a Tensor of torch\.bits8, cannot be read as an array: [^\n]*Bits8$"):
        as_matrix(x.to(torch.uint8).view(torch.bits8))
    with pytest.raises(TypeError, match=r"^x has dtype torch.float8_e4m3fn: widen it to float16 or float32 first$"):
        as_matrix(x.to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"^x has shape \(80,\): a representation is \[n, p\]"):
        as_matrix(x[:, 0])
    bad = x.bfloat16()
    bad[7, 2] = float("nan")
    with pytest.raises(ValueError, match=r"^x has 1 non-finite entry, the first at row 7, column 2$"):
        sk.cka(bad, x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_nested_tensors_and_those_without_values_are_refused_by_name(x: torch.Tensor) -> None:
    nested = torch.nested.nested_tensor([x[:3], x[:2]])
    with pytest.raises(TypeError, match=r"^x is a nested tensor, whose rows differ in length: pass a dense one$"):
        as_matrix(nested)
    with pytest.raises(TypeError, match=r"^layer is a nested tensor"):
        sk.similarity_matrix({"layer": nested})
    refused = []

    def inside(row: torch.Tensor) -> torch.Tensor:
        with pytest.raises(TypeError, match=r"^x, a Tensor of torch\.float32, cannot be read as an array: [^\n]*$"):
            as_matrix(row)
        refused.append(row)
        return row

    torch.vmap(inside)(x[None])
    assert refused


def test_conjugated_and_negated_views(x: torch.Tensor) -> None:
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    assert np.array_equal(as_matrix(negative).values, -x.numpy())


def test_tensors_are_not_changed(x: torch.Tensor) -> None:
    before, state = x.clone(), torch.get_rng_state()
    sk.cka(x, x.roll(1, 1))
    sk.similarity_matrix({"a": x, "b": x.half()})
    sk.greedy_cka(x)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
