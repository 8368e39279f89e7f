"""Latency as a cost: predicted from tables of layers and a few whole models, measured wherever it counts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from secateur.choose.plan import make_plan
from secateur.choose.together import together
from secateur.digest import model_hash
from secateur.errors import SecateurError, TargetError
from secateur.graph.couple import Groups
from secateur.graph.record import trace
from secateur.graph.surgery import apply
from secateur.targets.calibrate import Fit, fit, left_out
from secateur.targets.measure import measure
from secateur.targets.memory import latency_key, recall, remember, signature
from secateur.targets.sums import Sums
from secateur.targets.table import table_of
from secateur.types import Artefact, Bools, Cost, Example, Floats, Group, Keep, Measurement, Target

PROBES, FEWER, MANY = 6, 4, 48
"""Most whole-model probes that a prediction is fitted to, and how many where a model has many groups: such models
take long to export, and their blocks are alike."""
ARTEFACTS = 2
"""Exported models that a cost holds on to, in memory: the dense one, and the last that was cut."""
SPREAD, TRIES = 0.3, 3
"""Largest spread of the dense model's timings from which anything is decided, and how often it may be timed anew."""
LOADS = 3
"""How often both models are loaded anew for a second figure, their median: two loads of one file differ by 1 or 2 % for
as long as they live, whatever the rounds, and now and then by far more."""
DENSE = 2.0
"""How much the dense model counts in the fit, against one probe."""


def latency(model: nn.Module, example: Example, target: Target, *, repeats: int = 40) -> Cost:
    r"""Median seconds of one run of the exported model on the target.

    ``dense`` is measured. ``of`` predicts $c + \sum_k a_k S_k$: $S_k$ is the sum over the layers of kind $k$ of what a
    layer of its widths takes by itself (`secateur.targets.table`; measured once for machine, runtime and threads), and
    $c$ and $a_k$ are fitted to the dense model and a few probes, plans that are exported and timed against the dense
    model in one interleaved run. ``measured`` exports and times a cut model: the median over rounds of its time over
    the dense one's in the same round, times the dense figure; a second one, which confirms, is the median over three
    loads of both. These ratios and the dense figure are remembered by model, machine, threads and versions, so the
    same command makes the same plan.
    ``errors`` tells how predictions did: of each probe by a fit without it, and of each model measured since.

    Args:
        model: the dense model.
        example: what it is timed on, batch size included.
        target: the runtime.
        repeats: timings of each model a measurement.

    Raises:
        TargetError: the runtime is missing or refuses the model, or the machine is too busy to tell anything.

    Example:
        >>> import torch, secateur as sc
        >>> cost = latency(nn.Linear(4, 2), torch.zeros(1, 4), sc.eager)
        >>> cost.name, cost.unit, cost.target.name, cost.dense > 0
        ('latency', 's', 'eager', True)
    """
    timed = _Timed(model, example, target, repeats, Built(target, example))
    predictors: dict[int, tuple[Groups, Predictor]] = {}
    since: dict[str, tuple[float, float]] = {}

    def of(groups: Groups, keep: Keep) -> float:
        if id(groups) not in predictors:
            predictors[id(groups)] = (groups, Predictor.of(groups, timed))
        return predictors[id(groups)][1](keep)

    def measured(small: nn.Module, again: bool = False) -> float:
        seconds = timed.seconds(small, again)
        if predictors and signature(small) not in since:
            guess = list(predictors.values())[-1][1].of_model(small, example)
            if guess is not None:
                since[signature(small)] = guess, seconds
        return seconds

    def errors() -> list[tuple[float, float]]:
        return [p for _, predictor in predictors.values() for p in predictor.pairs] + list(since.values())

    return Cost("latency", "s", timed.dense(), of, timed.built, measured, target, example, errors=errors)


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
            known = self._quiet().median
            remember(key, known)
        return known

    def _quiet(self) -> Measurement:
        """Timings of the dense model that agree well enough to decide anything."""
        for _ in range(TRIES):
            found = measure([self.built(self.model)], self.repeats)[0]
            if found.spread <= SPREAD:
                return found
        raise TargetError(
            f"{self.target.name}: this machine is too busy to decide anything: timings of the dense model spread by "
            f"{found.spread:.0%} after {TRIES} tries, at most {SPREAD:.0%} is expected. Stop what else runs, or ask "
            "for more repeats"
        )

    def ratio(self, small: nn.Module, again: bool = False) -> float:
        dense = latency_key(self.model, self.example, self.target)
        key = f"{'median ' if again else ''}paired ratio of {latency_key(small, self.example, self.target)} to {dense}"
        known = recall(key)
        if known is None:
            known = float(np.median([self._loaded(small) for _ in range(LOADS if again else 1)]))
            remember(key, known)
        return known

    def _loaded(self, small: nn.Module) -> float:
        whole, cut = measure([self.built(self.model), self.built(small)], self.repeats)
        return float(np.median(cut.seconds / whole.seconds))  # round by round: half the spread of medians' ratio

    def seconds(self, small: nn.Module, again: bool = False) -> float:
        return self.dense() * self.ratio(small, again)


