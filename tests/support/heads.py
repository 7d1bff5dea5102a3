"""A model whose sizes stand in attributes, with tied tensors and a buffer that ``state_dict`` leaves out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """Sizes in attributes, tied tensors, a buffer that state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (3, 2)
        self.table, self.qkv = nn.Embedding(7, 5), nn.Linear(5, 18)
        self.out, self.head = nn.Linear(6, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("shift", torch.arange(5.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x) + self.shift
        q, k, v = self.qkv(y).unflatten(2, (3, *self.shape)).permute(2, 0, 3, 1, 4)
        y = y + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(y)
