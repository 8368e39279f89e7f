"""Attention in the forms people write it, and what surrounds it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from nets import Calls, Case, seq, words
from torch import Tensor, nn


class Separate(nn.Module):
    """Three projections, softmax written out, heads by view and transpose; the scale is a constant of the module."""

    def __init__(self, heads: int = 4, dim: int = 6) -> None:
        super().__init__()
        self.heads, self.dim, self.scale = heads, dim, dim**-0.5
        self.embed = nn.Linear(6, 16)
        self.q, self.k, self.v = (nn.Linear(16, heads * dim) for _ in range(3))
        self.out = nn.Linear(heads * dim, 16)
        self.head = nn.Linear(16, 3)

    def apart(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.dim).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        q, k, v = self.apart(self.q(x)), self.apart(self.k(x)), self.apart(self.v(x))
        scores = q @ k.transpose(-1, -2) * self.scale
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e9)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


class FusedByView(nn.Module):
    """One projection seen as (3, heads, dim), unbound."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim, self.scale = 4, 8, 8**-0.5
        self.embed, self.qkv, self.proj = nn.Linear(6, 32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return (x + self.proj(y.transpose(1, 2).reshape(b, t, -1))).sum(1)


class FusedBySplit(nn.Module):
    """nanoGPT's way: split by the embedding's width, head size by division, scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_embd = 4, 32
        self.embed, self.c_attn, self.c_proj = nn.Linear(6, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, c = x.size()
        q, k, v = (
            part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(self.n_embd, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c)))


class Repairable(nn.Module):
    """The same with sizes kept apart from the residual width, and an explicit scale."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.n_head, self.inner = 4, 32
        self.embed, self.c_attn, self.c_proj = nn.Linear(6, 16), nn.Linear(16, 96), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)
        self.scale = 0.3 if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.size()
        q, k, v = (
            part.view(b, t, self.n_head, self.inner // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(self.inner, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.head(x + self.c_proj(y.transpose(1, 2).reshape(b, t, -1)))


class Queries(nn.Module):
    """Grouped queries: keys and values are expanded to the number of query heads.

    ``stale``: nothing in the code says how many key heads there are, so an attribute that does cannot follow.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.heads, self.shared, self.dim, self.how = 6, 2, 4, how
        self.embed = nn.Linear(6, 16)
        self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out, self.head = nn.Linear(24, 16), nn.Linear(16, 3)

    def wide(self, x: Tensor) -> Tensor:
        b, kv, t, d = x.shape
        if self.how == "expand":
            return x[:, :, None].expand(b, kv, self.heads // self.shared, t, d).reshape(b, self.heads, t, d)
        return x.repeat_interleave(self.heads // self.shared, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.dim).transpose(1, 2)
        few = -1 if self.how == "stale" else self.shared
        k, v = (p(x).view(b, t, few, self.dim).transpose(1, 2) for p in (self.k, self.v))
        if self.how == "kernel":
            y = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, self.wide(k), self.wide(v), scale=0.5)
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, t, -1)))


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


class Rotary(nn.Module):
    """Rotary positions from a buffer of frequencies; pairs of head dims go together, in queries and keys alike."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 3, 8
        self.embed = nn.Linear(6, 16)
        self.q, self.k, self.v = (nn.Linear(16, 24, bias=False) for _ in range(3))
        self.out, self.head = nn.Linear(24, 16), nn.Linear(16, 3)
        self.register_buffer("inv_freq", 10.0 ** -torch.linspace(0, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        angle = torch.outer(torch.arange(t, dtype=x.dtype, device=x.device), self.inv_freq)
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        q, k, v = (p(x).view(b, t, self.heads, self.dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = q * cos + turned(q) * sin, k * cos + turned(k) * sin
        y = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, t, -1)))


class Biased(nn.Module):
    """Relative positions: a table of one bias a head, looked up by a buffer of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, 4
        self.embed, self.qkv = nn.Linear(6, 12), nn.Linear(12, 48)
        self.out, self.head = nn.Linear(16, 12), nn.Linear(12, 3)
        self.table = nn.Parameter(torch.randn(9, 4))
        steps = torch.arange(5)
        self.register_buffer("relative", steps[:, None] - steps[None, :] + 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        bias = self.table[self.relative.view(-1)].view(t, t, -1).permute(2, 0, 1)
        y = ((q * 0.5) @ k.transpose(-2, -1) + bias[None]).softmax(-1) @ v
        return self.head(self.out(y.transpose(1, 2).reshape(b, t, self.heads * self.dim)))


class PerHeadNorm(nn.Module):
    """Queries and keys normalised over the head dim, values gated a head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, 6
        self.embed = nn.Linear(6, 16)
        self.q, self.k, self.v = (nn.Linear(16, 24) for _ in range(3))
        self.q_norm, self.k_norm, self.gate = nn.RMSNorm(6), nn.LayerNorm(6), nn.Linear(16, 4)
        self.out, self.head = nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        y = y * self.gate(x).sigmoid().transpose(1, 2)[..., None]
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


class Causal(nn.Module):
    """A triangle kept in a buffer, learned positions sliced to the length, a class token in front."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.positions = nn.Parameter(torch.randn(1, 12, 16))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.embed, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 36), nn.Linear(12, 16)
        self.head = nn.Linear(16, 3)
        self.register_buffer("triangle", torch.tril(torch.ones(1, 1, 12, 12)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        b, t, _ = x.shape
        x = x + self.positions[:, :t]
        q, k, v = (p.reshape(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2) * 0.4).masked_fill(self.triangle[:, :, :t, :t] == 0, float("-inf"))
        return self.head(self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))[:, 0])


class LinearAttention(nn.Module):
    """Feature maps that do not keep zeros: a missing head dim would still count one, so head dims of q and k stay."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 3, 4
        self.embed = nn.Linear(6, 10)
        self.q, self.k, self.v = (nn.Linear(10, 12) for _ in range(3))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return self.out((q @ (k.transpose(-1, -2) @ v)).transpose(1, 2).flatten(2))


class Literal(nn.Module):
    """Heads written as literals: neither can follow a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 10), nn.Linear(10, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (p.view(b, t, 4, 4).transpose(1, 2) for p in self.qkv(F.relu(self.embed(x))).split(16, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, 16))


class Einsum(nn.Module):
    """Weights with a head axis of their own, all products by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 10)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(10, 3, 4) / 3) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(3, 4, 10) / 3)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (torch.einsum("btc,chd->bhtd", x, w) for w in (self.wq, self.wk, self.wv))
        weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.5).softmax(-1)
        y = torch.einsum("bhqk,bhkd->bqhd", weights, v)
        return self.head(x + torch.einsum("bqhd,hdc->bqc", y, self.wo))