def probes(groups: Groups, count: int, seed: int = 0) -> list[Keep]:
    """Keeps that spread: dense to sparse, even and uneven, with widths in multiples of eight and any.

    Each can be carried out. Two that come out alike count as one.
    """
    rng = np.random.default_rng(seed)
    found: dict[bytes, Keep] = {}
    for i in range(4 * count):
        if len(found) == count:
            break
        middle, spread = (0.6, 0.3, 0.8, 0.45)[i % 4], (0.0, 0.15, 0.2)[i % 3]
        draws = np.clip(middle + rng.uniform(-spread, spread, len(groups)), 0.1, 1.0)
        keep = together(groups, {g.name: part_of(g, d, i % 2 == 0) for g, d in zip(groups, draws, strict=True)})
        if any(not m.all() for m in keep.values()):
            found.setdefault(b"".join(m.tobytes() for m in keep.values()), {**groups.all_kept(), **keep})
    return list(found.values())


def part_of(group: Group, density: float, even: bool) -> Bools:
    """About so much of a group: where ``even``, a multiple of eight if there are enough, else an odd number."""
    count = round(group.units * density)
    if group.units >= 16:
        count = count - count % 8 if even else count - (count % 2 == 0)
    count = max(count - count % group.multiple, group.multiple, group.least, 1)
    return np.arange(group.units) < min(count, group.units)


@dataclass(frozen=True, eq=False)
class Predictor:
    """Seconds of a plan: sums over a cost table, fitted to whole models that were measured.

    Attributes:
        sums: sums by kind. fit: what whole models feel of them. dense: seconds of the dense model.
        pairs: (predicted, measured) of the probes, each predicted without itself.
    """

    sums: Sums
    fit: Fit
    dense: float
    pairs: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, groups: Groups, timed: _Timed) -> Predictor:
        """Measure the layers and probes of a model."""
        sums = Sums.of(groups, table_of(timed.target))
        keeps = probes(groups, min(PROBES, 2 + len(groups)) if len(groups) <= MANY else FEWER)
        rows = [sums(groups.all_kept()), *(sums(k) for k in keeps)]
        sums.table.keep()
        dense = timed.dense()
        found = [dense, *(dense * timed.ratio(apply(make_plan(groups, k), timed.model)) for k in keeps)]
        at, seconds, weights = np.array(rows), np.array(found), _weights(len(found))
        return cls(sums, fit(at, seconds, weights), dense, tuple(left_out(at, seconds, weights)))

    def __call__(self, keep: Keep) -> float:
        """Predicted seconds; layers that had to be measured for it are kept, so that the next command agrees."""
        seconds = self.fit(self.sums(keep))
        self.sums.table.keep()
        return seconds

    def of_model(self, small: nn.Module, example: Example) -> float | None:
        """Predicted seconds of a model that was cut; None where it cannot be told, such as where layers went whole."""
        try:
            sums = self.sums.of_graph(trace(small, example))
        except SecateurError:
            return None
        return None if sums is None else self.fit(sums)


def _weights(count: int) -> Floats:
    return np.array([DENSE, *[1.0] * (count - 1)])
