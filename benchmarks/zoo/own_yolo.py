"""Detectors of the YOLO kind as their users write them."""

from __future__ import annotations

import torch
from case import Case
from torch import Tensor, nn


def picture() -> Tensor:
    return torch.randn(1, 3, 64, 64)


class Conv(nn.Module):
    """A convolution, a batch norm, an activation."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c1, height, width) to (batch, c2, ...)."""
        return self.act(self.bn(self.conv(x)))


class _Bottleneck(nn.Module):
    def __init__(self, c1: int, c2: int, shortcut: bool = True, k: tuple[int, int] = (1, 3), e: float = 1.0) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1, self.cv2 = Conv(c1, hidden, k[0]), Conv(hidden, c2, k[1])
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class _C3(nn.Module):
    """The cross-stage block of YOLOv5: two branches side by side."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        hidden = c2 // 2
        self.cv1, self.cv2, self.cv3 = Conv(c1, hidden), Conv(c1, hidden), Conv(2 * hidden, c2)
        self.m = nn.Sequential(*(_Bottleneck(hidden, hidden, shortcut) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class _C2f(nn.Module):
    """The cross-stage block of YOLOv8: halves by ``chunk``, every bottleneck's output joined."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = Conv(c1, 2 * self.c), Conv((2 + n) * self.c, c2)
        self.m = nn.ModuleList(_Bottleneck(self.c, self.c, shortcut, (3, 3)) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class _C2fSplit(_C2f):
    """The same by ``split`` at a stored width."""

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class _SPPF(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2), Conv(c1 // 2 * 4, c2)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class _PAN(nn.Module):
    """Backbone and neck: three maps, top down and then bottom up, joined by ``cat``."""

    def __init__(self, block: type[nn.Module], w: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), block(2 * w, 2 * w, 1, True))
        self.b3 = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), block(4 * w, 4 * w, 2, True))
        self.b4 = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), block(8 * w, 8 * w, 2, True))
        self.b5 = nn.Sequential(Conv(8 * w, 16 * w, 3, 2), block(16 * w, 16 * w, 1, True), _SPPF(16 * w, 16 * w))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.n4, self.n3 = block(24 * w, 8 * w, 1, False), block(12 * w, 4 * w, 1, False)
        self.d3, self.p4 = Conv(4 * w, 4 * w, 3, 2), block(12 * w, 8 * w, 1, False)
        self.d4, self.p5 = Conv(8 * w, 8 * w, 3, 2), block(24 * w, 16 * w, 1, False)
        self.widths = (4 * w, 8 * w, 16 * w)

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.b3(self.stem(x))
        c4 = self.b4(c3)
        c5 = self.b5(c4)
        n4 = self.n4(torch.cat([self.up(c5), c4], 1))
        p3 = self.n3(torch.cat([self.up(n4), c3], 1))
        p4 = self.p4(torch.cat([self.d3(p3), n4], 1))
        return [p3, p4, self.p5(torch.cat([self.d4(p4), c5], 1))]


class _YoloV5(nn.Module):
    """Anchors: each map gives ``na`` boxes of ``no`` numbers at every place, decoded against a grid."""

    def __init__(self, nc: int = 8, na: int = 3) -> None:
        super().__init__()
        self.nc, self.no, self.na = nc, nc + 5, na
        self.body = _PAN(_C3)
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * na, 1) for c in self.body.widths)
        self.register_buffer("anchors", torch.rand(3, na, 2) * 8 + 4)

    def forward(self, x: Tensor) -> Tensor:
        z = []
        for i, y in enumerate(self.body(x)):
            y = self.m[i](y)
            bs, _, ny, nx = y.shape
            y = y.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            gy, gx = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
            grid = torch.stack((gx, gy), 2).to(y.dtype).view(1, 1, ny, nx, 2)
            xy, wh, conf = y.sigmoid().split((2, 2, self.nc + 1), 4)
            xy = (xy * 2 - 0.5 + grid) * 2 ** (3 + i)
            wh = (wh * 2) ** 2 * self.anchors[i].view(1, self.na, 1, 1, 2)
            z.append(torch.cat((xy, wh, conf), 4).view(bs, self.na * nx * ny, self.no))
        return torch.cat(z, 1)


