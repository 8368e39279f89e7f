"""Predicted against measured latency of whole models over random plans.

Experiment ``prediction``; cases ``MODEL/TARGET/plan-NN`` with the metric ``relative_error``, predicted over measured
less 1, and ``MODEL/TARGET`` with ``median_relative_error`` and ``worst_relative_error`` of its sizes. Plans keep a
random share of every group, around a density of 30 to 95 % that is drawn for each plan; widths of every other plan are
multiples of 8. What is measured is the exported model, in turns with the dense one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from _subjects import SUBJECTS, TARGETS

import secateur as sc
from _rows import Figure
from secateur.choose.together import together
from secateur.types import Bools


def random_keep(groups: sc.Groups, seed: int, multiple: int) -> dict[str, Bools]:
    """A random share of every group, as far as it can be carried out."""
    rng = np.random.default_rng(seed)
    density = rng.uniform(0.3, 0.95)
    keep = {}
    for group in groups:
        step = int(np.lcm(multiple if group.units >= 2 * multiple else 1, group.multiple))
        share = np.clip(density + rng.uniform(-0.2, 0.2), 0.1, 1.0)
        count = min(max(round(share * group.units / step) * step, step, group.least), group.units)
        keep[group.name] = np.arange(group.units) < count
    return {**groups.all_kept(), **together(groups, keep)}


def part(model: str, target: str, plans: int) -> list[Figure]:
    """The figures of one model on one target."""
    subject = SUBJECTS[model]()
    groups = sc.couple(sc.trace(subject.model, subject.example))
    cost = sc.latency(subject.model, subject.example, TARGETS[target], repeats=subject.repeats)
    assert cost.measured is not None
    figures, errors = [], []
    for i in range(plans):
        keep = random_keep(groups, i, 8 if i % 2 else 1)
        predicted = cost.of(groups, keep)
        measured = cost.measured(sc.apply(sc.make_plan(groups, keep), subject.model), False)
        errors.append(predicted / measured - 1)
        figures.append(Figure(f"{model}/{target}/plan-{i:02}", "relative_error", errors[-1]))
        print(f"{model}/{target} {i}: {measured / cost.dense:.3f} of dense, error {errors[-1]:+.1%}", flush=True)
    sizes = np.abs(errors)
    figures.append(Figure(f"{model}/{target}", "median_relative_error", float(np.median(sizes))))
    figures.append(Figure(f"{model}/{target}", "worst_relative_error", float(sizes.max())))
    return figures


def parts(quick: bool) -> dict[str, Callable[[], list[Figure]]]:
    """One part a model and target."""
    plans = 2 if quick else 40
    return {f"{m}/{t}": functools.partial(part, m, t, plans) for m in SUBJECTS for t in TARGETS}
