"""Perplexity by the protocol of the papers: texts joined, windows of one length, the mean over scored tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, DataError, brief
from secateur.llm.texts import tokens_of
from secateur.products import fast_for
from secateur.score.calibrate import quiet_eval
from secateur.types import Floats

WINDOW = 512
RESAMPLES = 2000

Tell = Callable[[int, int, str], None]
"""``(done, of, words)``: progress."""


@dataclass(frozen=True)
class Perplexity:
    """A perplexity beside the protocol that it means nothing without.

    Attributes:
        value: ``exp`` of the mean negative log-likelihood of a token. low, high: 95 % interval over windows.
        nll: that mean, nats a token. tokens: how many were scored. windows: how many there were.
        window, stride: their length and distance, in tokens.
    """

    value: float
    low: float
    high: float
    nll: float
    tokens: int
    windows: int
    window: int
    stride: int

    def protocol(self) -> str:
        """One clause that belongs beside the figure.

        Example:
            >>> Perplexity(30.4, 29.0, 31.9, 3.414, 30660, 60, 512, 512).protocol()
            '30,660 tokens scored in 60 windows of 512, which do not overlap'
        """
        apart = "which do not overlap" if self.stride == self.window else f"{self.stride} apart"
        return f"{self.tokens:,} tokens scored in {self.windows} windows of {self.window}, {apart}"


@dataclass(frozen=True, eq=False)
class Scored:
    """What a model says of one window.

    Attributes:
        index: of the window. logits: float32 (n, vocabulary), of the positions that are scored.
        targets: int64 (n,), the tokens that came.
    """

    index: int
    logits: Tensor
    targets: Tensor

    def nll(self) -> Tensor:
        """Negative log-likelihood of each target, nats, shape (n,)."""
        return nn.functional.cross_entropy(self.logits, self.targets, reduction="none")


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    r"""Texts, joined by blank lines, as token ids int64 (n,).

    Raises:
        DataError: a text is empty.

    Example:
        >>> tokenize(lambda text, verbose: {"input_ids": list(map(ord, text))}, ["a", "b"])
        tensor([97, 10, 10, 98])
    """
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if empty or not texts:
        which = f"text {empty[0]} of {len(texts)} is empty" if empty else "there is no text"
        raise DataError(f"{which}: give texts that hold words")
    return tokens_of(texts, tokenizer)


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    window: int = WINDOW,
    stride: int | None = None,
    batch: int = 1,
    tell: Tell | None = None,
) -> Perplexity:
    r"""Perplexity of a causal language model on a text.

    $\exp\big(\frac1N \sum -\log p(t_i \mid t_{<i}\text{ in its window})\big)$. Windows that do not overlap score each
    token but their first; windows that do, beyond the first one, their last ``stride`` tokens, so that each has at
    least ``window - stride`` before it. A rest shorter than a window is left out. Losses are taken in float32,
    whatever the model computes in, and summed in float64.

    Args:
        model: what takes ``input_ids`` and returns logits (batch, tokens, vocabulary), or a record with them.
        tokens: ids, int64 (n,), as `tokenize` gives; other shapes are read in order.
        window: tokens that the model sees at once.
        stride: from one window to the next; None: ``window``.
        batch: windows that run at once; changes no figure but for rounding.
        tell: called after each window.

    Raises:
        ArgumentError: window, stride or batch cannot be.
        DataError: too few tokens, ids that the model does not have, or logits that are not finite.

    Time: one forward pass a window. Memory: the logits of ``batch`` windows and one of them in float32.

    Example:
        >>> class Even(nn.Module):
        ...     def forward(self, input_ids):
        ...         return torch.zeros(*input_ids.shape, 7)
        >>> round(perplexity(Even(), torch.arange(12) % 7, window=4).value, 4)
        7.0
    """
    sums, counts = [], []
    for found in scored(model, tokens, window, stride, batch):
        sums.append(float(found.nll().double().sum()))
        counts.append(len(found.targets))
        if tell is not None:
            tell(len(sums), count_windows(tokens.numel(), window, stride), "windows")
    return perplexity_of(sums, counts, window, stride)


def perplexity_of(sums: Sequence[float], counts: Sequence[int], window: int, stride: int | None) -> Perplexity:
    """From the summed losses of each window and the tokens scored there."""
    nll, low, high = over_windows(sums, counts)
    step = step_of(window, stride)
    return Perplexity(_exp(nll), _exp(low), _exp(high), nll, sum(counts), len(sums), window, step)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def over_windows(sums: Sequence[float], counts: Sequence[int], seed: int = 0) -> tuple[float, float, float]:
    """Mean over tokens, and its 95 % interval by a bootstrap of windows: tokens of one window depend on each other.

    Of fewer than two windows the interval is unknown: NaN.

    Example:
        >>> over_windows([1.0, 3.0], [2, 2])
        (1.0, 0.5, 1.5)
    """
    total, number = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    mean = float(total.sum() / number.sum())
    if len(total) < 2:
        return mean, math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(total), size=(RESAMPLES, len(total)))
    means: Floats = total[drawn].sum(axis=1) / number[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return mean, min(float(low), mean), max(float(high), mean)


def step_of(window: int, stride: int | None) -> int:
    """From one window to the next: ``None`` is the window, 0 is nothing that could be meant."""
    return window if stride is None else stride


def count_windows(tokens: int, window: int, stride: int | None = None) -> int:
    """Whole windows in so many tokens.

    Example:
        >>> count_windows(10, 4), count_windows(10, 4, 2)
        (2, 4)
    """
    return max(0, 1 + (tokens - window) // step_of(window, stride))


@torch.inference_mode()
def scored(
    model: nn.Module, tokens: Tensor, window: int = WINDOW, stride: int | None = None, batch: int = 1
) -> Iterator[Scored]:
    """What a model says of each window of a text, one after the other; see `perplexity`."""
    check_windows(model, tokens, window, stride, batch)
    step = step_of(window, stride)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ids = tokens.reshape(-1).to(device, torch.long)
    total = count_windows(len(ids), window, stride)
    with quiet_eval(model):
        for first in range(0, total, batch):
            indices = range(first, min(first + batch, total))
            rows = torch.stack([ids[i * step : i * step + window] for i in indices])
            logits = logits_of(model, rows)
            for i, index in enumerate(indices):
                seen = 1 if index == 0 else max(1, window - step)  # tokens that an earlier window scored, or cannot be
                yield _finite(Scored(index, logits[i, seen - 1 : -1].float(), rows[i, seen:]), index * step)


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits (batch, tokens, vocabulary) of token ids, without a cache."""
    with fast_for(model):
        out = model(input_ids=ids, use_cache=False) if hasattr(model, "config") else model(input_ids=ids)
    found = getattr(out, "logits", out)
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise ArgumentError(
            f"{type(model).__name__} returned {type(out).__name__}, expected logits (batch, tokens, vocabulary): "
            "give a causal language model, such as AutoModelForCausalLM loads"
        )
    return found


