"""Photographs that ride in installed packages, cut at random into unlabelled inputs for an ImageNet network.

Twenty of foolbox's ImageNet samples, two of scikit-learn's and one of matplotlib's. Sources are split before they are
cut, so that no photograph is both calibrated and judged on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import _models

SIZE = 224


@dataclass(frozen=True, eq=False)
class Photos:
    """Inputs, (n, 3, 224, 224) float32, ``(x - 127) / 128``, from photographs that the three parts do not share.

    Attributes:
        calibration: for statistics and least squares.
        sensitivity: to see what a cut costs at the outputs.
        judged: for the figures.
    """

    calibration: Tensor
    sensitivity: Tensor
    judged: Tensor


def photos(calibration: int, sensitivity: int, judged: int, seed: int) -> Photos:
    """So many random resized crops, half of them mirrored, from 8, 4 and 11 photographs."""
    folder = _models.materials.folder_of
    found = sorted((folder("foolbox") / "data").glob("imagenet_*.jpg"))
    found += sorted((folder("sklearn") / "datasets" / "images").glob("*.jpg"))
    found += sorted((folder("matplotlib") / "mpl-data" / "sample_data").glob("grace_hopper.jpg"))
    rng = np.random.default_rng(seed)
    ours = found[0::2]
    return Photos(
        _crops(ours[::3] + ours[1::3], calibration, rng),
        _crops(ours[2::3], sensitivity, rng),
        _crops(found[1::2], judged, rng),
    )


def _crops(files: list[Path], count: int, rng: np.random.Generator) -> Tensor:
    images = [Image.open(f).convert("RGB") for f in files]
    return torch.stack([_crop(images[i % len(images)], rng) for i in range(count)])


def _crop(image: Image.Image, rng: np.random.Generator) -> Tensor:
    """A part of 20 % to 100 % of the area, of aspect 3:4 to 4:3, as large as the network's input (Inception's crop)."""
    width, height = image.size
    area, aspect = width * height * rng.uniform(0.2, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(round((area * aspect) ** 0.5), width), min(round((area / aspect) ** 0.5), height)
    x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    part = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
    pixels = torch.from_numpy(np.array(part, dtype=np.float32)).permute(2, 0, 1)
    return ((pixels.flip(2) if rng.random() < 0.5 else pixels) - 127) / 128
