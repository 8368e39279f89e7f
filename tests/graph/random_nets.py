"""Networks drawn at random from blocks: whatever coupling offers in them must hold the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from random_blocks import BLOCKS as MORE
from torch import Tensor, nn

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (F.gelu, torch.tanh, F.silu, torch.sigmoid, F.softplus, F.relu)


class Perceptron(nn.Module):
    """Down again from a wider layer, added to its input."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=kind % 2 == 0)
        self.gate = nn.Linear(width, hidden) if kind % 3 == 0 else None
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = ACTIVATIONS[self.kind % 6](self.up(x))
        return x + self.down(h if self.gate is None else h * self.gate(x))


class Halves(nn.Module):
    """Two projections concatenated, then split again elsewhere."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, hidden), nn.Linear(width, hidden + 2)
        self.first, self.second = hidden + 1, hidden + 1
        self.back, self.kind = nn.Linear(hidden + 1, width), kind

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([torch.tanh(self.a(x)), self.b(x)], -1)
        if self.kind % 3 == 0:
            p, q = h.chunk(2, -1)
        elif self.kind % 3 == 1:
            p, q = h.split([self.first, self.second], -1)
        else:
            half = h.shape[-1] // 2
            p, q = h[..., :half], h[..., half:]
        return self.back(p * torch.sigmoid(q))


class Norm(nn.Module):
    """Over the features, over the batch, in groups, or none but a scale."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        groups = next(g for g in (kind % 4 + 1, 2, 1) if width % g == 0)
        norms = (
            nn.LayerNorm(width),
            nn.BatchNorm1d(width),
            nn.GroupNorm(groups, width),
            nn.InstanceNorm1d(width, affine=True),
        )
        self.norm, self.scale = norms[kind % 4], nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x) * self.scale
        return self.norm(x.transpose(1, 2)).transpose(1, 2) * self.scale


class Grid(nn.Module):
    """Features seen as rows and columns, scaled by either, put back in one order or the other."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.rows = next(r for r in (kind % 5 + 2, 2, 1) if width % r == 0)
        self.up = nn.Linear(width, width)
        self.by_row = nn.Parameter(torch.randn(self.rows, 1))
        self.by_column = nn.Parameter(torch.randn(width // self.rows))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        b, t, c = h.shape
        h = h.view(b, t, self.rows, c // self.rows) if self.kind % 2 else h.unflatten(-1, (self.rows, -1))
        if self.kind % 3:
            h = h * self.by_row
        if self.kind % 5:
            h = h + self.by_column
        return h.transpose(2, 3).flatten(2) if self.kind % 7 == 0 else h.reshape(b, t, -1)


class Order(nn.Module):
    """Moved about: reversed, rolled, by a buffer of positions."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.up, self.kind = nn.Linear(width, width), kind
        self.register_buffer("order", torch.randperm(width, generator=torch.Generator().manual_seed(kind)))

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.up(x))
        if self.kind % 4 == 0:
            return h.flip(-1)
        if self.kind % 4 == 1:
            return h[..., self.order]
        if self.kind % 4 == 2:
            return h.roll(self.kind % 3 - 1, -1)
        return h.index_select(-1, self.order) + x


