"""What an advice tries: widths, kinds, depth, masks, lower precision; the same model gives the same list."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.calling import run
from secateur.choose.density import check_fits, select
from secateur.choose.depth import drop_layers
from secateur.choose.patterns import Pattern, block, nm, unstructured
from secateur.choose.plan import make_plan
from secateur.choose.together import together
from secateur.errors import CoupleError, PlanError
from secateur.evidence.advice import Advised
from secateur.export.prepare import snapshot
from secateur.graph.couple import Groups
from secateur.graph.depth import survey
from secateur.graph.surgery import apply
from secateur.score.criteria import magnitude
from secateur.score.weights import prunable, saliency, turned
from secateur.targets.measure import Speedup
from secateur.types import Example, Group, Keep, Plan, Target

MULTIPLES = (32, 16, 8)
FRACTIONS = (0.75, 0.5, 0.25)
SPARSITIES = (0.5, 0.7, 0.9, 0.95)
WHOLE = ("head", "expert")
"""Kinds whose units are few and large: their counts need no multiples."""
FIRST = ("widths", "unstructured", "lower precision", "depth", "unaligned widths")
LAST = ("2:4", "blocks", "lower precision with others")
"""One of each kind is measured, in this order; kinds of units stand between the two."""
MASKS = ("unstructured", "2:4", "blocks")
_NAMES = {
    "channel": "channels",
    "neuron": "neurons",
    "head": "heads",
    "head_dim": "head dimensions",
    "hidden": "hidden units",
    "embedding": "embedding positions",
}


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing that could be done.

    Attributes:
        row: what is known of it before anything is predicted or timed. make: the changed model.
        keep: of widths, what a latency cost predicts from. share: else its work over the dense model's.
        lower: a target of lower precision that it runs on. base: what it is without that, "" for the dense model.
    """

    row: Advised
    make: Callable[[], nn.Module]
    keep: Keep | None = None
    share: float | None = None
    lower: Target | None = None
    base: str = ""


@dataclass(frozen=True)
class Spot:
    """What a candidate came to: a measurement and the size of its file, or why it was refused."""

    measured: Speedup | None
    file_bytes: int | None = None
    refused: str = ""
    aside: str = ""


def following(
    found: Sequence[Candidate], spots: Mapping[str, Spot], predicted: Mapping[str, float | None]
) -> tuple[Candidate, ...]:
    """What is measured next: one of each kind, then by prediction; unaligned widths together with the aligned ones.

    Masks of a kind that did not pay are not measured again: one zero costs what another does. Empty at the end.
    """
    left = [c for c in found if c.row.what not in spots]
    done = {c.row.kind for c in found if c.row.what in spots}

    def rank(c: Candidate) -> tuple[float, int]:
        ratio = predicted.get(c.row.what)
        return (math.inf if ratio is None else ratio, c.row.params)

    between = [k for k in dict.fromkeys(c.row.kind for c in found) if k not in FIRST + LAST]
    vain = {c.row.kind for c in found if c.row.kind in MASKS and c.row.what in spots and not _paid(spots[c.row.what])}
    new = [[c for c in left if c.row.kind == k] for k in (*FIRST, *between, *LAST) if k not in done]
    rest = [c for c in left if c.row.kind not in vain]
    one = next((min(mine, key=rank) for mine in new if mine), min(rest, key=rank, default=None))
    if one is None:
        return ()
    return (one, *(c for c in found if c.row.what == one.row.beside))


def _paid(spot: Spot) -> bool:
    return spot.measured is not None and spot.measured.significant and spot.measured.ratio < 1


def width(group: Group, fraction: float, multiple: int) -> int:
    """Units kept of a group: the nearest multiple to a fraction of it, all where that is too coarse.

    Example:
        >>> width(Group("g", "channel", 112, ()), 0.5, 8), width(Group("g", "head", 12, ()), 0.25, 32)
        (56, 3)
        >>> width(Group("g", "channel", 24, ()), 0.5, 32)
        24
    """
    step = math.lcm(1 if group.kind in WHOLE else multiple, group.multiple)
    kept = max(step, step * math.floor(fraction * group.units / step + 0.5))
    return group.units if kept >= group.units or kept < group.least else kept


def kept_first(groups: Groups, counts: Mapping[str, int]) -> Keep:
    """The first units of each group, so many: which ones stay does not change the time."""
    full = groups.all_kept()
    return {**full, **together(groups, {n: np.arange(full[n].size) < c for n, c in counts.items()})}


