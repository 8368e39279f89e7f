"""Text models of transformers, and what its other models share with them: how a case is made, sizes, inputs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torchvision_ops  # noqa: F401  transformers imports torchvision, which may not import without it
import transformers
from case import Case
from own_state import lived_in
from torch import Tensor, nn

VOCAB = 101
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def case(kind: str, example: Callable[[], Any], **sizes: Any) -> Case:
    """A case of a class of transformers, made from a configuration of these sizes; it keeps no cache."""

    def build() -> nn.Module:
        home = getattr(transformers, kind)
        made: nn.Module = home(home.config_class(**copy.deepcopy(sizes)))
        for module in made.modules():
            if hasattr(getattr(module, "config", None), "use_cache"):
                module.config.use_cache = False
        return lived_in(made)

    return Case(build, example)


def drawn(*parts: Callable[[], Mapping[str, Any]], **shapes: tuple[int, ...]) -> Callable[[], dict[str, Any]]:
    """An example of what ``parts`` return and of normal numbers in these shapes."""

    def example() -> dict[str, Any]:
        given = {name: value for part in parts for name, value in part().items()}
        return given | {name: torch.randn(shape) for name, shape in shapes.items()}

    return example


def tokens(rows: int = 3, length: int = 11) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length))


def ids() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def two() -> dict[str, Tensor]:
    return {"input_ids": tokens(2)}


def masked() -> dict[str, Tensor]:
    return ids() | {"attention_mask": (torch.arange(11) < torch.tensor([[11], [8], [5]])).long()}


def boxed() -> dict[str, Tensor]:
    return masked() | {"bbox": torch.randint(0, 30, (3, 11, 1)) + torch.tensor([0, 0, 9, 7])}


def reply() -> dict[str, Tensor]:
    return {"decoder_input_ids": tokens(3, 7)}


def pairs() -> dict[str, Tensor]:
    return masked() | reply()


def entities() -> dict[str, Tensor]:
    """Two entities in each row, of two words each."""
    places = torch.tensor([[0, 1, -1], [3, 4, -1]]).repeat(3, 1, 1)
    return {"entity_ids": torch.randint(1, 10, (3, 2)), "entity_position_ids": places}


TRUNK = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 144,
    "initializer_range": 0.1,
}  # fmt: skip
BODY = {"vocab_size": VOCAB, **TRUNK, **IDS}
TEXT = {**BODY, "max_position_embeddings": 48}
GQA = {**TEXT, "num_key_value_heads": 2}
GPT = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 48, "initializer_range": 0.1, **IDS}
T5 = {"vocab_size": VOCAB, "d_model": 64, "d_kv": 12, "d_ff": 144, "num_layers": 2, "num_heads": 4}
PAIR = {
    "vocab_size": VOCAB, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 144, "decoder_ffn_dim": 176, "decoder_start_token_id": 2,
    "init_std": 0.1, **IDS,
}  # fmt: skip
BART = {**PAIR, "max_position_embeddings": 48}


def encoder(kind: str, example: Callable[[], Any] = masked, **sizes: Any) -> Case:
    return case(kind, example, **{**TEXT, **sizes})


def decoder(kind: str, **sizes: Any) -> Case:
    return case(f"{kind}ForCausalLM", masked, **{**GQA, **sizes})


def pair(kind: str, **sizes: Any) -> Case:
    return case(kind, pairs, **{**BART, **sizes})


ENCODERS = {
    "bert": encoder("BertForMaskedLM"),
    "roberta": encoder("RobertaForSequenceClassification", num_labels=5),
    "xlm_roberta": encoder("XLMRobertaForTokenClassification", num_labels=5),
    "camembert": encoder("CamembertForMaskedLM"),
    "distilbert": case(
        "DistilBertForMaskedLM", masked, vocab_size=VOCAB, dim=64, n_layers=2, n_heads=4, hidden_dim=144,
        max_position_embeddings=48,
    ),
    "albert": encoder("AlbertForMaskedLM", embedding_size=24),
    "electra": encoder("ElectraForPreTraining", embedding_size=24),
    "deberta": encoder("DebertaForMaskedLM", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta_v2": encoder(
        "DebertaV2ForSequenceClassification", relative_attention=True, pos_att_type=["c2p", "p2c"], num_labels=5,
        share_att_key=True, position_buckets=16, norm_rel_ebd="layer_norm",
    ),
    "mpnet": encoder("MPNetForMaskedLM"),
    "mobilebert": encoder("MobileBertForMaskedLM", embedding_size=24, intra_bottleneck_size=32),
    "modernbert": encoder(
        "ModernBertForMaskedLM", num_hidden_layers=3, local_attention=12, cls_token_id=1, sep_token_id=2,
    ),
    "nomic_bert": encoder("NomicBertModel"),
    "eurobert": encoder("EuroBertForMaskedLM", num_key_value_heads=2),
    "funnel": case(
        "FunnelForMaskedLM", masked, vocab_size=VOCAB, block_sizes=[2, 1], num_decoder_layers=1, d_model=64, n_head=4,
        d_head=12, d_inner=144,
    ),
    "squeezebert": encoder("SqueezeBertForMaskedLM", num_hidden_layers=6, embedding_size=64),
    "nystromformer": encoder(
        "NystromformerForMaskedLM", lambda: {"input_ids": tokens(3, 12)}, num_landmarks=4, segment_means_seq_len=12,
        conv_kernel_size=5,
    ),
    "fnet": encoder(
        "FNetForMaskedLM", ids, num_hidden_layers=6, intermediate_size=256, tpu_short_seq_length=11,
    ),
    "roformer": encoder("RoFormerForMaskedLM", embedding_size=24),
    "convbert": encoder("ConvBertForMaskedLM", embedding_size=24, conv_kernel_size=5),
    "longformer": encoder("LongformerForMaskedLM", attention_window=4),
    "big_bird": encoder("BigBirdForMaskedLM", attention_type="original_full"),
    "canine": encoder(
        "CanineForTokenClassification", ids, num_hidden_layers=6, num_hash_buckets=64, local_transformer_stride=4,
        num_labels=5,
    ),
    "ernie": encoder("ErnieForMaskedLM"),
    "esm": encoder("EsmForMaskedLM", position_embedding_type="rotary", mask_token_id=4, token_dropout=True),
    "splinter": encoder("SplinterForQuestionAnswering", ids),
    "rembert": encoder("RemBertForMaskedLM", input_embedding_size=24, output_embedding_size=40),
    "ibert": encoder("IBertForMaskedLM"),
    "mra": encoder("MraForMaskedLM"),
    "luke": encoder(
        "LukeForMaskedLM", drawn(masked, entities), num_hidden_layers=4, entity_vocab_size=10, entity_emb_size=24,
    ),
    "xlm": case(
        "XLMWithLMHeadModel", masked, vocab_size=VOCAB, emb_dim=64, n_layers=2, n_heads=4, max_position_embeddings=48,
        **IDS,
    ),
    "xlnet": case("XLNetLMHeadModel", masked, vocab_size=VOCAB, d_model=64, n_layer=2, n_head=4, d_inner=144, **IDS),
    "reformer": case(
        "ReformerForMaskedLM", masked, vocab_size=VOCAB, hidden_size=64, attention_head_size=12, feed_forward_size=144,
        num_attention_heads=4, attn_layers=["local", "lsh"], num_buckets=4, hash_seed=0, axial_pos_embds=False,
        local_attn_chunk_length=4, lsh_attn_chunk_length=4, max_position_embeddings=48, is_decoder=False, **IDS,
    ),
    "layoutlm": encoder(
        "LayoutLMForTokenClassification", boxed, num_hidden_layers=6, max_2d_position_embeddings=64, num_labels=5,
    ),
    "lilt": encoder("LiltForTokenClassification", boxed, hidden_size=96, max_2d_position_embeddings=64, num_labels=5),
}  # fmt: skip

DECODERS = {
    "gpt2": case("GPT2LMHeadModel", masked, **GPT, n_inner=144),
    "openai_gpt": case("OpenAIGPTLMHeadModel", masked, **GPT),
    "ctrl": case("CTRLLMHeadModel", masked, **GPT, dff=144),
    "gptj": case("GPTJForCausalLM", masked, **GPT, n_inner=144, rotary_dim=8),
    "codegen": case("CodeGenForCausalLM", masked, **GPT, n_inner=144, rotary_dim=8),
    "gpt_bigcode": case("GPTBigCodeForCausalLM", masked, **GPT, n_inner=144),
    "gpt_neo": case(
        "GPTNeoForCausalLM", masked, vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, window_size=4,
        attention_types=[[["global", "local"], 1]], intermediate_size=144, max_position_embeddings=48, **IDS,
    ),
    "gpt_neox": encoder("GPTNeoXForCausalLM"),
    "opt": case(
        "OPTForCausalLM", masked, vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        ffn_dim=144, max_position_embeddings=48, word_embed_proj_dim=40, **IDS,
    ),
    "bloom": case("BloomForCausalLM", masked, vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4, **IDS),
    "falcon": case(
        "FalconForCausalLM", masked, vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        ffn_hidden_size=144, **IDS,
    ),
    "mpt": case("MptForCausalLM", masked, vocab_size=VOCAB, d_model=64, n_heads=4, n_layers=2, max_seq_len=48),
    "xglm": case(
        "XGLMForCausalLM", masked, vocab_size=VOCAB, d_model=64, ffn_dim=144, num_layers=2, attention_heads=4,
        max_position_embeddings=48, **IDS,
    ),
    "biogpt": encoder("BioGptForCausalLM"),
    "trocr": case(
        "TrOCRForCausalLM", drawn(masked, encoder_hidden_states=(3, 9, 48)), vocab_size=VOCAB, d_model=64,
        decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=144, cross_attention_hidden_size=48,
        max_position_embeddings=48, **IDS,
    ),
    "llama": decoder("Llama"),
    "mistral": decoder("Mistral", head_dim=24, sliding_window=7),
    "qwen2": decoder("Qwen2"),
    "qwen3": decoder("Qwen3", head_dim=24),
    "gemma": decoder("Gemma", head_dim=24),
    "gemma2": decoder("Gemma2", head_dim=24, sliding_window=7),
    "gemma3": decoder("Gemma3", head_dim=24, sliding_window=7, layer_types=["sliding_attention", "full_attention"]),
    "phi": decoder("Phi"),
    "phi3": decoder("Phi3"),
    "starcoder2": decoder("Starcoder2"),
    "stablelm": decoder("StableLm", use_parallel_residual=True),
    "olmo": decoder("Olmo"),
    "olmo2": decoder("Olmo2"),
    "olmo3": decoder("Olmo3", sliding_window=7),
    "cohere": decoder("Cohere", use_qk_norm=True),
    "cohere2": decoder("Cohere2", head_dim=24, sliding_window=7),
    "granite": decoder("Granite"),
    "smollm3": decoder("SmolLM3", no_rope_layer_interval=2),
    "glm": decoder("Glm", head_dim=24),
    "glm4": decoder("Glm4", head_dim=24),
    "nemotron": decoder("Nemotron", head_dim=24),
    "exaone4": decoder("Exaone4", sliding_window=7, sliding_window_pattern=2),
    "persimmon": encoder("PersimmonForCausalLM"),
    "helium": decoder("Helium", head_dim=16),
    "ernie4_5": decoder("Ernie4_5", head_dim=24),
    "bitnet": decoder("BitNet"),
    "doge": decoder("Doge"),
    "nanochat": decoder("NanoChat"),
    "apertus": decoder("Apertus"),
    "arcee": decoder("Arcee", head_dim=24),
    "diffllama": decoder("DiffLlama", head_dim=16),
    "modernbert_decoder": encoder(
        "ModernBertDecoderForCausalLM", num_hidden_layers=3, local_attention=12, cls_token_id=1, sep_token_id=2,
    ),
}  # fmt: skip

MLA = {"kv_lora_rank": 20, "q_lora_rank": 28, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 18}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 56}
MIXTURES = {
    "deepseek_v2": decoder(
        "DeepseekV2", **MLA, **EXPERTS, num_key_value_heads=4, first_k_dense_replace=1, n_routed_experts=6,
    ),
    "deepseek_v3": decoder(
        "DeepseekV3", **MLA, **EXPERTS, num_key_value_heads=4, first_k_dense_replace=1, n_routed_experts=6, n_group=2,
        topk_group=1,
    ),
    "minicpm3": decoder("MiniCPM3", **MLA, num_key_value_heads=4),
    "mixtral": decoder("Mixtral", num_local_experts=6, num_experts_per_tok=2),
    "qwen2_moe": decoder("Qwen2Moe", **EXPERTS, num_experts=6, shared_expert_intermediate_size=72),
    "qwen3_moe": decoder("Qwen3Moe", **EXPERTS, num_experts=6, head_dim=24),
    "olmoe": decoder("Olmoe", num_experts=6, num_experts_per_tok=2),
    "phimoe": decoder("Phimoe", num_local_experts=6, num_experts_per_tok=2),
    "gpt_oss": decoder("GptOss", num_local_experts=6, num_experts_per_tok=2, head_dim=24, sliding_window=7),
    "granitemoe": decoder("GraniteMoe", num_local_experts=6, num_experts_per_tok=2),
    "jetmoe": case(
        "JetMoeForCausalLM", masked, vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_key_value_heads=2,
        kv_channels=24, intermediate_size=144, num_local_experts=6, max_position_embeddings=48, **IDS,
    ),
    "dbrx": case(
        "DbrxForCausalLM", masked, vocab_size=VOCAB, d_model=64, n_heads=4, n_layers=2, max_seq_len=48,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}, ffn_config={"ffn_hidden_size": 144,
        "moe_num_experts": 6, "moe_top_k": 2, "hidden_size": 64},
    ),
    "llama4": decoder(
        "Llama4", head_dim=24, intermediate_size_mlp=176, num_local_experts=6, interleave_moe_layer_step=2,
        attention_chunk_size=8,
    ),
    "glm4_moe": decoder("Glm4Moe", **EXPERTS, n_routed_experts=6, head_dim=24),
    "ernie4_5_moe": decoder("Ernie4_5_Moe", moe_k=2, moe_num_experts=6, moe_intermediate_size=56),
    "afmoe": decoder("Afmoe", **EXPERTS, num_experts=6, head_dim=24, sliding_window=7, global_attn_every_n_layers=2),
    "minimax": decoder("MiniMax", num_local_experts=6, num_experts_per_tok=2, head_dim=24, block_size=4),
    "switch_transformers": case(
        "SwitchTransformersForConditionalGeneration", pairs, **T5, num_experts=6, encoder_sparse_step=2,
        decoder_sparse_step=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_decoder_layers=2,
    ),
    "nllb_moe": pair("NllbMoeForConditionalGeneration", num_experts=6, encoder_sparse_step=2, decoder_sparse_step=2),
}  # fmt: skip

MAMBA2 = {
    "mamba_d_state": 12, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_chunk_size": 4,
    "mamba_expand": 2,
}  # fmt: skip
STATES = {
    "mamba": case(
        "MambaForCausalLM", ids, vocab_size=VOCAB, hidden_size=64, state_size=12, num_hidden_layers=2, time_step_rank=6,
        **IDS,
    ),
    "falcon_mamba": case(
        "FalconMambaForCausalLM", ids, vocab_size=VOCAB, hidden_size=64, state_size=12, num_hidden_layers=2,
        time_step_rank=6, **IDS,
    ),
    "mamba2": case(
        "Mamba2ForCausalLM", ids, vocab_size=VOCAB, hidden_size=64, state_size=12, num_hidden_layers=2, num_heads=8,
        head_dim=16, n_groups=2, chunk_size=4, **IDS,
    ),
    "rwkv": case(
        "RwkvForCausalLM", ids, vocab_size=VOCAB, hidden_size=64, num_hidden_layers=4, attention_hidden_size=64,
        intermediate_size=256, context_length=48, **IDS,
    ),
    "xlstm": case(
        "xLSTMForCausalLM", ids, vocab_size=VOCAB, hidden_size=64, embedding_dim=64, num_hidden_layers=2, num_blocks=2,
        num_heads=4, chunk_size=4, ffn_round_up_to_multiple_of=8, **IDS,
    ),
    "recurrent_gemma": decoder(
        "RecurrentGemma", num_hidden_layers=3, lru_width=80, attention_window_size=7, head_dim=16,
    ),
    "jamba": decoder(
        "Jamba", num_experts=6, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=12, mamba_dt_rank=6,
        use_mamba_kernels=False,
    ),
    "zamba": decoder(
        "Zamba", num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2, mamba_d_state=12, mamba_dt_rank=6,
        n_mamba_heads=2, use_mamba_kernels=False,
    ),
    "zamba2": decoder(
        "Zamba2", num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2, num_key_value_heads=4,
        mamba_d_state=12, n_mamba_heads=8, mamba_ngroups=2, chunk_size=4, adapter_rank=10, use_mamba_kernels=False,
    ),
    "bamba": decoder("Bamba", **MAMBA2, attn_layer_indices=[1]),
    "falcon_h1": decoder("FalconH1", **MAMBA2, mamba_d_ssm=128),
    "granitemoehybrid": decoder(
        "GraniteMoeHybrid", **MAMBA2, layer_types=["mamba", "attention"], num_local_experts=6, num_experts_per_tok=2,
        shared_intermediate_size=72,
    ),
    "nemotron_h": decoder(
        "NemotronH", layers_block_type=["mamba", "moe", "attention", "mlp"], head_dim=24, ssm_state_size=12,
        mamba_num_heads=8, mamba_head_dim=16, n_groups=2, chunk_size=4, n_routed_experts=6, moe_intermediate_size=56,
        moe_shared_expert_intermediate_size=72, num_hidden_layers=4,
    ),
    "lfm2": decoder(
        "Lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8, block_auto_adjust_ff_dim=False,
    ),
    "lfm2_moe": decoder(
        "Lfm2Moe", **EXPERTS, layer_types=["conv", "full_attention"], num_experts=6, num_dense_layers=1,
    ),
    "qwen3_next": decoder(
        "Qwen3Next", **EXPERTS, layer_types=["linear_attention", "full_attention"], num_experts=6, head_dim=24,
        shared_expert_intermediate_size=72, linear_key_head_dim=10, linear_value_head_dim=14, linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    "kimi_linear": decoder(
        "KimiLinear", **MLA, **EXPERTS, num_key_value_heads=4, layer_types=["linear_attention", "full_attention"],
        num_experts=6, linear_head_dim=10, linear_num_heads=4,
    ),
}  # fmt: skip

PAIRS = {
    "t5": case("T5ForConditionalGeneration", pairs, **T5),
    "mt5": case("MT5ForConditionalGeneration", pairs, **T5),
    "umt5": case("UMT5ForConditionalGeneration", pairs, **T5),
    "longt5": case("LongT5ForConditionalGeneration", pairs, **T5, local_radius=4),
    "bart": pair("BartForConditionalGeneration"),
    "mbart": pair("MBartForConditionalGeneration"),
    "pegasus": pair("PegasusForConditionalGeneration"),
    "pegasus_x": pair("PegasusXForConditionalGeneration", block_size=4, num_global_tokens=3),
    "bigbird_pegasus": pair("BigBirdPegasusForConditionalGeneration", attention_type="original_full"),
    "marian": pair("MarianMTModel"),
    "blenderbot": pair("BlenderbotForConditionalGeneration"),
    "m2m_100": pair("M2M100ForConditionalGeneration"),
    "fsmt": pair("FSMTForConditionalGeneration", src_vocab_size=VOCAB, tgt_vocab_size=VOCAB),
    "led": pair(
        "LEDForConditionalGeneration", attention_window=4, max_encoder_position_embeddings=48,
        max_decoder_position_embeddings=48,
    ),
    "prophetnet": case(
        "ProphetNetForConditionalGeneration", drawn(ids, reply), vocab_size=VOCAB, hidden_size=64, encoder_ffn_dim=144,
        decoder_ffn_dim=176, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4,
        num_decoder_attention_heads=4, max_position_embeddings=48, **IDS,
    ),
}  # fmt: skip

TEXTS: dict[str, Case] = ENCODERS | DECODERS | MIXTURES | STATES | PAIRS
