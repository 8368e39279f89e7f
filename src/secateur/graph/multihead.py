"""``nn.MultiheadAttention`` with heads or head dims cut: torch's own has one width for all of its projections."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.types import Bools


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """The same module with the same parameter names, its heads and head dims no longer bound to ``embed_dim``.

    ``in_proj_weight`` is (q + k + v rows, embed_dim) and ``out_proj.weight`` (embed_dim, v rows), where q and k have
    ``num_heads * head_dim`` rows and v ``num_heads * value_dim``. Never built: `narrow_` turns a module into one.
    The scale stays what it was, 1 / sqrt of the head dim before the cut.
    """

    value_dim: int
    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: (time, batch, embed_dim) or (batch, time, embed_dim) if ``batch_first``, or without a batch."""
        if attn_mask is None and is_causal:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[2] - key.shape[1])
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = torch.matmul(q * self.scale, k.transpose(-2, -1))
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout)
            made = torch.matmul(weights, v)
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            made = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        made = made.transpose(1, 2).flatten(2)
        made = functional.linear(made, self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return made.squeeze(0), weights
        return made if self.batch_first else made.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values, each (batch, heads, time, dim)."""
        rows = self.num_heads * self.head_dim, self.num_heads * self.head_dim, self.num_heads * self.value_dim
        together: Tensor | None = self.in_proj_weight
        if together is not None:
            weights = list(together.split(rows))
        else:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.split(rows))
        made = [functional.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
        for i, extra in ((1, self.bias_k), (2, self.bias_v)):
            if extra is not None:
                made[i] = torch.cat([made[i], extra.expand(made[i].shape[0], 1, -1)], dim=1)
        if self.add_zero_attn:
            made[1:] = [functional.pad(t, (0, 0, 0, 1)) for t in made[1:]]
        sizes = self.head_dim, self.head_dim, self.value_dim
        return [t.unflatten(2, (self.num_heads, n)).transpose(1, 2) for t, n in zip(made, sizes, strict=True)]

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, extra: int) -> Tensor | None:
        """What is added to the scores, broadcast over (batch, heads, queries, keys)."""
        if mask is not None:
            mask = _added(mask, q)
            mask = mask.view(-1, self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask
            mask = functional.pad(mask, (0, extra))
        if padding is not None:
            hidden = functional.pad(_added(padding, q), (0, extra))[:, None, None, :]
            mask = hidden if mask is None else mask + hidden
        return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def narrow_(module: nn.MultiheadAttention, cut: Mapping[tuple[str, int], Bools]) -> None:
    """Turn a module whose parameters were cut by these masks into one that runs with what is left, in place.

    Args:
        module: already cut. cut: ``(parameter of the module, dim) -> bool``, True keeps.
    """
    heads, dims = module.num_heads, module.embed_dim // module.num_heads
    whole = cut.get(("in_proj_weight", 0))
    if whole is not None:
        queries = whole[: len(whole) // 3].reshape(heads, dims)
    elif ("q_proj_weight", 0) in cut:
        queries = cut["q_proj_weight", 0].reshape(heads, dims)
    else:
        queries = None
    kept = heads if queries is None else int(queries.any(1).sum())
    values = module.out_proj.weight.shape[1]
    module.__class__ = NarrowMultiheadAttention
    assert isinstance(module, NarrowMultiheadAttention)
    module.scale = 1 / math.sqrt(dims)
    module.num_heads = kept
    module.head_dim = dims if queries is None else int(queries.sum()) // kept
    module.value_dim = values // kept
    module._qkv_same_embed_dim = False  # torch's fused path knows one width only
    module.embed_dim = module.out_proj.weight.shape[0]
