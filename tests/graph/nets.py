"""Small nets that between them use every op family; each case is a model, its example and the groups it must have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.types import Example


@dataclass(frozen=True)
class Case:
    """A model and its example; `expected` says what coupling must find in it."""

    make: Callable[[], nn.Module]
    example: Callable[[], Example]


class Calls(nn.Module):
    """A net whose forward pass is given as a function of its parts."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def vec() -> Tensor:
    return torch.randn(4, 6)


def seq() -> Tensor:
    return torch.randn(2, 5, 6)


def img() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def words() -> Tensor:
    return torch.tensor([[1, 5, 2, 7, 0], [3, 3, 9, 1, 4]])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3))


def convolutions(rank: int, transposed: bool) -> Callable[[], nn.Module]:
    kinds = {
        (1, False): nn.Conv1d,
        (2, False): nn.Conv2d,
        (3, False): nn.Conv3d,
        (1, True): nn.ConvTranspose1d,
        (2, True): nn.ConvTranspose2d,
        (3, True): nn.ConvTranspose3d,
    }
    conv = kinds[rank, transposed]
    return lambda: nn.Sequential(
        conv(3, 8, 3, stride=2), nn.ReLU(), conv(8, 6, 2, bias=False), nn.SiLU(), conv(6, 2, 1)
    )


class Grouped(nn.Module):
    """Depthwise with multiplier, grouped, transposed: the groups of one conv are channels of another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 24, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(24, 16, 1, groups=4)
        self.up = nn.ConvTranspose2d(16, 6, 2, 2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.depthwise, self.grouped, self.up):
            x = F.relu(layer(x))
        return self.head(x)


def batch_normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6),
        nn.Hardswish(), nn.Conv2d(6, 2, 1),
    )  # fmt: skip


def instance_normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8), nn.Conv2d(8, 2, 1))


def group_normed(groups: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(groups, 8), nn.ELU(), nn.Conv2d(8, 2, 1))


def layer_normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.RMSNorm(8), nn.Linear(8, 3)
    )


class TiedEmbedding(nn.Module):
    """Embedding whose weight is also the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.out = nn.Linear(8, 11)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out(h + self.down(F.relu(self.up(h))))


class Residual(nn.Module):
    """Stem, two residual blocks one of which changes the width, pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a1, self.a2 = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 14, 3, padding=1)
        self.short = nn.Conv2d(8, 14, 1, stride=2)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        x = F.relu(self.short(x) + self.b2(F.relu(self.b1(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: strided, then padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Conv2d(12, 2, 1)
        self.width = 12

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.width - x.shape[1]))
        return self.head(F.relu(short + self.conv(x)))


class Dense(nn.Module):
    """Every layer sees all before it, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(14, 5, 1)])
        self.norm = nn.BatchNorm2d(14)
        self.head = nn.Conv2d(19, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.layers[0](x)]
        seen.append(self.layers[1](F.relu(seen[0])))
        seen.append(self.layers[2](F.relu(self.norm(torch.cat(seen, 1)))))
        return self.head(torch.cat(seen, 1))


class Splits(nn.Module):
    """Even chunks, an uneven split by attributes, and halves taken by slicing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(8, 14), nn.Linear(4, 12)
        self.wide, self.narrow = 10, 4
        self.d, self.head = nn.Linear(10, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.a(x).chunk(2, dim=-1)
        wide, narrow = self.b(p * torch.sigmoid(q)).split([self.wide, self.narrow], dim=-1)
        h = self.c(narrow + self.d(wide))
        half = h.shape[-1] // 2
        return self.head(h[..., :half] * F.silu(h[..., half:]))


class Gated(nn.Module):
    """GLU, then SwiGLU with two projections, then GEGLU with a fused one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.up = nn.Linear(6, 16), nn.Linear(8, 12), nn.Linear(8, 12)
        self.down, self.fused, self.head = nn.Linear(12, 8), nn.Linear(8, 20), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.a(x))
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        value, gate = self.fused(x).chunk(2, -1)
        return self.head(value * F.gelu(gate))


