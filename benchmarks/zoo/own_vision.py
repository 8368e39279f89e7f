"""Convolutional classifiers as their users write them: residual, dense and mobile ones."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn


def picture() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def conv_bn(c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(c2), act())


class _SEBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, reduction: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.fc1 = nn.Linear(cout, cout // reduction)
        self.fc2 = nn.Linear(cout // reduction, cout)
        self.down = None
        if stride != 1 or cin != cout:
            self.down = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        b, c, _, _ = y.size()
        w = torch.sigmoid(self.fc2(F.relu(self.fc1(y.mean((2, 3)))))).view(b, c, 1, 1)
        return F.relu(y * w + (x if self.down is None else self.down(x)))


class _SEResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (48, 96, 192), blocks: int = 2) -> None:
        super().__init__()
        self.inplanes = widths[0]
        self.stem = conv_bn(3, widths[0])
        self.layers = nn.Sequential(*[self._layer(w, blocks, 1 if i == 0 else 2) for i, w in enumerate(widths)])
        self.fc = nn.Linear(widths[-1], 10)

    def _layer(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        made = [_SEBlock(self.inplanes, planes, stride)]
        self.inplanes = planes
        return nn.Sequential(*made, *[_SEBlock(planes, planes, 1) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.layers(self.stem(x)), 1)
        return self.fc(x.view(x.size(0), -1))


def se_resnet() -> nn.Module:
    return _SEResNet()


def frozen_resnet() -> nn.Module:
    """Fine-tuning: everything but the head has ``requires_grad`` off."""
    model = _SEResNet()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("fc."))
    return model


class _ShuffleUnit(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int, stride: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        branch = cout - cin if stride == 2 else cout
        mid = cout // 4
        self.compress = conv_bn(cin, mid, 1, g=groups)
        self.depthwise = nn.Sequential(nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid))
        self.expand = nn.Sequential(nn.Conv2d(mid, branch, 1, groups=groups, bias=False), nn.BatchNorm2d(branch))

    def shuffle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(self.shuffle(self.compress(x))))
        if self.stride == 2:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1))
        return F.relu(x + y)


def shufflenet_v1() -> nn.Module:
    units = [_ShuffleUnit(24, 240, 3, 2), _ShuffleUnit(240, 240, 3, 1), _ShuffleUnit(240, 480, 3, 2)]
    units += [_ShuffleUnit(480, 480, 3, 1), _ShuffleUnit(480, 480, 3, 1)]
    return nn.Sequential(conv_bn(3, 24), *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(480, 10))


class _GhostModule(nn.Module):
    def __init__(self, cin: int, cout: int, k: int = 1, ratio: int = 2, relu: bool = True) -> None:
        super().__init__()
        self.oup = cout
        init = -(-cout // ratio)
        act: type[nn.Module] = nn.ReLU if relu else nn.Identity
        self.primary = conv_bn(cin, init, k, act=act)
        self.cheap = conv_bn(init, init * (ratio - 1), 3, g=init, act=act)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        return torch.cat([x1, self.cheap(x1)], dim=1)[:, : self.oup, :, :]


class _GhostBottleneck(nn.Module):
    def __init__(self, cin: int, hidden: int, cout: int, stride: int) -> None:
        super().__init__()
        self.ghost1 = _GhostModule(cin, hidden)
        self.dw = conv_bn(hidden, hidden, 3, stride, hidden, nn.Identity) if stride > 1 else nn.Identity()
        self.ghost2 = _GhostModule(hidden, cout, relu=False)
        self.same = stride == 1 and cin == cout
        self.shortcut = nn.Sequential(
            conv_bn(cin, cin, 3, stride, cin, nn.Identity), conv_bn(cin, cout, 1, act=nn.Identity)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ghost2(self.dw(self.ghost1(x)))
        return y + x if self.same else y + self.shortcut(x)


def ghostnet() -> nn.Module:
    plan = [(16, 48, 24, 2), (24, 72, 24, 1), (24, 72, 40, 2), (40, 120, 41, 1), (41, 240, 80, 2)]
    blocks = [_GhostBottleneck(*p) for p in plan]
    return nn.Sequential(
        conv_bn(3, 16), *blocks, conv_bn(80, 480, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(480, 10)
    )


class _DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, F.dropout(y, 0.2, self.training)], 1)


def densenet() -> nn.Module:
    growth, width = 16, 32
    made: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False)]
    for block in range(3):
        for _ in range(4):
            made.append(_DenseLayer(width, growth))
            width += growth
        if block < 2:
            made += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    made += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*made)


class _Inception(nn.Module):
    def __init__(self, cin: int, c1: int, c3: tuple[int, int], c5: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.b1 = conv_bn(cin, c1, 1)
        self.b2 = nn.Sequential(conv_bn(cin, c3[0], 1), conv_bn(c3[0], c3[1], 3))
        self.b3 = nn.Sequential(conv_bn(cin, c5[0], 1), conv_bn(c5[0], c5[1], 5))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(cin, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)


class _GoogLeNet(nn.Module):
    """With an auxiliary classifier, whose scores are returned beside the main ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64), nn.MaxPool2d(2))
        self.a3 = _Inception(64, 32, (48, 64), (8, 16), 16)
        self.b3 = _Inception(128, 64, (64, 96), (16, 48), 32)
        self.a4 = _Inception(240, 96, (48, 104), (16, 24), 32)
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(4), conv_bn(240, 64, 1), nn.Flatten(), nn.Linear(1024, 10))
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mid = F.max_pool2d(self.b3(self.a3(self.stem(x))), 3, 2, 1)
        x = self.a4(mid)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)), self.aux(mid)


def inception() -> nn.Module:
    return _GoogLeNet()


class _InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        self.use_res_connect = stride == 1 and cin == cout
        layers = [conv_bn(cin, hidden, 1, act=nn.ReLU6)] if expand != 1 else []
        layers += [conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6)]
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 32, act=nn.ReLU6)]
    width = 32
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 1, 1)):
        for i in range(n):
            layers.append(_InvertedResidual(width, c, s if i == 0 else 1, t))
            width = c
    layers += [conv_bn(width, 320, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(320, 10))


def mobilenet_v1() -> nn.Module:
    widths = [32, 64, 128, 128, 256, 256]
    made: list[nn.Module] = [conv_bn(3, 32)]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        made += [conv_bn(a, a, 3, 2 if i % 2 else 1, a), conv_bn(a, b, 1)]
    return nn.Sequential(*made, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


CASES: dict[str, Case] = {
    "se_resnet": Case(se_resnet, picture),
    "frozen_resnet": Case(frozen_resnet, picture),
    "shufflenet_v1": Case(shufflenet_v1, picture),
    "ghostnet": Case(ghostnet, picture),
    "densenet": Case(densenet, picture),
    "inception": Case(inception, picture),
    "mobilenet_v2": Case(mobilenet_v2, picture),
    "mobilenet_v1": Case(mobilenet_v1, picture),
}