def yolov5() -> nn.Module:
    return _YoloV5()


class _DFL(nn.Module):
    """The expectation of a distribution over distances, as a frozen convolution."""

    def __init__(self, c1: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(c1, dtype=torch.float).view(1, c1, 1, 1)
        self.c1 = c1

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.c1, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class _YoloV8(nn.Module):
    """No anchors: a decoupled head, boxes from distances to four sides."""

    def __init__(self, block: type[nn.Module], nc: int = 8, reg_max: int = 16) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = nc, reg_max, nc + 4 * reg_max
        self.body = _PAN(block)
        ch = self.body.widths
        c2, c3 = max(16, ch[0] // 4, reg_max * 4), max(ch[0], nc)
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(c, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 4 * reg_max, 1)) for c in ch
        )
        self.cv3 = nn.ModuleList(nn.Sequential(Conv(c, c3, 3), Conv(c3, c3, 3), nn.Conv2d(c3, nc, 1)) for c in ch)
        self.dfl = _DFL(reg_max)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = [torch.cat((self.cv2[i](y), self.cv3[i](y)), 1) for i, y in enumerate(self.body(x))]
        joined = torch.cat([y.view(y.shape[0], self.no, -1) for y in maps], 2)
        box, cls = joined.split((self.reg_max * 4, self.nc), 1)
        anchors, strides = self._anchors(maps)
        lt, rb = self.dfl(box).chunk(2, 1)
        x1y1, x2y2 = anchors.unsqueeze(0) - lt, anchors.unsqueeze(0) + rb
        boxes = torch.cat(((x1y1 + x2y2) / 2, x2y2 - x1y1), 1) * strides
        return torch.cat((boxes, cls.sigmoid()), 1), maps

    @staticmethod
    def _anchors(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        points, strides = [], []
        for i, y in enumerate(maps):
            h, w = y.shape[2:]
            sy, sx = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            points.append(torch.stack((sx, sy), -1).view(-1, 2))
            strides.append(torch.full((h * w, 1), 2.0 ** (3 + i)))
        return torch.cat(points).transpose(0, 1).to(maps[0].dtype), torch.cat(strides).transpose(0, 1)


def yolov8() -> nn.Module:
    return _YoloV8(_C2f)


def yolov8_split() -> nn.Module:
    return _YoloV8(_C2fSplit)


class _Focus(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = Conv(cin * 4, cout, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.conv(torch.cat(parts, dim=1))


class _YoloX(nn.Module):
    """Pixels folded into channels at the start; classes, boxes and objectness apart."""

    def __init__(self, nc: int = 8, width: int = 64) -> None:
        super().__init__()
        self.nc = nc
        self.body = _PAN(_C3)
        self.body.stem[0] = _Focus(3, 16)
        ch = self.body.widths
        self.stems = nn.ModuleList(Conv(c, width) for c in ch)
        self.cls_convs = nn.ModuleList(nn.Sequential(Conv(width, width, 3), Conv(width, width, 3)) for _ in ch)
        self.reg_convs = nn.ModuleList(nn.Sequential(Conv(width, width, 3), Conv(width, width, 3)) for _ in ch)
        self.cls_preds = nn.ModuleList(nn.Conv2d(width, nc, 1) for _ in ch)
        self.reg_preds = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in ch)
        self.obj_preds = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in ch)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for k, feature in enumerate(self.body(x)):
            y = self.stems[k](feature)
            reg = self.reg_convs[k](y)
            cls = self.cls_preds[k](self.cls_convs[k](y))
            outputs.append(torch.cat([self.reg_preds[k](reg), self.obj_preds[k](reg).sigmoid(), cls.sigmoid()], 1))
        return torch.cat([o.flatten(start_dim=2) for o in outputs], dim=2).permute(0, 2, 1)


def yolox() -> nn.Module:
    return _YoloX()


CASES: dict[str, Case] = {
    "yolov5": Case(yolov5, picture),
    "yolov8": Case(yolov8, picture),
    "yolov8_split": Case(yolov8_split, picture),
    "yolox": Case(yolox, picture),
}
