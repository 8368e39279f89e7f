"""How much goes where by errors that are measured: of one group beside whole ones, then beside the plan itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
from torch import nn

from secateur.choose.budgets import parts_of
from secateur.choose.effect import check_fractions, table_of
from secateur.choose.knapsack import error_curve, least_loss, losses
from secateur.choose.rank import Allocation, keep_best, uniform
from secateur.choose.together import Counts
from secateur.choose.trial import Distance, Trial, all_of
from secateur.errors import ArgumentError, CoupleError, PlanError
from secateur.progress import progress
from secateur.types import Batches, Budget, Floats, Ints, Scores

RADIUS = 0.15
"""How far a group may go in the first round, as a part of its units; half as far after a round that does not help."""
NEAR = 0.05
"""Budgets that differ by less are solved by the errors that were measured for the first of them."""

Chooser: TypeAlias = Callable[[Budget, Mapping[str, Ints]], Counts]
Curve: TypeAlias = Callable[[Ints], Floats]
"""``counts -> error`` of a group."""


def measured(
    model: nn.Module,
    batches: Batches,
    distance: Distance | None = None,
    fractions: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    damping: float = 1e-2,
    rounds: int = 3,
) -> Allocation:
    """How much goes where by errors at the outputs, the last of them measured beside the plan itself.

    It begins with the best of three plans, as the outputs say: `dp` over an `error_table`, `knapsack` over scores
    scaled as `by_effect` does, and `uniform`. Errors that were measured one group at a time do not add up where much is
    cut everywhere; so each group is then cut a little less and a little more than the plan says, all others as it says,
    and the program is solved again with these errors, within 15 % of each group's units of where it was. What comes of
    it is kept if the outputs lose less. SPDY (arXiv:2201.13096) meets the same coupling by a random search.

    Give batches that the scores were not calibrated on: on those, least squares fit chance as well, and what costs most
    to cut seems to cost little.

    Args:
        model: the dense model. batches: a few examples; labels are ignored.
        distance, fractions, damping: as for `error_table`.
        rounds: how often errors are measured beside the plan; with 0 it is `dp` over an `error_table`.

    Raises:
        ArgumentError: a fraction is not in (0, 1), or rounds is negative.
        DataError, on use: no batches, or outputs that are not finite.

    Time: an `error_table` once for the same scores, and four plans a group and round for a budget; one that differs by
    less than 5 % from one that was solved is solved by the same errors. Memory: one more model, and twice the weights
    that are refitted.

    Example:
        >>> import torch, secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> data = [torch.randn(16, 4)]
        >>> scores = sc.score(net, sc.couple(sc.trace(net, data[0])), sc.magnitude)
        >>> half = sc.Budget.of_dense(sc.params(net), 0.5)
        >>> sc.allocate(scores, half, measured(net, data)).removed
        5
    """
    check_fractions(fractions)
    if rounds < 0:
        raise ArgumentError(f"rounds is how often errors are measured beside the plan, 0 or more, got {rounds}")
    data = all_of(batches)  # other scores look at them again
    known: list[_Looked] = []

    def measured(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
        found = next((k for k in known if _alike(k.trial.scores, scores)), None)
        if found is None:
            trial = Trial(model, scores, data, distance, damping)
            known.append(found := _Looked(trial, table_of(trial, fractions)))
        return found.solve(budget, options, rounds)

    return measured


@dataclass(eq=False)
class _Looked:
    """What has been measured with some scores, and how budgets were solved."""

    trial: Trial
    errors: Mapping[str, Mapping[int, float]]
    solved: list[tuple[Budget, Chooser]] = field(default_factory=list)

    def solve(self, budget: Budget, options: Mapping[str, Ints], rounds: int) -> Counts:
        if not rounds:
            return self._by(self._alone())(budget, options)
        choose = next((c for b, c in self.solved if _near(b, budget)), None)
        if choose is None:
            lost, choose = self._refined(budget, options, rounds)
            if np.isfinite(lost):  # else the groups cannot go together so, and it is asked again with fewer options
                self.solved.append((budget, choose))
        return choose(budget, options)

    def _refined(self, budget: Budget, options: Mapping[str, Ints], rounds: int) -> tuple[float, Chooser]:
        """What the outputs lose by the plan for this budget that they lose least by, and its chooser."""

        def tried(choose: Chooser) -> tuple[float, Counts, Chooser]:
            counts = choose(budget, options)
            return self._lost(counts), counts, choose

        starts = [self._by(self._alone()), self._by(self._scaled()), self._uniform]
        best = min(map(tried, starts), key=lambda t: t[0])
        if not np.isfinite(best[0]):
            return best[0], best[2]
        radius = RADIUS
        with progress("errors beside the plan", rounds * len(options)) as tell:
            for number in range(rounds):
                lost, counts, _choose = best
                curves = {}
                for i, (name, mine) in enumerate(options.items(), number * len(options)):
                    tell(i, f"{lost:.4g} lost so far")
                    curves[name] = self._beside(counts, lost, name, mine, radius)
                found = tried(self._by(curves))
                if found[0] < lost:
                    best = found
                else:
                    radius /= 2
        return best[0], best[2]

    def _by(self, curves: Mapping[str, Curve]) -> Chooser:
        def choose(budget: Budget, options: Mapping[str, Ints]) -> Counts:
            return least_loss(self.trial.scores, budget, options, {n: curves[n](o) for n, o in options.items()})

        return choose

    def _uniform(self, budget: Budget, options: Mapping[str, Ints]) -> Counts:
        return uniform(self.trial.scores, budget, options)

    def _alone(self) -> Mapping[str, Curve]:
        """What was measured of each group beside whole ones."""
        units = {g.name: g.units for g in self.trial.scores.groups}
        return {n: partial(error_curve, n, u, self.errors) for n, u in units.items()}

    def _scaled(self) -> Mapping[str, Curve]:
        """The scores lost, each group's scaled to what was measured nearest half of it."""
        out = {}
        for g in self.trial.scores.groups:
            values, table = self.trial.scores.values[g.name], self.errors[g.name]
            half = min((c for c in table if c < g.units), key=lambda c: abs(c - g.units / 2))
            lost = float(losses(values, np.array([half]))[0])
            factor = table[half] / lost if lost > 0 else 1.0
            out[g.name] = lambda o, v=values, f=factor: f * losses(v, o)
        return out

    def _beside(self, counts: Counts, lost: float, name: str, mine: Ints, radius: float) -> Curve:
        """What the plan would lose more, or less, with one group at other counts: of no use further away."""
        near = {counts[name]: 0.0}
        for part in (-1, -0.5, 0.5, 1):
            count = int(mine[np.argmin(np.abs(mine - (counts[name] + part * radius * mine[-1])))])
            if count not in near and np.isfinite(found := self._lost({**counts, name: count})):
                near[count] = found - lost
        return _within(near, 1e3 * max(lost, 1e-12))

    def _lost(self, counts: Counts) -> float:
        """What the outputs lose; infinite where the groups cannot go together like that."""
        try:
            return self.trial(keep_best(self.trial.scores, counts))
        except (PlanError, CoupleError):
            return np.inf


def _within(errors: Mapping[int, float], steep: float) -> Curve:
    """Through what was measured, never rising with the count, and so much worse for every unit below."""
    at = np.array(sorted(errors), float)
    curve = np.maximum.accumulate(np.array([errors[int(c)] for c in at])[::-1])[::-1]

    def of(options: Ints) -> Floats:
        found: Floats = np.interp(options, at, curve) + steep * np.maximum(at[0] - options, 0.0)
        return found

    return of


def _near(one: Budget, other: Budget) -> bool:
    mine, theirs = parts_of(one), parts_of(other)
    if len(mine) != len(theirs):
        return False
    pairs = zip(mine, theirs, strict=True)
    return all(a.cost.of is b.cost.of and abs(np.log(a.limit / b.limit)) <= NEAR for a, b in pairs)


def _alike(one: Scores, other: Scores) -> bool:
    same = one.values.keys() == other.values.keys()
    return same and all(np.array_equal(v, other.values[n]) for n, v in one.values.items())
