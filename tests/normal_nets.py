"""Models that are pruned and then used as any other: with residuals, heads, torch's own encoder, transformers'."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, 4
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))  # c is no width of y once heads are gone


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(16), Attention(), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.at = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 4, 16) * 0.1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.at
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 32}
DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def llama(**more: Any) -> nn.Module:
    import transformers

    sizes = {**SIZES, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **more}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def gpt2(**more: Any) -> nn.Module:
    import transformers

    sizes = {"vocab_size": 30, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 1}
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": 2, "pad_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **drop, **more}))


def bert(**more: Any) -> nn.Module:
    import transformers

    return transformers.BertForMaskedLM(transformers.BertConfig(**{**SIZES, **DROPOUT, **more}))


def tokens() -> dict[str, Tensor]:
    ids = torch.tensor([[3, 10, 4, 10, 5, 9, 22, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 8, [1] * 8])}


@dataclass(frozen=True, eq=False)
class Pruned:
    """A model, what it takes, a plan and what came of it."""

    make: Callable[[], nn.Module]
    example: Any
    dense: nn.Module
    groups: sc.Groups
    plan: sc.Plan
    small: nn.Module


MAKERS = {
    "cnn": (cnn, lambda: torch.randn(2, 3, 8, 8)),
    "vit": (ViT, lambda: torch.randn(2, 3, 8, 8)),
    "encoder": (encoder, lambda: torch.randn(2, 6, 16)),
    "llama": (llama, tokens),
    "gpt2": (gpt2, tokens),
    "bert": (bert, tokens),
}


@functools.cache
def pruned(name: str) -> Pruned:
    """Half of every group gone; verified. Whoever changes the model copies it first."""
    make, example = MAKERS[name]
    torch.manual_seed(0)
    dense, x = make().eval(), example()
    groups = sc.couple(sc.trace(dense, x))
    plan = sc.random_plan(groups, 0.5, seed=0)
    small = sc.apply(plan, dense)
    assert sc.verify(dense, plan, small, x).ok
    return Pruned(make, x, dense, groups, plan, small)