class Builtin(nn.Module):
    """torch's own attention: right or frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down, self.head = nn.Linear(16, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + self.down(F.relu(self.up(x))))


def encoder_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), nn.Linear(16, 3))


def decoder_layer() -> nn.Module:
    return Calls(
        lambda s, x: s.head(s.layer(s.embed(x), s.embed(x.flip(1)))),
        embed=nn.Linear(6, 16),
        layer=nn.TransformerDecoderLayer(16, 4, 24, batch_first=True),
        head=nn.Linear(16, 3),
    )


def scaled_by_root(s: Any, x: Tensor) -> Tensor:
    q, k, v = s.q(x), s.k(x), s.v(x)
    return s.out((q @ k.transpose(1, 2) / math.sqrt(k.size(-1))).softmax(-1) @ v)


def projections() -> dict[str, nn.Module]:
    return {"q": nn.Linear(6, 8), "k": nn.Linear(6, 8), "v": nn.Linear(6, 7), "out": nn.Linear(7, 3)}


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.lstm(x + self.down(F.relu(self.up(x))))[0])


CASES: dict[str, Case] = {
    "separate": Case(Separate, seq),
    "separate_masked": Case(Separate, lambda: (seq(), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))),
    "fused_by_view": Case(FusedByView, seq),
    "fused_by_split": Case(FusedBySplit, seq),
    "repairable": Case(lambda: Repairable(False), seq),
    "repairable_scaled": Case(lambda: Repairable(True), seq),
    **{f"queries_{how}": Case(lambda how=how: Queries(how), seq) for how in ("expand", "repeat", "kernel", "stale")},
    "rotary": Case(Rotary, seq),
    "biased": Case(Biased, seq),
    "per_head_norm": Case(PerHeadNorm, seq),
    "causal": Case(Causal, seq),
    "linear_attention": Case(LinearAttention, seq),
    "literal": Case(Literal, seq),
    "einsum": Case(Einsum, seq),
    "builtin": Case(Builtin, seq),
    "encoder_layer": Case(encoder_layer, seq),
    "decoder_layer": Case(decoder_layer, seq),
    "scaled_by_root": Case(lambda: Calls(scaled_by_root, **projections()), seq),
    "recurrent": Case(Recurrent, words),
}
