"""Reports with made-up numbers: they show the layout of the page and say so on it."""

from __future__ import annotations

import math
import random
from typing import Any

from secateur.types import Report, Row

NOTICE = "Sample page. Every number on it is made up to show the layout; nothing was measured."

_ENCODER = (
    Row("latency median, onnxruntime", "s", 0.0451, 0.0223, 0.02255, True),
    Row("latency p95, onnxruntime", "s", 0.0478, 0.0239),
    Row("latency median, eager", "s", 0.0583, 0.0311),
    Row("parameters", "", 22_713_216.0, 17_983_488.0),
    Row("MACs", "MAC", 1.362e9, 0.681e9),
    Row("bytes on disk", "B", 90.86e6, 71.94e6),
    Row("peak memory", "B", 148.2e6, 121.7e6),
    Row("cosine to dense", "", 1.0, 0.9104, 0.9, True, 0.9051, 0.9158),
    Row("pair correlation", "", 1.0, 0.9432, 0.9, True, 0.9310, 0.9527),
    Row("WordSim-353 Spearman", "", 0.5932, 0.5871, None, None, 0.5088, 0.6541, "scores of human judges"),
    Row("BBC accuracy", "%", 97.2, 96.4, None, None, 95.1, 97.4, "probe trained on the dense model"),
)

_CONVOLUTIONAL = (
    Row("latency median, onnxruntime", "s", 0.01832, 0.00981, 0.00916, False, note="closest reachable"),
    Row("latency p95, onnxruntime", "s", 0.01941, 0.01102),
    Row("parameters", "", 4_652_008.0, 2_105_472.0),
    Row("MACs", "MAC", 385e6, 201e6),
    Row("bytes on disk", "B", 18.61e6, 8.42e6),
    Row("top-1 agreement with dense", "%", 100.0, 78.9, None, None, 76.8, 80.9),
    Row("logit KL from dense", "nats", 0.0, 0.213, None, None, 0.197, 0.231),
)


def encoder() -> Report:
    """A transformer encoder with six layers, heads and neurons halved, that meets its budget."""
    quality = [(1.0, 1.0, 0.593), (0.593, 0.702, 0.493), (0.724, 0.812, 0.541), (0.9104, 0.9432, 0.5871)]
    names = ("cosine to dense", "pair correlation", "WordSim-353 Spearman")
    stages = zip(
        ("dense", "after cut", "after refit", "after distillation"),
        (0.0451, 0.0223, 0.0223, 0.0223),
        strict=True,
    )
    sections: dict[str, Any] = {
        "title": "Sentence encoder, 6 layers",
        "notice": NOTICE,
        "stages": [
            {"name": n, "latency_s": s, "quality": dict(zip(names, q, strict=True)), "seconds": t}
            for (n, s), q, t in zip(stages, quality, (0.0, 3.1, 21.4, 171.0), strict=True)
        ],
        "widths": _encoder_widths(),
        "frozen": _encoder_frozen(),
        "baselines": [
            _baseline("uniform magnitude", 0.501, (0.593, 0.702, 0.493), "same recovery"),
            _baseline("random units", 0.499, (0.412, 0.533, 0.377), "same recovery"),
            _baseline("drop 3 whole layers", 0.507, (0.902, 0.901, 0.611), "same recovery"),
        ],
        "measurements": [
            _timing("onnxruntime", "dense", 0.0451, 0.0478, 0.012, 90_861_000),
            _timing("onnxruntime", "pruned", 0.0223, 0.0239, 0.014, 71_940_000),
            _timing("eager", "dense", 0.0583, 0.0661, 0.021, None),
            _timing("eager", "pruned", 0.0311, 0.0358, 0.024, None),
        ],
        "history": _history(400),
        "parity": [
            {"what": "onnx vs torch, random input", "max_error": 1.9e-6, "limit": 1e-4, "ok": True},
            {"what": "onnx vs torch, real input", "max_error": 2.4e-6, "limit": 1e-4, "ok": True},
        ],
        "made": _made("secateur prune ./encoder --budget latency=50% --data texts.jsonl --out small"),
    }
    return Report(True, 3.1e-13, _ENCODER, sections)


