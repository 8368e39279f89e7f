"""Attention other than the plain softmax over heads as its users write it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn


def sequence() -> Tensor:
    return torch.randn(2, 12, 96)


class Blocks(nn.Module):
    """Blocks of a mixer along the sequence and a feed-forward, each added; a score of ten classes."""

    def __init__(self, mixers: list[nn.Module], dim: int = 96, hidden: int = 192) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in mixers)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in mixers
        )
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to (batch, ten classes)."""
        for norm, mixer, mlp in zip(self.norms, self.mixers, self.mlps, strict=True):
            x = x + mixer(norm(x))
            x = x + mlp(x)
        return self.head(x.mean(1))


class _EinsumAttention(nn.Module):
    """Weights with an axis of heads, contracted by ``einsum``."""

    def __init__(self, dim: int = 96, heads: int = 4, size: int = 24) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(heads, dim, size) / dim**0.5) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(heads, size, dim) / (heads * size) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,hde->bhte", x, w) for w in (self.wq, self.wk, self.wv))
        scores = torch.einsum("bhqe,bhke->bhqk", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("bhqk,bhke,hed->bqd", scores.softmax(-1), v, self.wo)


def attention_einsum() -> nn.Module:
    return Blocks([_EinsumAttention(), _EinsumAttention()])


class _LinearAttention(nn.Module):
    """Positive features of queries and keys; the sum over keys is made first."""

    def __init__(self, dim: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("nshd,nshm->nhmd", k, v)
        z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + 1e-6)
        return self.o(torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z).reshape(b, n, d))


def linear_attention() -> nn.Module:
    return Blocks([_LinearAttention(), _LinearAttention()])


class _Linformer(nn.Module):
    """Keys and values are brought to fewer places by a learned product along the sequence."""

    def __init__(self, dim: int = 96, heads: int = 4, seq: int = 12, k: int = 6) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim // heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj_k, self.proj_v = (nn.Parameter(torch.randn(seq, k) / seq**0.5) for _ in range(2))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.to_q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        keys = torch.einsum("bnd,nk->bkd", self.to_k(x), self.proj_k)
        values = torch.einsum("bnd,nk->bkd", self.to_v(x), self.proj_v)
        keys, values = (t.reshape(b, -1, self.heads, self.dim_head).transpose(1, 2) for t in (keys, values))
        attn = (torch.einsum("bhnd,bhkd->bhnk", q, keys) * self.dim_head**-0.5).softmax(dim=-1)
        out = torch.einsum("bhnk,bhkd->bhnd", attn, values)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))


def linformer() -> nn.Module:
    return Blocks([_Linformer(), _Linformer()])


