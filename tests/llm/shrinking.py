"""Tiny language models for the tests of shrinking."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

BASE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip


def llama(**changes: Any) -> nn.Module:
    return made(tf.LlamaConfig(**{**BASE, **changes}))


def gpt2(**changes: Any) -> nn.Module:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 48}
    return made(tf.GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 1, **changes}))


def neox() -> nn.Module:
    sizes = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
    return made(tf.GPTNeoXConfig(**sizes))


def qwen2() -> nn.Module:
    return made(tf.Qwen2Config(**BASE))


def made(config: Any, seed: int = 0) -> nn.Module:
    """Weights large enough for blocks to differ, biases too."""
    torch.manual_seed(seed)
    model: nn.Module = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def texts(count: int = 8, window: int = 16, seed: int = 1) -> Tensor:
    return torch.randint(0, 64, (count, window), generator=torch.Generator().manual_seed(seed))
