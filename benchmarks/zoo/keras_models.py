"""Models of Keras 3 on its torch backend: its applications, and nets written with its layers."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

from collections.abc import Callable
from typing import Any

import keras
import torch
from case import Case
from keras import layers
from own_state import lived_in
from torch import Tensor, nn


def application(name: str, side: int, **kwargs: Any) -> Case:
    """A net of ``keras.applications`` with ten classes, at small pictures; Keras's default layout, channels last."""

    def build() -> nn.Module:
        made = getattr(keras.applications, name)
        return made(weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None, **kwargs)

    return case(build, lambda: torch.randn(2, side, side, 3))


def case(build: Callable[[], nn.Module], example: Callable[[], Any]) -> Case:
    """A case whose weights and names are the same at every call: Keras draws from Python's generator and counts."""

    def seeded() -> nn.Module:
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        return lived_in(build())

    return Case(seeded, example)


def pictures() -> Tensor:
    return torch.randn(2, 32, 32, 3)


def sequential_cnn() -> nn.Module:
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Rescaling(0.5, offset=0.1),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )


def functional_resnet() -> nn.Module:
    """Residual blocks by the functional interface, with squeeze and excitation."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for width, stride in ((32, 1), (64, 2), (64, 1), (128, 2)):
        shortcut = x
        y = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
        gate = layers.Dense(width, activation="sigmoid")(layers.Dense(width // 4, activation="relu")(gate))
        y = layers.Multiply()([y, gate])
        if stride != 1 or shortcut.shape[-1] != width:
            shortcut = layers.Conv2D(width, 1, strides=stride, use_bias=False)(shortcut)
        x = layers.ReLU()(layers.Add()([y, shortcut]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def unet() -> nn.Module:
    inputs = keras.Input((32, 32, 3))
    x, skips = inputs, []
    for width in (32, 64):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(128, 3, padding="same", activation="relu")(x)
    for width in (64, 32):
        x = layers.Conv2DTranspose(width, 2, strides=2, padding="same")(x)
        x = layers.Concatenate()([x, skips.pop()])
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def dense_mlp() -> nn.Module:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(256, use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.Dense(256, activation="swish"),
            layers.LayerNormalization(),
            layers.Dense(128, activation="tanh"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def tokens() -> Tensor:
    return torch.randint(1, 1000, (2, 12))


def lstm_text() -> nn.Module:
    return keras.Sequential(
        [
            keras.Input((12,), dtype="int64"),
            layers.Embedding(1000, 64),
            layers.LSTM(96, return_sequences=True),
            layers.LSTM(64),
            layers.Dense(32, activation="relu"),
            layers.Dense(4),
        ]
    )


def bidirectional_gru_text() -> nn.Module:
    return keras.Sequential(
        [
            keras.Input((12,), dtype="int64"),
            layers.Embedding(1000, 64),
            layers.Bidirectional(layers.GRU(64, return_sequences=True)),
            layers.GlobalMaxPooling1D(),
            layers.Dense(64, activation="relu"),
            layers.Dense(4),
        ]
    )


def transformer_text() -> nn.Module:
    """Two encoder blocks around ``MultiHeadAttention``."""
    inputs = keras.Input((12,), dtype="int64")
    x = layers.Embedding(1000, 64)(inputs)
    for _ in range(2):
        attended = layers.MultiHeadAttention(num_heads=4, key_dim=16, dropout=0.1)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, attended]))
        y = layers.Dense(64)(layers.Dense(128, activation="relu")(x))
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(4)(x))


@keras.saving.register_keras_serializable("zoo")
class Gated(keras.Model):
    """A subclassed model: two branches of dense layers, one the gate of the other."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.value = layers.Dense(width, activation="relu")
        self.gate = layers.Dense(width, activation="sigmoid")
        self.norm = layers.LayerNormalization()
        self.out = layers.Dense(10)

    def call(self, x: Tensor) -> Tensor:
        """Ten scores of each row."""
        return self.out(self.norm(self.value(x) * self.gate(x)))


def rows() -> Tensor:
    return torch.randn(2, 64)


CASES: dict[str, Case] = {
    "mobilenet_v2": application("MobileNetV2", 64, alpha=0.5),
    "mobilenet_v3_small": application("MobileNetV3Small", 64),
    "efficientnet_b0": application("EfficientNetB0", 64),
    "resnet50": application("ResNet50", 64),
    "densenet121": application("DenseNet121", 64),
    "xception": application("Xception", 80),
    "convnext_tiny": application("ConvNeXtTiny", 64),
    "sequential_cnn": case(sequential_cnn, pictures),
    "functional_resnet": case(functional_resnet, pictures),
    "unet": case(unet, pictures),
    "dense_mlp": case(dense_mlp, rows),
    "lstm_text": case(lstm_text, tokens),
    "bidirectional_gru_text": case(bidirectional_gru_text, tokens),
    "transformer_text": case(transformer_text, tokens),
}