class SqueezeExcite(nn.Module):
    """Channels scaled by what their own means say."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depth(F.silu(self.stem(x))))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(x * scale)


class Flattened(nn.Module):
    """Convolution into linear: a channel is a run of input features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 6, 3), nn.MaxPool2d(2)
        self.norm, self.fc, self.head = nn.BatchNorm1d(54), nn.Linear(54, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv(x)))
        return self.head(F.leaky_relu(self.fc(self.norm(x.view(x.size(0), -1)))))


class Pools(nn.Module):
    """Pooling and resampling of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.interpolate(self.a(x), scale_factor=2, mode="bilinear"), 2)
        x = F.avg_pool2d(F.pad(F.interpolate(x, size=(9, 9)), (1, 1, 1, 1), mode="reflect"), 2)
        x = F.adaptive_max_pool2d(self.b(x), (3, 3))
        return self.head(torch.cat([x.amax((2, 3)), F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]], 1))


class Shuffles(nn.Module):
    """Pixel shuffle, its inverse, and a channel shuffle by view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(4, 8, 1),
            nn.Conv2d(8, 2, 1),
        )
        self.groups = 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.b(F.pixel_unshuffle(F.pixel_shuffle(self.a(x), 2), 2)), 2)
        x = self.c(x)
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(x))


class Rearranged(nn.Module):
    """Permutes, flips, rolls, stacks, repeats and unfolds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.mix, self.head = nn.Linear(12, 5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).flip(-1)
        h = torch.stack([h, self.b(h)], 0).amax(0)
        h = h.roll(1, 0) + F.softplus(h)
        h = torch.cat([h, self.a(x)[:, :4]], -1)
        h = self.mix(h).t().permute(1, 0)
        return self.head(h.repeat(1, 2))


class Unfolded(nn.Module):
    """A convolution written as unfold and matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.taps, self.head = nn.Conv2d(3, 6, 1), nn.Linear(54, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.taps(F.unfold(self.conv(x), 3).transpose(1, 2))))


class Shared(nn.Module):
    """The same layer twice, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.loop, self.b = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        self.c = nn.Linear(8, 12, bias=False)
        self.c.weight, self.head = self.b.weight, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.loop(F.relu(self.loop(F.relu(self.a(x))))))
        return self.head(self.b(x) + torch.tanh(self.c(x)))


class Buffers(nn.Module):
    """A permutation, a scale and a mask that are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))
        self.register_buffer("scale", torch.linspace(1, 2, 8))
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 1, 1, 1, 0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x)[:, self.order] * self.scale) * self.mask)


class TwoViews(nn.Module):
    """One axis seen as 4 by 8 and as 2 by 16."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 32), nn.Linear(32, 3)
        self.fine, self.coarse = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(2, 1))
        self.parts, self.halves = 4, 2

    def forward(self, x: Tensor) -> Tensor:
        n, y = x.shape[0], self.a(x)
        y = (y.view(n, self.parts, -1) * self.fine).reshape(n, -1)
        return self.head((y.view(n, self.halves, -1) * self.coarse).reshape(n, -1))


CASES: dict[str, Case] = {
    "mlp": Case(mlp, vec),
    **{
        f"conv{rank}d{'_transposed' * transposed}": Case(
            convolutions(rank, transposed), lambda rank=rank: torch.randn(2, 3, *[9, 8, 7][:rank])
        )
        for rank in (1, 2, 3)
        for transposed in (False, True)
    },
    "grouped": Case(Grouped, img),
    "batch_norm": Case(batch_normed, img),
    "instance_norm": Case(instance_normed, img),
    "group_norm_of_2": Case(group_normed(2), img),
    "group_norm_of_1": Case(group_normed(8), img),
    "layer_norm": Case(layer_normed, vec),
    "tied_embedding": Case(TiedEmbedding, words),
    "residual": Case(Residual, img),
    "padded_shortcut": Case(PaddedShortcut, img),
    "dense": Case(Dense, img),
    "splits": Case(Splits, vec),
    "gated": Case(Gated, seq),
    "squeeze_excite": Case(SqueezeExcite, img),
    "flattened": Case(Flattened, img),
    "pools": Case(Pools, img),
    "shuffles": Case(Shuffles, img),
    "rearranged": Case(Rearranged, vec),
    "unfolded": Case(Unfolded, img),
    "shared": Case(Shared, vec),
    "buffers": Case(Buffers, vec),
    "two_views": Case(TwoViews, vec),
}
