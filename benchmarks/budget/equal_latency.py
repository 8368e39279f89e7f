"""Latency-aware, MACs-aware and uniform plans at equal measured latency, before and after the same recovery.

Experiment ``equal_latency``; cases ``MODEL/latency``, ``MODEL/macs``, ``MODEL/uniform`` (ONNX Runtime, three
quarters of the dense latency); metrics ``before`` and ``after`` recovery (larger is better: accuracy in percent, cosine
to the dense model, negated divergence from it or negated log perplexity), ``latency_ratio``; a seed draws calibration
data and training order. All three use the same scores. The MACs-aware plan is solved for MACs, and asked for fewer
until its measured latency is the same. A plan that is refused has no rows. No plan is held to multiples: which widths
are slow is for latency to know.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _subjects import SUBJECTS, TARGETS, Subject

import secateur as sc
from _rows import Figure, kept

TARGET, FRACTION, SEEDS = "onnxruntime", 0.75, (0, 1, 2)


def by_macs(cost: sc.Cost) -> sc.Cost:
    """The same measured latency, predicted as if time went with multiply-accumulates."""

    def of(groups: sc.Groups, keep: Any) -> float:
        return cost.dense * groups.macs(keep) / groups.macs(groups.all_kept())

    return dataclasses.replace(cost, of=of)


def one_seed(name: str, subject: Subject, cost: sc.Cost, seed: int) -> list[Figure]:
    """All three plans of a seed."""
    data = subject.batches(seed)
    seen = data[:2] if subject.sensitivity is None else subject.sensitivity(seed)
    ways = {"latency": (cost, sc.knapsack), "macs": (by_macs(cost), sc.knapsack), "uniform": (cost, sc.uniform)}
    before, after, models = {}, {}, [subject.model]
    for way, (its, allocation) in ways.items():
        try:
            result = sc.prune(
                subject.model,
                subject.example,
                budget=sc.Budget.of_dense(its, FRACTION),
                criterion=sc.obs,
                normalize=sc.by_effect(subject.model, seen, subject.loss),
                allocation=allocation,
                batches=data,
                limits=dataclasses.replace(subject.limits, multiple=1, by_kind={}),
                seed=seed,
            )
        except sc.BudgetError as error:
            print(f"{name}/{way} seed {seed}: {error}", flush=True)
            continue
        before[way] = subject.judge(result.model)
        for stage in subject.recover(data, seed):
            stage.run(result.model, subject.model, result.plan)
        after[way] = subject.judge(result.model.eval())
        models.append(result.model)
        print(f"{name}/{way} seed {seed}: {before[way]:.4f} -> {after[way]:.4f}", flush=True)
    dense, *cut = sc.measure_models(TARGETS[TARGET], models, subject.example, 2 * subject.repeats)
    figures = []
    for way, timed in zip(after, cut, strict=True):
        figures += [
            Figure(f"{name}/{way}", "before", before[way], subject.unit, seed),
            Figure(f"{name}/{way}", "after", after[way], subject.unit, seed),
            Figure(f"{name}/{way}", "latency_ratio", timed.median / dense.median, "", seed),
        ]
    return figures


def part(name: str, seeds: tuple[int, ...]) -> list[Figure]:
    """The figures of one model, those of each seed kept when it is done."""
    subject = SUBJECTS[name]()
    here = Path(__file__).resolve()
    found: list[Figure] = []
    for seed in seeds:

        def make(seed: int = seed) -> list[Figure]:
            cost = sc.latency(subject.model, subject.example, TARGETS[TARGET], repeats=subject.repeats)  # remembered
            return one_seed(name, subject, cost, seed)

        found += kept(f"budget-equal_latency-{name}-{seed}", make, here, here.with_name("_subjects.py"))
    return found


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a model."""
    names = [m for m in SUBJECTS if not (quick and m == "smollm2_135m")]
    return {name: functools.partial(part, name, SEEDS[:1] if quick else SEEDS) for name in names}
