"""Nets of time series, and layers under a parametrization, as their users write them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm


def series() -> Tensor:
    return torch.randn(2, 16, 48)


class _WaveNet(nn.Module):
    """Dilated convolutions, each a filter times a gate, with a sum of skips."""

    def __init__(self, residual: int = 48, skip: int = 96, classes: int = 64, layers: int = 5) -> None:
        super().__init__()
        self.dilations = [2**i for i in range(layers)]
        self.start = nn.Conv1d(1, residual, 1)
        self.filters = nn.ModuleList(nn.Conv1d(residual, residual, 2, dilation=d) for d in self.dilations)
        self.gates = nn.ModuleList(nn.Conv1d(residual, residual, 2, dilation=d) for d in self.dilations)
        self.res = nn.ModuleList(nn.Conv1d(residual, residual, 1) for _ in self.dilations)
        self.skip = nn.ModuleList(nn.Conv1d(residual, skip, 1) for _ in self.dilations)
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total = 0
        for i, _ in enumerate(self.dilations):
            y = torch.tanh(self.filters[i](x)) * torch.sigmoid(self.gates[i](x))
            s = self.skip[i](y)
            total = s + (total[:, :, -s.size(2) :] if torch.is_tensor(total) else 0)
            x = self.res[i](y) + x[:, :, -y.size(2) :]
        return self.end(total)


def wavenet() -> nn.Module:
    return _WaveNet()


class _FusedWaveNet(nn.Module):
    """Filter and gate from one convolution with a condition added, cut in two; skip and residual the same way."""

    def __init__(self, c: int = 64, cond: int = 20, layers: int = 4) -> None:
        super().__init__()
        self.hidden_channels, self.n_layers = c, layers
        self.pre = nn.Conv1d(16, c, 1)
        self.cond_layer = parametrizations.weight_norm(nn.Conv1d(cond, 2 * c * layers, 1))
        self.in_layers = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(c, 2 * c, 3, dilation=2**i, padding=2**i)) for i in range(layers)
        )
        self.res_skip = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(c, 2 * c if i < layers - 1 else c, 1)) for i in range(layers)
        )

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        x, g = self.pre(x), self.cond_layer(g)
        output = torch.zeros_like(x)
        for i in range(self.n_layers):
            start = i * 2 * self.hidden_channels
            acts = self.in_layers[i](x) + g[:, start : start + 2 * self.hidden_channels, :]
            acts = torch.tanh(acts[:, : self.hidden_channels, :]) * torch.sigmoid(acts[:, self.hidden_channels :, :])
            both = self.res_skip[i](acts)
            if i < self.n_layers - 1:
                x = x + both[:, : self.hidden_channels, :]
                output = output + both[:, self.hidden_channels :, :]
            else:
                output = output + both
        return output


def wavenet_fused_conditioned() -> nn.Module:
    return _FusedWaveNet()


class _Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.chomp_size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class _TemporalBlock(nn.Module):
    def __init__(self, cin: int, cout: int, k: int, dilation: int, normed: object) -> None:
        super().__init__()
        pad = (k - 1) * dilation
        made: list[nn.Module] = []
        for a in (cin, cout):
            made += [
                normed(nn.Conv1d(a, cout, k, padding=pad, dilation=dilation)),
                _Chomp(pad),
                nn.ReLU(),
                nn.Dropout(0.2),
            ]
        self.net = nn.Sequential(*made)
        self.downsample = nn.Conv1d(cin, cout, 1) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class _TCN(nn.Module):
    def __init__(self, normed: object, widths: tuple[int, ...] = (64, 64, 96)) -> None:
        super().__init__()
        sizes = (16, *widths)
        blocks = [_TemporalBlock(sizes[i], sizes[i + 1], 3, 2**i, normed) for i in range(len(widths))]
        self.tcn = nn.Sequential(*blocks)
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.tcn(x)[:, :, -1])


def tcn_weight_norm() -> nn.Module:
    return _TCN(parametrizations.weight_norm)


def tcn_old_weight_norm() -> nn.Module:
    """Weight norm by the hook of older releases."""
    return _TCN(old_weight_norm)


def tcn_plain() -> nn.Module:
    return _TCN(nn.Identity())


def spectral_discriminator() -> nn.Module:
    sn = parametrizations.spectral_norm
    made: list[nn.Module] = []
    for a, b in ((3, 48), (48, 96), (96, 128)):
        made += [sn(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.1)]
    return nn.Sequential(*made, nn.Flatten(), sn(nn.Linear(128 * 16, 64)), nn.LeakyReLU(0.1), nn.Linear(64, 1))


def old_spectral_discriminator() -> nn.Module:
    """Spectral norm by the hook of older releases, its power iteration settled by a few passes."""
    sn = old_spectral_norm
    first = [sn(nn.Conv2d(3, 64, 4, 2, 1)), nn.LeakyReLU(0.1), sn(nn.Conv2d(64, 128, 4, 2, 1)), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 1))
    with torch.no_grad():
        for _ in range(10):
            model(torch.zeros(1, 3, 8, 8))
    return model


class _Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


class _UnitRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class _Standardised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-5)


def parametrized_mlp() -> nn.Module:
    """A symmetric square weight among free ones, and rows of unit length at the end."""
    sizes = (32, 256, 192, 192, 160, 10)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    parametrize.register_parametrization(layers[2], "weight", _Symmetric())
    parametrize.register_parametrization(layers[4], "weight", _UnitRows())
    return nn.Sequential(*[m for layer in layers[:-1] for m in (layer, nn.ReLU())], layers[-1])


def orthogonal_mlp() -> nn.Module:
    inner = parametrizations.orthogonal(nn.Linear(96, 96))
    return nn.Sequential(
        nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 96), nn.Tanh(), inner, nn.Tanh(), nn.Linear(96, 10)
    )


def standardised_convs() -> nn.Module:
    """Convolutions whose weights are brought to mean 0 and variance 1, with group norms."""
    made: list[nn.Module] = []
    for a, b in ((3, 64), (64, 128), (128, 128)):
        conv = nn.Conv2d(a, b, 3, 2, 1)
        parametrize.register_parametrization(conv, "weight", _Standardised())
        made += [conv, nn.GroupNorm(8, b), nn.ReLU()]
    return nn.Sequential(*made, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


CASES: dict[str, Case] = {
    "wavenet": Case(wavenet, lambda: torch.randn(2, 1, 64)),
    "wavenet_fused_conditioned": Case(wavenet_fused_conditioned, lambda: (series(), torch.randn(2, 20, 48))),
    "tcn_weight_norm": Case(tcn_weight_norm, series),
    "tcn_old_weight_norm": Case(tcn_old_weight_norm, series),
    "tcn_plain": Case(tcn_plain, series),
    "spectral_discriminator": Case(spectral_discriminator, lambda: torch.randn(2, 3, 32, 32)),
    "old_spectral_discriminator": Case(old_spectral_discriminator, lambda: torch.randn(2, 3, 32, 32)),
    "parametrized_mlp": Case(parametrized_mlp, lambda: torch.randn(4, 32)),
    "orthogonal_mlp": Case(orthogonal_mlp, lambda: torch.randn(4, 32)),
    "standardised_convs": Case(standardised_convs, lambda: torch.randn(2, 3, 32, 32)),
}
