"""Ways to mix a sequence without attention, or beside it, as their users write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from own_variants import Blocks, sequence
from torch import Tensor, nn


class _MixerBlock(nn.Module):
    """MLP-Mixer: an MLP across places on the transposed map, then one across channels."""

    def __init__(self, dim: int, places: int, token_hidden: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mix = nn.Sequential(nn.Linear(places, token_hidden), nn.GELU(), nn.Linear(token_hidden, places))
        self.channel_mix = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class _Mixer(nn.Module):
    def __init__(self, dim: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 8, 8)
        self.blocks = nn.Sequential(*[_MixerBlock(dim, 16, 48, 256) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(dim=1))


def mlp_mixer() -> nn.Module:
    return _Mixer()


class _SpatialGating(nn.Module):
    """gMLP: half of the channels, mixed along the sequence, is the gate of the other half."""

    def __init__(self, dim: int = 96, hidden: int = 256, seq: int = 12) -> None:
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(dim, hidden), nn.Linear(hidden // 2, dim)
        self.norm, self.spatial = nn.LayerNorm(hidden // 2), nn.Conv1d(seq, seq, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.proj_in(x)).chunk(2, dim=-1)
        return self.proj_out(u * (self.spatial(self.norm(v)) + 1))


def gmlp() -> nn.Module:
    return Blocks([_SpatialGating(), _SpatialGating()])


class _FNet(nn.Module):
    """The real part of a Fourier transform over places and channels; no weights at all."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real / 10


def fnet() -> nn.Module:
    return Blocks([_FNet(), _FNet(), _FNet()])


class _GlobalFilter(nn.Module):
    """GFNet: a learned complex filter over the Fourier transform along places."""

    def __init__(self, dim: int = 96, seq: int = 12) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(torch.randn(seq // 2 + 1, dim, 2) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.complex_weight)
        return torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho")


def global_filter() -> nn.Module:
    return Blocks([_GlobalFilter(), _GlobalFilter()])


class _Hyena(nn.Module):
    """Two gates around a long convolution by FFT, whose filter a small net makes from the place."""

    def __init__(self, dim: int = 96, order: int = 24) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.short = nn.Conv1d(3 * dim, 3 * dim, 3, padding=2, groups=3 * dim)
        self.filter = nn.Sequential(nn.Linear(3, order), nn.SiLU(), nn.Linear(order, dim, bias=False))
        self.bias = nn.Parameter(torch.randn(dim))
        self.register_buffer("decay", torch.linspace(1, 4, dim).unsqueeze(0))

    def long_conv(self, v: Tensor) -> Tensor:
        n = v.shape[-1]
        t = torch.linspace(0, 1, n, dtype=v.dtype).unsqueeze(1)
        place = torch.cat([t, torch.sin(2 * math.pi * t), torch.cos(2 * math.pi * t)], dim=1)
        k = (self.filter(place) * torch.exp(-t * self.decay)).transpose(0, 1)
        y = torch.fft.irfft(torch.fft.rfft(v, n=2 * n) * torch.fft.rfft(k, n=2 * n), n=2 * n)[..., :n]
        return y + v * self.bias.unsqueeze(-1)

    def forward(self, u: Tensor) -> Tensor:
        z = self.short(self.in_proj(u).transpose(1, 2))[..., : u.shape[1]]
        x1, x2, v = z.chunk(3, dim=1)
        return self.out_proj((self.long_conv(v * x1) * x2).transpose(1, 2))


def hyena() -> nn.Module:
    return Blocks([_Hyena(), _Hyena()])


class _Mamba(nn.Module):
    """A selective scan in plain torch: step, input and output matrices come from the data."""

    def __init__(self, d_model: int = 96, d_state: int = 8, expand: int = 2, dt_rank: int = 6) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = expand * d_model, d_state, dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, 4, groups=self.d_inner, padding=3)
        self.x_proj = nn.Linear(self.d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float().repeat(self.d_inner, 1)))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def scan(self, u: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> Tensor:
        a = -torch.exp(self.A_log)
        da = torch.exp(delta.unsqueeze(-1) * a)
        dbu = delta.unsqueeze(-1) * b.unsqueeze(2) * u.unsqueeze(-1)
        h = u.new_zeros(u.shape[0], u.shape[2], self.d_state)
        ys = []
        for i in range(u.shape[1]):
            h = da[:, i] * h + dbu[:, i]
            ys.append(torch.einsum("bdn,bn->bd", h, c[:, i]))
        return torch.stack(ys, dim=1) + u * self.D

    def forward(self, x: Tensor) -> Tensor:
        x, res = self.in_proj(x).split([self.d_inner, self.d_inner], dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2))
        delta, b, c = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return self.out_proj(self.scan(x, F.softplus(self.dt_proj(delta)), b, c) * F.silu(res))


def mamba() -> nn.Module:
    return Blocks([_Mamba(), _Mamba()])


