"""How close a pruned language model stays to the dense one, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError
from secateur.evidence.quality import Figure
from secateur.llm.perplexity import (
    WINDOW,
    Perplexity,
    Scored,
    Tell,
    check_windows,
    count_windows,
    over_windows,
    perplexity_of,
    scored,
    step_of,
)
from secateur.products import fast_for

TOP = 5
"""Tokens whose sets are compared."""


@dataclass(frozen=True)
class Agreement:
    """A pruned model beside the dense one, over the same scored tokens; intervals are over windows.

    Attributes:
        top1: share of positions at which both name the same first token.
        top5: mean share of the dense model's five first tokens that are among the pruned one's.
        kl: mean Kullback-Leibler divergence of the pruned model's distribution from the dense one's, nats a token.
        tokens: positions compared. windows, window, stride: as in `Perplexity`.
    """

    top1: Figure
    top5: Figure
    kl: Figure
    tokens: int
    windows: int
    window: int
    stride: int


@dataclass(frozen=True)
class Beside:
    """Both perplexities and the agreement, from one pass."""

    pruned: Perplexity
    dense: Perplexity
    agreement: Agreement


def agreement(
    model: nn.Module,
    dense: nn.Module,
    tokens: Tensor,
    window: int = WINDOW,
    stride: int | None = None,
    batch: int = 1,
    tell: Tell | None = None,
) -> Agreement:
    r"""How often and how far a pruned model departs from the dense one.

    With $p$ the dense and $q$ the pruned model's distribution: $\frac1N\sum_i\sum_v p_{iv}(\log p_{iv} - \log q_{iv})$,
    and the shares of equal first and of shared first five tokens. Ties go to the lower token.

    Args:
        model: the pruned one. dense: what it was made of; of the same vocabulary, on any device.
        tokens, window, stride, batch, tell: as in `perplexity`.

    Raises:
        ArgumentError, DataError: as `perplexity`; or the two have other vocabularies.

    Time: a forward pass of each a window. Memory: both models, and the logits of ``batch`` windows of each. Where both
    do not fit, only their perplexities can be compared, one after the other.

    Example:
        >>> class Even(nn.Module):
        ...     def forward(self, input_ids):
        ...         return torch.zeros(*input_ids.shape, 7)
        >>> found = agreement(Even(), Even(), torch.arange(12) % 7, window=4)
        >>> found.top1.value, found.kl.value
        (1.0, 0.0)
    """
    return beside(model, dense, tokens, window, stride, batch, tell).agreement


def beside(
    model: nn.Module,
    dense: nn.Module,
    tokens: Tensor,
    window: int = WINDOW,
    stride: int | None = None,
    batch: int = 1,
    tell: Tell | None = None,
) -> Beside:
    """`agreement` and the `perplexity` of both, which need the same logits."""
    sums: dict[str, list[float]] = {name: [] for name in _FIGURES}
    counts: list[int] = []
    total = count_windows(tokens.numel(), window, stride)
    ours, theirs = (scored(m, tokens, window, stride, batch) for m in (model, dense))
    for small, full in zip(ours, theirs, strict=True):
        full = Scored(full.index, full.logits.to(small.logits.device), small.targets)
        if small.logits.shape != full.logits.shape:
            raise ArgumentError(
                f"the pruned model has a vocabulary of {small.logits.shape[1]}, the dense one of "
                f"{full.logits.shape[1]}: give the model that the pruned one was made of"
            )
        for name, figure in _FIGURES.items():
            sums[name].append(float(figure(small, full).double().sum()))
        counts.append(len(small.targets))
        if tell is not None:
            tell(len(counts), total, "windows, both models")
    top1, top5, kl = (Figure(*over_windows(sums[n], counts), sum(counts)) for n in ("top1", "top5", "kl"))
    return Beside(
        perplexity_of(sums["pruned"], counts, window, stride),
        perplexity_of(sums["dense"], counts, window, stride),
        Agreement(top1, top5, kl, sum(counts), len(counts), window, step_of(window, stride)),
    )


@torch.inference_mode()
def block_errors(
    model: nn.Module, dense: nn.Module, tokens: Tensor, window: int = WINDOW, windows: int = 4
) -> list[float]:
    r"""How far the hidden state after each block is from the dense model's: $\|h - h_{dense}\| / \|h_{dense}\|$.

    Over the first ``windows`` windows of the text. After the last block it is what the final norm makes of it. Empty
    where the two cannot be compared: blocks or residual positions were cut, or the model does not tell hidden states.

    Raises:
        ArgumentError, DataError: as `perplexity`.

    Memory: the hidden states of one window after every block, twice.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> net = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        ...     num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)).eval()
        >>> block_errors(net, net, torch.arange(8), window=4)
        [0.0, 0.0]
    """
    check_windows(model, tokens, window, None)
    if not (hasattr(model, "config") and hasattr(dense, "config")):
        return []
    ids = tokens.reshape(-1).to(next(model.parameters()).device)
    apart: Tensor | None = None
    size: Tensor | None = None
    for i in range(min(windows, count_windows(len(ids), window))):
        row = ids[None, i * window : (i + 1) * window]
        ours, theirs = (_hidden(m, row) for m in (model, dense))
        if not ours or [h.shape for h in ours] != [h.shape for h in theirs]:
            return []
        squares = torch.stack([((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True)])
        whole = torch.stack([b.square().sum() for b in theirs])
        apart = squares if apart is None else apart + squares
        size = whole if size is None else size + whole
    assert apart is not None
    assert size is not None
    return [float(e) for e in (apart / size).sqrt()]


def _hidden(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Hidden states after each block, float32, (1, tokens, width) each."""
    with fast_for(model):
        out = model(input_ids=ids.to(next(model.parameters()).device), output_hidden_states=True, use_cache=False)
    found = getattr(out, "hidden_states", None) or ()
    return [h.to(ids.device).float() for h in found[1:]]


def _first(logits: Tensor, count: int) -> Tensor:
    """Whether an entry is among the ``count`` largest of its row; of equal ones the lower go first."""
    least = logits.topk(count, dim=1).values[:, -1:]
    above, equal = logits > least, logits == least
    return above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))


def _top1(small: Scored, full: Scored) -> Tensor:
    return small.logits.argmax(1) == full.logits.argmax(1)


def _top5(small: Scored, full: Scored) -> Tensor:
    count = min(TOP, full.logits.shape[1])
    return (_first(small.logits, count) & _first(full.logits, count)).sum(1).double() / count


def _kl(small: Scored, full: Scored) -> Tensor:
    p, q = full.logits.log_softmax(1), small.logits.log_softmax(1)
    each = p.exp() * (p - q)
    return each.masked_fill_(p.isneginf(), 0).sum(1, dtype=torch.float64).clamp_min(0)  # rounding can give -1e-9


_FIGURES: dict[str, Callable[[Scored, Scored], Tensor]] = {
    "pruned": lambda small, full: small.nll(),
    "dense": lambda small, full: full.nll(),
    "top1": _top1,
    "top5": _top5,
    "kl": _kl,
}
"""Sum over the tokens of a window of what each figure is the mean of."""
