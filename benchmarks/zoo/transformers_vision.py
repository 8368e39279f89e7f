"""Models of transformers that see: pictures, video, detection, masks, and pictures with words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import Case
from torch import Tensor
from transformers_text import GPT, GQA, TEXT, TRUNK, VOCAB, boxed, case, drawn, encoder, ids, masked, tokens, two

PICTURES = drawn(pixel_values=(2, 3, 32, 32))
VIDEO = drawn(pixel_values=(2, 4, 3, 32, 32))
CAPTIONED = drawn(two, pixel_values=(2, 3, 32, 32))
VIT = {**TRUNK, "image_size": 32, "patch_size": 8}
HEAD = {"num_labels": 7, "initializer_range": 0.1}


def pictured() -> dict[str, Tensor]:
    """Words after the sixteen places of a picture's patches."""
    return {"input_ids": torch.cat([torch.full((2, 16), VOCAB - 1), tokens(2).clamp(max=VOCAB - 2)], dim=1)}


def tasks() -> dict[str, Tensor]:
    return {"task_inputs": tokens(2, 7)}


def vit(kind: str, example: Callable[[], Any] = PICTURES, **sizes: Any) -> Case:
    return case(kind, example, **{**VIT, **HEAD, **sizes})


def vision(kind: str, **sizes: Any) -> Case:
    return case(kind, drawn(pixel_values=(2, 3, 64, 64)), **HEAD, **sizes)