class Attention(nn.Module):
    """Heads and head dims of any number; separate or fused projections; written out or by the kernel."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.heads, self.dim, self.kind = kind % 3 + 2, hidden % 4 + 2, kind
        self.inner = self.heads * self.dim
        self.qkv = nn.Linear(width, 3 * self.inner)
        self.q, self.kv = nn.Linear(width, self.inner), nn.Linear(width, 2 * self.inner)
        self.out, self.scale = nn.Linear(self.inner, width), 0.3

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, _ = x.shape
        if self.kind % 4 == 0:
            parts = self.qkv(x).reshape(b, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
            return parts[0], parts[1], parts[2]
        if self.kind % 4 == 1:
            split = self.qkv(x).view(b, t, self.heads, -1).transpose(1, 2).chunk(3, -1)
            return split[0], split[1], split[2]
        several = [self.q(x), *self.kv(x).split(self.inner, -1)] if self.kind % 4 == 2 else self.qkv(x).chunk(3, -1)
        q, k, v = (p.view(b, t, self.heads, self.inner // self.heads).transpose(1, 2) for p in several)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.apart(x)
        if self.kind % 5 < 2:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.kind % 2 else None)
        elif self.kind % 5 == 2:
            y = torch.einsum("bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) * self.scale).softmax(-1), v)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) * self.scale, -1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


SEQUENCE: tuple[Callable[[int, int, int], nn.Module], ...] = (
    Perceptron,
    Halves,
    Norm,
    Grid,
    Order,
    Attention,
    *MORE,
)


class Convolution(nn.Module):
    """Plain, grouped, depthwise, transposed; normed or not; added to its input where it fits."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        groups = (1, 2, width, width, 1)[kind % 5]
        outer = (hidden * 2, hidden * 2, width, 2 * width, width)[kind % 5]
        if width % groups:
            groups = 1
        conv: type[Any] = nn.ConvTranspose2d if kind % 7 == 0 else nn.Conv2d
        self.conv = conv(width, outer, 3, padding=1, groups=groups, bias=kind % 2 == 0)
        norms = (nn.BatchNorm2d(outer), nn.GroupNorm(2 if outer % 2 == 0 else 1, outer), nn.Identity())
        self.norm, self.kind, self.width = norms[kind % 3], kind, outer

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x))
        return ACTIVATIONS[self.kind % 6](h + x if h.shape == x.shape else h)


class Growth(nn.Module):
    """Concatenated to its input, as dense nets do; perhaps shuffled."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(width, hidden + (width + hidden) % 2, 1), kind
        self.width, self.groups = width + hidden + (width + hidden) % 2, 2

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([x, F.relu(self.conv(x))], 1)
        if self.kind % 2:
            b, c, *space = h.shape
            h = h.view(b, self.groups, c // self.groups, *space).transpose(1, 2).flatten(1, 2)
        return h


class Squeeze(nn.Module):
    """Squeeze-excite, then a pool."""

    def __init__(self, width: int, hidden: int, kind: int) -> None:
        super().__init__()
        self.down, self.up, self.width, self.kind = (
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, width, 1),
            width,
            kind,
        )

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return F.avg_pool2d(x * scale, 3, 1, 1) if self.kind % 2 else F.max_pool2d(x * scale, 3, 1, 1)


IMAGE: tuple[Callable[[int, int, int], nn.Module], ...] = (Convolution, Growth, Squeeze)


class Sequences(nn.Module):
    """(2, 5, 4) to (2, 5, 3) through blocks of one width."""

    def __init__(self, width: int, blocks: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(SEQUENCE[which](width, hidden, kind) for which, hidden, kind in blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Images(nn.Module):
    """(2, 3, 6, 6) to (2, 4), pooled or flattened in between."""

    def __init__(self, width: int, blocks: list[tuple[int, int, int]], flat: bool) -> None:
        super().__init__()
        self.stem, self.flat = nn.Conv2d(3, width, 1), flat
        made = []
        for which, hidden, kind in blocks:
            made.append(IMAGE[which % len(IMAGE)](width, hidden, kind))
            width = int(made[-1].width)
        self.blocks = nn.Sequential(*made)
        self.hidden = nn.Linear(width * 9 if flat else width, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = F.adaptive_avg_pool2d(x, 3 if self.flat else 1).flatten(1)
        return self.head(torch.tanh(self.hidden(x)))


def blocks(kinds: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Which block, how wide it is inside, and what kind of it."""
    drawn = st.tuples(st.integers(0, kinds - 1), st.integers(2, 7), st.integers(0, 59))
    return st.lists(drawn, min_size=1, max_size=4)


sequences = st.builds(Sequences, st.sampled_from([4, 6, 8, 12]), blocks(len(SEQUENCE)))
images = st.builds(Images, st.sampled_from([4, 6, 8]), blocks(len(IMAGE)), st.booleans())
