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


class Residual(nn.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) to the same."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


def _stage(inputs: int, outputs: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), Residual(outputs))


def cnn(width: int = 32) -> Loaded:
    """A residual network with batch norm for 28 x 28 grey images, 10 classes: 112,618 parameters at width 32."""
    stem, body = _stage(1, width, 5), _stage(width, 2 * width, 3)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))
    return nn.Sequential(stem, body, head).eval(), torch.zeros(1, 1, 28, 28)


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