OUT = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
DEEP = {"num_hidden_layers": 4, **OUT, "reshape_hidden_states": False}
STAGES = {"hidden_sizes": [16, 24, 40, 48], "depths": [1, 1, 2, 1]}
DEEPER = {"hidden_sizes": [32, 48, 80, 96], "depths": [2, 2, 6, 2]}
PYRAMID = {**STAGES, "num_attention_heads": [1, 2, 4, 4], "mlp_ratios": [2, 2, 3, 3]}
RESIDUAL = {"embedding_size": 24, "hidden_sizes": [32, 48, 56, 80], "depths": [1, 2, 1, 1]}
SWIN = {
    "image_size": 64, "patch_size": 2, "embed_dim": 24, "depths": [2, 2, 1, 1], "num_heads": [2, 4, 4, 8],
    "window_size": 4,
}  # fmt: skip
PICTURE_MODELS = {
    "vit": vit("ViTForImageClassification"),
    "deit": vit("DeiTForImageClassificationWithTeacher"),
    "beit": vit("BeitForImageClassification", use_relative_position_bias=True),
    "data2vec_vision": vit("Data2VecVisionForImageClassification", use_shared_relative_position_bias=True),
    "dinov2": vit("Dinov2ForImageClassification", mlp_ratio=3),
    "dinov2_with_registers": vit("Dinov2WithRegistersForImageClassification", use_swiglu_ffn=True),
    "dinov3_vit": vit("DINOv3ViTModel", use_gated_mlp=True, num_register_tokens=3),
    "vit_mae": vit(
        "ViTMAEForPreTraining", drawn(pixel_values=(2, 3, 32, 32), noise=(2, 16)), num_hidden_layers=4,
        decoder_hidden_size=40, decoder_num_attention_heads=4, decoder_num_hidden_layers=2,
        decoder_intermediate_size=72,
    ),
    "vit_msn": vit("ViTMSNForImageClassification"),
    "ijepa": vit("IJepaForImageClassification"),
    "yolos": vit("YolosForObjectDetection", image_size=[32, 32], num_detection_tokens=9),
    "vitdet": vit(
        "VitDetModel", pretrain_image_size=32, window_block_indices=[0], window_size=2, mlp_ratio=3,
        use_relative_position_embeddings=True,
    ),
    "vitpose": case(
        "VitPoseForPoseEstimation", PICTURES, num_labels=7, backbone_config={**VIT, "model_type": "vitpose_backbone",
        "image_size": [32, 32], "patch_size": [8, 8], "mlp_ratio": 3},
    ),
    "dpt": vit(
        "DPTForSemanticSegmentation", num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 24,
        40, 48], fusion_hidden_size=28,
    ),
    "depth_anything": case(
        "DepthAnythingForDepthEstimation", PICTURES, patch_size=8, initializer_range=0.1, reassemble_hidden_size=64,
        neck_hidden_sizes=[16, 24, 40, 48], fusion_hidden_size=28, head_hidden_size=10, depth_estimation_type="metric",
        max_depth=5, backbone_config={**VIT, "model_type": "dinov2", "mlp_ratio": 3, **DEEP},
    ),
    "aimv2": vit("Aimv2VisionModel"),
    "pixtral": vit("PixtralVisionModel"),
    "vjepa2": case(
        "VJEPA2Model", drawn(pixel_values_videos=(1, 4, 3, 32, 32)), patch_size=8, crop_size=32, frames_per_clip=4,
        hidden_size=64, num_attention_heads=4, num_hidden_layers=6, mlp_ratio=3, pred_hidden_size=48,
        pred_num_attention_heads=4, pred_num_hidden_layers=1, pred_mlp_ratio=2,
    ),
    "eomt": vit("EomtForUniversalSegmentation", num_queries=9, num_blocks=1, mlp_ratio=3, num_upscale_blocks=1),
    "imagegpt": case("ImageGPTForImageClassification", ids, **GPT, n_inner=144, num_labels=7),
    "swin": vision("SwinForImageClassification", **SWIN),
    "swinv2": vision("Swinv2ForImageClassification", **SWIN),
    "swin2sr": case(
        "Swin2SRForImageSuperResolution", drawn(pixel_values=(2, 3, 16, 16)), image_size=16, embed_dim=32, depths=[2,
        2], num_heads=[4, 4], window_size=4,
    ),
    "donut_swin": case("DonutSwinModel", drawn(pixel_values=(2, 3, 64, 64)), **SWIN),
    "hiera": vision(
        "HieraForImageClassification", image_size=[64, 64], embed_dim=24, depths=[1, 1, 2], num_heads=[1, 2, 4],
        num_query_pool=2, masked_unit_size=[4, 4], masked_unit_attention=[True, False, False],
    ),
    "convnext": vision("ConvNextForImageClassification", **DEEPER),
    "convnextv2": vision("ConvNextV2ForImageClassification", **DEEPER),
    "dinov3_convnext": vision("DINOv3ConvNextModel", **DEEPER),
    "resnet": vision("ResNetForImageClassification", **RESIDUAL),
    "regnet": vision("RegNetForImageClassification", **RESIDUAL, groups_width=8),
    "bit": vision("BitForImageClassification", **RESIDUAL, num_groups=8),
    "rt_detr_resnet": vision("RTDetrResNetBackbone", **RESIDUAL),
    "hgnet_v2": vision(
        "HGNetV2ForImageClassification", embedding_size=24, stem_channels=[3, 16, 24], stage_in_channels=[24, 40, 48,
        56], stage_mid_channels=[12, 20, 28, 36], stage_out_channels=[40, 48, 56, 72], stage_numb_of_layers=[2, 2, 2,
        2], hidden_sizes=[40, 48, 56, 72],
    ),
    "efficientnet": vision(
        "EfficientNetForImageClassification", image_size=64, width_coefficient=0.25, depth_coefficient=1.0,
        in_channels=[32, 64, 96, 160], out_channels=[64, 96, 160, 224], kernel_sizes=[3, 3, 5, 3], strides=[1, 2, 2, 1],
        num_block_repeats=[1, 2, 1, 1], expand_ratios=[1, 6, 4, 6], hidden_dim=320,
    ),
    "mobilenet_v1": vision("MobileNetV1ForImageClassification", depth_multiplier=0.25),
    "mobilenet_v2": vision("MobileNetV2ForImageClassification", depth_multiplier=0.35),
    "mobilevit": vision(
        "MobileViTForImageClassification", image_size=64, hidden_sizes=[24, 40, 48], neck_hidden_sizes=[8, 12, 16, 20,
        28, 32, 72],
    ),
    "mobilevitv2": vision("MobileViTV2ForImageClassification", image_size=64, width_multiplier=0.25),
    "swiftformer": vision(
        "SwiftFormerForImageClassification", image_size=64, embed_dims=[16, 24, 40, 48], depths=[1, 1, 1, 1],
    ),
    "textnet": vision(
        "TextNetForImageClassification", image_size=[64, 64], hidden_sizes=[16, 24, 32, 40, 48], stem_out_channels=16,
    ),
    "pp_lcnet": vision("PPLCNetForImageClassification", scale=0.5, class_expand=80),
    "poolformer": vision("PoolFormerForImageClassification", **{**STAGES, "depths": [4, 4, 12, 4]}),
    "segformer": vision(
        "SegformerForSemanticSegmentation", **{**PYRAMID, "depths": [2, 2, 2, 2]}, decoder_hidden_size=56,
    ),
    "glpn": vision("GLPNForDepthEstimation", **PYRAMID, decoder_hidden_size=56),
    "pvt": vision("PvtForImageClassification", image_size=64, **PYRAMID),
    "pvt_v2": vision("PvtV2ForImageClassification", image_size=[64, 64], **{**PYRAMID, "depths": [2, 2, 2, 2]}),
    "levit": vision(
        "LevitForImageClassificationWithTeacher", image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3,
        4], depths=[1, 1, 1], key_dim=[8, 8, 8],
    ),
    "cvt": vision(
        "CvtForImageClassification", embed_dim=[16, 32, 48], num_heads=[1, 2, 4], depth=[1, 2, 6], mlp_ratio=[4.0, 4.0,
        4.0],
    ),
    "focalnet": vision(
        "FocalNetForImageClassification", image_size=64, embed_dim=24, depths=[1, 2, 1], focal_levels=[2, 2, 2],
        focal_windows=[3, 3, 3], hidden_sizes=[48, 96, 96],
    ),
    "vit_matte": case(
        "VitMatteForImageMatting", drawn(pixel_values=(1, 4, 64, 64)), hidden_size=64, initializer_range=0.2,
        convstream_hidden_sizes=[12, 20, 28], fusion_hidden_sizes=[40, 24, 16, 10], backbone_config={**VIT,
        "num_hidden_layers": 6, "model_type": "vitdet", "image_size": 64, "patch_size": 16, "num_channels": 4,
        "out_features": ["stage6"], "pretrain_image_size": 64},
    ),
    "timesformer": vit("TimesformerForVideoClassification", VIDEO, num_frames=4),
    "videomae": vit("VideoMAEForVideoClassification", VIDEO, num_hidden_layers=4, num_frames=4),
    "vivit": vit("VivitForVideoClassification", VIDEO, num_hidden_layers=4, num_frames=4, tubelet_size=[2, 8, 8]),
}  # fmt: skip