class _Perceiver(nn.Module):
    """A few latents read the sequence, then each other, with the same weights twice."""

    def __init__(self, dim: int = 96, latents: int = 8, latent_dim: int = 80, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.latents = nn.Parameter(0.5 * torch.randn(latents, latent_dim))
        self.norm_context, self.norm = nn.LayerNorm(dim), nn.LayerNorm(latent_dim)
        self.to_q, self.to_kv = nn.Linear(latent_dim, 96, bias=False), nn.Linear(dim, 192, bias=False)
        self.to_out = nn.Linear(96, latent_dim)
        self.inner = nn.TransformerEncoderLayer(latent_dim, heads, 160, batch_first=True, norm_first=True)
        self.head = nn.Linear(latent_dim, 10)

    def cross(self, x: Tensor, context: Tensor) -> Tensor:
        b = x.shape[0]
        k, v = self.to_kv(self.norm_context(context)).chunk(2, dim=-1)
        q, k, v = (t.reshape(b, t.shape[1], self.heads, -1).transpose(1, 2) for t in (self.to_q(self.norm(x)), k, v))
        out = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.to_out(out.transpose(1, 2).flatten(2))

    def forward(self, data: Tensor) -> Tensor:
        x = self.latents.unsqueeze(0).repeat(data.shape[0], 1, 1)
        for _ in range(2):
            x = self.inner(x + self.cross(x, data))
        return self.head(x.mean(dim=-2))


def perceiver() -> nn.Module:
    return _Perceiver()


class _Biased(nn.Module):
    """Attention whose scores are changed by ``self.scores`` before the softmax."""

    def __init__(self, dim: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.n_heads, self.head_dim = heads, dim // heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)

    def mixed(self, attn: Tensor) -> Tensor:
        return attn.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.view(b, n, self.n_heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
        y = self.mixed(self.scores(q, k)) @ v
        return self.out(y.transpose(1, 2).contiguous().view(b, n, self.n_heads * self.head_dim))


class _ALiBi(_Biased):
    def __init__(self, dim: int = 96, heads: int = 4) -> None:
        super().__init__(dim, heads)
        self.register_buffer("slopes", torch.tensor([2.0 ** (-8 * (i + 1) / heads) for i in range(heads)]))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[2]
        away = torch.arange(n)[None, :] - torch.arange(n)[:, None]
        bias = self.slopes.view(-1, 1, 1) * away.clamp(max=0).to(q.dtype)
        return super().scores(q, k) + bias + torch.full((n, n), -1e9, dtype=q.dtype).triu(1)


def alibi_attention() -> nn.Module:
    return Blocks([_ALiBi(), _ALiBi()])


class _Relative(_Biased):
    """A learned bias of every head for every bucket of distance."""

    def __init__(self, dim: int = 96, heads: int = 4, far: int = 8) -> None:
        super().__init__(dim, heads)
        self.max_distance = far
        self.relative = nn.Embedding(2 * far + 1, heads)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[2]
        away = (torch.arange(n)[None] - torch.arange(n)[:, None]).clamp(-self.max_distance, self.max_distance)
        return super().scores(q, k) + self.relative(away + self.max_distance).permute(2, 0, 1).unsqueeze(0)


def relative_bias_attention() -> nn.Module:
    return Blocks([_Relative(), _Relative()])


class _MusicRelative(_Biased):
    """A learned vector for every distance, met by the queries, skewed into place."""

    def __init__(self, dim: int = 96, heads: int = 4, length: int = 12) -> None:
        super().__init__(dim, heads)
        self.er = nn.Parameter(torch.randn(length, dim // heads))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[2]
        rel = F.pad(q @ self.er[-n:].t(), (1, 0))
        rel = rel.reshape(rel.shape[0], rel.shape[1], n + 1, n)[:, :, 1:, :]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        return ((q @ k.transpose(-2, -1) + rel) / math.sqrt(self.head_dim)).masked_fill(mask, float("-inf"))


def music_relative_attention() -> nn.Module:
    return Blocks([_MusicRelative(), _MusicRelative()])


class _TalkingHeads(_Biased):
    """The heads exchange what they found, before the softmax and after it."""

    def __init__(self, dim: int = 96, heads: int = 4) -> None:
        super().__init__(dim, heads)
        self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)

    def mixed(self, attn: Tensor) -> Tensor:
        attn = self.before(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
        return self.after(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def talking_heads() -> nn.Module:
    return Blocks([_TalkingHeads(), _TalkingHeads()])


class _CosineAttention(_Biased):
    """Unit queries and keys, a learned temperature of every head."""

    def __init__(self, dim: int = 96, heads: int = 4) -> None:
        super().__init__(dim, heads)
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(heads, 1, 1)))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scale = torch.clamp(self.logit_scale, max=math.log(100)).exp()
        return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * scale


def cosine_attention() -> nn.Module:
    return Blocks([_CosineAttention(), _CosineAttention()])


class _QKNorm(_Biased):
    """Queries and keys under a layer norm of the head's width."""

    def __init__(self, dim: int = 96, heads: int = 4) -> None:
        super().__init__(dim, heads)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(self.q_norm(q), self.k_norm(k))


def qk_norm_attention() -> nn.Module:
    return Blocks([_QKNorm(), _QKNorm()])


class _LocalAttention(_Biased):
    """Neighbours within a window, by ``unfold`` over padded keys and values."""

    def __init__(self, dim: int = 96, heads: int = 4, window: int = 5) -> None:
        super().__init__(dim, heads)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, self.n_heads, self.head_dim) for t in self.qkv(x).chunk(3, dim=-1))
        half = self.window // 2
        k, v = (F.pad(t, (0, 0, 0, 0, half, half)).unfold(1, self.window, 1) for t in (k, v))
        scores = torch.einsum("bnhd,bnhdw->bnhw", q, k) / self.head_dim**0.5
        y = torch.einsum("bnhw,bnhdw->bnhd", scores.softmax(-1), v)
        return self.out(y.reshape(b, n, -1))


def local_window_attention() -> nn.Module:
    return Blocks([_LocalAttention(), _LocalAttention()])


CASES: dict[str, Case] = {
    "attention_einsum": Case(attention_einsum, sequence),
    "linear_attention": Case(linear_attention, sequence),
    "linformer": Case(linformer, sequence),
    "perceiver": Case(perceiver, sequence),
    "alibi_attention": Case(alibi_attention, sequence),
    "relative_bias_attention": Case(relative_bias_attention, sequence),
    "music_relative_attention": Case(music_relative_attention, sequence),
    "talking_heads": Case(talking_heads, sequence),
    "cosine_attention": Case(cosine_attention, sequence),
    "qk_norm_attention": Case(qk_norm_attention, sequence),
    "local_window_attention": Case(local_window_attention, sequence),
}