class _S4D(nn.Module):
    """A diagonal state space of complex numbers, unrolled into a long convolution."""

    def __init__(self, d_model: int = 96, n: int = 8) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.randn(d_model, n, 2))
        self.log_dt = nn.Parameter(torch.rand(d_model) - 3)
        self.log_a_real = nn.Parameter(torch.log(0.5 * torch.ones(d_model, n)))
        self.a_imag = nn.Parameter(math.pi * torch.arange(n).repeat(d_model, 1).float())
        self.d = nn.Parameter(torch.randn(d_model))
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, 1), nn.GLU(dim=-2))

    def kernel(self, length: int) -> Tensor:
        a = torch.complex(-torch.exp(self.log_a_real), self.a_imag)
        dta = a * torch.exp(self.log_dt).unsqueeze(-1)
        c = torch.view_as_complex(self.c) * (torch.exp(dta) - 1.0) / a
        powers = torch.exp(dta.unsqueeze(-1) * torch.arange(length, dtype=self.d.dtype))
        return 2 * torch.einsum("hn,hnl->hl", c, powers).real

    def forward(self, u: Tensor) -> Tensor:
        u = u.transpose(-1, -2)
        n = u.size(-1)
        k = torch.fft.rfft(self.kernel(n), n=2 * n)
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * n) * k, n=2 * n)[..., :n] + u * self.d.unsqueeze(-1)
        return self.output_linear(F.gelu(y)).transpose(-1, -2)


def s4d() -> nn.Module:
    return Blocks([_S4D(), _S4D()])


class _TimeMix(nn.Module):
    """RWKV: each word is mixed with the one before; a decaying average of values, weighed by keys."""

    def __init__(self, dim: int = 96) -> None:
        super().__init__()
        self.time_decay, self.time_first = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.rand(1, 1, dim)) for _ in range(3))
        self.key, self.value, self.receptance, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))

    def forward(self, x: Tensor) -> Tensor:
        before = self.time_shift(x)
        k = self.key(x * self.mix_k + before * (1 - self.mix_k))
        v = self.value(x * self.mix_v + before * (1 - self.mix_v))
        r = torch.sigmoid(self.receptance(x * self.mix_r + before * (1 - self.mix_r)))
        w = torch.exp(-torch.exp(self.time_decay))
        num, den = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.size(1)):
            e = torch.exp(self.time_first + k[:, t])
            out.append((num + e * v[:, t]) / (den + e))
            num, den = w * num + k[:, t].exp() * v[:, t], w * den + k[:, t].exp()
        return self.output(r * torch.stack(out, 1))


def rwkv() -> nn.Module:
    return Blocks([_TimeMix(), _TimeMix()])


class _Retention(nn.Module):
    """No softmax: a fixed decay of every head, a group norm over the heads, a gate."""

    def __init__(self, dim: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.key_dim = heads, dim // heads
        self.q_proj, self.k_proj, self.v_proj, self.g_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.out_proj, self.group_norm = nn.Linear(dim, dim, bias=False), nn.GroupNorm(heads, dim)
        self.register_buffer("decay", torch.log(1 - 2.0 ** (-1 - torch.arange(heads).float())))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (f(x).view(b, n, self.num_heads, -1).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        away = torch.arange(n)[:, None] - torch.arange(n)[None]
        mask = torch.exp(away * self.decay[:, None, None]).tril()
        out = ((q @ k.transpose(-1, -2)) * self.key_dim**-0.5 * mask) @ v
        out = self.group_norm(out.transpose(1, 2).reshape(b * n, d)).view(b, n, d)
        return self.out_proj(F.silu(self.g_proj(x)) * out)


def retention() -> nn.Module:
    return Blocks([_Retention(), _Retention()])


class _Conformer(nn.Module):
    """Half a feed-forward, attention, a gated convolution, half a feed-forward."""

    def __init__(self, dim: int = 96, heads: int = 4, k: int = 7) -> None:
        super().__init__()
        self.ff1, self.ff2 = self._half(dim), self._half(dim)
        self.norm, self.attn = nn.LayerNorm(dim), nn.MultiheadAttention(dim, heads, batch_first=True)
        self.conv_norm = nn.LayerNorm(dim)
        self.conv = nn.Sequential(
            *[nn.Conv1d(dim, 2 * dim, 1), nn.GLU(dim=1), nn.Conv1d(dim, dim, k, padding=k // 2, groups=dim)],
            *[nn.BatchNorm1d(dim), nn.SiLU(), nn.Conv1d(dim, dim, 1), nn.Dropout(0.1)],
        )

    @staticmethod
    def _half(dim: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.conv(self.conv_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + 0.5 * self.ff2(x)


def conformer() -> nn.Module:
    return nn.Sequential(_Conformer(), _Conformer(), nn.LayerNorm(96), nn.Linear(96, 30))


CASES: dict[str, Case] = {
    "mlp_mixer": Case(mlp_mixer, lambda: torch.randn(2, 3, 32, 32)),
    "gmlp": Case(gmlp, sequence),
    "fnet": Case(fnet, sequence),
    "global_filter": Case(global_filter, sequence),
    "hyena": Case(hyena, sequence),
    "mamba": Case(mamba, sequence),
    "s4d": Case(s4d, sequence),
    "rwkv": Case(rwkv, sequence),
    "retention": Case(retention, sequence),
    "conformer": Case(conformer, sequence),
}