RESNET = {"model_type": "resnet", **RESIDUAL, "layer_type": "basic", **OUT}
SWIN_BACKBONE = {"model_type": "swin", **SWIN, **OUT}
QUERIES = {
    "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 144, "decoder_ffn_dim": 176, "num_queries": 9, "backbone_config": RESNET,
}  # fmt: skip
DETR = {**QUERIES, "d_model": 64}
RT_DETR = {
    **DETR, "encoder_hidden_dim": 64, "encoder_in_channels": [48, 56, 80], "decoder_in_channels": [64, 64, 64],
    "backbone_config": {"model_type": "rt_detr_resnet", **RESIDUAL, "out_features": ["stage2", "stage3", "stage4"]},
}  # fmt: skip
SCENE_MODELS = {
    "detr": vision("DetrForObjectDetection", **DETR),
    "conditional_detr": vision("ConditionalDetrForObjectDetection", **DETR),
    "deformable_detr": vision("DeformableDetrForObjectDetection", **DETR, num_feature_levels=4),
    "dab_detr": vision("DabDetrForObjectDetection", **QUERIES, hidden_size=64),
    "table_transformer": vision("TableTransformerForObjectDetection", **DETR),
    "rt_detr": vision("RTDetrForObjectDetection", **RT_DETR),
    "rt_detr_v2": vision("RTDetrV2ForObjectDetection", **RT_DETR),
    "d_fine": vision("DFineForObjectDetection", **RT_DETR),
    "maskformer": vision(
        "MaskFormerForInstanceSegmentation", fpn_feature_size=96, mask_feature_size=32, backbone_config=SWIN_BACKBONE,
        decoder_config={**DETR, "model_type": "detr"},
    ),
    "mask2former": vision(
        "Mask2FormerForUniversalSegmentation", feature_size=96, mask_feature_size=32, hidden_dim=64,
        encoder_feedforward_dim=144, dim_feedforward=176, encoder_layers=1, decoder_layers=3, num_attention_heads=4,
        num_queries=9, backbone_config=SWIN_BACKBONE,
    ),
    "oneformer": case(
        "OneFormerForUniversalSegmentation", drawn(tasks, pixel_values=(2, 3, 64, 64)), conv_dim=64, mask_dim=64,
        hidden_dim=64, encoder_feedforward_dim=144, dim_feedforward=176, encoder_layers=1, decoder_layers=3,
        num_attention_heads=4, num_queries=9, task_seq_len=7, text_encoder_width=48, text_encoder_num_layers=1,
        text_encoder_vocab_size=VOCAB, is_training=False, backbone_config=SWIN_BACKBONE,
    ),
    "upernet": vision(
        "UperNetForSemanticSegmentation", hidden_size=56, auxiliary_channels=28, pool_scales=[1, 2],
        auxiliary_in_channels=40, backbone_config={**STAGES, "model_type": "convnext", **OUT},
    ),
    "zoedepth": case(
        "ZoeDepthForDepthEstimation", PICTURES, initializer_range=0.1, neck_hidden_sizes=[16, 24, 40, 48],
        fusion_hidden_size=28, bottleneck_features=28, num_attractors=[4, 3, 2, 1], bin_embedding_dim=20,
        num_relative_features=12, backbone_config={**VIT, "model_type": "beit", **DEEP},
    ),
    "sam": case(
        "SamVisionModel", drawn(pixel_values=(2, 3, 64, 64)), hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, mlp_dim=144, image_size=64, patch_size=8, output_channels=40, window_size=5,
        global_attn_indexes=[1],
    ),
}  # fmt: skip

