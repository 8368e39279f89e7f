"""Models of transformers that hear, and its models of time series."""

from __future__ import annotations

from typing import Any

import torch
from case import Case
from torch import Tensor
from transformers_text import BODY, IDS, PAIR, TEXT, TRUNK, VOCAB, case, drawn, tokens, two

WAVES = {
    **BODY, "conv_dim": [24, 32, 40], "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "layerdrop": 0.0,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False,
}  # fmt: skip


def waves(kind: str, **sizes: Any) -> Case:
    return case(kind, drawn(input_values=(2, 800)), **{**WAVES, **sizes})


def started() -> dict[str, Tensor]:
    return {"decoder_input_ids": tokens(2, 7)}


def codes() -> dict[str, Tensor]:
    """Four books of codes a row."""
    return {"input_ids": tokens(3 * 4, 7)}


def short() -> dict[str, Tensor]:
    return {"is_longer": torch.zeros(2, 1, dtype=torch.bool)}


SOUND_MODELS = {
    "wav2vec2": waves("Wav2Vec2ForCTC"),
    "wav2vec2_conformer": waves(
        "Wav2Vec2ConformerForCTC", conv_depthwise_kernel_size=5, position_embeddings_type="rotary",
    ),
    "hubert": waves("HubertForCTC", do_stable_layer_norm=True, feat_extract_norm="layer"),
    "wavlm": waves("WavLMForSequenceClassification", num_labels=7, classifier_proj_size=40),
    "unispeech": waves("UniSpeechForCTC", num_ctc_classes=20),
    "unispeech_sat": waves(
        "UniSpeechSatForXVector", tdnn_dim=[40, 48], tdnn_kernel=[3, 1], tdnn_dilation=[1, 1], xvector_output_dim=20,
    ),
    "sew": waves("SEWForCTC", squeeze_factor=2),
    "sew_d": waves("SEWDForCTC", squeeze_factor=2, position_buckets=16, max_position_embeddings=48),
    "data2vec_audio": waves("Data2VecAudioForCTC", conv_pos_kernel_size=5),
    "wav2vec2_bert": case(
        "Wav2Vec2BertForCTC", drawn(input_features=(2, 20, 28)), **BODY, feature_projection_input_dim=28,
        conv_depthwise_kernel_size=5, left_max_position_embeddings=6, right_max_position_embeddings=3,
    ),
    "whisper": case(
        "WhisperForConditionalGeneration", drawn(started, input_features=(2, 20, 40)), **PAIR, num_mel_bins=20,
        max_source_positions=20, max_target_positions=16,
    ),
    "speech_to_text": case(
        "Speech2TextForConditionalGeneration", drawn(started, input_features=(2, 40, 20)), **PAIR,
        input_feat_per_channel=20, conv_channels=56, max_source_positions=40, max_target_positions=16,
    ),
    "speecht5": case(
        "SpeechT5ForSpeechToText", drawn(started, input_values=(2, 800)), **{**WAVES, **PAIR}, max_speech_positions=48,
        max_text_positions=32, encoder_max_relative_position=10,
    ),
    "moonshine": case(
        "MoonshineForConditionalGeneration", drawn(started, input_values=(2, 4000)), vocab_size=VOCAB, hidden_size=64,
        intermediate_size=144, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2, encoder_num_attention_heads=4,
        decoder_num_attention_heads=4, encoder_num_key_value_heads=4, decoder_num_key_value_heads=4, **IDS,
    ),
    "audio_spectrogram_transformer": case(
        "ASTForAudioClassification", drawn(input_values=(2, 24, 20)), **TRUNK, num_labels=7, patch_size=8,
        max_length=24, num_mel_bins=20, frequency_stride=6, time_stride=6,
    ),
    "clap": case(
        "ClapModel", drawn(two, short, input_features=(2, 1, 40, 32)), text_config={**TEXT, "projection_dim": 40},
        projection_dim=40, audio_config={"window_size": 4, "num_mel_bins": 32, "spec_size": 64, "hidden_size": 96,
        "depths": [1, 2, 1], "num_attention_heads": [2, 4, 4], "patch_embeds_hidden_size": 24, "num_hidden_layers": 3,
        "projection_dim": 40},
    ),
    "encodec": case(
        "EncodecModel", drawn(input_values=(1, 1, 320)), num_filters=8, upsampling_ratios=[4, 2], hidden_size=40,
        codebook_dim=40, codebook_size=32, num_lstm_layers=1, target_bandwidths=[48.0],
    ),
    "dac": case(
        "DacModel", drawn(input_values=(1, 1, 320)), encoder_hidden_size=8, downsampling_ratios=[2, 4],
        decoder_hidden_size=64, n_codebooks=3, codebook_size=32,
    ),
    "mimi": case(
        "MimiModel", drawn(input_values=(1, 1, 640)), hidden_size=64, num_filters=8, upsampling_ratios=[4, 2],
        codebook_size=32, codebook_dim=40, vector_quantization_hidden_dimension=40, num_quantizers=3,
        upsample_groups=64, num_hidden_layers=1, intermediate_size=144, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16,
    ),
    "univnet": case(
        "UnivNetModel", drawn(input_features=(1, 12, 20), noise_sequence=(1, 12, 16)), initializer_range=0.1,
        model_in_channels=16, model_hidden_channels=12, num_mel_bins=20, kernel_predictor_hidden_channels=16,
        resblock_stride_sizes=[4, 2], resblock_kernel_sizes=[3, 3], resblock_dilation_sizes=[[1, 3], [1, 3]],
    ),
    "speecht5_hifigan": case(
        "SpeechT5HifiGan", drawn(spectrogram=(12, 20)), initializer_range=0.1, model_in_dim=20,
        upsample_initial_channel=48, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3], [1, 3]],
    ),
    "parakeet": case(
        "ParakeetEncoder", drawn(input_features=(2, 40, 24)), hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=144, conv_kernel_size=5, subsampling_conv_channels=16, num_mel_bins=24,
        max_position_embeddings=48,
    ),
    "musicgen": case(
        "MusicgenForCausalLM", drawn(codes, encoder_hidden_states=(3, 9, 64)), vocab_size=VOCAB, hidden_size=64,
        num_hidden_layers=6, num_attention_heads=4, ffn_dim=144, max_position_embeddings=48,
    ),
}  # fmt: skip


