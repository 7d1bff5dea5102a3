"""Native attention: after cutting, heads together are not as wide as the stream, which torch's own forward refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from masking_oracle import Removed, masked_run, relative_gap
from torch import Tensor, nn

from simkit import pruning as P
from simkit.pruning.attention import CutMultiheadAttention

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settled(model: nn.Module) -> nn.Module:
    """Biases and norms that are not zero and one, so that what is lost shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.double().eval()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
    {"kdim": 5, "vdim": 7},
    {"kdim": 5, "vdim": 7, "bias": False, "add_bias_kv": True},
]


def masks(batch: int, heads: int, length: int, keys: int) -> Iterator[dict[str, Tensor | None]]:
    square = torch.ones(length, keys, dtype=torch.bool).triu(1)
    padding = torch.zeros(batch, keys, dtype=torch.bool)
    padding[0, -1] = True
    yield {}
    yield {"attn_mask": square}
    yield {"attn_mask": drawn(length, keys), "key_padding_mask": drawn(batch, keys)}
    yield {"attn_mask": square.expand(batch * heads, -1, -1), "key_padding_mask": padding}
    yield {"attn_mask": drawn(batch * heads, length, keys)}
    yield {"key_padding_mask": padding}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_uncut_it_is_the_native_module(options: dict[str, Any], batch_first: bool) -> None:
    native = settled(nn.MultiheadAttention(12, 3, batch_first=batch_first, **options))
    other: Any = copy.deepcopy(native)
    other.__class__ = CutMultiheadAttention
    inputs = [drawn(2, n, w, seed=n) for n, w in ((4, 12), (5, native.kdim), (5, native.vdim))]  # type: ignore[arg-type]
    given = inputs if batch_first else [one.transpose(0, 1) for one in inputs]
    for mask, needed, averaged in product(masks(2, 3, 4, 5), (True, False), (True, False)):
        asked = {"need_weights": needed, "average_attn_weights": averaged, **mask}
        for training in (False, True):
            one, two = (module.train(training)(*given, **asked) for module in (native, other))
            assert (one[1] is None) == (two[1] is None)
            assert relative_gap(one, two) < 1e-13
    single = [one[0] for one in inputs]
    for needed in (True, False):
        assert relative_gap(native(*single, need_weights=needed), other(*single, need_weights=needed)) < 1e-13


def test_a_causal_hint_needs_its_mask() -> None:
    module: Any = nn.MultiheadAttention(6, 2)
    module.__class__ = CutMultiheadAttention
    with pytest.raises(ValueError, match="is_causal=True needs the causal attn_mask, which is None"):
        module(*[torch.zeros(3, 1, 6)] * 3, is_causal=True)


def test_dropout_is_the_native_modules() -> None:
    native = nn.MultiheadAttention(12, 3, dropout=0.4, batch_first=True).double().train()
    other: Any = copy.deepcopy(native)
    other.__class__ = CutMultiheadAttention
    x = drawn(2, 5, 12)
    for needed in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            one = native(x, x, x, need_weights=needed)[0]
            torch.manual_seed(1)
            two = other(x, x, x, need_weights=needed)[0]
        assert relative_gap(one, two) < 1e-13
        assert relative_gap(one, copy.deepcopy(native).eval()(x, x, x)[0]) > 0.01


class Attending(nn.Module):
    """Layers before and after attention, of one input or of several."""

    def __init__(self, kind: str, needed: bool, **options: Any) -> None:
        super().__init__()
        self.kind, self.needed = kind, needed
        self.q, self.k, self.v = (
            nn.Linear(4, 12),
            nn.Linear(4, options.get("kdim", 12)),
            nn.Linear(4, options.get("vdim", 12)),
        )
        self.mha, self.out = nn.MultiheadAttention(12, 3, batch_first=True, **options), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        query = torch.tanh(self.q(x))
        key = query if self.kind == "self" else torch.tanh(self.k(x[:, 1:]))
        value = key if self.kind != "apart" else torch.tanh(self.v(x[:, 1:]))
        padding = torch.zeros(x.shape[0], key.shape[1], dtype=torch.bool, device=x.device)
        asked = {"need_weights": self.needed}
        if self.kind == "cross":
            asked["key_padding_mask"] = padding
        return self.out(torch.tanh(self.mha(query, key, value, **asked)[0]))