WORDS = {**TEXT, "projection_dim": 40}
SIGHT = {**VIT, "hidden_size": 48, "intermediate_size": 112, "projection_dim": 40}
CLIP = {"text_config": WORDS, "vision_config": SIGHT, "projection_dim": 40}
WORD_MODELS = {
    "clip": case("CLIPModel", CAPTIONED, **CLIP),
    "siglip": case("SiglipModel", CAPTIONED, text_config={**TEXT, "projection_size": 48}, vision_config=SIGHT),
    "altclip": case(
        "AltCLIPModel", CAPTIONED, text_config={**TEXT, "num_hidden_layers": 3, "project_dim": 56},
        vision_config={**SIGHT, "num_hidden_layers": 3}, projection_dim=40,
    ),
    "chinese_clip": case("ChineseCLIPModel", CAPTIONED, **CLIP),
    "clipseg": case(
        "CLIPSegForImageSegmentation", CAPTIONED, text_config=WORDS, vision_config={**SIGHT, "num_hidden_layers": 3},
        projection_dim=40, extract_layers=[0, 1], reduce_dim=28, decoder_intermediate_size=72,
    ),
    "owlvit": case(
        "OwlViTForObjectDetection", CAPTIONED, text_config={**TEXT, "max_position_embeddings": 16},
        vision_config={**SIGHT, "num_hidden_layers": 3},
        projection_dim=64,
    ),
    "owlv2": case(
        "Owlv2ForObjectDetection", CAPTIONED, text_config={**TEXT, "max_position_embeddings": 16}, vision_config=SIGHT,
        projection_dim=64,
    ),
    "x_clip": case(
        "XCLIPModel", drawn(two, pixel_values=(2, 4, 3, 32, 32)), text_config=WORDS, vision_config={**SIGHT,
        "num_frames": 4, "mit_hidden_size": 40, "mit_intermediate_size": 72, "mit_num_attention_heads": 4},
        projection_dim=40, prompt_layers=1, prompt_num_attention_heads=4,
    ),
    "groupvit": case(
        "GroupViTModel", CAPTIONED, text_config=WORDS, vision_config={**SIGHT, "depths": [1, 1], "num_group_tokens": [6,
        0], "num_output_groups": [6, 3], "num_hidden_layers": 2}, projection_dim=40, projection_intermediate_dim=56,
    ),
    "blip": case(
        "BlipForConditionalGeneration", CAPTIONED, text_config={**TEXT, "encoder_hidden_size": 48}, vision_config=SIGHT,
        projection_dim=40, image_text_hidden_size=40,
    ),
    "blip_2": case(
        "Blip2QFormerModel", drawn(query_embeds=(2, 5, 64), encoder_hidden_states=(2, 9, 48)), **TEXT,
        encoder_hidden_size=48,
    ),
    "git": case("GitForCausalLM", CAPTIONED, **{**TEXT, "num_hidden_layers": 4}, vision_config=SIGHT),
    "llava": case(
        "LlavaForConditionalGeneration", drawn(pictured, pixel_values=(2, 3, 32, 32)), text_config={**GQA,
        "model_type": "llama"}, vision_config={**SIGHT, "model_type": "clip_vision_model"}, image_token_id=100,
    ),
    "paligemma": case(
        "PaliGemmaForConditionalGeneration", drawn(pictured, pixel_values=(2, 3, 32, 32)), text_config={**GQA,
        "model_type": "gemma", "head_dim": 24}, vision_config={**SIGHT, "model_type": "siglip_vision_model"},
        image_token_id=100, projection_dim=64,
    ),
    "layoutlmv3": encoder(
        "LayoutLMv3ForTokenClassification", drawn(boxed, pixel_values=(3, 3, 32, 32)), num_hidden_layers=6,
        max_2d_position_embeddings=64, coordinate_size=12, shape_size=8, input_size=32, patch_size=8, **HEAD,
    ),
    "lxmert": case(
        "LxmertModel", drawn(masked, visual_feats=(3, 5, 28), visual_pos=(3, 5, 4)), **TEXT, l_layers=1, x_layers=1,
        r_layers=1, visual_feat_dim=28,
    ),
    "visual_bert": encoder(
        "VisualBertModel", drawn(masked, visual_embeds=(3, 5, 28)), num_hidden_layers=4, visual_embedding_dim=28,
    ),
    "flava": case(
        "FlavaModel", CAPTIONED, text_config=TEXT, image_config=VIT, multimodal_config=TRUNK, projection_dim=40,
        hidden_size=64,
    ),
    "bridgetower": case(
        "BridgeTowerModel", CAPTIONED, hidden_size=64, num_attention_heads=4, num_hidden_layers=2, text_config=TEXT,
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 8, "image_size": 32},
    ),
    "perceiver": case(
        "PerceiverForMaskedLM", masked, num_latents=9, d_latents=48, d_model=64, num_self_attends_per_block=2,
        num_self_attention_heads=4, num_cross_attention_heads=4, qk_channels=32, v_channels=48, vocab_size=VOCAB,
        max_position_embeddings=11,
    ),
}  # fmt: skip

VISIONS: dict[str, Case] = PICTURE_MODELS | SCENE_MODELS | WORD_MODELS
