"""Checks for what others bring along: a rule of their own is proved on a model of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.choose.plan import random_plan
from secateur.errors import CoupleError
from secateur.evidence.verify import verify
from secateur.graph.axes import Axes
from secateur.graph.couple import Groups, couple
from secateur.graph.record import trace
from secateur.graph.recorded import Call, Graph
from secateur.graph.rules import RULES, Rule
from secateur.graph.surgery import apply
from secateur.testing_targets import check_target as check_target
from secateur.types import Example, Plan, Report


@dataclass
class _Watched:
    """A rule that remembers what became of it: `couple` freezes where a rule fails and goes on."""

    op: str
    rule: Rule
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)

    def __call__(self, axes: Axes, call: Call) -> Any:
        self.calls += 1
        before = len(axes.pins)
        try:
            result = self.rule(axes, call)
        except Exception as error:
            self.failures.append(f"raised {type(error).__name__}: {error} (at {call.place.line})")
            raise
        self.pins += [f"{pin.reason} ({pin.place.line})" for pin in axes.pins[before:]]
        wrong = _misfit(call, result)
        if wrong:
            self.failures.append(f"{wrong} (at {call.place.line})")
        return result


def check_rule(
    rules: Mapping[str, Rule],
    model: nn.Module,
    example: Example,
    *,
    sparsities: Sequence[float] = (0.3, 0.6),
    seeds: Sequence[int] = (0, 1),
) -> None:
    """Prove rules for ops on a model that uses them: units pass through each op, and cutting them is exact.

    The model is recorded, coupled with ``{**sc.RULES, **rules}`` and cut by random plans. For each, the masked model
    must equal the shrunk one (`sc.verify`: float64, 1e-10 relative).

    Args:
        rules: op -> rule, such as ``{"mylib::scan": scan}``.
        model: small, with weights in front of each op and behind it, so that there is something to cut.
        example: what its ``forward`` takes.
        sparsities: fractions of every group to remove.
        seeds: of the random plans, one a sparsity each.

    Raises:
        AssertionError: an op was not met, its rule failed or returned what does not fit, nothing that passes through
            it can be cut (too strict), or a cut model computes something else (too free). Says which.
        TraceError: the model does not run on the example.

    Example:
        >>> import torch, secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> check_rule({"aten::tanh": lambda axes, call: axes[call["self"]]}, net, torch.randn(3, 4))
        >>> check_rule({"aten::tanh": lambda axes, call: [None, None]}, net, torch.randn(3, 4))  # forgets to pin
        Traceback (most recent call last):
        AssertionError: masked and shrunk differ at sparsity 0.3, seed 0... The rule of aten::tanh is too free...
    """
    graph = trace(model, example)
    for op in rules:
        _must_occur(op, graph)
    watched = {op: _Watched(op, rule) for op, rule in rules.items()}
    groups, refusal = _coupled(graph, watched)
    assert groups is not None, _too_strict(list(watched.values()), refusal)
    moved: set[str] = set()
    for sparsity in sparsities:
        for seed in seeds:
            plan = random_plan(groups, sparsity, seed)
            moved |= _proved(plan, model, example, graph, f"at sparsity {sparsity}, seed {seed}", rules)
    still = [rule for op, rule in watched.items() if op not in moved]
    assert not still, _too_strict(still, _reasons(groups))


def _coupled(graph: Graph, watched: Mapping[str, _Watched]) -> tuple[Groups | None, str]:
    """The groups, or why there are none; no rule may have failed."""
    groups, refusal = None, ""
    try:
        groups = couple(graph, {**RULES, **watched})
    except Exception as error:
        if not isinstance(error, CoupleError) and not any(rule.failures for rule in watched.values()):
            raise
        refusal = str(error)
    for rule in watched.values():
        assert not rule.failures, f"the rule for {rule.op} {rule.failures[0]}"
    return groups, refusal


def _must_occur(op: str, graph: Graph) -> None:
    met = dict.fromkeys(call.op for call in graph.calls)
    others = [name for name in met if name not in RULES] or list(met)
    assert op in met, (
        f"{op} was not met: the recording of the model has {others}. Give a model that calls the op, and its name as "
        "namespace::name without an overload. What a torch.autograd.Function does is recorded as the calls inside of "
        "it: those are what needs rules"
    )


def _misfit(call: Call, result: Any) -> str:
    """What is wrong with what a rule returned; "" if it fits the op's outputs."""
    if not isinstance(result, list):
        return f"returned {type(result).__name__}, not a list with one id vector (or None) a dimension"
    many = result if (result and isinstance(result[0], list)) or len(call.outs) > 1 else [result]
    if len(many) != len(call.outs):
        return f"returned {len(many)} lists for {len(call.outs)} outputs: one list of id vectors an output"
    for i, (value, ids) in enumerate(zip(call.outs, many, strict=True)):
        if value is None:
            continue
        if not isinstance(ids, list):
            return f"returned {type(ids).__name__} for output {i}, not a list with one id vector (or None) a dimension"
        sizes = [None if a is None else len(a) for a in ids]
        if len(sizes) != value.ndim or any(n is not None and n != m for n, m in zip(sizes, value.shape, strict=True)):
            return f"returned ids of sizes {sizes} for output {i} of shape {value.shape}: one vector (or None) a dim"
    return ""


def _proved(
    plan: Plan, model: nn.Module, example: Example, graph: Graph, where: str, rules: Mapping[str, Rule]
) -> set[str]:
    """The ops whose tensors a plan makes smaller; the plan must be exact."""
    small = apply(plan, model)
    report = verify(model, plan, small, example, rules=rules)
    if not report.ok:
        raise AssertionError(
            f"masked and shrunk differ {where}: {_words(report)}. The rule of {' or '.join(rules)} is too free, if the "
            "model is exact without the op: it must tie the ids of what the op combines, and pin what it cannot do "
            f"without or returns None for. Removed were {_removed(plan)}"
        )
    cut = trace(small, example)
    return {op for op in rules if _shapes(graph, op) != _shapes(cut, op)}


def _shapes(graph: Graph, op: str) -> list[list[tuple[int, ...]]]:
    calls = [call for call in graph.calls if call.op == op]
    return [[v.shape for v in (*call.inputs, *call.outs) if v is not None] for call in calls]


def _words(report: Report) -> str:
    rows = [row for row in report.rows if row.ok is False]
    told = [f"{r.what}: {'' if r.pruned is None else f'{r.pruned:.2g} '}{r.note}".strip() for r in rows]
    return "; ".join(told)


def _removed(plan: Plan) -> str:
    return ", ".join(f"{int((~mask).sum())} of {mask.size} {name}" for name, mask in plan.keep.items())


def _too_strict(rules: Sequence[_Watched], why: str) -> str:
    ops = " or ".join(rule.op for rule in rules)
    if not any(rule.calls for rule in rules):
        return (
            f"nothing that can be cut reaches {ops}, so its rule was never asked: give a model with a layer in front "
            "of the op whose width may change"
        )
    pins = list(dict.fromkeys(pin for rule in rules for pin in rule.pins))
    said = f"The rule pins what {'; '.join(pins)}" if pins else "The rule itself pins nothing: does it return None?"
    return (
        f"nothing that passes through {ops} can be cut: the rule is too strict, or the model leaves nothing. "
        f"{said} {why}"
    )


def _reasons(groups: Groups) -> str:
    frozen = dict.fromkeys(f"{f.name} dim {f.dim} {f.reason} ({f.line})" for f in groups.frozen)
    return f"Frozen are: {'; '.join(list(frozen)[:6])}"
