"""Models of timm: the smallest of nearly every family, a hundred classes, with random weights."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torchvision_ops  # noqa: F401  torchvision, which timm imports, may not import without it
from case import Case
from torch import Tensor
from torchvision_models import case

# isort: split
import timm

# convolutional networks and others that take images of any size, by the image's side
FREE = {
    64: """
        resnet18d seresnext26t_32x4d ecaresnet26t resnetblur18 resnet50_gn
        resnetv2_18 resnetv2_50x1_bit res2net50_14w_8s
        res2next50 resnest14d skresnet18 legacy_seresnet18
        densenetblur121d dla34 dla60_res2net dpn48b
        hrnet_w18_small nasnetalarge legacy_xception xception41
        ese_vovnet19b_slim_dw selecsls42 tresnet_m regnetx_002 regnety_002 regnetz_005
        nf_regnet_b0 nf_resnet26 eca_nfnet_l0 dm_nfnet_f0
        gernet_s repvgg_a0 mobileone_s0 resnet33ts gcresnet33ts
        regnetz_b16 cspresnet50 cspdarknet53 darknet17
        cs3darknet_s cpubone_nano csatv2
        efficientnet_b0 efficientnet_b0_gn efficientnet_cc_b0_4e
        efficientnet_lite0 tf_efficientnetv2_b0
        fbnetc_100 semnasnet_050
        mobilenetv1_100 mobilenetv2_035 mixnet_s tinynet_e lcnet_035
        mobilenetv3_small_050 mobilenetv4_conv_small_035
        mobilenetv4_hybrid_medium_075 hardcorenas_a ghostnet_050
        ghostnetv2_100 ghostnetv3_050 rexnet_100 hgnet_tiny hgnetv2_b0
        repvit_m0_9 repghostnet_050 starnet_s050 shvit_s1 fasternet_t0 efficientvit_b0
        efficientvim_m1 lowformer_b0 iformer_t rdnet_tiny mambaout_femto inception_next_atto convnext_atto
        convnextv2_atto convmixer_1024_20_ks9_p14 poolformer_s12
        caformer_s18 focalnet_tiny_srf fastvit_t8 fastvit_sa12
        edgenext_xx_small mobilevit_xxs mobilevitv2_050 nextvit_small davit_tiny pvt_v2_b0
        swiftformer_xs sequencer2d_s tiny_vit_5m_224
    """,
    96: "inception_v3 inception_resnet_v2",
    128: "sam2_hiera_tiny hieradet_small",
    256: "bat_resnext26ts",
}
# those that are built for one size
SIZED = {
    56: "eva02_tiny_patch14_224 vit_small_patch14_reg4_dinov2 aimv2_large_patch14_224 deepseek_vit_412m",
    64: """
        vit_tiny_patch16_224 vit_pwee_patch16_reg1_gap_256
        vit_base_patch16_siglip_224
        beit3_base_patch16_224 flexivit_small
        vit_small_patch16_rope_224 vit_tiny_patch16_dinov3_qkvb
        vit_small_plus_patch16_dinov3 vit_pe_core_tiny_patch16_384
        vit_base_patch16_sapiens2 qwen3_vit_88m
        vit_tiny_r_s16_p8_224
        vit_relpos_small_patch16_224
        samvit_base_patch16_224 naflexvit_base_patch16_gap
        deit_tiny_distilled_patch16_224 deit3_small_patch16_224
        beit_base_patch16_224 cait_xxs24_224 convit_tiny coatnet_pico_rw_224
        maxvit_tiny_tf_224 xcit_nano_12_p16_224
        tnt_s_patch16_224 pit_ti_224 levit_128s
        visformer_tiny twins_pcpvt_small twins_svt_small swin_tiny_patch4_window7_224
        swinv2_tiny_window8_256 swinv2_cr_tiny_224 nest_tiny gcvit_xxtiny mvitv2_tiny
        hiera_tiny_224 volo_d1_224 mixer_s32_224 resmlp_12_224 gmlp_ti16_224
        vitamin_small_224 coat_lite_tiny efficientformerv2_s0 efficientvit_m0 resnet50_clip
    """,
    128: """
        maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256
        botnet26t_256 lambda_resnet26t

    """,
    224: "efficientformer_l1",
    240: "crossvit_tiny_240 crossvit_9_dagger_240",
    256: "halonet26t eca_halonext26ts",
}
# families without a small member are cut short: fewer blocks, or narrower ones
FEW = """
    vit_base_patch16_siglip_224 beit3_base_patch16_224

    beit_base_patch16_224 naflexvit_base_patch16_gap
    qwen3_vit_88m
"""
SHORTER: dict[str, dict[str, Any]] = {name: {"depth": 4} for name in FEW.split()} | {
    "aimv2_large_patch14_224": {"depth": 2},
    "deepseek_vit_412m": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 4, "global_attn_indexes": (1, 3)},
    "vit_base_patch16_sapiens2": {"depth": 4, "num_kv_heads": (12, 6, 6, 12)},
    "nasnetalarge": {"stem_size": 32, "channel_multiplier": 2, "num_features": 1056},
    "dm_nfnet_f0": {"depths": (1, 1, 2, 1)},
}


def _image(side: int) -> Tensor:
    return torch.randn(1, 3, side, side)


def _case(name: str, side: int, **kwargs: Any) -> Case:
    make = functools.partial(timm.create_model, name, num_classes=100, **kwargs, **SHORTER.get(name, {}))
    return case(make, functools.partial(_image, side))


CASES: dict[str, Case] = {name: _case(name, side) for side, names in FREE.items() for name in names.split()} | {
    name: _case(name, side, img_size=side) for side, names in SIZED.items() for name in names.split()
}
