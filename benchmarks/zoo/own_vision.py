"""Convolutional classifiers as their users write them."""

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


class _LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(50 * 5 * 5, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 50 * 5 * 5)
        return F.log_softmax(self.fc2(F.dropout(F.relu(self.fc1(x)), training=self.training)), dim=1)


def lenet_literal_view() -> nn.Module:
    return _LeNet()


def vgg_prelu() -> nn.Module:
    """A plain stack with a slope for every channel and a flattened classifier."""
    made: list[nn.Module] = []
    cin = 3
    for c in (32, 64, 128):
        made += [
            nn.Conv2d(cin, c, 3, padding=1),
            nn.PReLU(c),
            nn.Conv2d(c, c, 3, padding=1),
            nn.PReLU(),
            nn.MaxPool2d(2),
        ]
        cin = c
    return nn.Sequential(*made, nn.Flatten(), nn.Linear(128 * 16, 128), nn.PReLU(128), nn.Dropout(), nn.Linear(128, 10))


def network_in_network() -> nn.Module:
    def mlpconv(c1: int, c2: int, k: int) -> list[nn.Module]:
        return [nn.Conv2d(c1, c2, k, padding=k // 2), nn.ReLU(), nn.Conv2d(c2, c2, 1), nn.ReLU()]

    body = [
        *mlpconv(3, 96, 5),
        nn.MaxPool2d(3, 2, 1),
        *mlpconv(96, 128, 3),
        nn.AvgPool2d(3, 2, 1),
        *mlpconv(128, 10, 3),
    ]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Fire(nn.Module):
    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.squeeze(x))
        return torch.cat([torch.relu_(self.expand1x1(x)), torch.relu_(self.expand3x3(x))], 1)


def squeezenet() -> nn.Module:
    fires = [_Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(2), _Fire(128, 32, 128), _Fire(256, 48, 192)]
    head = [nn.Dropout(0.5), nn.Conv2d(384, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), *fires, *head)


class _Res2Block(nn.Module):
    """Splits of the width, each convolved together with the one before."""

    def __init__(self, c: int, scale: int = 4) -> None:
        super().__init__()
        self.width, self.nums = c // scale, scale - 1
        self.conv1, self.conv3 = conv_bn(c, c, 1), conv_bn(c, c, 1, act=nn.Identity)
        self.convs = nn.ModuleList(conv_bn(self.width, self.width) for _ in range(self.nums))

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(self.conv1(x), self.width, 1)
        sp = spx[0]
        out = []
        for i in range(self.nums):
            sp = self.convs[i](sp if i == 0 else sp + spx[i])
            out.append(sp)
        return F.relu(self.conv3(torch.cat([*out, spx[self.nums]], 1)) + x)


def res2net() -> nn.Module:
    body = [conv_bn(3, 64), _Res2Block(64), _Res2Block(64), conv_bn(64, 128, 3, 2), _Res2Block(128)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class _CBAM(nn.Module):
    """Attention over channels from two poolings, then over places."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = conv_bn(c, c)
        self.mlp = nn.Sequential(nn.Linear(c, c // 8), nn.ReLU(), nn.Linear(c // 8, c))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        scale = self.mlp(y.mean((2, 3))) + self.mlp(y.amax((2, 3)))
        y = y * torch.sigmoid(scale).unsqueeze(2).unsqueeze(3).expand_as(y)
        pooled = torch.cat((torch.max(y, 1)[0].unsqueeze(1), torch.mean(y, 1).unsqueeze(1)), dim=1)
        return x + y * torch.sigmoid(self.spatial(pooled))


def cbam_net() -> nn.Module:
    body = [conv_bn(3, 64), _CBAM(64), nn.MaxPool2d(2), conv_bn(64, 128), _CBAM(128)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class _SKConv(nn.Module):
    """Branches of different reach, weighted by a softmax across branches."""

    def __init__(self, c: int, m: int = 2) -> None:
        super().__init__()
        self.m = m
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, 1, 1 + i, 1 + i, 8), nn.BatchNorm2d(c), nn.ReLU()) for i in range(m)
        )
        self.fc = nn.Linear(c, c // 2)
        self.fcs = nn.ModuleList(nn.Linear(c // 2, c) for _ in range(m))

    def forward(self, x: Tensor) -> Tensor:
        feats = torch.stack([conv(x) for conv in self.convs], dim=1)
        z = F.relu(self.fc(feats.sum(dim=1).mean(-1).mean(-1)))
        weights = torch.stack([fc(z) for fc in self.fcs], dim=1).softmax(dim=1)
        return x + (feats * weights[:, :, :, None, None]).sum(dim=1)


def sknet() -> nn.Module:
    body = [conv_bn(3, 64), _SKConv(64), conv_bn(64, 128, 3, 2), _SKConv(128)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class _RepBlock(nn.Module):
    """Three parallel branches before they are folded into one."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.dense, self.point = conv_bn(cin, cout, 3, stride, act=nn.Identity), conv_bn(cin, cout, 1, stride)
        self.point[2] = nn.Identity()
        self.identity = nn.BatchNorm2d(cin) if cin == cout and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


def repvgg() -> nn.Module:
    body = [
        _RepBlock(3, 48, 1),
        _RepBlock(48, 48, 1),
        _RepBlock(48, 96, 2),
        _RepBlock(96, 96, 1),
        _RepBlock(96, 192, 2),
    ]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10))


