"""Budgets of 70, 50 and 35 % of the dense latency, met by measurement on the runtime or refused.

Experiment ``budget_met``; cases ``MODEL/TARGET/70%``; metric ``measured_over_asked``: the cut model's latency over the
budget, from a measurement of its own after the plan was made: exported anew, in turns with the dense model. Where the
budget is refused, ``closest_over_asked`` is what the refusal names instead. ``seconds`` is what making the plan took.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from _subjects import SUBJECTS, TARGETS, percent

import secateur as sc
from _rows import Figure

BUDGETS = (0.7, 0.5, 0.35)


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
            dense, small = sc.measure_models(
                TARGETS[target], [subject.model, result.model], subject.example, 2 * subject.repeats
            )
            figures.append(Figure(case, "measured_over_asked", small.median / dense.median / fraction))
        figures.append(Figure(case, "seconds", seconds, "s"))
        print(case, figures[-2].metric, f"{figures[-2].value:.3f}", f"{figures[-1].value:.0f} s", flush=True)
    return figures


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a model and target."""
    names = [m for m in SUBJECTS if not (quick and m == "smollm2_135m")]
    return {f"{m}/{t}": functools.partial(part, m, t) for m in names for t in TARGETS}
