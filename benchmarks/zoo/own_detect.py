"""Other detectors, and segmenters, as their users write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Case
from own_yolo import Conv, picture
from torch import Tensor, nn


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
        self.body = nn.Sequential(*[Conv(a, b, 3, 2) for a, b in ((32, 64), (64, 128), (128, 256))])
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
        self.c3 = nn.Sequential(Conv(3, 32, 3, 2), Conv(32, 64, 3, 2), Conv(64, 64, 3, 2))
        self.c4, self.c5 = Conv(64, 128, 3, 2), Conv(128, 256, 3, 2)
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
        self.backbone = nn.Sequential(Conv(3, 32, 3, 2), Conv(32, 64, 3, 2), Conv(64, 128, 3, 2))
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
        self.low = nn.Sequential(Conv(3, 32, 3, 2), Conv(32, 48, 3, 2))
        self.high = nn.Sequential(Conv(48, 128, 3, 2), Conv(128, 192, 3))
        self.branches = nn.ModuleList(
            [Conv(192, 64)]
            + [
                nn.Sequential(nn.Conv2d(192, 64, 3, padding=r, dilation=r), nn.BatchNorm2d(64), nn.ReLU())
                for r in (2, 4)
            ]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(192, 64, 1), nn.ReLU())
        self.project, self.low_project = Conv(256, 96), Conv(48, 24)
        self.classifier = nn.Sequential(Conv(120, 96, 3), nn.Dropout(0.1), nn.Conv2d(96, classes, 1))

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
    "ssd": Case(ssd, picture),
    "centernet": Case(centernet, picture),
    "retinanet": Case(retinanet, picture),
    "detr": Case(detr, picture),
    "deeplab": Case(deeplab, picture),
    "crnn": Case(crnn, lambda: torch.randn(2, 1, 32, 48)),
}
