"""Windows of tokens out of text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import DataError, brief
from secateur.export.prepare import need

JOINT = "\n\n"
"""Between texts, as in the usual perplexity protocol."""


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a model folder.

    Raises:
        DataError: there is none.
    """
    (transformers,) = need("huggingface", "transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise DataError(f"{folder} has no tokenizer ({brief(error)}): give tokens instead of text") from error


def tokens_of(texts: Iterable[str], tokenizer: Any) -> Tensor:
    """All texts, joined by an empty line, as one row of tokens, int64 (n,)."""
    ids: Tensor = torch.tensor(tokenizer(JOINT.join(texts), verbose=False)["input_ids"], dtype=torch.int64)
    return ids


def windows(tokens: Tensor, samples: int = 128, window: int = 2048, seed: int = 0) -> Tensor:
    """Windows of a text that do not overlap, drawn at random and left in their order, (samples, window).

    Raises:
        DataError: the text is too short.

    Example:
        >>> windows(torch.arange(10), samples=2, window=3)
        tensor([[0, 1, 2],
                [6, 7, 8]])
    """
    there = len(tokens) // window
    if there < samples or samples < 1 or window < 1:
        raise DataError(
            f"{samples} windows of {window} tokens are {samples * window} tokens, and the calibration text has "
            f"{len(tokens)}: give more text, fewer samples (at most {there}) or shorter windows"
        )
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:samples].sort().values
    return tokens[: there * window].view(there, window)[chosen]
