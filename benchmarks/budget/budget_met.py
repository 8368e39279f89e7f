"""Budgets of 70, 50 and 35 % of the dense latency, met by measurement on the runtime or refused.

Experiment ``budget_met``; cases ``MODEL/TARGET/70%``; metric ``measured_over_asked``: the cut model's latency over the
budget, measured anew after the plan was made: exported again, in turns with the dense model, the median of three loads
of both files. Where the budget is refused, ``closest_over_asked`` is what the refusal names instead. ``seconds`` is
what making the plan took.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

from _subjects import SUBJECTS, TARGETS, Subject, percent
from torch import nn

import secateur as sc
from _rows import Figure

BUDGETS, LOADS = (0.7, 0.5, 0.35), 3


def measured_ratio(target: sc.Target, subject: Subject, small: nn.Module) -> float:
    """Latency of a cut model over the dense one's, the median of three loads."""
    built = [target.build(m, subject.example, target.threads) for m in (subject.model, small)]
    found = []
    for load in range(LOADS):
        if load:
            built = [a.again() if a.again else a for a in built]
        dense, cut = sc.measure(built, subject.repeats)
        found.append(cut.median / dense.median)
    return statistics.median(found)


def part(model: str, target: str) -> list[Figure]:
    """The figures of one model on one target."""
    subject = SUBJECTS[model]()
    cost = sc.latency(subject.model, subject.example, TARGETS[target], repeats=subject.repeats)
    figures = []
    for fraction in BUDGETS:
        case, start = f"{model}/{target}/{percent(fraction)}", time.perf_counter()
        try:
            budget = sc.Budget.of_dense(cost, fraction)
            result = sc.prune(
                subject.model,
                subject.example,
                budget=budget,
                allocation=sc.knapsack,
                limits=subject.limits,
            )
        except sc.BudgetError as error:
            seconds = time.perf_counter() - start
            closest = error.closest or cost.dense
            figures.append(Figure(case, "closest_over_asked", closest / (fraction * cost.dense)))
        else:
            seconds = time.perf_counter() - start
            ratio = measured_ratio(TARGETS[target], subject, result.model)
            figures.append(Figure(case, "measured_over_asked", ratio / fraction))
        figures.append(Figure(case, "seconds", seconds, "s"))
        print(case, figures[-2].metric, f"{figures[-2].value:.3f}", f"{figures[-1].value:.0f} s", flush=True)
    return figures


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a model and target."""
    names = [m for m in SUBJECTS if not (quick and m == "smollm2_135m")]
    return {f"{m}/{t}": functools.partial(part, m, t) for m in names for t in TARGETS}
