"""Latency-aware, MACs-aware and uniform plans at equal measured latency, before and after the same recovery.

Experiment ``equal_latency``; cases ``MODEL/onnxruntime/SHARE%/latency``, ``.../measured``, ``.../macs`` and
``.../uniform``, the share of the dense latency being the model's own in `_subjects`; metrics ``before`` and ``after``
recovery (larger is better: accuracy in percent, cosine to the dense model, negated divergence from it or negated log
perplexity), ``latency_ratio``; a seed draws calibration data and training order. The first case has
``after_over_macs`` and the like too, differences of the same seed, and ``..._ci95``, half of Student's 95 % interval of
their mean.

All rank the units of a layer alike (structured OBS). How much goes where is solved for latency from scores that are
scaled by what half of each group costs at the outputs (``latency``) or from errors measured there with four parts of
each group cut (``measured``); for ``macs`` from the first, as if time went with multiply-accumulates. Each is asked for
more or less, up to eight times, until its measured latency is within half a percent of the share: quality changes with
latency, and a percent would pass for a lead. Of one that jumps over the share the two nearest plans, one on either
side, are recovered and timed, and the figures are read off the line between them at the share; where the two stood is
in ``latency_ratio_below`` and ``latency_ratio_above``. A plan that cannot be had has no rows. No plan is held to
multiples: which widths are slow is for latency to know.

The shares, and the learning rates of recovery, were chosen with figures of seed 0 in view, those of all plans; the line
between two plans with three seeds in view, in which uniform ones stood beside the share.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _subjects import SUBJECTS, TARGETS, Subject, percent
from scipy import stats
from torch import nn

import secateur as sc
from _rows import Figure, kept
from secateur.choose.rank import Allocation

TARGET = "onnxruntime"
ATTEMPTS, NEAR, SAME = 8, 0.005, 0.001


def by_macs(cost: sc.Cost) -> sc.Cost:
    """The same measured latency, predicted as if time went with multiply-accumulates."""

    def of(groups: sc.Groups, keep: Any) -> float:
        return cost.dense * groups.macs(keep) / groups.macs(groups.all_kept())

    return dataclasses.replace(cost, of=of)


def ways_of(
    subject: Subject, data: list[Any], seed: int, cost: sc.Cost
) -> dict[str, tuple[sc.Scores, sc.Cost, Allocation]]:
    """What the plans of a seed choose by."""
    seen = data[:2] if subject.sensitivity is None else subject.sensitivity(seed)
    groups = sc.couple(sc.trace(subject.model, subject.example), ignore=subject.ignore)
    scores = sc.score(subject.model, groups, sc.obs, sc.calibrate(subject.model, data, sc.obs, groups))
    scaled = sc.by_effect(subject.model, seen, subject.loss)(scores)
    return {
        "latency": (scaled, cost, sc.knapsack),
        "measured": (scores, cost, sc.measured(subject.model, seen, subject.loss)),
        "macs": (scaled, by_macs(cost), sc.knapsack),
        "uniform": (scores, cost, sc.uniform),
    }


@dataclass(frozen=True)
class Found:
    """A plan, what was asked for to have it, the share of the dense latency that was measured, and the cut model."""

    aim: float
    share: float
    small: nn.Module
    plan: sc.Plan


def nearest(subject: Subject, scores: sc.Scores, cost: sc.Cost, allocation: Allocation) -> list[Found]:
    """A plan whose measured latency is the share, or else the nearest on either side; none where none can be had."""
    assert cost.measured is not None
    limits = dataclasses.replace(subject.limits, multiple=1, by_kind={})
    aim, sides, again, last = subject.share, dict[bool, Found](), 0, 1.0
    for _ in range(ATTEMPTS):
        try:
            plan = sc.allocate(scores, sc.Budget.of_dense(cost, aim), allocation, limits)
        except sc.BudgetError as error:
            print(error, flush=True)
            break
        small = sc.apply(plan, subject.model)
        found = Found(aim, cost.measured(small, True) / cost.dense, small, plan)
        print(f"asked {found.aim:.4f}, measured {found.share:.4f}", flush=True)
        if abs(found.share / subject.share - 1) <= NEAR:
            return [found]
        side = found.share > subject.share
        if side not in sides or abs(found.share - subject.share) < abs(sides[side].share - subject.share):
            sides[side] = found
        again = again + 1 if abs(found.share / last - 1) <= NEAR else 0
        aim, last = next_aim(subject.share, found, sides, 2**again), found.share
        if len(sides) == 2 and abs(aim / found.aim - 1) < SAME:
            break
    return [sides[side] for side in sorted(sides)]


def next_aim(share: float, found: Found, sides: dict[bool, Found], steps: int) -> float:
    """Where the share would lie between the nearest plans below and above it; or so many steps in proportion."""
    if len(sides) < 2:
        return min(float(found.aim * (share / found.share) ** steps), (1 + found.aim) / 2)
    below, above = sides[False], sides[True]
    return below.aim + (above.aim - below.aim) * (share - below.share) / (above.share - below.share)


def one_seed(name: str, subject: Subject, cost: sc.Cost, seed: int) -> list[Figure]:
    """All plans of a seed."""
    torch.manual_seed(seed)
    data = subject.batches(seed)
    ways = ways_of(subject, data, seed, cost)
    judged: list[tuple[str, float, float]] = []
    models = [subject.model]
    for way, (scores, its, allocation) in ways.items():
        for found in nearest(subject, scores, its, allocation):
            before = subject.judge(found.small)
            for stage in subject.recover(data, seed):
                stage.run(found.small, subject.model, found.plan)
            judged.append((way, before, subject.judge(found.small.eval())))
            models.append(found.small)
            print(f"{name}/{way} seed {seed}, {found.share:.3f}: {before:.4f} -> {judged[-1][2]:.4f}", flush=True)
    dense, *cut = sc.measure_models(TARGETS[TARGET], models, subject.example, 2 * subject.repeats)
    timed = [(t.median / dense.median, *j) for t, j in zip(cut, judged, strict=True)]
    return [f for way in ways for f in figures_of(name, subject, way, seed, sorted(t for t in timed if t[1] == way))]


def figures_of(
    name: str, subject: Subject, way: str, seed: int, points: Sequence[tuple[float, str, float, float]]
) -> list[Figure]:
    """At the share, of one or two plans ``(latency ratio, way, before, after)`` in the order of their latency."""
    if not points:
        return []
    ratios = [p[0] for p in points]
    values = {"before": [p[2] for p in points], "after": [p[3] for p in points], "latency_ratio": ratios}
    units = {"latency_ratio": ""}
    case = case_of(name, subject, way)
    out = [
        Figure(case, metric, float(np.interp(subject.share, ratios, v)), units.get(metric, subject.unit), seed)
        for metric, v in values.items()
    ]
    ends = zip(("below", "above"), ratios, strict=False) if len(points) > 1 else ()
    return out + [Figure(case, f"latency_ratio_{end}", ratio, "", seed) for end, ratio in ends]


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


def part(name: str, seeds: int | None) -> list[Figure]:
    """The figures of one model, those of each seed kept when it is done."""
    subject = SUBJECTS[name]()
    here = Path(__file__).resolve()
    found: list[Figure] = []
    for seed in range(subject.seeds if seeds is None else seeds):

        def make(seed: int = seed) -> list[Figure]:
            cost = sc.latency(subject.model, subject.example, TARGETS[TARGET], repeats=subject.repeats)  # remembered
            return one_seed(name, subject, cost, seed)

        found += kept(f"budget-equal_latency-{name}-{seed}", make, here, here.with_name("_subjects.py"))
    return found + leads(name, subject, found)


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a model."""
    names = [m for m in SUBJECTS if not (quick and m == "smollm2_135m")]
    return {name: functools.partial(part, name, 1 if quick else None) for name in names}
