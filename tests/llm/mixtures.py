"""Small random mixtures of experts, from transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIZES: dict[str, Any] = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=24, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    num_experts_per_tok=2,
)  # fmt: skip
_DEEPSEEK = dict(
    n_routed_experts=6, moe_intermediate_size=8, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
    v_head_dim=4, first_k_dense_replace=0, n_group=1, topk_group=1, num_key_value_heads=4, routed_scaling_factor=1.5,
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": dict(num_local_experts=6),
    "Qwen2Moe": dict(num_experts=6, moe_intermediate_size=8, shared_expert_intermediate_size=8),
    "Qwen3Moe": dict(num_experts=6, moe_intermediate_size=8, head_dim=4, norm_topk_prob=True),
    "Olmoe": dict(num_experts=6),
    "GptOss": dict(num_local_experts=6, head_dim=8),
    "GraniteMoe": dict(num_local_experts=6),
    "DeepseekV3": _DEEPSEEK,
    "Jamba": dict(
        num_experts=6, attn_layer_offset=0, attn_layer_period=1, expert_layer_offset=0, expert_layer_period=1,
        use_mamba_kernels=False,
    ),
}  # fmt: skip
MAMBA: dict[str, Any] = dict(
    attn_layer_offset=2, attn_layer_period=3, expert_layer_offset=1, expert_layer_period=2, mamba_dt_rank=4,
)  # fmt: skip
"""Of a Jamba of two layers: Mamba without experts, and with them."""


def mixture(family: str, **sizes: Any) -> Any:
    """A model whose experts and routers differ enough to matter."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **sizes})
    config.use_cache = False
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.3)
    return model


def texts(rows: int = 4, length: int = 12, seed: int = 0) -> Tensor:
    """Token ids."""
    return torch.randint(3, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


def parts(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """(router, experts) of every layer."""
    found = dict(model.named_modules())
    banks = [n for n in found if n.endswith(".experts")]
    homes = [n.rpartition(".")[0] for n in banks]
    return [(found.get(f"{h}.gate") or found[f"{h}.router"], found[b]) for h, b in zip(homes, banks, strict=True)]
