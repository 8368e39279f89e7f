"""A convolutional network on Fashion-MNIST at half and at a quarter of its measured latency, beside Torch-Pruning.

Experiment ``fashion_mnist``; cases ``dense``, ``secateur``, ``torch_pruning`` (half the latency), ``secateur_25``,
``torch_pruning_25`` (a quarter). Latency is that of the exported ONNX file in ONNX Runtime at batch 32 on one thread;
all the models of a seed are timed in one interleaved run. Each cut model is recovered alike: batch statistics anew,
then ``EPOCHS`` epochs of distillation with labels, same data, same order, same seed. secateur's plan comes first;
Torch-Pruning (GroupMagnitudeImportance and BasePruner with ``round_to=8``, as its README has it) is then brought to
the same number of parameters. ``torch_pruning_taylor`` is its GroupTaylorImportance with global ranking.

Two variants' test accuracies were seen before the recipe was settled.

    SECATEUR_BENCH_QUICK=1 python benchmarks/fashion_mnist.py     a smoke run
    python benchmarks/fashion_mnist.py --seeds 0                  one seed, printed but not written
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import _fashion
import _peer
import secateur as sc
from _fashion import Data
from _rows import Figure, quick, say, seed_by_seed

EXPERIMENT = "fashion_mnist"
SEEDS, BUDGETS = (0, 1, 2), (0.5, 0.25)
BATCH, EPOCHS, RATE = 32, 2, 2e-3
TARGET = sc.with_threads(sc.onnxruntime, 1)
RIVALS: dict[str, dict[str, Any]] = {
    "torch_pruning": {"rank": "GroupMagnitudeImportance", "options": {}},
    "torch_pruning_taylor": {"rank": "GroupTaylorImportance", "options": {"global_pruning": True}},
}


def recovered(small: nn.Module, model: nn.Module, given: Data, seed: int) -> nn.Module:
    """The same for every case."""
    sc.recalibrate_bn([x for x, _ in calibration(given)]).run(small, model, None)
    steps = max(EPOCHS * (len(given.train.x) // 128), 1) if not quick() else 2
    batches = _fashion.epochs_of(given.train, 128, seed + 100)
    taught = sc.distill(batches, steps=steps, loss=teacher_and_labels, lr=RATE, batch_norm=True, seed=seed)
    taught.run(small, model, None)
    return small.eval()


def teacher_and_labels(student: Tensor, teacher: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Softened Kullback-Leibler divergence from the dense model, and cross-entropy."""
    return sc.kl_logits(2.0)(student, teacher, batch) + F.cross_entropy(student, batch[1])


def calibration(given: Data) -> list[tuple[Tensor, Tensor]]:
    """2,048 training images with labels, as they are."""
    n = 512 if quick() else 2_048
    return list(zip(given.train.x[:n].split(256), given.train.y[:n].split(256), strict=True))


def ours(model: nn.Module, given: Data, fraction: float, seed: int) -> nn.Module:
    """Structured OBS, allocated by measured effect on the logits under measured latency, refitted."""
    example = torch.zeros(BATCH, 1, 28, 28)
    images = [x for x, _ in calibration(given)]
    result = sc.prune(
        model,
        example,
        budget=sc.Budget.of_dense(sc.latency(model, example, TARGET), fraction),
        criterion=sc.obs,
        normalize=sc.by_effect(model, images[:4], sc.kl_logits(1.0)),
        allocation=sc.knapsack,
        batches=images,
        recover=sc.refit(images),
        limits=sc.Limits(multiple=8),
        seed=seed,
    )
    return result.model


def theirs(model: nn.Module, given: Data, rank: str, options: dict[str, Any], parameters: int) -> nn.Module:
    """Torch-Pruning at the same number of parameters."""

    def loss(small: nn.Module) -> Tensor:
        return torch.stack([F.cross_entropy(small(x), y) for x, y in calibration(given)]).sum()

    return _peer.cut_to(
        model,
        torch.zeros(1, 1, 28, 28),
        parameters,
        _peer.importance(rank),
        loss=loss if "Taylor" in rank else None,
        options=lambda small, ratio: {"ignored_layers": _peer.classifiers(small), **options},
    )


def one_seed(seed: int) -> list[Figure]:
    """All the cases of a seed."""
    given = _fashion.data()
    model, seconds = _fashion.dense(seed, given)
    dense_parameters = sum(p.numel() for p in model.parameters())
    models, took, budget = {"dense": model}, {"dense": seconds}, {"dense": 1.0}
    for fraction in BUDGETS:
        tail = "" if fraction == BUDGETS[0] else f"_{round(100 * fraction)}"
        start = time.perf_counter()
        cut = ours(model, given, fraction, seed)
        parameters = sum(p.numel() for p in cut.parameters())
        made = {"secateur": (cut, time.perf_counter() - start)}
        for name, rival in RIVALS.items():
            start = time.perf_counter()
            made[name] = theirs(model, given, **rival, parameters=parameters), time.perf_counter() - start
        for name, (small, before) in made.items():
            start = time.perf_counter()
            models[name + tail] = recovered(small, model, given, seed)
            took[name + tail] = before + time.perf_counter() - start
            budget[name + tail] = fraction
    timed = dict(
        zip(models, sc.measure_models(TARGET, list(models.values()), torch.zeros(BATCH, 1, 28, 28)), strict=True)
    )
    reached = {name: _fashion.accuracy(m, given.test) for name, m in models.items()}
    figures = []
    for name, m in models.items():
        count = sum(p.numel() for p in m.parameters())
        figures += [
            Figure(name, "accuracy", reached[name], "%", seed),
            Figure(name, "accuracy_delta_points", reached[name] - reached["dense"], "points", seed),
            Figure(name, "latency_ratio", timed[name].median / timed["dense"].median, "", seed),
            Figure(name, "latency_budget", budget[name], "", seed),
            Figure(name, "params_ratio", count / dense_parameters, "", seed),
            Figure(name, "seconds", took[name], "s", seed),
        ]
    figures.append(Figure("dense", "latency", 1e3 * timed["dense"].median, "ms", seed))
    say(EXPERIMENT, figures)
    return figures


if __name__ == "__main__":
    seed_by_seed(
        EXPERIMENT,
        one_seed,
        SEEDS,
        __doc__,
        sources=(__file__, _fashion.__file__, _peer.__file__),
        also=[_peer.DISTRIBUTION],
    )