def widths(model: nn.Module, groups: Groups, subject: str) -> list[Candidate]:
    """All groups cut by the same fraction, in multiples of 8, 16 and 32; alike ones once, under the coarsest."""
    out, seen = [], set()
    for fraction in FRACTIONS:
        for multiple in MULTIPLES:
            counts = {g.name: width(g, fraction, multiple) for g in groups}
            if tuple(counts.values()) in seen:
                continue
            seen.add(tuple(counts.values()))
            what = f"Widths at {fraction:.0%}, multiples of {multiple}"
            found = _cut(model, groups, counts, what, "widths", subject, f"--multiple {multiple} --by-kind head=1")
            out += [] if found is None else [found]
    return out


def unaligned(model: nn.Module, groups: Groups, subject: str, beside: Sequence[Candidate]) -> list[Candidate]:
    """One unit more than a multiple of eight in every group: the bad example beside the good one."""
    aligned = {g.name: width(g, 0.5, MULTIPLES[-1]) for g in groups}
    counts = {
        g.name: aligned[g.name] + (g.kind not in WHOLE and g.multiple == 1 and aligned[g.name] < g.units)
        for g in groups
    }
    pairs = [(aligned[n], counts[n]) for n in counts if counts[n] != aligned[n]]
    if not pairs:
        return []
    good, bad = max(pairs)
    what = f"Unaligned: {bad} instead of {good}"
    found = _cut(model, groups, counts, what, "unaligned widths", subject, "--multiple 1")
    if found is None:
        return []
    partner = next((c.row.what for c in beside if c.keep is not None and _counts(c.keep) == aligned), "")
    return [replace(found, row=replace(found.row, beside=partner))]


def one_kind(model: nn.Module, groups: Groups, subject: str) -> list[Candidate]:
    """Half of one kind of units alone, where a model has several kinds."""
    kinds = list(dict.fromkeys(g.kind for g in groups))
    out = []
    for kind in kinds if len(kinds) > 1 else ():
        counts = {g.name: width(g, 0.5, 8) if g.kind == kind else g.units for g in groups}
        others = " ".join(f"--ignore '*:{k}'" for k in kinds if k != kind)
        what = f"Half of the {_NAMES.get(kind, kind + ' units')} alone"
        found = _cut(model, groups, counts, what, kind, subject, f"--multiple 8 --by-kind head=1 {others}")
        out += [] if found is None else [found]
    return out


def _counts(keep: Keep) -> dict[str, int]:
    return {n: int(m.sum()) for n, m in keep.items()}


def _cut(
    model: nn.Module, groups: Groups, counts: Mapping[str, int], what: str, kind: str, subject: str, options: str
) -> Candidate | None:
    """Widths as asked, None where that cuts nothing."""
    keep = kept_first(groups, counts)
    if all(m.all() for m in keep.values()):
        return None
    params, nbytes = groups.params(keep), groups.nbytes(keep)
    how = f"secateur prune {subject} --budget params={params} --allocation uniform {options} --out small"
    row = Advised(what, kind, int(params), int(nbytes), how)
    return Candidate(row, lambda: apply(make_plan(groups, keep), model), keep)


def depth(model: nn.Module, example: Example, subject: str) -> list[Candidate]:
    """Every fourth and every second of the layers that can go, taken out together."""
    free = _free(model, example)
    work = _work(model, example)
    out = []
    for every in (4, 2):
        gone = free[every - 1 :: every]
        if not gone or (every == 4 and len(free) < 4):
            continue
        plan = _dropped(model, example, gone)
        if plan is None:
            continue
        small = apply(plan, model)
        how = f"sc.apply(sc.drop_layers(model, example, {list(plan.layers)!r}), model)"
        what = f"Depth without {len(plan.layers)} of {len(free)} layers"
        row = Advised(what, "depth", params_of(small), nbytes_of(small), how)
        share = 1 - sum(work.get(p, 0) for p in plan.layers) / max(work[""], 1)
        out.append(Candidate(row, _applied(plan, model), share=share))
    return out


def _applied(plan: Plan, model: nn.Module) -> Callable[[], nn.Module]:
    return lambda: apply(plan, model)


def _free(model: nn.Module, example: Example) -> list[str]:
    """Layers that one pass does not show to be needed, outer ones for inner ones; one of each container stays."""
    seen = survey(model, example)
    out: list[str] = []
    for path, _ in model.named_modules():
        container = path.rpartition(".")[0]
        if path in seen.fixed or path not in seen.containers.get(container, ()):
            continue
        if not any(path.startswith(f"{outer}.") for outer in out):
            out.append(path)
    return out


