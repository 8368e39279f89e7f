"""Detectors and segmenters as their users write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn


def picture() -> Tensor:
    return torch.randn(1, 3, 64, 64)


class _Conv(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _Bottleneck(nn.Module):
    def __init__(self, c1: int, c2: int, shortcut: bool = True, k: tuple[int, int] = (1, 3), e: float = 1.0) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1, self.cv2 = _Conv(c1, hidden, k[0]), _Conv(hidden, c2, k[1])
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class _C3(nn.Module):
    """The cross-stage block of YOLOv5: two branches side by side."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        hidden = c2 // 2
        self.cv1, self.cv2, self.cv3 = _Conv(c1, hidden), _Conv(c1, hidden), _Conv(2 * hidden, c2)
        self.m = nn.Sequential(*(_Bottleneck(hidden, hidden, shortcut) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class _C2f(nn.Module):
    """The cross-stage block of YOLOv8: halves by ``chunk``, every bottleneck's output joined."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = _Conv(c1, 2 * self.c), _Conv((2 + n) * self.c, c2)
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
        self.cv1, self.cv2 = _Conv(c1, c1 // 2), _Conv(c1 // 2 * 4, c2)
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
        self.stem = nn.Sequential(_Conv(3, w, 3, 2), _Conv(w, 2 * w, 3, 2), block(2 * w, 2 * w, 1, True))
        self.b3 = nn.Sequential(_Conv(2 * w, 4 * w, 3, 2), block(4 * w, 4 * w, 2, True))
        self.b4 = nn.Sequential(_Conv(4 * w, 8 * w, 3, 2), block(8 * w, 8 * w, 2, True))
        self.b5 = nn.Sequential(_Conv(8 * w, 16 * w, 3, 2), block(16 * w, 16 * w, 1, True), _SPPF(16 * w, 16 * w))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.n4, self.n3 = block(24 * w, 8 * w, 1, False), block(12 * w, 4 * w, 1, False)
        self.d3, self.p4 = _Conv(4 * w, 4 * w, 3, 2), block(12 * w, 8 * w, 1, False)
        self.d4, self.p5 = _Conv(8 * w, 8 * w, 3, 2), block(24 * w, 16 * w, 1, False)
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
            nn.Sequential(_Conv(c, c2, 3), _Conv(c2, c2, 3), nn.Conv2d(c2, 4 * reg_max, 1)) for c in ch
        )
        self.cv3 = nn.ModuleList(nn.Sequential(_Conv(c, c3, 3), _Conv(c3, c3, 3), nn.Conv2d(c3, nc, 1)) for c in ch)
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
        self.conv = _Conv(cin * 4, cout, 3)

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
        self.stems = nn.ModuleList(_Conv(c, width) for c in ch)
        self.cls_convs = nn.ModuleList(nn.Sequential(_Conv(width, width, 3), _Conv(width, width, 3)) for _ in ch)
        self.reg_convs = nn.ModuleList(nn.Sequential(_Conv(width, width, 3), _Conv(width, width, 3)) for _ in ch)
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


class _L2Norm(nn.Module):
    def __init__(self, n: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((n,), scale))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        return self.weight.unsqueeze(0).unsqueeze(2).unsqueeze(3).expand_as(x) * (x / norm)


class _SSD(nn.Module):
    """A VGG body, extra layers, and a pair of convolutions on every map."""

    def __init__(self, num_classes: int = 9) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features1 = self._vgg(3, (32, 32, "M", 64, 64, "M", 128, 128))
        self.l2norm = _L2Norm(128, 20.0)
        self.features2 = self._vgg(128, ("M", 256, 256))
        self.extras = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(256, 64, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU())]
        )
        boxes = (4, 6, 4)
        self.loc = nn.ModuleList(nn.Conv2d(c, b * 4, 3, padding=1) for c, b in zip((128, 256, 128), boxes, strict=True))
        self.conf = nn.ModuleList(
            nn.Conv2d(c, b * num_classes, 3, padding=1) for c, b in zip((128, 256, 128), boxes, strict=True)
        )

    @staticmethod
    def _vgg(cin: int, plan: tuple[int | str, ...]) -> nn.Sequential:
        made: list[nn.Module] = []
        for v in plan:
            if isinstance(v, str):
                made.append(nn.MaxPool2d(2, ceil_mode=True))
            else:
                made += [nn.Conv2d(cin, v, 3, padding=1), nn.ReLU(inplace=True)]
                cin = v
        return nn.Sequential(*made)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features1(x)
        sources = [self.l2norm(x)]
        x = self.features2(x)
        sources.append(x)
        for extra in self.extras:
            x = extra(x)
            sources.append(x)
        loc = [layer(s).permute(0, 2, 3, 1).contiguous() for s, layer in zip(sources, self.loc, strict=True)]
        conf = [layer(s).permute(0, 2, 3, 1).contiguous() for s, layer in zip(sources, self.conf, strict=True)]
        locs = torch.cat([o.view(o.size(0), -1) for o in loc], 1)
        confs = torch.cat([o.view(o.size(0), -1) for o in conf], 1)
        return locs.view(locs.size(0), -1, 4), F.softmax(confs.view(confs.size(0), -1, self.num_classes), dim=-1)


def ssd() -> nn.Module:
    return _SSD()


class _CenterNet(nn.Module):
    """A residual body, transposed convolutions back up, one head for each answer, in a dict."""

    def __init__(self, heads: dict[str, int]) -> None:
        super().__init__()
        self.inplanes = 32
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*[_Conv(a, b, 3, 2) for a, b in ((32, 64), (64, 128), (128, 256))])
        self.deconv_layers = self._deconv((128, 64, 64))
        self.heads = heads
        for head, classes in heads.items():
            setattr(self, head, nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, classes, 1)))

    @staticmethod
    def _deconv(widths: tuple[int, ...]) -> nn.Sequential:
        made: list[nn.Module] = []
        cin = 256
        for w in widths:
            made += [nn.ConvTranspose2d(cin, w, 4, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(inplace=True)]
            cin = w
        return nn.Sequential(*made)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.deconv_layers(self.body(self.stem(x)))
        return {head: getattr(self, head)(x) for head in self.heads}


def centernet() -> nn.Module:
    return _CenterNet({"hm": 8, "wh": 2, "reg": 2})


class _RetinaNet(nn.Module):
    """A feature pyramid by sums, one head of shared weights over every level."""

    def __init__(self, classes: int = 8, anchors: int = 9, width: int = 96) -> None:
        super().__init__()
        self.c3 = nn.Sequential(_Conv(3, 32, 3, 2), _Conv(32, 64, 3, 2), _Conv(64, 64, 3, 2))
        self.c4, self.c5 = _Conv(64, 128, 3, 2), _Conv(128, 256, 3, 2)
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (64, 128, 256))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.classes, self.anchors = classes, anchors
        self.cls_head, self.box_head = self._head(width, classes * anchors), self._head(width, 4 * anchors)
        nn.init.constant_(self.cls_head[-1].bias, -math.log(99))

    @staticmethod
    def _head(width: int, cout: int) -> nn.Sequential:
        body = [m for _ in range(2) for m in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*body, nn.Conv2d(width, cout, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        p5 = self.lateral[2](self.c5(c4))
        p4 = self.lateral[1](c4) + F.interpolate(p5, size=c4.shape[-2:], mode="nearest")
        p3 = self.lateral[0](c3) + F.interpolate(p4, size=c3.shape[-2:], mode="nearest")
        levels = [s(p) for s, p in zip(self.smooth, (p3, p4, p5), strict=True)]
        return self._scores(self.cls_head, levels, self.classes), self._scores(self.box_head, levels, 4)

    @staticmethod
    def _scores(head: nn.Module, levels: list[Tensor], k: int) -> Tensor:
        return torch.cat([head(p).permute(0, 2, 3, 1).reshape(p.shape[0], -1, k) for p in levels], dim=1)


def retinanet() -> nn.Module:
    return _RetinaNet()


class _DETR(nn.Module):
    """Pictures to a sequence, a transformer, boxes from learned queries."""

    def __init__(self, classes: int = 8, dim: int = 96, queries: int = 12) -> None:
        super().__init__()
        self.backbone = nn.Sequential(_Conv(3, 32, 3, 2), _Conv(32, 64, 3, 2), _Conv(64, 128, 3, 2))
        self.conv = nn.Conv2d(128, dim, 1)
        self.transformer = nn.Transformer(dim, 4, 2, 2, 192)
        self.linear_class, self.linear_bbox = nn.Linear(dim, classes + 1), nn.Linear(dim, 4)
        self.query_pos = nn.Parameter(torch.rand(queries, dim))
        self.row_embed = nn.Parameter(torch.rand(16, dim // 2))
        self.col_embed = nn.Parameter(torch.rand(16, dim // 2))

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        h = self.conv(self.backbone(inputs))
        height, width = h.shape[-2:]
        columns = self.col_embed[:width].unsqueeze(0).repeat(height, 1, 1)
        rows = self.row_embed[:height].unsqueeze(1).repeat(1, width, 1)
        pos = torch.cat([columns, rows], dim=-1).flatten(0, 1).unsqueeze(1)
        h = self.transformer(pos + h.flatten(2).permute(2, 0, 1), self.query_pos.unsqueeze(1))
        return {"logits": self.linear_class(h), "boxes": self.linear_bbox(h).sigmoid()}


def detr() -> nn.Module:
    return _DETR()


class _DeepLab(nn.Module):
    """Dilated branches, a pooled one stretched to the map, joined; classes at the picture's size."""

    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.low = nn.Sequential(_Conv(3, 32, 3, 2), _Conv(32, 48, 3, 2))
        self.high = nn.Sequential(_Conv(48, 128, 3, 2), _Conv(128, 192, 3))
        self.branches = nn.ModuleList(
            [_Conv(192, 64)]
            + [
                nn.Sequential(nn.Conv2d(192, 64, 3, padding=r, dilation=r), nn.BatchNorm2d(64), nn.ReLU())
                for r in (2, 4)
            ]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(192, 64, 1), nn.ReLU())
        self.project, self.low_project = _Conv(256, 96), _Conv(48, 24)
        self.classifier = nn.Sequential(_Conv(120, 96, 3), nn.Dropout(0.1), nn.Conv2d(96, classes, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        high = self.high(low)
        size = high.shape[-2:]
        found = [b(high) for b in self.branches]
        found.append(F.interpolate(self.pool(high), size=size, mode="bilinear", align_corners=False))
        y = F.interpolate(self.project(torch.cat(found, 1)), size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.classifier(torch.cat([self.low_project(low), y], 1))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)}


def deeplab() -> nn.Module:
    return _DeepLab()


class _CRNN(nn.Module):
    """Text in a picture: columns of the map are the steps of a bidirectional LSTM."""

    def __init__(self, classes: int = 37, hidden: int = 96) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            *[nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU()],
            *[nn.MaxPool2d((2, 1)), nn.Conv2d(64, 128, 3, 1, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()],
        )
        self.map_to_seq = nn.Linear(128 * 8, 64)
        self.rnn1 = nn.LSTM(64, hidden, bidirectional=True)
        self.rnn2 = nn.LSTM(2 * hidden, hidden, bidirectional=True)
        self.dense = nn.Linear(2 * hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        conv = self.cnn(images)
        batch, channel, height, width = conv.size()
        seq = self.map_to_seq(conv.view(batch, channel * height, width).permute(2, 0, 1))
        recurrent, _ = self.rnn1(seq)
        recurrent, _ = self.rnn2(recurrent)
        return self.dense(recurrent)


def crnn() -> nn.Module:
    return _CRNN()


CASES: dict[str, Case] = {
    "yolov5": Case(yolov5, picture),
    "yolov8": Case(yolov8, picture),
    "yolov8_split": Case(yolov8_split, picture),
    "yolox": Case(yolox, picture),
    "ssd": Case(ssd, picture),
    "centernet": Case(centernet, picture),
    "retinanet": Case(retinanet, picture),
    "detr": Case(detr, picture),
    "deeplab": Case(deeplab, picture),
    "crnn": Case(crnn, lambda: torch.randn(2, 1, 32, 48)),
}
