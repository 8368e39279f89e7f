"""The straight line: trace, couple, calibrate, score, allocate, apply, recover, verify."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from secateur.choose.rank import Allocation, global_
from secateur.digest import model_hash
from secateur.errors import ArgumentError, DataError
from secateur.evidence.gather import environment, report_of
from secateur.evidence.quality import Figure
from secateur.evidence.running_cost import Running
from secateur.graph.couple import Groups, couple
from secateur.graph.record import trace
from secateur.graph.rules import RULES, Rule
from secateur.graph.surgery import apply
from secateur.run.meet import meet
from secateur.score.calibrate import calibrate, quiet_eval
from secateur.score.criteria import by_mean, magnitude, score
from secateur.train.recovery import History, Recovery
from secateur.types import Batches, Budgets, Criterion, Example, Limits, Plan, Report, Scores, Target

Quality: TypeAlias = Callable[[nn.Module], Mapping[str, Figure | float] | float]
"""``model -> {figure: value}``: judged on the dense model and at every stage; never fitted."""


@dataclass(frozen=True, eq=False)
class Stage:
    """The model at one point of the line."""

    name: str
    quality: Mapping[str, Figure]
    seconds: float
    history: History | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What `prune` returns: the smaller model, the plan that made it, the evidence."""

    model: nn.Module
    plan: Plan
    report: Report
    stages: tuple[Stage, ...] = field(default=())


def prune(
    model: nn.Module,
    example: Example,
    *,
    budget: Budgets,
    criterion: Criterion = magnitude,
    allocation: Allocation = global_,
    batches: Batches | None = None,
    recover: Recovery | Sequence[Recovery] | None = None,
    target: Target | None = None,
    seed: int = 0,
    normalize: Callable[[Scores], Scores] = by_mean,
    limits: Limits | None = None,
    ignore: Sequence[str] = (),
    rules: Mapping[str, Rule] = RULES,
    quality: Quality | None = None,
    running: Running | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> Result:
    """Make a smaller model that meets the budget; the given one is left as it was, bit for bit.

    Args:
        model: the dense model.
        example: what its forward takes; latencies are measured on it.
        budget: `Budget` of a cost: ``params``, ``macs``, ``nbytes``, or ``latency`` or ``energy`` on a target;
            or several, which all have to hold.
        criterion: what ranks units.
        allocation: how much goes where.
        batches: calibration data, where the criterion needs it.
        recover: stages that change the cut model's weights.
        target: measured for the report too (a latency budget's own target always is).
        seed: of everything drawn.
        normalize: makes groups comparable.
        limits: multiples, minimum widths, caps.
        ignore: globs of what must stay whole.
        rules: op table.
        quality: judged before, after the cut, and after every recovery.
        running: what the report says about energy, CO2 and price on the target (an energy budget is always in it).
        tell: hears what is being done.

    Raises:
        SecateurError: says what was given, what was expected, and what to do.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> result = prune(net, torch.zeros(1, 4), budget=sc.Budget.of_dense(sc.params(net), 0.5))
        >>> result.report.ok, result.model[0].out_features
        (True, 15)
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ArgumentError(f"seed must be a whole number in [0, 2**32), got {seed!r}")
    torch.manual_seed(seed)
    np.random.seed(seed)
    steps = [recover] if isinstance(recover, Recovery) else list(recover or ())
    before = model_hash(model)
    tell("recording")
    groups = couple(trace(model, example), rules, ignore)
    tell("scoring")
    scores = normalize(score(model, groups, criterion, stats_for(model, groups, criterion, batches)))
    tell("allocating")
    made = {"seed": seed, "model_sha256": before, "versions": environment()["versions"]}
    plan = meet(model, scores, budget, allocation, limits or Limits(), made, tell)
    small, stages = carry_out(model, plan, steps, quality, tell, before)
    tell("verifying and measuring")
    report = report_of(model, small, plan, groups, example, budget, target, stages, rules, running)
    check_unchanged(model, before, "measuring it, or its own forward,")
    return Result(small, plan, report, tuple(stages))


def stats_for(model: nn.Module, groups: Groups, criterion: Criterion, batches: Batches | None) -> Any:
    """The calibration data that a criterion needs."""
    if isinstance(criterion, Criterion) and criterion.stat is not None and batches is None:
        raise DataError(f"criterion {criterion.name} needs calibration data: give batches=...")
    return calibrate(model, () if batches is None else batches, criterion, groups)


def carry_out(
    model: nn.Module,
    plan: Plan,
    steps: Sequence[Recovery],
    quality: Quality | None,
    tell: Callable[[str], None],
    before: str,
    dense: Stage | None = None,
) -> tuple[nn.Module, list[Stage]]:
    """Cut, then recover stage by stage, judging each; ``dense`` where that one is known already."""

    def judge(net: nn.Module) -> dict[str, Figure]:
        with quiet_eval(net):
            return {} if quality is None else figures(quality(net))

    stages = [dense or Stage("dense", judge(model), 0.0)]
    check_unchanged(model, before, "the quality function")
    start = time.perf_counter()
    small = apply(plan, model)
    seconds = time.perf_counter() - start
    stages.append(Stage("after cut", judge(small), seconds))
    for step in steps:
        tell(step.name)
        start = time.perf_counter()
        history = step.run(small, model, plan)
        seconds = time.perf_counter() - start
        check_unchanged(model, before, f"the recovery {step.name!r}")
        stages.append(Stage(f"after {step.name}", judge(small), seconds, history))
    return small, stages


def check_unchanged(model: nn.Module, before: str, who: str) -> None:
    """Refuse to go on where something wrote to the dense model."""
    if model_hash(model) != before:
        raise DataError(f"the dense model changed while it was pruned: {who} wrote to it")


def figures(given: Mapping[str, Figure | float] | float) -> dict[str, Figure]:
    """What a quality function gave, plain numbers as figures without an interval; one alone is called ``quality``.

    Raises:
        ArgumentError: it gave something else.
    """
    named = given if isinstance(given, Mapping) else {"quality": given}
    try:
        return {
            k: v if isinstance(v, Figure) else Figure(float(v), float("nan"), float("nan"), 0) for k, v in named.items()
        }
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"the quality function gave {type(given).__name__} {given!r}: return a number or {{name: number}}, higher "
            "is better"
        ) from error
