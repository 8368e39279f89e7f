"""Blocks for networks drawn at random: attention by hand and by torch, recurrent layers, inner norms, gates, pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def divisor(n: int, kind: int) -> int:
    """One of the divisors of a number that are above one, if there are any below it."""
    found = [d for d in range(2, n) if n % d == 0] or [1]
    return found[kind % len(found)]


class ByHand(nn.Module):
    """Attention as wide as its input: all its sizes are made of the input's shape."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.heads, self.kind = divisor(width, kind), kind
        self.qkv = nn.Linear(width, 3 * width, bias=kind % 2 == 0)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.scale, self.dim = (width // self.heads) ** -0.5, width // self.heads

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, c = x.shape
        heads = self.heads
        if self.kind % 4 == 0:
            q, k, v = self.qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        elif self.kind % 4 == 1:
            q, k, v = (p.view(b, n, heads, c // heads).transpose(1, 2) for p in (self.q(x), self.k(x), self.v(x)))
        elif self.kind % 4 == 2:
            q, k, v = (p.reshape(b, n, heads, -1).transpose(1, 2) for p in self.qkv(x).split(c, dim=2))
        else:
            q, k, v = (p(x).view(b, n, -1, self.dim).permute(0, 2, 1, 3) for p in (self.q, self.k, self.v))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.apart(x)
        if self.kind % 5 == 0:
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.kind % 5 == 1:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale, is_causal=self.kind % 2 == 0)
        elif self.kind % 5 == 2:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(n, n, dtype=torch.bool).tril())
        elif self.kind % 5 == 3:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        y = y.transpose(1, 2)
        return x + self.out(y.reshape(b, n, c) if self.kind % 3 else y.flatten(2))


class Builtin(nn.Module):
    """``nn.MultiheadAttention``, of the input or of the input and its reverse."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.kind, options = kind, {"batch_first": kind % 2 == 0, "bias": kind % 5 != 0}
        options |= {"add_bias_kv": kind % 7 == 0, "add_zero_attn": kind % 7 == 1}
        if kind % 4 == 3:
            options |= {"kdim": width, "vdim": width + 1}
        self.values = nn.Linear(width, width + 1) if kind % 4 == 3 else nn.Identity()
        self.attention = nn.MultiheadAttention(width, divisor(width, kind), **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        q = x if self.kind % 2 == 0 else x.transpose(0, 1)
        k = q if self.kind % 3 else q.flip(-1)
        y, weights = self.attention(q, k, self.values(q), need_weights=self.kind % 3 == 0)
        if self.kind % 6 == 0:
            y = y + weights.sum((1, 2), keepdim=True)
        return x + (y if self.kind % 2 == 0 else y.transpose(0, 1))


class Recurrent(nn.Module):
    """An LSTM, a GRU or a plain one; of one or two layers, one way or both."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        made: type[Any] = (nn.LSTM, nn.GRU, nn.RNN)[kind % 3]
        both, layers = kind % 2 == 0, kind % 4 // 2 + 1
        self.inner = made(width, hidden, layers, batch_first=kind % 5 > 1, bidirectional=both, bias=kind % 7 > 0)
        self.out = nn.Linear(hidden * (1 + both), width)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind % 5 > 1:
            y, state = self.inner(x)
        else:
            y, state = self.inner(x.transpose(0, 1))
            y = y.transpose(0, 1)
        if self.kind % 11 == 0:
            last = state[0] if isinstance(state, tuple) else state
            return x + self.out(y) + last.mean((0, 2))[:, None, None]
        return x + self.out(y) if self.kind % 4 else self.out(F.relu(y))


class InnerNorm(nn.Module):
    """A wider layer normalised inside of the block."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        inner = 2 * hidden
        norms = (
            nn.LayerNorm(inner),
            nn.RMSNorm(inner),
            nn.GroupNorm(2, inner),
            nn.LayerNorm(inner, elementwise_affine=False),
            nn.GroupNorm(1, inner),
        )
        self.up, self.norm, self.down, self.kind = (
            nn.Linear(width, inner),
            norms[kind % 5],
            nn.Linear(inner, width),
            kind,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = self.norm(h.transpose(1, 2)).transpose(1, 2) if isinstance(self.norm, nn.GroupNorm) else self.norm(h)
        return x + self.down(F.gelu(h) if self.kind % 2 else h)


class Stream(nn.Module):
    """A norm of the stream itself, before what is added to it or after."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.norm = (nn.LayerNorm, nn.RMSNorm)[kind % 2](width)
        self.up, self.down, self.kind = nn.Linear(width, hidden), nn.Linear(hidden, width), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind % 3 == 0:
            return self.norm(x + self.down(F.relu(self.up(x))))
        return x + self.down(F.relu(self.up(self.norm(x))))


class Gate(nn.Module):
    """GLU, SwiGLU with two projections, with one that is chunked, with one that is seen as (2, features)."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.both, self.one, self.other = (
            nn.Linear(width, 2 * hidden),
            nn.Linear(width, hidden),
            nn.Linear(width, hidden),
        )
        self.down, self.kind = nn.Linear(hidden, width), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind % 4 == 0:
            h = F.glu(self.both(x), -1)
        elif self.kind % 4 == 1:
            h = F.silu(self.one(x)) * self.other(x)
        elif self.kind % 4 == 2:
            p, q = self.both(x).chunk(2, -1)
            h = F.gelu(p) * q
        else:
            p, q = self.both(x).unflatten(-1, (2, -1)).unbind(-2)
            h = torch.sigmoid(p) * q
        return x + self.down(h)


class Pieces(nn.Module):
    """Slices of every kind, put together again in another order."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.up, self.kind = nn.Linear(width, 2 * hidden), kind
        self.out = nn.Linear((hidden, 2 * hidden - 2, 2 * hidden, 2 * hidden, hidden, 2 * hidden)[kind % 6], width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.up(x))
        if self.kind % 6 == 0:
            h = h[..., ::2] * h[..., 1::2]
        elif self.kind % 6 == 1:
            h = h[..., :-2] + h[..., 2:]
        elif self.kind % 6 == 2:
            p, q = h.chunk(2, -1)
            h = torch.cat([q, p], -1)
        elif self.kind % 6 == 3:
            h = torch.stack(h.chunk(2, -1), -1).flatten(-2)
        elif self.kind % 6 == 4:
            h = h.narrow(-1, 0, h.shape[-1] // 2) - torch.stack(h.chunk(2, -1)).sum(0)
        else:
            p, q = h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]
            h = torch.cat([-q, p], -1)
        return x + self.out(h)


class Reparametrized(nn.Module):
    """A weight that is made of others whenever it is used."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        make: tuple[Callable[[nn.Module], nn.Module], ...] = (
            nn.utils.parametrizations.weight_norm,
            lambda m: nn.utils.parametrizations.weight_norm(m, dim=1),
            lambda m: m,
        )
        self.up, self.down = make[kind % 3](nn.Linear(width, hidden)), make[kind // 3 % 3](nn.Linear(hidden, width))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind % 9 == 8:  # standardised by hand
            w = self.up.weight
            return x + self.down(F.relu(F.linear(x, w - w.mean(1, keepdim=True))))
        return x + self.down(F.relu(self.up(x)))


class Sums(nn.Module):
    """Means, sums and norms over features, added or divided by."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.up, self.down, self.kind = nn.Linear(width, hidden), nn.Linear(hidden, width), kind

    def forward(self, x: Tensor) -> Tensor:
        h = F.softplus(self.up(x)) if self.kind % 4 == 3 else F.gelu(self.up(x))
        if self.kind % 6 == 0:
            h = h - h.mean(-1, keepdim=True)
        elif self.kind % 6 == 1:
            h = h / (1 + h.square().sum(-1, keepdim=True).sqrt())
        elif self.kind % 6 == 2:
            h = h * torch.tanh(h.sum(-1, keepdim=True))
        elif self.kind % 6 == 3:
            norm = h.norm(dim=1, keepdim=True)  # the global response norm of ConvNeXt v2
            h = h * (norm / (norm.mean(-1, keepdim=True) + 1e-6)) + h
        elif self.kind % 6 == 4:
            h = F.normalize(h, dim=-1)
        else:
            h = h * h.amax(-1, keepdim=True)
        return x + self.down(h)


BLOCKS: tuple[Callable[[int, int, int], nn.Module], ...] = (
    ByHand,
    Builtin,
    Recurrent,
    InnerNorm,
    Stream,
    Gate,
    Pieces,
    Reparametrized,
    Sums,
)
