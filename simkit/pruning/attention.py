"""``nn.MultiheadAttention`` after cutting: its own forward insists on heads that together are as wide as the query."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class CutMultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` whose heads together may be narrower or wider than its inputs.

    Cutting gives a module this class; it is never built. Arguments, masks, layouts and results are those of the
    parent. ``embed_dim`` is the width of the query, ``num_heads`` and ``head_dim`` those of queries and keys.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """What encoder layers ask for before they call fused kernels, which need all widths to be equal."""
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention outputs, and the weights ``[n, (heads,) l, s]`` if they are needed.

        Raises:
            ValueError: ``is_causal`` without the mask that it is a hint on.
        """
        if is_causal and attn_mask is None:
            raise ValueError(f"is_causal={is_causal} needs the causal attn_mask, which is None")
        batched = query.dim() == 3
        inputs = [_batch_first(one, batched, self.batch_first) for one in (query, key, value)]
        q, k, v = self._heads(*inputs)
        mask = _additive_mask(attn_mask, key_padding_mask, q, k)
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, self.dropout, self.training)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            dropped = self.dropout if self.training else 0.0
            found = functional.scaled_dot_product_attention(q, k, v, mask, dropped)
        out = functional.linear(found.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values, ``[n, heads, length, width]``, with the module's own keys and values behind."""
        matrices = projections(self)
        biases: list[Tensor | None] = [None, None, None]
        if self.in_proj_bias is not None:
            biases = list(torch.split(self.in_proj_bias, [len(matrix) for matrix in matrices]))
        made = [
            functional.linear(one, matrix, bias)
            for one, matrix, bias in zip((query, key, value), matrices, biases, strict=True)
        ]
        for place, own in ((1, self.bias_k), (2, self.bias_v)):
            if own is not None:
                made[place] = torch.cat([made[place], own.expand(len(query), -1, -1)], dim=1)
        q, k = (torch.unflatten(one, -1, (-1, self.head_dim)).transpose(1, 2) for one in made[:2])
        v = torch.unflatten(made[2], -1, (self.num_heads, -1)).transpose(1, 2)
        if self.add_zero_attn:
            k, v = (torch.cat([one, torch.zeros_like(one[:, :, :1])], dim=2) for one in (k, v))
        return [q, k, v]


def projections(module: nn.MultiheadAttention) -> list[Tensor]:
    """The weights that make queries, keys and values, each ``[heads · width, inputs]``."""
    packed = cast("Tensor | None", module.in_proj_weight)
    if packed is not None:
        return list(packed.chunk(3))
    return [cast(Tensor, one) for one in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]


def attention_sizes(module: nn.Module) -> dict[str, int]:
    """Attribute -> the value that the tensors of an ``nn.MultiheadAttention`` imply; heads keep their width."""
    if type(module) not in (nn.MultiheadAttention, CutMultiheadAttention):
        return {}
    attention = cast(nn.MultiheadAttention, module)
    q, k, v = projections(attention)
    return {
        "embed_dim": q.shape[1],
        "kdim": k.shape[1],
        "vdim": v.shape[1],
        "num_heads": q.shape[0] // attention.head_dim,
    }


def settle_attention(model: nn.Module, path: str) -> None:
    """Give an ``nn.MultiheadAttention`` the class whose forward fits its tensors, in place."""
    module: Any = model.get_submodule(path)
    if not attention_sizes(module):
        return
    widths = {*(len(matrix) for matrix in projections(module)), module.embed_dim, *module.out_proj.weight.shape}
    module.__class__ = nn.MultiheadAttention if len(widths) == 1 else CutMultiheadAttention
    ancestors = [path.rsplit(".", cut)[0] for cut in range(1, path.count(".") + 1)]
    for above in map(model.get_submodule, ["", *ancestors]):
        if isinstance(above, nn.TransformerEncoder):
            above.use_nested_tensor = False  # only fused kernels read nested tensors


def _batch_first(value: Tensor, batched: bool, batch_first: bool) -> Tensor:
    if not batched:
        return value.unsqueeze(0)
    return value if batch_first else value.transpose(0, 1)


def _additive_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor, key: Tensor
) -> Tensor | None:
    """Both masks as one that is added to scores ``[n, heads, l, s]``; None where there is none."""
    batch = len(query)
    parts: list[Tensor] = []
    if attn_mask is not None:
        parts.append(torch.unflatten(attn_mask, 0, (batch, -1)) if attn_mask.dim() == 3 else attn_mask)
    if key_padding_mask is not None:
        parts.append(key_padding_mask.reshape(batch, 1, 1, -1))
    if not parts:
        return None
    total = sum(
        torch.zeros_like(part, dtype=query.dtype).masked_fill(part, -torch.inf)
        if part.dtype == torch.bool
        else part.to(query.dtype)
        for part in parts
    )
    mask = cast(Tensor, total)
    return functional.pad(mask, (0, key.shape[2] - mask.shape[-1]))  # the module's own keys are seen by all
