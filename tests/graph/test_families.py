"""More architectures at small sizes: whatever is offered in them is exact."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families import BERT, LLAMA, build, ids, masked_ids, pixels, tokens

import secateur as sc

TEXT = {**BERT, "max_position_embeddings": 32}
MORE: dict[str, tuple[Any, Any]] = {
    "distilbert": (
        build("DistilBertModel", "distilbert", vocab_size=30, dim=16, n_layers=2, n_heads=4, hidden_dim=24),
        masked_ids,
    ),
    "roberta": (build("RobertaModel", "roberta", **TEXT), masked_ids),
    "albert": (build("AlbertModel", "albert", **TEXT, embedding_size=8), masked_ids),
    "electra": (build("ElectraModel", "electra", **TEXT, embedding_size=8), masked_ids),
    "deberta": (
        build("DebertaV2Model", "deberta_v2", **TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        masked_ids,
    ),
    "opt": (
        build(
            "OPTModel",
            "opt",
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=24,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
        ),
        masked_ids,
    ),
    "gpt_neox": (build("GPTNeoXModel", "gpt_neox", **TEXT), ids),
    "bloom": (build("BloomModel", "bloom", vocab_size=30, hidden_size=16, n_layer=2, n_head=4), masked_ids),
    "falcon": (
        build("FalconModel", "falcon", vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4),
        ids,
    ),
    "gemma2": (build("Gemma2Model", "gemma2", **LLAMA, head_dim=8), ids),
    "phi3": (build("Phi3Model", "phi3", **LLAMA, pad_token_id=0), ids),
    "mistral": (build("MistralModel", "mistral", **LLAMA, sliding_window=4), masked_ids),
    "bart": (
        build(
            "BartModel",
            "bart",
            vocab_size=30,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=32,
        ),
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens()[:, :5]},
    ),
    "resnet": (
        build("ResNetModel", "resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"),
        pixels,
    ),
    "mobilenet_v2": (build("MobileNetV2Model", "mobilenet_v2", depth_multiplier=0.25), pixels),
    "segformer": (
        build(
            "SegformerModel",
            "segformer",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_attention_heads=[1, 2],
            sr_ratios=[2, 1],
            num_encoder_blocks=2,
            patch_sizes=[3, 3],
            strides=[2, 2],
            mlp_ratios=[2, 2],
        ),
        pixels,
    ),
    "wav2vec2": (
        build(
            "Wav2Vec2Model",
            "wav2vec2",
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=24,
            conv_dim=[8, 8],
            conv_kernel=[4, 3],
            conv_stride=[2, 2],
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        ),
        lambda: {"input_values": torch.randn(1, 60)},
    ),
    "mobilevit": (
        build(
            "MobileViTModel",
            "mobilevit",
            hidden_sizes=[8, 12, 16],
            neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
            num_attention_heads=2,
            image_size=32,
        ),
        pixels,
    ),
    "clip": (
        build(
            "CLIPVisionModel",
            "clip",
            config="CLIPVisionConfig",
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=24,
            image_size=32,
            patch_size=8,
        ),
        pixels,
    ),
}


KINDS = {
    "distilbert": {"head": 2, "neuron": 2},
    "roberta": {"head": 2, "neuron": 2},
    "albert": {"embedding": 1, "head": 1, "neuron": 1},
    "electra": {"embedding": 1, "head": 2, "neuron": 2},
    "deberta": {"head": 2, "neuron": 5},
    "opt": {"head": 2, "neuron": 2},
    "gpt_neox": {"head": 2, "neuron": 2},
    "bloom": {"head_dim": 2, "neuron": 2},
    "falcon": {"head_dim": 1, "neuron": 2},
    "gemma2": {"head_dim": 1, "head": 2, "neuron": 2},
    "phi3": {"head": 2, "neuron": 2},
    "mistral": {"head_dim": 1, "head": 2, "neuron": 2},
    "bart": {"head": 3, "neuron": 2},
    "resnet": {"channel": 4},
    "mobilenet_v2": {"channel": 24},
    "segformer": {"head_dim": 2, "channel": 3, "head": 1},
    "wav2vec2": {"channel": 1, "head": 1, "neuron": 1},
    "mobilevit": {"channel": 21, "head": 9, "neuron": 9},
    "clip": {"head": 1, "neuron": 1},
}


@pytest.mark.parametrize("name", MORE)
def test_family(name: str) -> None:
    make, example = MORE[name]
    torch.manual_seed(0)
    model, x = make(), example()
    graph = sc.trace(model, x)
    groups = sc.couple(graph)
    assert Counter(g.kind for g in groups) == KINDS[name]
    plan = sc.random_plan(groups, 0.4, seed=0)
    report = sc.verify(model, plan, sc.apply(plan, model), x)
    assert report.ok, report.rows


@pytest.mark.filterwarnings("ignore")
def test_neurons_of_fused_experts_go_by_what_their_kernel_can() -> None:
    """Mixtral's grouped products refuse float64, and fake tensors: recorded for real, compared in float32."""
    torch.manual_seed(0)
    model, x = build("MixtralModel", "mixtral", **LLAMA, num_local_experts=4)(), tokens()
    graph = sc.trace(model, x)
    groups = sc.couple(graph)
    assert not graph.fake
    assert groups.unknown == ()
    assert {g.kind: g.multiple for g in groups} == {"head": 1, "neuron": 8}
    plan = sc.random_plan(groups, 0.4, seed=0)
    with torch.no_grad():
        wanted = sc.masked(plan, model)(x).last_hidden_state
        torch.testing.assert_close(sc.apply(plan, model)(x).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
