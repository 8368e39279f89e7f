"""The models that the benchmarks share, each with an example, in evaluation mode.

The pretrained ones are those of `examples/materials.py`: their files ride in packages (requirements/materials.txt)
and are read without importing these, but for ``efficientnet_lite_pytorch``, which is code.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import materials

Loaded = tuple[nn.Module, Any]


def quiet() -> None:
    """No progress bars, hints or network from the Hugging Face libraries."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging as notices

    notices.set_verbosity_error()
    notices.disable_progress_bar()


def _layer(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def cnn(width: int = 16) -> Loaded:
    """Five convolutions with batch norm for 28 x 28 grey images, 10 classes: 70,330 parameters at width 16."""
    w = width
    shallow = [*_layer(1, w), *_layer(w, 2 * w, 2), *_layer(2 * w, 2 * w)]
    deep = [*_layer(2 * w, 4 * w, 2), *_layer(4 * w, 4 * w)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10)]
    return nn.Sequential(*shallow, *deep, *head).eval(), torch.zeros(1, 1, 28, 28)


def efficientnet_lite0() -> Loaded:
    """EfficientNet-Lite0 with its ImageNet weights, 4.65 M parameters; inputs (n, 3, 224, 224), ``(x - 127) / 128``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return materials.efficientnet_lite0(), torch.zeros(1, 3, 224, 224)


def minilm(tokens: int = 128) -> Loaded:
    """all-MiniLM-L6-v2: BERT, 6 layers of 12 heads and 1536 neurons, 22.7 M parameters."""
    quiet()
    return materials.minilm(), _tokens(30_522, tokens)


def smollm2(tokens: int = 16) -> Loaded:
    """SmolLM2-135M-Instruct: Llama, 30 layers, 9 heads on 3 KV groups; weights dequantised from Q4_1."""
    quiet()
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that nothing else turns off
        model = materials.smollm2()
    return model, {"input_ids": _tokens(49_152, tokens)["input_ids"]}


def _tokens(vocabulary: int, count: int) -> dict[str, Tensor]:
    ids = torch.randint(0, vocabulary, (1, count), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


MODELS: Mapping[str, Callable[[], Loaded]] = {
    "cnn": cnn,
    "efficientnet_lite0": efficientnet_lite0,
    "minilm": minilm,
    "smollm2_135m": smollm2,
}
"""Name in the results -> loader."""
