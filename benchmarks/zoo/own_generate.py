"""Nets that make or restore pictures: generators, super-resolution, flows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from own_diffusion import picture
from torch import Tensor, nn


def dcgan_generator() -> nn.Module:
    f = 32
    made: list[nn.Module] = [nn.ConvTranspose2d(64, f * 8, 4, 1, 0, bias=False), nn.BatchNorm2d(f * 8), nn.ReLU(True)]
    for a, b in ((8, 4), (4, 2), (2, 1)):
        made += [nn.ConvTranspose2d(f * a, f * b, 4, 2, 1, bias=False), nn.BatchNorm2d(f * b), nn.ReLU(True)]
    return nn.Sequential(*made, nn.ConvTranspose2d(f, 3, 4, 2, 1, bias=False), nn.Tanh())


class _ConditionalGAN(nn.Module):
    """Noise and the embedded label are joined, made into a map, grown."""

    def __init__(self, z: int = 48, classes: int = 10, init: int = 4) -> None:
        super().__init__()
        self.label_emb, self.init_size = nn.Embedding(classes, 16), init
        self.l1 = nn.Sequential(nn.Linear(z + 16, 128 * init**2))
        self.conv_blocks = nn.Sequential(
            *[nn.BatchNorm2d(128), nn.Upsample(scale_factor=2), nn.Conv2d(128, 128, 3, 1, 1), nn.BatchNorm2d(128, 0.8)],
            *[nn.LeakyReLU(0.2, inplace=True), nn.Upsample(scale_factor=2), nn.Conv2d(128, 64, 3, 1, 1)],
            *[nn.BatchNorm2d(64, 0.8), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(64, 3, 3, 1, 1), nn.Tanh()],
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        out = self.l1(torch.cat((self.label_emb(labels), z), -1))
        return self.conv_blocks(out.view(out.shape[0], 128, self.init_size, self.init_size))


def conditional_gan() -> nn.Module:
    return _ConditionalGAN()


class _ModulatedConv(nn.Module):
    """A style scales the weight's inputs, each output is normalised; one grouped convolution does the batch."""

    def __init__(self, cin: int, cout: int, k: int, style: int) -> None:
        super().__init__()
        self.in_channel, self.out_channel, self.k = cin, cout, k
        self.weight = nn.Parameter(torch.randn(1, cout, cin, k, k))
        self.modulation = nn.Linear(style, cin)
        self.scale = 1 / math.sqrt(cin * k * k)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = self.scale * self.weight * self.modulation(style).view(b, 1, c, 1, 1)
        demod = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        weight = (weight * demod.view(b, self.out_channel, 1, 1, 1)).view(b * self.out_channel, c, self.k, self.k)
        out = F.conv2d(x.view(1, b * c, h, w), weight, padding=self.k // 2, groups=b)
        return out.view(b, self.out_channel, h, w)


class _StyleGAN(nn.Module):
    def __init__(self, style: int = 64) -> None:
        super().__init__()
        self.mapping = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(style, style), nn.LeakyReLU(0.2))])
        self.const = nn.Parameter(torch.randn(1, 128, 4, 4))
        self.convs = nn.ModuleList(_ModulatedConv(a, b, 3, style) for a, b in ((128, 128), (128, 64), (64, 32)))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(1, c, 1, 1)) for c in (128, 64, 32))
        self.to_rgb = nn.Conv2d(32, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z * torch.rsqrt(z.pow(2).mean(1, keepdim=True) + 1e-8))
        x = self.const.repeat(z.shape[0], 1, 1, 1)
        for conv, bias in zip(self.convs, self.biases, strict=True):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2), style) + bias, 0.2)
        return self.to_rgb(x)


def stylegan() -> nn.Module:
    return _StyleGAN()