def check_windows(model: nn.Module, tokens: Tensor, window: int, stride: int | None, batch: int = 1) -> None:
    """Whether a text can be scored so.

    Raises:
        ArgumentError: window, stride or batch cannot be. DataError: too few tokens, or ids beyond the vocabulary.
    """
    if window < 2 or batch < 1 or not 1 <= step_of(window, stride) <= window:
        raise ArgumentError(
            f"window={window}, stride={stride}, batch={batch}: a window has 2 tokens or more, a stride lies between "
            "1 and the window, a batch is at least 1"
        )
    if tokens.numel() < window:
        raise DataError(f"{tokens.numel()} tokens do not fill one window of {window}: give more text, or less window")
    known = vocabulary(model)
    low, high = int(tokens.min()), int(tokens.max())
    if known is not None and not (low >= 0 and high < known):
        wrong = high if high >= known else low
        raise DataError(
            f"token id {wrong} lies outside the model's vocabulary of {known}: the text was cut into tokens by "
            "another model's tokenizer"
        )


def vocabulary(model: nn.Module) -> int | None:
    """Rows of the model's input embedding, or None where it does not say which that is."""
    get = getattr(model, "get_input_embeddings", None)
    try:
        weight = getattr(get(), "weight", None) if get is not None else None
    except NotImplementedError:
        return None
    return len(weight) if isinstance(weight, Tensor) else None


def _finite(found: Scored, begin: int) -> Scored:
    bad = found.logits.isnan() | found.logits.isposinf()  # -inf is how models forbid a token
    if bool(bad.any()):
        row = int(bad.any(dim=1).nonzero()[0])
        raise DataError(
            f"{int(bad.sum())} logits of window {found.index} (tokens from {begin}) are not finite, the first before "
            f"the token {int(found.targets[row])}: the weights hold NaN or overflow in their type; load them in float32"
        )
    return found


def texts_of(paths: Iterable[Any]) -> list[str]:
    """The texts of files, one each.

    Raises:
        ArgumentError: there is no such file, or it cannot be read. DataError: one is empty, or is not UTF-8.
    """
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ArgumentError(f"{path}: there is no such file; give a text file (UTF-8)") from error
        except OSError as error:
            raise ArgumentError(f"{path} cannot be read ({brief(error)}); give a text file (UTF-8)") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text in UTF-8: {error}") from error
        if not text.strip():
            raise DataError(f"{path} is empty: give a file that holds text")
        texts.append(text)
    return texts


if __name__ == "__main__":
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    found = perplexity(LlamaForCausalLM(small), torch.randint(50, (2000,)), window=64)
    print(f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}): {found.protocol()}")