def _dropped(model: nn.Module, example: Example, gone: Sequence[str]) -> Plan | None:
    """A plan without these layers; where they cannot go together, without the half of them that can."""
    try:
        return drop_layers(model, example, gone)
    except (PlanError, CoupleError):
        return _dropped(model, example, gone[: len(gone) // 2]) if len(gone) > 1 else None


def _work(model: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-accumulates of each module on the example, "" for the model."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run(snapshot(model), example)
    prefix = type(model).__name__
    flops = {k: sum(v.values()) // 2 for k, v in counter.get_flop_counts().items()}
    return {"": flops.get("Global", 0), **{k.removeprefix(f"{prefix}."): v for k, v in flops.items()}}


def masks(model: nn.Module, subject: str) -> list[Candidate]:
    """2:4, blocks, and single weights anywhere: the smallest weights are zero, the shapes stay."""
    params, nbytes = params_of(model), nbytes_of(model)
    out = []
    tries: list[tuple[str, str, str, Pattern, float]] = [("2:4 sparsity", "2:4", "2:4", nm(2, 4), 0.5)]
    tries += [("Blocks of 4x1, 50% zero", "blocks", "block:4x1", block(4, 1), 0.5)]
    tries += [(f"Unstructured, {s:.0%} zero", "unstructured", "unstructured", unstructured, s) for s in SPARSITIES]
    for what, kind, text, pattern, sparsity in tries:
        weights = fitting(model, pattern)
        if not weights:
            continue
        left_out = [n for n in prunable(model) if n not in weights]
        options = "".join(f" --ignore {n}" for n in left_out)
        density = "" if pattern.density is not None else f" --sparsity {sparsity}"
        how = f"secateur sparsify {subject} --pattern {text}{density}{options} --out sparse"
        zeros = sum(w.numel() - _kept(w, pattern, sparsity, n in turned(model)) for n, w in weights.items())
        row = Advised(what, kind, params - zeros, nbytes, how)
        out.append(Candidate(row, _masked(model, pattern, sparsity, tuple(weights)), share=1.0))
    return out


def _kept(weight: nn.Parameter, pattern: Pattern, sparsity: float, lying: bool) -> int:
    shape = tuple(weight.transpose(0, 1).shape if lying else weight.shape)
    return pattern.count(shape, weight.numel() - round(sparsity * weight.numel()))


def fitting(model: nn.Module, pattern: Pattern) -> dict[str, nn.Parameter]:
    """The weights whose shapes a pattern divides."""
    try:
        found = prunable(model)
    except Exception:  # a model without weights that can be sparse is no reason to stop
        return {}
    out, lying = {}, turned(model)
    for name, w in found.items():
        seen = w.detach().transpose(0, 1) if name in lying else w.detach()
        try:
            check_fits({name: seen}, pattern)
        except PlanError:
            continue
        out[name] = w
    return out


def _masked(model: nn.Module, pattern: Pattern, sparsity: float, names: Sequence[str]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        twin = copy.deepcopy(model)
        held = dict(twin.named_parameters())
        weights = {n: held[n] for n in names}
        kept = select(saliency(twin, magnitude, weights), sparsity, pattern, turned=turned(twin))
        with torch.no_grad():
            for name, w in weights.items():
                w.masked_fill_(~kept[name], 0)
        return twin

    return make


def _on(target: Target) -> str:
    """Options that name a target."""
    return f"--target {target.name}" + (f" --threads {target.threads}" if target.threads != 1 else "")


def lower(model: nn.Module, targets: Sequence[Target], subject: str, others: Sequence[Candidate]) -> list[Candidate]:
    """Each target of lower precision alone, and with the other candidates (masks and unaligned widths left out)."""
    out = []
    for t in targets:
        row = Advised(
            t.name,
            "lower precision",
            params_of(model),
            nbytes_of(model),
            f"secateur measure {subject} {_on(t)}",
        )
        out.append(Candidate(row, lambda: model, share=1.0, lower=t))
        for c in others:
            if c.row.kind in ("unstructured", "blocks", "unaligned widths"):
                continue
            how = f"{c.row.how}; then secateur measure small {_on(t)}"
            what = f"{c.row.what}, with {t.name}"
            mine = Advised(what, "lower precision with others", c.row.params, c.row.nbytes, how)
            out.append(replace(c, row=mine, lower=t, base=c.row.what))
    return out


def params_of(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def nbytes_of(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
