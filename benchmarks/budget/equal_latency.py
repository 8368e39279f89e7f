"""Latency-aware, MACs-aware and uniform plans at equal measured latency, before and after the same recovery.

Experiment ``equal_latency``; cases ``MODEL/onnxruntime/SHARE%/latency``, ``.../macs`` and ``.../uniform``, the share of
the dense latency being the model's own in `_subjects`; metrics ``before`` and ``after`` recovery (larger is better:
accuracy in percent, cosine to the dense model, negated divergence from it or negated log perplexity),
``latency_ratio``; a seed draws calibration data and training order. The first case has ``after_over_macs`` and the
like too, differences of the same seed, and ``..._ci95``, half of Student's 95 % interval of their mean. All three use
the same scores. Each is asked for more or less until its measured latency is within half a percent of the share, and
the nearest of six is taken: quality changes with latency, and a percent would pass for a lead. The MACs-aware plan is
solved as if time went with MACs. A plan that cannot be had has no rows. No plan is held to multiples: which widths are
slow is for latency to know. The shares, and the learning rates of recovery, were chosen with figures of seed 0 in view,
those of all three plans.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _subjects import SUBJECTS, TARGETS, Subject, percent
from scipy import stats
from torch import nn

import secateur as sc
from _rows import Figure, kept
from secateur.choose.rank import Allocation

TARGET, SEEDS = "onnxruntime", (0, 1, 2)
ATTEMPTS, NEAR = 6, 0.005


def by_macs(cost: sc.Cost) -> sc.Cost:
    """The same measured latency, predicted as if time went with multiply-accumulates."""

    def of(groups: sc.Groups, keep: Any) -> float:
        return cost.dense * groups.macs(keep) / groups.macs(groups.all_kept())

    return dataclasses.replace(cost, of=of)


def scores_of(subject: Subject, data: list[Any], seed: int) -> sc.Scores:
    """What all plans of a seed choose by."""
    seen = data[:2] if subject.sensitivity is None else subject.sensitivity(seed)
    groups = sc.couple(sc.trace(subject.model, subject.example), ignore=subject.ignore)
    scores = sc.score(subject.model, groups, sc.obs, sc.calibrate(subject.model, data, sc.obs, groups))
    return sc.by_effect(subject.model, seen, subject.loss)(scores)


def nearest(
    subject: Subject, scores: sc.Scores, cost: sc.Cost, allocation: Allocation
) -> tuple[nn.Module, sc.Plan] | None:
    """The cut model whose measured latency is nearest the share, and its plan; None where none can be had."""
    assert cost.measured is not None
    limits = dataclasses.replace(subject.limits, multiple=1, by_kind={})
    aim, best, found = subject.share, math.inf, None
    for _ in range(ATTEMPTS):
        try:
            plan = sc.allocate(scores, sc.Budget.of_dense(cost, aim), allocation, limits)
        except sc.BudgetError as error:
            print(error, flush=True)
            break
        small = sc.apply(plan, subject.model)
        share = cost.measured(small, True) / cost.dense
        off = abs(share / subject.share - 1)
        if off < best:
            best, found = off, (small, plan)
        if off <= NEAR:
            break
        aim *= subject.share / share
    return found


def one_seed(name: str, subject: Subject, cost: sc.Cost, seed: int) -> list[Figure]:
    """All three plans of a seed."""
    torch.manual_seed(seed)
    data = subject.batches(seed)
    scores = scores_of(subject, data, seed)
    ways = {"latency": (cost, sc.knapsack), "macs": (by_macs(cost), sc.knapsack), "uniform": (cost, sc.uniform)}
    before, after, models = {}, {}, [subject.model]
    for way, (its, allocation) in ways.items():
        found = nearest(subject, scores, its, allocation)
        if found is None:
            continue
        small, plan = found
        before[way] = subject.judge(small)
        for stage in subject.recover(data, seed):
            stage.run(small, subject.model, plan)
        after[way] = subject.judge(small.eval())
        models.append(small)
        print(f"{name}/{way} seed {seed}: {before[way]:.4f} -> {after[way]:.4f}", flush=True)
    dense, *cut = sc.measure_models(TARGETS[TARGET], models, subject.example, 2 * subject.repeats)
    figures = []
    for way, timed in zip(after, cut, strict=True):
        case = case_of(name, subject, way)
        figures += [
            Figure(case, "before", before[way], subject.unit, seed),
            Figure(case, "after", after[way], subject.unit, seed),
            Figure(case, "latency_ratio", timed.median / dense.median, "", seed),
        ]
    return figures


def case_of(name: str, subject: Subject, way: str) -> str:
    """Model, target, budget, and how the plan was solved."""
    return f"{name}/{TARGET}/{percent(subject.share)}/{way}"


def leads(name: str, subject: Subject, found: Sequence[Figure]) -> list[Figure]:
    """How far the latency-aware plan is ahead of the others, seed by seed, and how sure their mean is."""
    value = {(f.case, f.metric, f.seed): f.value for f in found}
    mine = case_of(name, subject, "latency")
    seeds = [f.seed for f in found if f.case == mine and f.metric == "after"]
    out = []
    for other, metric in itertools.product(("macs", "uniform"), ("before", "after")):
        theirs = case_of(name, subject, other)
        both = [s for s in seeds if (theirs, metric, s) in value]
        ahead = [value[mine, metric, s] - value[theirs, metric, s] for s in both]
        over = f"{metric}_over_{other}"
        out += [Figure(mine, over, v, subject.unit, s) for v, s in zip(ahead, both, strict=True)]
        if len(ahead) > 1:
            half = stats.t.ppf(0.975, len(ahead) - 1) * statistics.stdev(ahead) / len(ahead) ** 0.5
            out.append(Figure(mine, f"{over}_ci95", float(half), subject.unit))
    return out


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
    return found + leads(name, subject, found)


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a model."""
    names = [m for m in SUBJECTS if not (quick and m == "smollm2_135m")]
    return {name: functools.partial(part, name, SEEDS[:1] if quick else SEEDS) for name in names}
