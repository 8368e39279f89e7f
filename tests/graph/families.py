"""Small configurations of the architectures people use, from transformers."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from nets import Case
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def tokens() -> Tensor:
    return torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def ids() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def masked_ids() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 3, 32, 32)}


def build(kind: str, module: str, *, config: str = "", **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        home = importlib.import_module(f"transformers.models.{module}")
        made = getattr(home, kind)(getattr(home, config or f"{kind.removesuffix('Model')}Config")(**sizes))
        made.config.use_cache = False
        return made.eval()

    return make


BERT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
LLAMA = {**BERT, "num_key_value_heads": 2, "max_position_embeddings": 32}
CASES: dict[str, Case] = {
    "bert": Case(build("BertModel", "bert", **BERT, max_position_embeddings=16), masked_ids),
    "gpt2": Case(
        build("GPT2Model", "gpt2", vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=4), masked_ids),
    "llama": Case(build("LlamaModel", "llama", **LLAMA), masked_ids),
    "qwen3": Case(build("Qwen3Model", "qwen3", **LLAMA, head_dim=8), masked_ids),
    "t5": Case(
        build("T5Model", "t5", vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4),
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens()[:, :5]}),
    "vit": Case(
        build(
            "ViTModel", "vit", hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
            image_size=32, patch_size=8,
        ),
        pixels),
    "whisper": Case(
        build(
            "WhisperModel", "whisper", vocab_size=30, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24,
            max_source_positions=10, max_target_positions=12, pad_token_id=0, decoder_start_token_id=1,
        ),
        lambda: {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": tokens()[:1, :5]}),
    "convnext": Case(
        build("ConvNextModel", "convnext", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
        pixels),
    "swin": Case(
        build(
            "SwinModel", "swin", image_size=32, patch_size=4, embed_dim=8, depths=[2, 1], num_heads=[2, 4],
            window_size=4,
        ),
        pixels),
    "mamba": Case(
        build(
            "MambaModel", "mamba", vocab_size=30, hidden_size=16, state_size=4, num_hidden_layers=1, time_step_rank=4
        ),
        ids),
}  # fmt: skip
