"""Nets of pictures wired by a user's own hand: shared, permuted, shifted, frozen, conditioned, routed, hooked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn


def picture() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def conv_bn(c1: int, c2: int, s: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c1, c2, 3, s, 1, bias=False), nn.BatchNorm2d(c2), nn.ReLU())


class _Siamese(nn.Module):
    """One net for two pictures; the distance of their codes is weighed."""

    def __init__(self) -> None:
        super().__init__()
        body = [conv_bn(3, 48, 2), conv_bn(48, 96, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(384, 192)]
        self.embed, self.fc = nn.Sequential(*body), nn.Linear(192, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(torch.abs(self.embed(a) - self.embed(b))))


def siamese() -> nn.Module:
    return _Siamese()


class _Triplet(nn.Module):
    """Three pictures go through as one batch and are parted again; unit codes in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 64, 2), conv_bn(64, 128, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.project = nn.Sequential(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        codes = F.normalize(self.project(self.body(torch.cat([a, b, c], dim=0))), p=2, dim=1)
        return codes.split(a.size(0), dim=0)


def triplet() -> nn.Module:
    return _Triplet()


class _ChannelPermutation(nn.Module):
    """Channels of a map in a fixed random order before a grouped convolution, and each pair reversed after."""

    def __init__(self, c: int = 96) -> None:
        super().__init__()
        self.stem, self.tail = conv_bn(3, c), conv_bn(c, c, 2)
        self.register_buffer("perm", torch.randperm(c))
        self.grouped = nn.Conv2d(c, c, 3, padding=1, groups=8)
        self.fc = nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(self.stem(x)[:, self.perm]))
        n, c, h, w = x.shape
        x = x.view(n, c // 2, 2, h, w).flip(2).reshape(n, c, h, w)
        return self.fc(self.tail(x).mean((2, 3)))


def channel_permutation() -> nn.Module:
    return _ChannelPermutation()


class _TemporalShift(nn.Module):
    """Some channels look one frame back and some one ahead, by writing into slices of a new map."""

    def __init__(self, frames: int = 4, c: int = 96, div: int = 8) -> None:
        super().__init__()
        self.n_segment, self.fold_div = frames, div
        self.stem, self.conv1, self.conv2 = conv_bn(3, c, 2), conv_bn(c, c), conv_bn(c, c, 2)
        self.fc = nn.Linear(c, 10)

    def shift(self, x: Tensor) -> Tensor:
        nt, c, h, w = x.size()
        x = x.view(nt // self.n_segment, self.n_segment, c, h, w)
        fold = c // self.fold_div
        out = torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return out.view(nt, c, h, w)

    def forward(self, video: Tensor) -> Tensor:
        b, t, c, h, w = video.shape
        x = self.stem(video.view(b * t, c, h, w))
        x = x + self.conv1(self.shift(x))
        x = self.conv2(self.shift(x)).mean((2, 3))
        return self.fc(x.view(b, t, -1).mean(1))


def temporal_shift() -> nn.Module:
    return _TemporalShift()


class _BilinearCNN(nn.Module):
    """The product of two maps' channels, its signed root, unit length, a linear layer on all pairs."""

    def __init__(self, a: int = 56, b: int = 64) -> None:
        super().__init__()
        self.a = nn.Sequential(conv_bn(3, 64, 2), conv_bn(64, a, 2))
        self.b = nn.Sequential(conv_bn(3, 64, 2), conv_bn(64, b, 2))
        self.fc = nn.Linear(a * b, 10)

    def forward(self, x: Tensor) -> Tensor:
        fa, fb = self.a(x).flatten(2), self.b(x).flatten(2)
        z = torch.bmm(fa, fb.transpose(1, 2)).flatten(1) / fa.shape[-1]
        return self.fc(F.normalize(torch.sign(z) * torch.sqrt(z.abs() + 1e-10)))


def bilinear_cnn() -> nn.Module:
    return _BilinearCNN()


class _MaxFeatureMap(nn.Module):
    """LightCNN: the larger of two halves of the channels."""

    def __init__(self, cin: int, cout: int, k: int = 3) -> None:
        super().__init__()
        self.out_channels, self.filter = cout, nn.Conv2d(cin, 2 * cout, k, 1, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.filter(x), self.out_channels, 1)
        return torch.max(a, b)


def light_cnn() -> nn.Module:
    body = [
        _MaxFeatureMap(3, 48, 5),
        nn.MaxPool2d(2),
        _MaxFeatureMap(48, 48, 1),
        _MaxFeatureMap(48, 96),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(96 * 64, 64), nn.ReLU(), nn.Linear(64, 10))


class _CReLU(nn.Module):
    """Both signs of every channel, joined."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat((x, -x), 1))


def concatenated_relu() -> nn.Module:
    body = [nn.Conv2d(3, 48, 5, 2, 2), nn.BatchNorm2d(48), _CReLU(), nn.Conv2d(96, 64, 3, 2, 1), _CReLU()]
    return nn.Sequential(
        *body, nn.Conv2d(128, 128, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)
    )


class _FrozenBody(nn.Module):
    """The body runs under ``no_grad``; a head is learned on what it finds, detached."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv_bn(3, 64, 2), conv_bn(64, 128, 2), conv_bn(128, 128, 2))
        self.head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x).mean((2, 3))
        return self.head(features.detach())


def no_grad_body() -> nn.Module:
    return _FrozenBody()


class _FiLM(nn.Module):
    """A condition scales and shifts every channel."""

    def __init__(self, c: int = 96, cond: int = 16) -> None:
        super().__init__()
        self.c = c
        self.stem, self.conv = conv_bn(3, c, 2), nn.Conv2d(c, c, 3, padding=1)
        self.film, self.out = nn.Sequential(nn.Linear(cond, 64), nn.ReLU(), nn.Linear(64, 2 * c)), nn.Linear(c, 10)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        gamma, beta = self.film(cond).view(-1, 2, self.c).unbind(1)
        x = self.conv(self.stem(x))
        x = F.relu(gamma[:, :, None, None] * x + beta[:, :, None, None])
        return self.out(x.amax((2, 3)))


def film() -> nn.Module:
    return _FiLM()


class _Spatial(nn.Module):
    """A small net turns and stretches the picture by ``grid_sample`` before the larger one sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.localise = nn.Sequential(nn.Conv2d(3, 24, 5, 2), nn.ReLU(), nn.Conv2d(24, 32, 5, 2), nn.ReLU())
        self.fc_loc = nn.Sequential(nn.Linear(32 * 25, 64), nn.ReLU(), nn.Linear(64, 6))
        self.fc_loc[2].bias.data.copy_(torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float))
        self.body = nn.Sequential(conv_bn(3, 64, 2), conv_bn(64, 96, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.fc_loc(self.localise(x).view(-1, 32 * 25)).view(-1, 2, 3)
        x = F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)
        return self.out(self.body(x))


def spatial_transformer() -> nn.Module:
    return _Spatial()


class _Capsules(nn.Module):
    """Groups of channels as vectors, which agree on the classes by routing."""

    def __init__(self, classes: int = 10, dim: int = 8, out: int = 16) -> None:
        super().__init__()
        self.in_dim, self.stem = dim, conv_bn(3, 64, 2)
        self.primary = nn.Conv2d(64, 12 * dim, 9, 4)
        self.w = nn.Parameter(0.1 * torch.randn(1, 48, classes, out, dim))

    @staticmethod
    def squash(s: Tensor) -> Tensor:
        n = (s**2).sum(-1, keepdim=True)
        return n / (1 + n) * s / torch.sqrt(n + 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        u = self.primary(self.stem(x))
        u = self.squash(u.view(u.size(0), -1, self.in_dim))
        votes = (self.w @ u[:, :, None, :, None]).squeeze(-1)
        b = torch.zeros(votes.shape[:3], dtype=x.dtype)
        for _ in range(3):
            v = self.squash((b.softmax(dim=2).unsqueeze(-1) * votes).sum(1))
            b = b + (votes * v.unsqueeze(1)).sum(-1)
        return v.norm(dim=-1)


def capsules() -> nn.Module:
    return _Capsules()


class _Hooked(nn.Module):
    """Maps are collected by forward hooks and pooled into one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 48, 2), conv_bn(48, 96, 2), conv_bn(96, 128, 2))
        self.fc = nn.Linear(48 + 96 + 128, 10)
        self.found: list[Tensor] = []
        for layer in self.body:
            layer.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.found.append(output.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        self.found.clear()
        self.body(x)
        pooled = torch.cat(self.found, 1)
        self.found.clear()
        return self.fc(pooled)


def forward_hooks() -> nn.Module:
    return _Hooked()


CASES: dict[str, Case] = {
    "siamese": Case(siamese, lambda: (picture(), picture())),
    "triplet": Case(triplet, lambda: (picture(), picture(), picture())),
    "channel_permutation": Case(channel_permutation, picture),
    "temporal_shift": Case(temporal_shift, lambda: torch.randn(1, 4, 3, 32, 32)),
    "bilinear_cnn": Case(bilinear_cnn, picture),
    "light_cnn": Case(light_cnn, picture),
    "concatenated_relu": Case(concatenated_relu, picture),
    "no_grad_body": Case(no_grad_body, picture),
    "film": Case(film, lambda: (picture(), torch.randn(2, 16))),
    "spatial_transformer": Case(spatial_transformer, picture),
    "capsules": Case(capsules, picture),
    "forward_hooks": Case(forward_hooks, picture),
}