class _Pix2Pix(nn.Module):
    """Instance norms, reflected borders, residual blocks."""

    def __init__(self, ngf: int = 32) -> None:
        super().__init__()
        made: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7), nn.InstanceNorm2d(ngf), nn.ReLU(True)]
        for m in (1, 2):
            made += [
                nn.Conv2d(ngf * m, ngf * m * 2, 3, 2, 1),
                nn.InstanceNorm2d(ngf * m * 2, affine=True),
                nn.ReLU(True),
            ]
        self.down = nn.Sequential(*made)
        self.blocks = nn.ModuleList(self._block(ngf * 4) for _ in range(2))
        made = []
        for m in (4, 2):
            made += [
                nn.ConvTranspose2d(ngf * m, ngf * m // 2, 3, 2, 1, 1),
                nn.InstanceNorm2d(ngf * m // 2),
                nn.ReLU(True),
            ]
        self.up = nn.Sequential(*made, nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh())

    @staticmethod
    def _block(c: int) -> nn.Sequential:
        first = [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c), nn.ReLU(True)]
        return nn.Sequential(*first, nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = x + block(x)
        return self.up(x)


def pix2pix() -> nn.Module:
    return _Pix2Pix()


def espcn() -> nn.Module:
    r = 3
    first = [nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 64, 3, padding=1), nn.Tanh()]
    return nn.Sequential(
        *first, nn.Conv2d(64, 32, 3, padding=1), nn.Tanh(), nn.Conv2d(32, r * r, 3, padding=1), nn.PixelShuffle(r)
    )


class _EDSR(nn.Module):
    """Residual blocks without norms, scaled, then pixels from channels; ``gated`` weighs channels as RCAN does."""

    def __init__(self, c: int = 48, n: int = 3, gated: bool = False) -> None:
        super().__init__()
        self.res_scale = 0.1 if not gated else 1.0
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.head = nn.Conv2d(3, c, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(True), nn.Conv2d(c, c, 3, padding=1)) for _ in range(n)
        )
        squeeze = [
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(c, c // 8, 1),
            nn.ReLU(True),
            nn.Conv2d(c // 8, c, 1),
            nn.Sigmoid(),
        ]
        self.gate = nn.Sequential(*squeeze) if gated else None
        self.tail = nn.Sequential(nn.Conv2d(c, 4 * c, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(c, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - self.mean)
        res = x
        for block in self.body:
            y = block(res)
            res = res + (y if self.gate is None else y * self.gate(y)) * self.res_scale
        return self.tail(res + x) + self.mean


def edsr() -> nn.Module:
    return _EDSR()


def rcan() -> nn.Module:
    return _EDSR(gated=True)


class _RRDB(nn.Module):
    """ESRGAN's dense block: every convolution sees all the ones before."""

    def __init__(self, nf: int = 48, gc: int = 24) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(nf + i * gc, nf if i == 4 else gc, 3, 1, 1) for i in range(5))

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for conv in self.convs[:-1]:
            found.append(F.leaky_relu(conv(torch.cat(found, 1)), 0.2))
        return self.convs[-1](torch.cat(found, 1)) * 0.2 + x


def esrgan() -> nn.Module:
    body = [_RRDB(), _RRDB(), nn.Upsample(scale_factor=2), nn.Conv2d(48, 48, 3, 1, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(nn.Conv2d(3, 48, 3, 1, 1), *body, nn.Conv2d(48, 3, 3, 1, 1))


class _Unshuffle(nn.Module):
    """A denoiser that works at half size: pixels into channels, and back, and the noise taken away."""

    def __init__(self, c: int = 64) -> None:
        super().__init__()
        mid = [m for _ in range(3) for m in (nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU())]
        self.net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, c, 3, padding=1), nn.ReLU(), *mid)
        self.out = nn.Sequential(nn.Conv2d(c, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.out(self.net(x))


def ffdnet() -> nn.Module:
    return _Unshuffle()


class _Coupling(nn.Module):
    """Half of the inputs set the scale and shift of the other half; the halves change places."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.d = dim // 2
        self.net = nn.Sequential(nn.Linear(self.d, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.scale, self.shift = nn.Linear(hidden, dim - self.d), nn.Linear(hidden, dim - self.d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.d], x[:, self.d :]
        h = self.net(a)
        s = torch.tanh(self.scale(h))
        return torch.cat([a, b * s.exp() + self.shift(h)], 1).flip(1), s.sum(1)


class _RealNVP(nn.Module):
    def __init__(self, dim: int = 32, hidden: int = 192, n: int = 4) -> None:
        super().__init__()
        self.flows = nn.ModuleList(_Coupling(dim, hidden) for _ in range(n))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logdet = x.new_zeros(x.shape[0])
        for flow in self.flows:
            x, ld = flow(x)
            logdet = logdet + ld
        return x, logdet


def real_nvp() -> nn.Module:
    return _RealNVP()


CASES: dict[str, Case] = {
    "dcgan_generator": Case(dcgan_generator, lambda: torch.randn(2, 64, 1, 1)),
    "conditional_gan": Case(conditional_gan, lambda: (torch.randn(2, 48), torch.tensor([3, 7]))),
    "stylegan": Case(stylegan, lambda: torch.randn(2, 64)),
    "pix2pix": Case(pix2pix, picture),
    "espcn": Case(espcn, lambda: torch.randn(1, 1, 16, 16)),
    "edsr": Case(edsr, lambda: torch.randn(1, 3, 16, 16)),
    "rcan": Case(rcan, lambda: torch.randn(1, 3, 16, 16)),
    "esrgan": Case(esrgan, lambda: torch.randn(1, 3, 16, 16)),
    "ffdnet": Case(ffdnet, picture),
    "real_nvp": Case(real_nvp, lambda: torch.randn(4, 32)),
}
