"""Latency as a cost: predicted from a few whole-model probes on the target, measured wherever it counts."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from secateur.choose.plan import make_plan
from secateur.choose.together import together
from secateur.digest import model_hash
from secateur.graph.couple import Groups
from secateur.graph.surgery import apply
from secateur.targets.measure import measure
from secateur.targets.memory import latency_key, recall, remember, signature
from secateur.types import Artefact, Bools, Cost, Example, Group, Keep, Target

PROBES = 6
"""Most whole-model probes that a prediction is made from."""
ARTEFACTS = 2
"""Exported models that a cost holds on to, in memory: the dense one, and the last that was cut."""


def latency(model: nn.Module, example: Example, target: Target, *, repeats: int = 40) -> Cost:
    """Median seconds of one run of the exported model on the target.

    ``dense`` is measured. ``of`` predicts: up to six probes, each with half of one family of groups cut, are exported
    and timed against the dense model in one interleaved run; a family's saving is spread over its multiply-
    accumulates. ``measured`` exports and times a cut model: the median over rounds of its time over the dense one's in
    the same round, times the dense figure. These ratios (and second ones, which confirm) and the dense figure are
    remembered by model, machine, threads and versions, so the same command makes the same plan.

    Args:
        model: the dense model.
        example: what it is timed on, batch size included.
        target: the runtime.
        repeats: timings of each model a measurement.

    Raises:
        TargetError: the runtime is missing or refuses the model.

    Example:
        >>> import torch, secateur as sc
        >>> cost = latency(nn.Linear(4, 2), torch.zeros(1, 4), sc.eager)
        >>> cost.name, cost.unit, cost.target.name, cost.dense > 0
        ('latency', 's', 'eager', True)
    """
    timed = _Timed(model, example, target, repeats, Built(target, example))
    tables: dict[int, tuple[Groups, _Table]] = {}

    def of(groups: Groups, keep: Keep) -> float:
        if id(groups) not in tables:
            tables[id(groups)] = (groups, _Table.of(groups, timed))
        return tables[id(groups)][1](keep)

    return Cost("latency", "s", timed.dense(), of, timed.built, timed.seconds, target, example)


@dataclass(eq=False)
class Built:
    """Artefacts on a target: a model of the same settings and content is exported once, while the last few are kept.

    An export takes longer than a timing, and the dense model, the plan that is confirmed and the one that is reported
    are wanted more than once. Each time the file is loaded anew: two loads differ, from where their memory lies.
    """

    target: Target
    example: Example
    _kept: OrderedDict[tuple[str, str], Artefact] = field(default_factory=OrderedDict)

    def __call__(self, model: nn.Module) -> Artefact:
        """The artefact of a model, loaded for this call."""
        key = signature(model), model_hash(model)
        known = self._kept.get(key)
        if known is None:
            known = self._kept[key] = self.target.build(model, self.example, self.target.threads)
            if len(self._kept) > ARTEFACTS:
                self._kept.popitem(last=False)
            return known
        self._kept.move_to_end(key)
        return known if known.again is None else known.again()


@dataclass(eq=False)
class _Timed:
    """Times cut models against the dense one."""

    model: nn.Module
    example: Example
    target: Target
    repeats: int
    built: Built

    def dense(self) -> float:
        key = latency_key(self.model, self.example, self.target)
        known = recall(key)
        if known is None:
            known = measure([self.built(self.model)], self.repeats)[0].median
            remember(key, known)
        return known

    def ratio(self, small: nn.Module, again: bool = False) -> float:
        dense = latency_key(self.model, self.example, self.target)
        key = f"{'second ' if again else ''}paired ratio of {latency_key(small, self.example, self.target)} to {dense}"
        known = recall(key)
        if known is None:
            whole, cut = measure([self.built(self.model), self.built(small)], self.repeats)
            known = float(np.median(cut.seconds / whole.seconds))  # round by round: half the spread of medians' ratio
            remember(key, known)
        return known

    def seconds(self, small: nn.Module, again: bool = False) -> float:
        return self.dense() * self.ratio(small, again)


def families(groups: Groups, most: int = PROBES) -> list[list[Group]]:
    """Groups that are alike but for numbers in their names; where that makes too many, runs of equal work.

    Example:
        >>> import torch, secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [[g.name for g in f] for f in families(sc.couple(sc.trace(net, torch.zeros(1, 4))))]
        [['0:neuron', '2:neuron']]
    """
    alike: dict[tuple[str, int], list[Group]] = {}
    for g in groups:
        alike.setdefault((re.sub(r"\d+", "*", g.name), g.units), []).append(g)
    if len(alike) <= most:
        return list(alike.values())
    full = groups.all_kept()
    dense = groups.macs(full)
    work = np.cumsum([max(dense - groups.macs({**full, g.name: half_of(g)}), 1) for g in groups])
    bins = np.minimum((work - 1e-9) * most // work[-1], most - 1).astype(int)
    runs = [[g for g, b in zip(groups, bins, strict=True) if b == i] for i in range(most)]
    return [r for r in runs if r]


def half_of(group: Group) -> Bools:
    """Half of the units, a multiple of eight where there are enough."""
    count = group.units // 2
    count = max(count - count % 8, 1) if count >= 16 else max(count, 1)
    return np.arange(group.units) < max(count, group.least)


@dataclass(frozen=True, eq=False)
class _Table:
    """Seconds a multiply-accumulate of each family."""

    groups: Groups
    dense: float
    names: tuple[tuple[str, ...], ...]
    rates: tuple[float, ...]

    @classmethod
    def of(cls, groups: Groups, timed: _Timed) -> _Table:
        full, dense = groups.all_kept(), timed.dense()
        macs = groups.macs(full)
        names, rates = [], []
        for family in families(groups):
            keep = {**full, **together(groups, {g.name: half_of(g) for g in family})}
            fewer = macs - groups.macs(keep)
            saved = dense * (1 - timed.ratio(apply(make_plan(groups, keep), timed.model))) if fewer else 0.0
            names.append(tuple(g.name for g in family))
            rates.append(max(saved, 0.0) / max(fewer, 1))
        if not any(rates):
            rates = [dense / max(macs, 1)] * len(rates)  # no probe was faster: work is the only guide left
        return cls(groups, dense, tuple(names), tuple(rates))

    def __call__(self, keep: Keep) -> float:
        full = self.groups.all_kept()
        macs = self.groups.macs(full)
        saved = macs - self.groups.macs({**full, **keep})
        alone = [macs - self.groups.macs({**full, **{n: keep[n] for n in f if n in keep}}) for f in self.names]
        if not sum(alone):
            return self.dense
        seconds = sum(rate * a for rate, a in zip(self.rates, alone, strict=True))
        return max(self.dense - seconds * saved / sum(alone), 0.0)
