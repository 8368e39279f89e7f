"""Models of torchvision: the smallest of every family, at full size, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torchvision_ops  # noqa: F401  torchvision may not import without it
from case import Case
from torch import Tensor, nn
from torchvision import models

from secateur.calling import run

# per family: the name, the image's side, what the constructor is given
CLASSIFIERS: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "vgg11": (64, {}),
    "vgg11_bn": (64, {}),
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "resnext50_32x4d": (64, {}),
    "wide_resnet50_2": (64, {}),
    "densenet121": (64, {}),
    "squeezenet1_0": (64, {}),
    "squeezenet1_1": (64, {}),
    "googlenet": (64, {"init_weights": False, "aux_logits": False}),
    "inception_v3": (96, {"init_weights": False, "aux_logits": False}),
    "shufflenet_v2_x0_5": (64, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_large": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "mnasnet0_5": (64, {}),
    "efficientnet_b0": (64, {}),
    "efficientnet_v2_s": (64, {}),
    "regnet_x_400mf": (64, {}),
    "regnet_y_400mf": (64, {}),
    "convnext_tiny": (64, {}),
    "vit_b_16": (64, {"image_size": 64}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "maxvit_t": (224, {}),
}
SEGMENTERS = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
# random weights are sure of nothing: every box counts, and a few are enough
_BOXES: dict[str, Any] = {"num_classes": 5, "detections_per_img": 4, "topk_candidates": 50, "score_thresh": 0.0}
_REGIONS: dict[str, Any] = {
    "num_classes": 5,
    "box_detections_per_img": 4,
    "box_score_thresh": 0.0,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
    "rpn_score_thresh": 0.0,
}
_SMALL: dict[str, Any] = {"min_size": 96, "max_size": 128}
DETECTORS: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": _REGIONS | _SMALL,
    "fasterrcnn_resnet50_fpn_v2": _REGIONS | _SMALL,
    "fasterrcnn_mobilenet_v3_large_fpn": _REGIONS | _SMALL,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _REGIONS | _SMALL,
    "maskrcnn_resnet50_fpn": _REGIONS | _SMALL,
    "maskrcnn_resnet50_fpn_v2": _REGIONS | _SMALL,
    "keypointrcnn_resnet50_fpn": _REGIONS | _SMALL | {"num_classes": 2, "box_detections_per_img": 2},
    "retinanet_resnet50_fpn": _BOXES | _SMALL,
    "retinanet_resnet50_fpn_v2": _BOXES | _SMALL,
    "fcos_resnet50_fpn": _BOXES | _SMALL,
    "ssd300_vgg16": _BOXES,
    "ssdlite320_mobilenet_v3_large": _BOXES,
}
_COARSE: dict[str, Any] = {"patch_embed_stride": (4, 14, 14)}  # larger patches: the clip's size is fixed
# the clip: frames, height, width
VIDEO: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "r3d_18": ((8, 32, 32), {}),
    "mc3_18": ((8, 32, 32), {}),
    "r2plus1d_18": ((8, 32, 32), {}),
    "s3d": ((13, 209, 209), {}),  # it takes no smaller
    "mvit_v1_b": ((16, 224, 224), _COARSE),
    "mvit_v2_s": ((16, 224, 224), _COARSE),
    "swin3d_t": ((8, 64, 64), {}),
}


@torch.no_grad()
def settled(model: nn.Module, example: Any) -> nn.Module:
    """The model in a state that shows a wrong cut: no constant weights, and norms that fit what they are given.

    A fresh batch norm passes on what it gets, which in a deep network vanishes or overflows, and a head of zeros
    answers zero to everything.
    """

    def fit(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        power = args[0].pow(2).mean().clamp(min=1e-12)
        norm.running_var.uniform_(0.5, 1.5).mul_(power)
        if getattr(norm, "running_mean", None) is not None:
            norm.running_mean.normal_().mul_(0.1 * power.sqrt())

    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.min() == parameter.max():
            parameter.add_(0.1 * torch.randn_like(parameter))
    norms = [m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    hooks = [m.register_forward_pre_hook(fit) for m in norms]
    run(model.eval(), example)
    for hook in hooks:
        hook.remove()
    return model


def case(make: Callable[[], nn.Module], example: Callable[[], Any]) -> Case:
    """A case whose model has settled."""
    return Case(lambda: settled(make(), example()), example)


def _one(*shape: int) -> Tensor:
    return torch.randn(1, 3, *shape)


def _list(side: int) -> tuple[list[Tensor]]:
    """What a detector takes: a list of images of any size, in 0 to 1."""
    return ([torch.rand(3, side, side)],)


def _pair(side: int) -> tuple[Tensor, Tensor]:
    """Two frames, between which something moved."""
    return _one(side, side), _one(side, side)


def _case(name: str, kwargs: dict[str, Any], example: Any, *args: Any) -> Case:
    make = functools.partial(models.get_model, name, weights=None, **kwargs)
    return case(make, functools.partial(example, *args))


_BARE: dict[str, Any] = {"weights_backbone": None}
CASES: dict[str, Case] = (
    {name: _case(name, kwargs, _one, side, side) for name, (side, kwargs) in CLASSIFIERS.items()}
    | {name: _case(name, _BARE | {"num_classes": 21}, _one, 64, 64) for name in SEGMENTERS}
    | {name: _case(name, _BARE | kwargs, _list, 96) for name, kwargs in DETECTORS.items()}
    | {name: _case(name, kwargs, _one, *clip) for name, (clip, kwargs) in VIDEO.items()}
    | {"raft_small": _case("raft_small", {}, _pair, 128)}
)