def observed() -> dict[str, Tensor]:
    return {"past_observed_mask": torch.ones(3, 15)}


def forecast() -> dict[str, Tensor]:
    zeros = {"past_values_padding": torch.zeros(2, 24), "freq": torch.zeros(2, 1).long()}
    return {"past_values": torch.randn(2, 24)} | zeros


def steps() -> dict[str, Tensor]:
    return {"timesteps": torch.arange(5).repeat(2, 1), "attention_mask": torch.ones(2, 5)}


SERIES = drawn(
    observed, past_values=(3, 15), past_time_features=(3, 15, 2), future_values=(3, 6), future_time_features=(3, 6, 2)
)
PATCHES = {"num_input_channels": 3, "context_length": 24, "patch_length": 4, "patch_stride": 4, "d_model": 64}
FORECAST = {
    "prediction_length": 6, "context_length": 12, "lags_sequence": [1, 2, 3], "num_time_features": 2, "d_model": 64,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 144, "decoder_ffn_dim": 112,
}  # fmt: skip
SERIES_MODELS = {
    "patchtst": case(
        "PatchTSTForPrediction", drawn(past_values=(2, 24, 3)), **PATCHES, num_hidden_layers=2, num_attention_heads=4,
        ffn_dim=144, prediction_length=6, distribution_output="normal", loss="mse",
    ),
    "patchtsmixer": case(
        "PatchTSMixerForPrediction", drawn(past_values=(2, 24, 3)), **PATCHES, num_layers=2, expansion_factor=2,
        prediction_length=5, self_attn=True, self_attn_heads=4, mode="mix_channel",
    ),
    "time_series_transformer": case("TimeSeriesTransformerModel", SERIES, **FORECAST),
    "autoformer": case("AutoformerModel", SERIES, **FORECAST, label_length=4, moving_average=5),
    "timesfm": case(
        "TimesFmModel", forecast, patch_length=8, context_length=24, horizon_length=6, num_hidden_layers=2,
        hidden_size=64, intermediate_size=144, head_dim=16, num_attention_heads=4,
    ),
    "decision_transformer": case(
        "DecisionTransformerModel", drawn(steps, states=(2, 5, 17), actions=(2, 5, 4), rewards=(2, 5, 1),
        returns_to_go=(2, 5, 1)), hidden_size=64, n_layer=2, n_head=4, n_inner=144, n_positions=48, max_ep_len=20,
    ),
}  # fmt: skip

AUDIOS: dict[str, Case] = SOUND_MODELS | SERIES_MODELS
