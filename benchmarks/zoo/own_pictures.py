"""More convolutional nets as their users write them: plain ones, channel attention, hourglasses, points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from own_vision import conv_bn, picture
from torch import Tensor, nn


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
