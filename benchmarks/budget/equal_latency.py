"""Latency-aware, MACs-aware and uniform plans at equal measured latency, before and after the same recovery.

Experiment ``equal_latency``; cases ``MODEL/onnxruntime/SHARE%/latency``, ``.../macs`` and ``.../uniform``, the share of
the dense latency being the model's own in `_subjects`; metrics ``before`` and ``after`` recovery (larger is better:
accuracy in percent, cosine to the dense model, negated divergence from it or negated log perplexity), where training is
part of recovery also ``refitted``, with what comes before it (least squares, statistics of batch norms) alone, and
``latency_ratio``; a seed draws calibration data and training order. The first case has ``after_over_macs`` and the like
too, differences of the same seed, and ``..._ci95``, half of Student's 95 % interval of their mean.

All rank the units of a layer alike (structured OBS). How much goes where is solved by `sc.measured`, from errors at the
outputs on data that nothing was calibrated on, for latency; by the same, as if time went with multiply-accumulates
(``macs``); or is the same fraction everywhere. Each is asked for more or less, up to eight times,
until its measured latency is within half a percent of the share: quality changes with latency, and a percent would pass
for a lead. Of one that jumps over the share the two nearest plans, one on either side, are recovered and timed, and the
figures are read off the line between them at the share; where the two stood is in ``latency_ratio_below`` and
``latency_ratio_above``. A plan that cannot be had has no rows. No plan is held to multiples: which widths are slow is
for latency to know.

The shares, and the learning rates of recovery, were chosen with figures of seed 0 in view, those of all plans; the line
between two plans with three seeds in view, in which uniform ones stood beside the share.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
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


def ways_of(subject: Subject, seed: int, cost: sc.Cost) -> dict[str, tuple[sc.Cost, Allocation]]:
    """What the plans of a seed are solved for, and by."""
    errors = sc.measured(subject.model, subject.held(seed), subject.loss)
    return {"latency": (cost, errors), "macs": (by_macs(cost), errors), "uniform": (cost, sc.uniform)}


def scores_of(subject: Subject, data: list[Any]) -> sc.Scores:
    """The ranking that all plans share."""
    groups = sc.couple(sc.trace(subject.model, subject.example), ignore=subject.ignore)
    return sc.score(subject.model, groups, sc.obs, sc.calibrate(subject.model, data, sc.obs, groups))


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
    scores, judged, models = scores_of(subject, data), list[tuple[str, dict[str, float]]](), [subject.model]
    for way, (its, allocation) in ways_of(subject, seed, cost).items():
        for found in nearest(subject, scores, its, allocation):
            judged.append((way, recovered(subject, found, data, seed)))
            models.append(found.small)
            print(f"{name}/{way} seed {seed}, {found.share:.3f}: {judged[-1][1]}", flush=True)
    dense, *cut = sc.measure_models(TARGETS[TARGET], models, subject.example, 2 * subject.repeats)
    timed = [(t.median / dense.median, *j) for t, j in zip(cut, judged, strict=True)]
    return [
        figure
        for way in ("latency", "macs", "uniform")
        for figure in figures_of(
            name, subject, way, seed, sorted(((r, v) for r, w, v in timed if w == way), key=lambda p: p[0])
        )
    ]


def recovered(subject: Subject, found: Found, data: list[Any], seed: int) -> dict[str, float]:
    """Recover the cut model; its quality by stage."""
    quality = {"before": subject.judge(found.small)}
    stages = subject.recover(data, seed)
    trains = [i for i, stage in enumerate(stages) if "distill" in stage.name][:1]
    for i, stage in enumerate(stages):
        if i in trains:
            quality["refitted"] = subject.judge(found.small.eval())
        stage.run(found.small, subject.model, found.plan)
    return {**quality, "after": subject.judge(found.small.eval())}


def figures_of(
    name: str, subject: Subject, way: str, seed: int, points: Sequence[tuple[float, Mapping[str, float]]]
) -> list[Figure]:
    """At the share, of one or two plans (latency ratio, quality by stage) in the order of their latency."""
    if not points:
        return []
    case, ratios = case_of(name, subject, way), [ratio for ratio, _ in points]
    values = {stage: [quality[stage] for _, quality in points] for stage in points[0][1]}
    out = [
        Figure(case, stage, float(np.interp(subject.share, ratios, v)), subject.unit, seed)
        for stage, v in values.items()
    ]
    out.append(Figure(case, "latency_ratio", float(np.interp(subject.share, ratios, ratios)), "", seed))
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
    for other, metric in itertools.product(("macs", "uniform"), ("before", "refitted", "after")):
        theirs = case_of(name, subject, other)
        both = [s for s in seeds if (mine, metric, s) in value and (theirs, metric, s) in value]
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
