"""Torchvision where its compiled operators do not load: the ones its detectors call, written in PyTorch.

A build for another PyTorch cannot load its operators, and then cannot be imported at all. Here they are registered
under their own names, so that a recording holds the same calls as one made with the compiled operators.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

NMS = "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)


def compiled() -> bool:
    """Whether the operators that torchvision was built with load."""
    found = find_spec("torchvision")  # found, not imported: that would fail
    folders = found.submodule_search_locations or () if found else ()
    libraries = [library for folder in folders for library in Path(folder).glob("_C*.so")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that overlap no better one, best first."""
    left = scores.argsort(descending=True, stable=True)
    low, high = dets.split(2, dim=1)
    area = (high - low).prod(1)
    kept: list[Tensor] = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        sides = torch.minimum(high[best], high[left]) - torch.maximum(low[best], low[left])
        shared = sides.clamp(min=0).prod(1)
        left = left[~(shared / (area[best] + area[left] - shared) > iou_threshold)]
    return torch.stack(kept) if kept else left


def roi_align(
    image: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Torchvision's own Python version, which it would compile."""
    module = importlib.import_module("torchvision.ops.roi_align")
    out: Tensor = module._roi_align.__wrapped__(image, rois, scale, height, width, sampling_ratio, aligned)
    return out


def register() -> torch.library.Library:
    """Define the operators, and let torchvision believe that they are its own; they last as long as what is returned.

    ``qnms`` is only named: torchvision asks for it when imported.
    """
    library = torch.library.Library("torchvision", "DEF")
    for schema in (NMS, "q" + NMS, ROI_ALIGN):
        library.define(schema)
    library.impl("nms", nms, "CompositeExplicitAutograd")
    library.impl("roi_align", roi_align, "CompositeExplicitAutograd")
    for name in ("extension", "ops.roi_align"):
        importlib.import_module(f"torchvision.{name}")._has_ops = lambda: True
    meta = importlib.import_module("torchvision._meta_registrations").meta_roi_align
    library.impl("roi_align", meta, "Meta")
    return library


OPERATORS = None if compiled() else register()