class _Residual(nn.Module):
    def __init__(self, *fn: nn.Module) -> None:
        super().__init__()
        self.fn = nn.Sequential(*fn)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def convmixer() -> nn.Module:
    dim = 128

    def block() -> nn.Sequential:
        mixed = _Residual(nn.Conv2d(dim, dim, 5, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim))
        return nn.Sequential(mixed, nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim))

    stem = [nn.Conv2d(3, dim, 4, 4), nn.GELU(), nn.BatchNorm2d(dim)]
    return nn.Sequential(*stem, *[block() for _ in range(4)], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, 10))


class _Hourglass(nn.Module):
    def __init__(self, depth: int, c: int) -> None:
        super().__init__()
        self.up1, self.low1, self.low3 = self._res(c), self._res(c), self._res(c)
        self.low2: nn.Module = _Hourglass(depth - 1, c) if depth > 1 else self._res(c)

    @staticmethod
    def _res(c: int) -> nn.Module:
        h = c // 2
        pre = [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, h, 1), nn.BatchNorm2d(h), nn.ReLU(), nn.Conv2d(h, h, 3, 1, 1)]
        return _Residual(*pre, nn.BatchNorm2d(h), nn.ReLU(), nn.Conv2d(h, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low3(self.low2(self.low1(F.max_pool2d(x, 2))))
        return self.up1(x) + F.interpolate(low, scale_factor=2)


class _StackedHourglass(nn.Module):
    """Two hourglasses, the heat maps of the first fed back; all heat maps are returned."""

    def __init__(self, c: int = 96, joints: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, c, 7, 2)
        self.hgs = nn.ModuleList(_Hourglass(3, c) for _ in range(2))
        self.features = nn.ModuleList(conv_bn(c, c, 1) for _ in range(2))
        self.outs = nn.ModuleList(nn.Conv2d(c, joints, 1) for _ in range(2))
        self.merge_features, self.merge_preds = nn.Conv2d(c, c, 1), nn.Conv2d(joints, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        heat = []
        for i in range(2):
            y = self.features[i](self.hgs[i](x))
            heat.append(self.outs[i](y))
            if i == 0:
                x = x + self.merge_features(y) + self.merge_preds(heat[0])
        return torch.stack(heat, 1)


def hourglass() -> nn.Module:
    return _StackedHourglass()


class _TNet(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.convs = nn.Sequential(
            nn.Conv1d(k, 64, 1), nn.ReLU(), nn.Conv1d(64, 256, 1), nn.BatchNorm1d(256), nn.ReLU()
        )
        self.fc1, self.fc2 = nn.Linear(256, 128), nn.Linear(128, k * k)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.max(self.convs(x), 2, keepdim=True)[0].view(-1, 256)
        eye = torch.eye(self.k, device=x.device, dtype=x.dtype).flatten().unsqueeze(0)
        return (self.fc2(F.relu(self.fc1(y))) + eye).view(-1, self.k, self.k)


class _PointNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stn, self.fstn = _TNet(3), _TNet(64)
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(3, 64, 1), nn.Conv1d(64, 128, 1), nn.Conv1d(128, 512, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(64), nn.BatchNorm1d(128), nn.BatchNorm1d(512)
        self.head = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.bmm(x.transpose(2, 1), self.stn(x)).transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        trans = self.fstn(x)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        x = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))
        x = torch.max(x, 2, keepdim=True)[0].view(x.size(0), -1)
        return F.log_softmax(self.head(x), dim=1), trans


def pointnet() -> nn.Module:
    return _PointNet()


CASES: dict[str, Case] = {
    "se_resnet": Case(se_resnet, picture),
    "frozen_resnet": Case(frozen_resnet, picture),
    "shufflenet_v1": Case(shufflenet_v1, picture),
    "ghostnet": Case(ghostnet, picture),
    "densenet": Case(densenet, picture),
    "inception": Case(inception, picture),
    "mobilenet_v2": Case(mobilenet_v2, picture),
    "mobilenet_v1": Case(mobilenet_v1, picture),
    "lenet_literal_view": Case(lenet_literal_view, picture),
    "vgg_prelu": Case(vgg_prelu, picture),
    "network_in_network": Case(network_in_network, picture),
    "squeezenet": Case(squeezenet, picture),
    "res2net": Case(res2net, picture),
    "cbam_net": Case(cbam_net, picture),
    "sknet": Case(sknet, picture),
    "repvgg": Case(repvgg, picture),
    "convmixer": Case(convmixer, picture),
    "hourglass": Case(hourglass, lambda: torch.randn(1, 3, 64, 64)),
    "pointnet": Case(pointnet, lambda: torch.randn(2, 3, 64)),
}