def convolutional(groups: int = 60) -> Report:
    """A convolutional network with many groups that misses its budget."""
    sections: dict[str, Any] = {
        "title": "Convolutional classifier",
        "notice": NOTICE,
        "stages": [
            {
                "name": "dense",
                "latency_s": 0.01832,
                "quality": {"agreement": 1.0, "logit KL": 0.0},
                "seconds": 0.0,
            },
            {
                "name": "after cut",
                "latency_s": 0.00981,
                "quality": {"agreement": 0.114, "logit KL": 4.71},
                "seconds": 2.2,
            },
            {
                "name": "after refit",
                "latency_s": 0.00981,
                "quality": {"agreement": 0.789, "logit KL": 0.213},
                "seconds": 64.0,
            },
        ],
        "widths": _conv_widths(groups),
        "frozen": _conv_frozen(),
        "parity": [{"what": "onnx vs torch, real input", "max_error": 8.8e-6, "limit": 1e-4, "ok": True}],
        "measurements": [
            _timing("onnxruntime", "dense", 0.01832, 0.01941, 0.011, 18_610_000),
            _timing("onnxruntime", "pruned", 0.00981, 0.01102, 0.019, 8_420_000),
        ],
        "made": _made("secateur prune nets:classifier --budget latency=50% --data images/ --out small"),
    }
    return Report(True, 8.4e-12, _CONVOLUTIONAL, sections)


def _baseline(name: str, ratio: float, quality: tuple[float, ...], note: str) -> dict[str, Any]:
    metrics = ("cosine to dense", "pair correlation", "WordSim-353 Spearman")
    return {
        "name": name,
        "latency_ratio": ratio,
        "quality": dict(zip(metrics, quality, strict=True)),
        "note": note,
    }


def _timing(target: str, model: str, median: float, p95: float, spread: float, nbytes: int | None) -> dict[str, Any]:
    shared = {"threads": 1, "batch": 1, "repeats": 200}
    return {
        "target": target,
        "model": model,
        "median_s": median,
        "p95_s": p95,
        "spread": spread,
        "nbytes": nbytes,
        **shared,
    }


def _frozen(name: str, dim: int, size: int, reason: str, module: str, line: str) -> dict[str, Any]:
    return {"name": name, "dim": dim, "size": size, "reason": reason, "module": module, "line": line}


def _encoder_widths() -> list[dict[str, Any]]:
    out = []
    for part, kind, before, kept in (
        ("attention.self", "head", 12, (5, 6, 7, 6, 6, 6)),
        ("intermediate.dense", "neuron", 1536, (512, 640, 704, 704, 672, 608)),
    ):
        for i, after in enumerate(kept):
            module = f"encoder.layer.{i}.{part}"
            out.append(
                {
                    "group": f"{module}.weight",
                    "kind": kind,
                    "module": module,
                    "before": before,
                    "after": after,
                }
            )
    return out


def _conv_widths(groups: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    widths, parts = [], ("_expand_conv", "_depthwise_conv", "_project_conv")
    for i in range(groups):
        before = 8 * rng.choice([4, 12, 18, 30, 60, 84, 144])
        module = f"backbone._blocks.{i // 3}.{parts[i % 3]}"
        after = max(8, 8 * round(before * rng.betavariate(4, 3) / 8))
        widths.append(
            {
                "group": module + ".weight",
                "kind": "channel",
                "module": module,
                "before": before,
                "after": after,
            }
        )
    return widths


def _conv_frozen() -> list[dict[str, Any]]:
    width, code = "residual width: cut only on request", "efficientnet/model.py:97"
    frozen = [
        _frozen(f"backbone._blocks.{i}._bn2.weight", 0, 24 + 8 * i, width, f"backbone._blocks.{i}", code)
        for i in range(16)
    ]
    frozen.append(
        _frozen("backbone._fc.weight", 0, 1000, "output of the model", "backbone._fc", "efficientnet/model.py:211")
    )
    return frozen


def _encoder_frozen() -> list[dict[str, Any]]:
    width = "residual width: cut only on request"
    out = [
        _frozen(
            "embeddings.word_embeddings.weight",
            0,
            30522,
            "index of an embedding: input ids",
            "embeddings",
            "encoder.py:61",
        )
    ]
    for i in range(6):
        for part in ("attention.output.LayerNorm.weight", "output.LayerNorm.weight"):
            out.append(_frozen(f"encoder.layer.{i}.{part}", 0, 384, width, f"encoder.layer.{i}", "encoder.py:318"))
    out.append(_frozen("pooler.dense.weight", 0, 384, "output of the model", "pooler", "encoder.py:402"))
    return out


def _history(n: int) -> dict[str, Any]:
    rng = random.Random(1)
    loss = [0.04 + 0.9 * math.exp(-i / 40) + 0.25 * math.exp(-i / 200) * (1 + 0.2 * rng.random()) for i in range(n)]
    return {"loss": loss, "steps": list(range(n))}


def _made(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "versions": {"secateur": "0.1.0", "torch": "2.6.0", "onnxruntime": "1.20.0", "python": "3.11.7"},
        "seed": 0,
        "machine": {"cpu": "a processor with 2 cores", "cores": 2, "memory": "8 GB", "system": "Linux"},
        "hashes": {"dense model": "sha256:" + "4f9d" * 16, "plan": "sha256:" + "b71c" * 16},
        "date": "2025-01-01",
    }
