"""EfficientNet-Lite0 with its ImageNet weights at 80 % and 65 % of its measured latency, without labels or training.

Experiment ``efficientnet_lite0``; cases ``secateur``, ``magnitude_uniform``, ``torch_pruning`` (80 %), and the same
with ``_65``. Latency is that of the exported ONNX file in ONNX Runtime at batch 1 on one thread, all models timed in
one interleaved run. ``secateur`` is structured OBS, allocated by measured effect, refitted by least squares;
``magnitude_uniform`` meets the same latency; Torch-Pruning is brought to secateur's number of parameters. These two get
their batch statistics anew. Nothing is trained.

``agreement`` is how often the top class is the dense model's, ``logit_kl`` the mean divergence from the dense model's
class distribution, both over random crops of 11 photographs; 8 others are calibrated on, and 4 more tell what a cut of
each group costs at the outputs (`benchmarks/_photos.py`).
Crops of one photograph are alike: read differences between cases, which all see the same crops.

    SECATEUR_BENCH_QUICK=1 python benchmarks/efficientnet.py     a smoke run
    python benchmarks/efficientnet.py --seeds 0                  one seed, printed but not written
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

import _models
import _peer
import _photos
import secateur as sc
from _photos import Photos, photos
from _rows import Figure, quick, say, seed_by_seed

EXPERIMENT = "efficientnet_lite0"
SEEDS, BUDGETS = (0, 1, 2), (0.8, 0.65)
TARGET = sc.with_threads(sc.onnxruntime, 1)
LIMITS = sc.Limits(multiple=8, max_sparsity=0.75)  # so few pooled rows would let the head be cut to almost nothing


def ours(model: nn.Module, example: Tensor, given: Photos, fraction: float, seed: int) -> nn.Module:
    """Structured OBS, allocated by measured effect on the logits under measured latency, refitted."""
    data = list(given.calibration.split(32))
    result = sc.prune(
        model,
        example,
        budget=sc.Budget.of_dense(sc.latency(model, example, TARGET), fraction),
        criterion=sc.obs,
        normalize=sc.by_effect(model, [given.sensitivity], sc.kl_logits(1.0)),
        allocation=sc.knapsack,
        batches=data,
        recover=sc.refit(data),
        limits=LIMITS,
        seed=seed,
    )
    return result.model


def magnitude_uniform(model: nn.Module, example: Tensor, data: list[Tensor], fraction: float, seed: int) -> nn.Module:
    """The same fraction of the smallest filters everywhere, at the same measured latency; statistics anew."""
    result = sc.prune(
        model,
        example,
        budget=sc.Budget.of_dense(sc.latency(model, example, TARGET), fraction),
        allocation=sc.uniform,
        recover=sc.recalibrate_bn(data),
        limits=LIMITS,
        seed=seed,
    )
    return result.model


def torch_pruning(model: nn.Module, example: Tensor, data: list[Tensor], parameters: int) -> nn.Module:
    """Torch-Pruning's GroupMagnitudeImportance at the same number of parameters; statistics anew."""
    small = _peer.cut_to(
        model,
        example,
        parameters,
        _peer.importance("GroupMagnitudeImportance"),
        options=lambda copy, ratio: {"ignored_layers": _peer.classifiers(copy)},
    )
    sc.recalibrate_bn(data).run(small, model, None)
    return small.eval()


@torch.inference_mode()
def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """(n, 1000)."""
    return torch.cat([model(x) for x in inputs.split(32)])


def one_seed(seed: int) -> list[Figure]:
    """All the cases of a draw of crops."""
    model, example = _models.efficientnet_lite0()
    given: Photos = photos(32, 8, 22, seed) if quick() else photos(128, 32, 256, seed)
    data = list(given.calibration.split(32))
    dense_parameters = sum(p.numel() for p in model.parameters())
    models, took, budget = {"dense": model}, {"dense": 0.0}, {"dense": 1.0}
    for fraction in BUDGETS:
        tail = "" if fraction == BUDGETS[0] else f"_{round(100 * fraction)}"
        start = time.perf_counter()
        models["secateur" + tail] = ours(model, example, given, fraction, seed)
        took["secateur" + tail] = time.perf_counter() - start
        count = sum(p.numel() for p in models["secateur" + tail].parameters())
        start = time.perf_counter()
        models["magnitude_uniform" + tail] = magnitude_uniform(model, example, data, fraction, seed)
        took["magnitude_uniform" + tail] = time.perf_counter() - start
        start = time.perf_counter()
        models["torch_pruning" + tail] = torch_pruning(model, example, data, count)
        took["torch_pruning" + tail] = time.perf_counter() - start
        budget |= {name + tail: fraction for name in ("secateur", "magnitude_uniform", "torch_pruning")}
    timed = dict(zip(models, sc.measure_models(TARGET, list(models.values()), example), strict=True))
    teacher = logits(model, given.judged)
    figures = [Figure("dense", "latency", 1e3 * timed["dense"].median, "ms", seed)]
    for name, m in list(models.items())[1:]:
        answer = logits(m, given.judged)
        same = (answer.argmax(1) == teacher.argmax(1)).float().mean()
        figures += [
            Figure(name, "agreement", 100 * float(same), "%", seed),
            Figure(name, "logit_kl", float(sc.kl_logits(1.0)(answer, teacher, None)), "nats", seed),
            Figure(name, "latency_ratio", timed[name].median / timed["dense"].median, "", seed),
            Figure(name, "latency_budget", budget[name], "", seed),
            Figure(name, "params_ratio", sum(p.numel() for p in m.parameters()) / dense_parameters, "", seed),
            Figure(name, "seconds", took[name], "s", seed),
        ]
    say(EXPERIMENT, figures)
    return figures


if __name__ == "__main__":
    seed_by_seed(
        EXPERIMENT,
        one_seed,
        SEEDS,
        __doc__,
        sources=(__file__, _photos.__file__, _peer.__file__),
        also=[_peer.DISTRIBUTION],
    )
