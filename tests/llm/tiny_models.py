"""Tiny language models of many kinds, with random weights, and their folders."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 96


def _of(config: str, **more: Any) -> Any:
    common = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return getattr(transformers, config)(**(common | more))


CONFIGS: Mapping[str, Callable[[], Any]] = {
    "gqa": lambda: _of("LlamaConfig", num_key_value_heads=2, tie_word_embeddings=False),
    "mqa": lambda: _of("LlamaConfig", num_key_value_heads=1, tie_word_embeddings=False),
    "tied": lambda: _of("LlamaConfig", num_key_value_heads=2, tie_word_embeddings=True),
    "biases": lambda: _of("Qwen2Config", num_key_value_heads=2),
    "fused_qkv": lambda: _of("GPTNeoXConfig"),
    "conv1d": lambda: _of("GPT2Config", n_inner=48),
    "sliding": lambda: _of("Gemma2Config", num_key_value_heads=2, head_dim=8, sliding_window=4),
    "opt": lambda: _of("OPTConfig", ffn_dim=48, word_embed_proj_dim=32),
    "alibi": lambda: _of("BloomConfig"),
    "mixtral": lambda: _of("MixtralConfig", num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "qwen_moe": lambda: _of(
        "Qwen2MoeConfig",
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
    ),
}
"""Kind -> a configuration of it."""


def make(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A model with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(0, p.shape[-1] ** -0.5)
            elif "bias" in name:
                p.normal_(0, 0.1)
    return model.to(dtype).eval()


def write(model: nn.Module, folder: Path, shard: str = "30KB") -> Path:
    """Its folder, in several shards."""
    with quiet():
        model.save_pretrained(folder, max_shard_size=shard)
    return folder


def load(folder: Path, **more: Any) -> nn.Module:
    """A model of a folder, as users load it."""
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **more).eval()


def tokens(samples: int = 8, window: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (samples, window), generator=torch.Generator().manual_seed(seed))


def twin(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


@contextlib.contextmanager
def quiet() -> Any:
    """No bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
