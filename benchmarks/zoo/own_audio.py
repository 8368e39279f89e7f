"""Nets of sound as their users write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from own_series import series
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class _GlobalLayerNorm(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, c, 1)), nn.Parameter(torch.zeros(1, c, 1))

    def forward(self, y: Tensor) -> Tensor:
        mean = y.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        var = torch.pow(y - mean, 2).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        return self.gamma * (y - mean) / torch.pow(var + 1e-8, 0.5) + self.beta


class _SeparableBlock(nn.Module):
    def __init__(self, b: int, h: int, dilation: int) -> None:
        super().__init__()
        self.conv1x1, self.prelu, self.norm1 = nn.Conv1d(b, h, 1), nn.PReLU(), _GlobalLayerNorm(h)
        self.dconv = nn.Conv1d(h, h, 3, padding=dilation, dilation=dilation, groups=h)
        self.norm2, self.pointwise = nn.GroupNorm(1, h, eps=1e-8), nn.Conv1d(h, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.prelu(self.conv1x1(x)))
        return x + self.pointwise(self.norm2(F.relu(self.dconv(y))))


class _ConvTasNet(nn.Module):
    """A learned basis, a mask of every speaker over it, and the basis back to sound."""

    def __init__(self, n: int = 128, bottleneck: int = 64, hidden: int = 128, speakers: int = 2) -> None:
        super().__init__()
        self.c, self.n = speakers, n
        self.encoder = nn.Conv1d(1, n, 16, stride=8, bias=False)
        self.norm, self.bottleneck = nn.GroupNorm(1, n), nn.Conv1d(n, bottleneck, 1, bias=False)
        self.blocks = nn.Sequential(*[_SeparableBlock(bottleneck, hidden, 2**i) for i in range(4)])
        self.mask = nn.Conv1d(bottleneck, speakers * n, 1, bias=False)
        self.decoder = nn.ConvTranspose1d(n, 1, 16, stride=8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        w = F.relu(self.encoder(x.unsqueeze(1)))
        m, _, k = w.size()
        mask = F.relu(self.mask(self.blocks(self.bottleneck(self.norm(w)))).view(m, self.c, self.n, k))
        masked = (w.unsqueeze(1) * mask).view(m * self.c, self.n, k)
        return self.decoder(masked).view(m, self.c, -1)


def conv_tasnet() -> nn.Module:
    return _ConvTasNet()


class _DeepSpeech2(nn.Module):
    """Two convolutions over a spectrogram, bidirectional GRUs with a batch norm before each, letters at each step."""

    def __init__(self, freqs: int = 64, hidden: int = 128, layers: int = 2, letters: int = 29) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *[nn.Conv2d(1, 16, (21, 11), (2, 2), (10, 5)), nn.BatchNorm2d(16), nn.Hardtanh(0, 20)],
            *[nn.Conv2d(16, 16, (11, 11), (2, 1), (5, 5)), nn.BatchNorm2d(16), nn.Hardtanh(0, 20)],
        )
        widths = [16 * freqs // 4] + [hidden] * (layers - 1)
        self.rnns = nn.ModuleList(nn.GRU(w, hidden, bidirectional=True, bias=True) for w in widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(w) for w in widths)
        self.fc = nn.Sequential(nn.BatchNorm1d(hidden), nn.Linear(hidden, letters, bias=False))

    @staticmethod
    def by_step(norm: nn.Module, x: Tensor) -> Tensor:
        t, n = x.size(0), x.size(1)
        return norm(x.view(t * n, -1)).view(t, n, -1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, f, t = x.size()
        x = x.view(b, c * f, t).transpose(1, 2).transpose(0, 1).contiguous()
        for norm, rnn in zip(self.norms, self.rnns, strict=True):
            x, _ = rnn(self.by_step(norm, x))
            x = x.view(x.size(0), x.size(1), 2, -1).sum(2).view(x.size(0), x.size(1), -1)
        return F.log_softmax(self.by_step(self.fc, x).transpose(0, 1), dim=-1)


def deepspeech2() -> nn.Module:
    return _DeepSpeech2()


def ds_cnn() -> nn.Module:
    """Keyword spotting: depthwise separable convolutions over cepstra."""
    c = 172
    made: list[nn.Module] = [nn.Conv2d(1, c, (10, 4), (2, 2), (5, 1), bias=False), nn.BatchNorm2d(c), nn.ReLU()]
    for _ in range(4):
        made += [nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
        made += [nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
    return nn.Sequential(*made, nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 12))


class _BCResBlock(nn.Module):
    """A branch over time alone is broadcast over the frequencies; the norm keeps sub-bands apart."""

    def __init__(self, c: int, bands: int = 4) -> None:
        super().__init__()
        self.bands = bands
        self.freq = nn.Conv2d(c, c, (3, 1), padding=(1, 0), groups=c)
        self.ssn = nn.BatchNorm2d(c * bands)
        self.temp = nn.Sequential(nn.Conv2d(c, c, (1, 3), padding=(0, 1), groups=c), nn.BatchNorm2d(c), nn.SiLU())
        self.point = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.freq(x)
        n, c, f, t = y.size()
        y = self.ssn(y.view(n, c * self.bands, f // self.bands, t)).view(n, c, f, t)
        return F.relu(x + y + self.point(self.temp(y.mean(2, keepdim=True))))


def bc_resnet() -> nn.Module:
    c = 128
    body = [nn.Conv2d(1, c, 5, (2, 1), 2), nn.BatchNorm2d(c), nn.ReLU(), _BCResBlock(c), _BCResBlock(c), _BCResBlock(c)]
    tail = [nn.Conv2d(c, 128, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(128, 12, 1), nn.Flatten()]
    return nn.Sequential(*body, *tail)


class _QuartzBlock(nn.Module):
    def __init__(self, c1: int, c2: int, k: int, repeat: int = 2) -> None:
        super().__init__()
        made: list[nn.Module] = []
        for i in range(repeat):
            a = c1 if i == 0 else c2
            made += [nn.Conv1d(a, a, k, padding=k // 2, groups=a, bias=False), nn.Conv1d(a, c2, 1, bias=False)]
            made += [nn.BatchNorm1d(c2), *([nn.ReLU()] if i < repeat - 1 else [])]
        self.net = nn.Sequential(*made)
        self.residual = nn.Sequential(nn.Conv1d(c1, c2, 1, bias=False), nn.BatchNorm1d(c2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + self.residual(x))


def quartznet() -> nn.Module:
    body = [_QuartzBlock(96, 96, 11), _QuartzBlock(96, 160, 13), _QuartzBlock(160, 160, 15)]
    return nn.Sequential(nn.Conv1d(16, 96, 11, 2, 5), nn.BatchNorm1d(96), nn.ReLU(), *body, nn.Conv1d(160, 29, 1))


class _HiFiGAN(nn.Module):
    """A vocoder: transposed convolutions, and after each the mean of blocks of different reach."""

    def __init__(self, mels: int = 16, start: int = 128) -> None:
        super().__init__()
        wn = parametrizations.weight_norm
        self.num_kernels, self.num_upsamples = 2, 2
        self.conv_pre = wn(nn.Conv1d(mels, start, 7, 1, 3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i in range(self.num_upsamples):
            ch = start // 2 ** (i + 1)
            self.ups.append(wn(nn.ConvTranspose1d(2 * ch, ch, 8, 4, 2)))
            for k in (3, 7):
                convs = [wn(nn.Conv1d(ch, ch, k, padding=d * (k - 1) // 2, dilation=d)) for d in (1, 3)]
                self.resblocks.append(nn.ModuleList(convs))
        self.conv_post = wn(nn.Conv1d(ch, 1, 7, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for i in range(self.num_upsamples):
            x = self.ups[i](F.leaky_relu(x, 0.1))
            xs = None
            for j in range(self.num_kernels):
                y = x
                for conv in self.resblocks[i * self.num_kernels + j]:
                    y = y + conv(F.leaky_relu(y, 0.1))
                xs = y if xs is None else xs + y
            x = xs / self.num_kernels
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


def hifigan() -> nn.Module:
    return _HiFiGAN()


class _M5(nn.Module):
    """Raw sound to words, all by one-dimensional convolutions."""

    def __init__(self, c: int = 64, classes: int = 35) -> None:
        super().__init__()
        self.conv1, self.bn1, self.pool1 = nn.Conv1d(1, c, 80, stride=4), nn.BatchNorm1d(c), nn.MaxPool1d(4)
        self.conv2, self.bn2, self.pool2 = nn.Conv1d(c, c, 3), nn.BatchNorm1d(c), nn.MaxPool1d(4)
        self.conv3, self.bn3, self.pool3 = nn.Conv1d(c, 2 * c, 3), nn.BatchNorm1d(2 * c), nn.MaxPool1d(4)
        self.fc1 = nn.Linear(2 * c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.bn1(self.conv1(x))))
        x = self.pool2(F.relu(self.bn2(self.conv2(x))))
        x = self.pool3(F.relu(self.bn3(self.conv3(x))))
        x = F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
        return F.log_softmax(self.fc1(x), dim=2)


def m5() -> nn.Module:
    return _M5()


class _Tacotron(nn.Module):
    """Letters to a spectrogram: a bidirectional LSTM reads, a cell with location-aware attention writes."""

    def __init__(self, symbols: int = 40, dim: int = 64, rnn: int = 96, mels: int = 20, frames: int = 6) -> None:
        super().__init__()
        self.n_mels, self.rnn_dim, self.frames = mels, rnn, frames
        self.embedding = nn.Embedding(symbols, dim)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv1d(dim, dim, 5, padding=2), nn.BatchNorm1d(dim), nn.ReLU()) for _ in range(2)
        )
        self.lstm = nn.LSTM(dim, dim // 2, 1, batch_first=True, bidirectional=True)
        self.prenet = nn.Sequential(nn.Linear(mels, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.cell = nn.LSTMCell(64 + dim, rnn)
        self.query, self.memory, self.v = nn.Linear(rnn, 48), nn.Linear(dim, 48), nn.Linear(48, 1)
        self.location = nn.Conv1d(1, 8, 7, padding=3)
        self.location_dense = nn.Linear(8, 48)
        self.project, self.gate = nn.Linear(rnn + dim, mels), nn.Linear(rnn + dim, 1)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(text).transpose(1, 2)
        for conv in self.convs:
            x = F.dropout(conv(x), 0.5, self.training)
        memory, _ = self.lstm(x.transpose(1, 2))
        keys = self.memory(memory)
        b, t, _ = memory.shape
        h, c = memory.new_zeros(b, self.rnn_dim), memory.new_zeros(b, self.rnn_dim)
        frame, context, weights = memory.new_zeros(b, self.n_mels), memory[:, 0], memory.new_zeros(b, t)
        mels, gates = [], []
        for _ in range(self.frames):
            h, c = self.cell(torch.cat((self.prenet(frame), context), -1), (h, c))
            place = self.location_dense(self.location(weights.unsqueeze(1)).transpose(1, 2))
            energy = self.v(torch.tanh(self.query(h.unsqueeze(1)) + keys + place)).squeeze(-1)
            weights = F.softmax(energy, dim=1)
            context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
            both = torch.cat((h, context), dim=1)
            frame = self.project(both)
            mels.append(frame)
            gates.append(self.gate(both))
        return torch.stack(mels, 1), torch.cat(gates, 1)


def tacotron() -> nn.Module:
    return _Tacotron()


class _Spectrogram(nn.Module):
    """Sound to log power by ``torch.stft`` inside the net, then a recurrent front on the frames."""

    def __init__(self, n_fft: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, n_fft // 2
        self.register_buffer("window", torch.hann_window(n_fft))
        self.norm = nn.BatchNorm1d(n_fft // 2 + 1)
        self.conv = nn.Conv1d(n_fft // 2 + 1, hidden, 3, padding=1)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, wav: Tensor) -> Tensor:
        spec = torch.stft(wav, self.n_fft, self.hop, window=self.window, return_complex=True)
        power = torch.log(spec.real**2 + spec.imag**2 + 1e-6)
        x, _ = self.gru(F.relu(self.conv(self.norm(power))).transpose(1, 2))
        return self.fc(x.mean(1) / math.sqrt(2))


def spectrogram_gru() -> nn.Module:
    return _Spectrogram()


CASES: dict[str, Case] = {
    "conv_tasnet": Case(conv_tasnet, lambda: torch.randn(2, 256)),
    "deepspeech2": Case(deepspeech2, lambda: torch.randn(2, 1, 64, 40)),
    "ds_cnn": Case(ds_cnn, lambda: torch.randn(2, 1, 49, 10)),
    "bc_resnet": Case(bc_resnet, lambda: torch.randn(2, 1, 40, 20)),
    "quartznet": Case(quartznet, series),
    "hifigan": Case(hifigan, lambda: torch.randn(2, 16, 8)),
    "m5": Case(m5, lambda: torch.randn(2, 1, 2000)),
    "tacotron": Case(tacotron, lambda: torch.randint(0, 40, (2, 9))),
    "spectrogram_gru": Case(spectrogram_gru, lambda: torch.randn(2, 512)),
}
