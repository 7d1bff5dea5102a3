"""Transformers as their authors write them; what the code says of its sizes differs from one to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, tuple[Any, ...]]


def tokens(vocabulary: int, batch: int, length: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class FusedAttention(nn.Module):
    """qkv in one Linear; the width of the heads together does not depend on the stream's."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = attn.softmax(dim=-1) @ v
        x = x.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim)
        return self.proj(x)


class TimmAttention(nn.Module):
    """qkv in one Linear; the width of a head is computed from the stream's, so heads cannot be fewer."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class SeparateAttention(nn.Module):
    """q, k, v apart; -1 takes what is there for the width of a head, also when a head is missing."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, heads * head_dim) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (to(x).view(b, n, self.heads, -1).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class NativeAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, dim: int, attention: nn.Module, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, dim: int, attentions: list[nn.Module]) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim) * 0.3)
        self.blocks = nn.Sequential(*[Block(dim, attention, 23) for attention in attentions])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.blocks(x + self.pos_embed)
        return self.head(self.norm(x)[:, 0])


def vit_fused() -> Built:
    return ViT(13, [FusedAttention(13, 3, 5), FusedAttention(13, 4, 4)]), (torch.randn(2, 3, 16, 16),)


def vit_timm() -> Built:
    return ViT(15, [TimmAttention(15, 3), TimmAttention(15, 3)]), (torch.randn(2, 3, 16, 16),)


def vit_separate() -> Built:
    return ViT(14, [SeparateAttention(14, 3, 6), SeparateAttention(14, 4, 5)]), (torch.randn(2, 3, 16, 16),)


def vit_native() -> Built:
    return ViT(15, [NativeAttention(15, 3), NativeAttention(15, 5)]), (torch.randn(2, 3, 16, 16),)


class Encoder(nn.Module):
    """nn.TransformerEncoder on an embedding, a classifier with a hidden layer on its mean."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(29, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 19, activation="gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(12, 17), nn.Tanh(), nn.Linear(17, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(dim=1))


def transformer_encoder() -> Built:
    return Encoder(norm_first=True), (tokens(29, 2, 7),)


def transformer_encoder_post_norm() -> Built:
    return Encoder(norm_first=False), (tokens(29, 2, 7),)


class Decoder(nn.Module):
    """A decoder layer with cross-attention over the memory of a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(6, 12)
        self.decoder = nn.TransformerDecoderLayer(12, 4, 21, batch_first=True)
        self.out = nn.Linear(12, 5)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
        return self.out(self.decoder(target, self.read(memory), tgt_mask=mask))


def transformer_decoder() -> Built:
    return Decoder(), (torch.randn(2, 5, 12), torch.randn(2, 7, 6))


class CausalSelfAttention(nn.Module):
    """nanoGPT's; the width of all heads together is an attribute beside the number of heads."""

    def __init__(self, n_embd: int, n_head: int, head_size: int) -> None:
        super().__init__()
        self.n_head, self.inner = n_head, n_head * head_size
        self.c_attn = nn.Linear(n_embd, 3 * self.inner)
        self.c_proj = nn.Linear(self.inner, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.size()
        q, k, v = self.c_attn(x).split(self.inner, dim=2)
        k = k.view(B, T, self.n_head, self.inner // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, self.inner // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, self.inner // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, self.inner)
        return self.c_proj(y)


class GPT(nn.Module):
    """The embedding and the output layer are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(31, 14),
                "wpe": nn.Embedding(9, 14),
                "h": nn.ModuleList([Block(14, CausalSelfAttention(14, heads, 5), 25) for heads in (3, 4)]),
                "ln_f": nn.LayerNorm(14),
            }
        )
        self.lm_head = nn.Linear(14, 31, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> Tensor:
        positions = torch.arange(idx.size(1), dtype=torch.long, device=idx.device)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](positions)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def gpt() -> Built:
    return GPT(), (tokens(31, 2, 6),)


class TiedWithoutNorm(nn.Module):
    """Tied embedding and output layer around a residual MLP, no norm: every group is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 13)
        self.up, self.down = nn.Linear(13, 19), nn.Linear(19, 13)
        self.out = nn.Linear(13, 23)
        self.out.weight = self.embed.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        return self.out(x + self.down(F.gelu(self.up(x))))


def tied_without_norm() -> Built:
    return TiedWithoutNorm(), (tokens(23, 2, 5),)


class LlamaAttention(nn.Module):
    """Rotary positions; every key and value head serves two query heads."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.n_rep, self.head_dim = n_heads, n_kv_heads, n_heads // n_kv_heads, head_dim
        self.wq = nn.Linear(dim, n_heads * head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=False)
        angles = torch.outer(torch.arange(16.0), 10.0 ** -torch.linspace(0, 2, head_dim // 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=-1)
        length = x.shape[1]
        return x * self.cos[:length, None] + torch.cat((-two, one), dim=-1) * self.sin[:length, None]

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.rotate(self.wq(x).view(b, n, self.n_heads, self.head_dim)).transpose(1, 2)
        k = self.rotate(self.wk(x).view(b, n, self.n_kv_heads, self.head_dim)).transpose(1, 2)
        v = self.wv(x).view(b, n, self.n_kv_heads, self.head_dim).transpose(1, 2)
        k, v = k.repeat_interleave(self.n_rep, dim=1), v.repeat_interleave(self.n_rep, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(b, n, -1))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
    def __init__(self, dim: int, attention: nn.Module, hidden: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, SwiGLU(dim, hidden)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(27, 15)
        attentions = [LlamaAttention(15, 6, 3, 4), LlamaAttention(15, 4, 2, 6)]
        self.layers = nn.ModuleList([LlamaBlock(15, attention, 22) for attention in attentions])
        self.norm = nn.RMSNorm(15, eps=1e-5)
        self.output = nn.Linear(15, 27, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        h = self.tok_embeddings(idx)
        for layer in self.layers:
            h = layer(h)
        return self.output(self.norm(h))


def llama() -> Built:
    return Llama(), (tokens(27, 2, 7),)


class MixerBlock(nn.Module):
    def __init__(self, patches: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp_tokens, self.mlp_channels = Mlp(patches, 11), Mlp(dim, 21)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(16, 13), MixerBlock(16, 13))
        self.norm, self.head = nn.LayerNorm(13), nn.Linear(13, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(dim=1))


def mlp_mixer() -> Built:
    return Mixer(), (torch.randn(2, 3, 16, 16),)


ARCHITECTURES = (
    vit_fused,
    vit_timm,
    vit_separate,
    vit_native,
    transformer_encoder,
    transformer_encoder_post_norm,
    transformer_decoder,
    gpt,
    tied_without_norm,
    llama,
    mlp_mixer,
)
