"""A language model without its weights that still runs: for recording, for counting, for trying what can be dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from secateur.calling import tensors_of
from secateur.graph.copying import duplicate
from secateur.graph.couple import macs_of
from secateur.graph.record import trace
from secateur.types import Example

Meter: TypeAlias = Callable[[nn.Module], float]
"""Hollow model -> what a budget may limit."""


def hollow(skeleton: nn.Module, seed: int = 0) -> nn.Module:
    """A copy that runs: each parameter is a window on a short row of random numbers, ``w[i, j] = r[i + j]``.

    Args:
        skeleton: parameters on the meta device, buffers with their values.

    Memory: the sums, not the products, of the parameters' sizes.

    Example:
        >>> net = nn.Linear(3, 2, bias=False, device="meta")
        >>> w = hollow(net).weight
        >>> bool(w[0, 1] == w[1, 0]), w.untyped_storage().nbytes()
        (True, 16)
    """
    generator = torch.Generator().manual_seed(seed)
    memo: dict[int, Any] = {}
    for p in skeleton.parameters():
        memo.setdefault(id(p), nn.Parameter(_window(p, generator), requires_grad=False))
    return duplicate(skeleton, memo).eval()


def _window(p: Tensor, generator: torch.Generator) -> Tensor:
    row = torch.randn(max(sum(p.shape) - max(p.dim() - 1, 0), 1), generator=generator) * 0.05
    return row.to(p.dtype).as_strided(p.shape, (1,) * p.dim())


def params(model: nn.Module) -> float:
    """Number of parameters, shared ones once."""
    return float(sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()))


def macs(tokens: int) -> Meter:
    """Multiply-accumulates of a prompt of so many tokens."""

    def macs(model: nn.Module) -> float:
        return float(macs_of(trace(model, tokens_of(tokens))))

    return macs


def kv_cache(tokens: int) -> Meter:
    """Bytes of the keys and values that the model keeps of a prompt of so many tokens, in its own type.

    The whole prompt is run: a sliding window keeps no more than itself.
    """

    def kv_cache(model: nn.Module) -> float:
        with torch.no_grad():
            output = model(input_ids=prompt(tokens), use_cache=True)
        kept = cache_tensors(getattr(output, "past_key_values", None))
        return float(sum(t.numel() * t.element_size() for t in kept))

    return kv_cache


def cache_tensors(cache: Any) -> list[Tensor]:
    """Tensors of keys and values in a cache of transformers, or in tuples."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        return tensors_of(cache)
    return [t for layer in layers for t in (layer.keys, layer.values)]


def prompt(count: int) -> Tensor:
    """One row of tokens that any vocabulary has, int64 (1, count)."""
    return torch.arange(1, count + 1)[None] % 32 + 1


def tokens_of(count: int) -> Example:
    """An example of a language model: one row of tokens."""
    return {"input_ids": prompt(count)}