CASES = [
    *(("self", needed, {"bias": bias}) for needed in (True, False) for bias in (True, False)),
    *(("cross", needed, {"add_bias_kv": True}) for needed in (True, False)),
    ("apart", True, {}),
    ("apart", False, {"kdim": 5, "vdim": 7}),
    ("self", False, {"add_zero_attn": True}),
    ("apart", True, {"kdim": 5, "vdim": 7, "bias": False, "add_zero_attn": True}),
]


def removed(plan: P.PruningPlan) -> list[Removed]:
    slots = [slot for layer in plan.layers for slot in layer.slots if slot.role == "consumer"]
    return [Removed(slot.tensor, slot.dim, slot.positions) for slot in slots]


@pytest.mark.parametrize(("kind", "needed", "options"), CASES, ids=str)
def test_heads_go_exactly(kind: str, needed: bool, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = settled(Attending(kind, needed, **options)), drawn(2, 5, 4)
    plan = P.plan(model, x, score=P.Random(seed=1), amount=0.4)
    heads = next(
        layer
        for layer in plan.layers
        if any(slot.tensor == "mha.out_proj.weight" and slot.dim == 1 for slot in layer.slots)
    )
    assert (heads.units, len(heads.removed)) == (3, 1)
    assert plan.exact
    small = P.apply(model, plan, x)
    assert {"q", "mha.out_proj", heads.name} <= set(plan.removed)
    mha: Any = small.get_submodule("mha")
    assert type(mha) is CutMultiheadAttention
    assert (mha.num_heads, mha.head_dim, mha.embed_dim) == (2, 4, 7)
    other = drawn(3, 5, 4, seed=2)
    expected = masked_run(model, (other,), removed(plan))
    for fast in (True, False):
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(fast)
        try:
            with torch.no_grad():
                assert relative_gap(expected, small(other)) < 1e-12
            assert relative_gap(expected, small(other)) < 1e-12
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
    assert relative_gap(expected, model(other)) > 1e-6
    P.save(small, tmp_path / "m.safetensors")
    again = P.load(tmp_path / "m.safetensors", lambda: settled(Attending(kind, needed, **options)))
    assert type(again.get_submodule("mha")) is CutMultiheadAttention
    assert relative_gap(small(other), again(other)) < 1e-14
    assert type(model.get_submodule("mha")) is nn.MultiheadAttention


def test_a_cut_module_is_cut_again_until_it_is_native_again() -> None:
    torch.manual_seed(0)
    model, x = settled(Attending("self", True)), drawn(2, 5, 4)
    small = P.apply(model, P.plan(model, x, score=P.L1(), amount={"mha.in_proj_weight": 0.3}), x)
    assert type(small.get_submodule("mha")) is CutMultiheadAttention
    again = P.apply(small, P.plan(small, x, score=P.L1(), amount={"q": 0.3, "mha.out_proj": 0.3}), x)
    mha: Any = again.get_submodule("mha")
    assert type(mha) is nn.MultiheadAttention
    assert (mha.num_heads, mha.embed_dim) == (2, 8)
    one = P.apply(again, P.plan(again, x, score=P.L1(), amount={"mha.in_proj_weight": 0.5}), x)
    assert one.get_submodule("mha").num_heads == 1


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoders_with_padding_take_no_fused_path(norm_first: bool) -> None:
    """In inference an encoder makes nested tensors of padded batches, which only the fused kernels read."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 4, 17, batch_first=True, norm_first=norm_first)
    model, x = settled(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)), drawn(2, 5, 12)
    plan = P.plan(model, x, score=P.L1(), amount=0.5)
    assert [layer.units for layer in plan.layers] == [4, 17, 4, 17]
    small = P.apply(model, plan, x)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    seen = ~padding
    expected = masked_run(model, (x, None, padding), removed(plan))
    with torch.no_grad():
        found = small(x, src_key_padding_mask=padding)
    assert relative_gap(expected[seen], found[seen]) < 1e-12
    assert relative_gap(expected[seen], small(x, src_key_padding_mask=padding)[seen]) < 1e-12


def test_a_subclass_with_code_of_its_own_is_refused_by_name() -> None:
    class Own(nn.MultiheadAttention):
        pass

    torch.manual_seed(0)
    model, x = settled(Attending("self", False)), drawn(2, 5, 4)
    model.mha = Own(12, 3, batch_first=True).double()
    frozen = P.trace(model, x).frozen
    assert "the forward of module 'mha' writes the size" in frozen["mha.in_proj_weight"]
