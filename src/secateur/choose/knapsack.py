"""Least loss under the budget over all groups at once: by scores, or by errors that were measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from secateur.choose.budgets import parts_of
from secateur.choose.multiple_choice import solved
from secateur.choose.pricing import Prices
from secateur.choose.rank import Allocation, uniform
from secateur.choose.together import Counts
from secateur.errors import PlanError
from secateur.types import Budget, Floats, Ints, Scores

EFFORT = 3000
"""Choices that are priced to improve a solution, at most; where there are no more, all are."""
NEAR, WIDE = 4, 64
"""Options up and down from where a group is that are exchanged, at least; and of all groups together."""


def knapsack_with(buckets: int = 4096, rounds: int = 4) -> Allocation:
    """`knapsack` with another resolution of the budget or number of linearisations."""

    def knapsack(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
        """Least total score lost under the budget, over all groups at once: a multiple-choice knapsack.

        Each group chooses one of its allowed counts; within a group the lowest scores go first (the precedence of
        HALP, arXiv:2110.10811). Up to 64 options of a group are each priced, of more the multiples of 8 (or 16, 32...)
        and those around the last solution, so steps of a staircase stand as they are, and a count that costs no less
        than a larger one is never chosen. Solved by dynamic programming, exactly where options are few and else over
        the budget in ``buckets`` steps; several budgets are joined by multipliers. Where a group's cost depends on the
        others (the two sides of a convolution) it is linearised around the last solution, ``rounds`` times; the best
        solution that truly meets the budget is kept, and improved by what fits and by exchanges between two groups.

        Time: groups x options x buckets; memory: groups x buckets.

        Example:
            >>> import torch, secateur as sc
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> scores = sc.score(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), sc.magnitude)
            >>> sc.allocate(scores, sc.Budget.of_dense(sc.params(net), 0.5), sc.knapsack).removed
            5
        """
        loss = {g.name: losses(scores.values[g.name], options[g.name]) for g in scores.groups}
        return least_loss(scores, budget, options, loss, buckets, rounds)

    return knapsack


def dp(errors: Mapping[str, Mapping[int, float]], states: int = 4096, rounds: int = 4) -> Allocation:
    """Least total error under the budget: every group's options are (error, cost), the error measured.

    ``min sum_g e_g(n_g)  s.t.  sum_g c_g(n_g) <= limit``, as SPDY and ZipLM allocate (arXiv:2208.11580,
    arXiv:2302.04089). Between measured counts the error is interpolated, falling or level as more is kept; what was
    measured against that is taken for the larger of both. Scores still say which units of a group go first.

    Args:
        errors: group -> units kept -> error, such as `sc.error_table` measures; of the whole group it is 0 unless
            given. Groups that are not in it are refused.
        states: of the dynamic program. rounds: linearisations, where groups' costs depend on each other.

    Raises:
        PlanError: on use: a group has no errors, or one that is not finite or at a count that there is not.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> scores = sc.score(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), sc.magnitude)
        >>> table = {"0:neuron": {2: 1.0, 4: 0.1}}
        >>> sc.allocate(scores, sc.Budget.of_dense(sc.params(net), 0.5), dp(table)).removed
        5
    """

    def dp(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
        loss = {g.name: error_curve(g.name, g.units, errors, options[g.name]) for g in scores.groups}
        return least_loss(scores, budget, options, loss, states, rounds)

    return dp


def losses(values: Floats, options: Ints) -> Floats:
    """Score lost at each allowed count."""
    lost = np.concatenate([[0.0], np.cumsum(np.sort(values, kind="stable"))])
    out: Floats = lost[len(values) - options]
    return out


def error_curve(name: str, units: int, errors: Mapping[str, Mapping[int, float]], options: Ints) -> Floats:
    """Error at each allowed count: through what was measured, never rising with the count.

    Below the least that was measured the last slope goes on.

    Raises:
        PlanError: nothing was measured of the group, or a count or an error makes no sense.

    Example:
        >>> error_curve("a", 8, {"a": {4: 1.0, 6: 0.0}}, np.arange(2, 9)).tolist()
        [2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0]
    """
    if not errors.get(name):
        raise PlanError(f"no error was measured of group {name}; there are {list(errors)[:20]}: measure it too")
    known = {units: 0.0, **errors[name]}
    for count, error in known.items():
        if not 0 <= count <= units or not np.isfinite(error):
            raise PlanError(f"group {name} has {units} units; the table has the error {error} at {count} kept")
    at = np.array(sorted(known), float)
    curve = np.maximum.accumulate(np.array([known[int(c)] for c in at], float)[::-1])[::-1]
    out = np.interp(options, at, curve)
    if len(at) > 1:
        slope = (curve[0] - curve[1]) / (at[1] - at[0])
        out = np.where(options < at[0], curve[0] + slope * (at[0] - options), out)
    found: Floats = out.astype(float)
    return found


def least_loss(
    scores: Scores,
    budget: Budget,
    options: Mapping[str, Ints],
    loss: Mapping[str, Floats],
    states: int = 4096,
    rounds: int = 4,
) -> Counts:
    """The choice of least total loss that meets the budget.

    Args:
        scores: rank the units. budget: one, or one for several. options: allowed counts, ascending.
        loss: at each of them. states: of the dynamic program. rounds: linearisations, first around uniform widths.
    """
    search = _Search(Prices.of(scores, budget), np.array([p.limit for p in parts_of(budget)]), options, loss)
    search.linearise(uniform(scores, budget, options), rounds, states)
    search.improve()
    for _ in range(rounds):  # around what was found, as long as that finds better
        before = search.best
        search.linearise(before, 2, states)
        if search.best == before:
            break
        search.improve()
    search.every()
    return search.best


def improved(
    scores: Scores, budget: Budget, options: Mapping[str, Ints], loss: Mapping[str, Floats], start: Counts
) -> Counts:
    """A choice with what still fits, and after exchanges between two groups; arguments as of `least_loss`."""
    search = _Search(Prices.of(scores, budget), np.array([p.limit for p in parts_of(budget)]), options, loss)
    search.offer(start)
    search.improve()
    return search.best


@dataclass(eq=False)
class _Search:
    """The best choice so far."""

    prices: Prices
    limits: Floats
    options: Mapping[str, Ints]
    loss: Mapping[str, Floats]

    best: dict[str, int] = field(default_factory=dict)

    def total(self, counts: Counts) -> float:
        """The loss of a choice."""
        return float(sum(self.loss[n][np.searchsorted(self.options[n], c)] for n, c in counts.items()))

    def rank(self, counts: Counts) -> tuple[float, float]:
        """Choices within the limits by their loss, before those beyond them by how far."""
        over = float(np.max(self.prices(counts) / self.limits))
        inside = bool((self.prices(counts) <= self.limits).all())
        return (0.0, self.total(counts)) if inside else (over, 0.0)

    def offer(self, counts: Counts) -> bool:
        """Take a choice that is better than the best."""
        if self.best and self.rank(counts) >= self.rank(self.best):
            return False
        self.best = dict(counts)
        return True

    def linearise(self, counts: Counts, rounds: int, states: int) -> None:
        """Solve with every group's cost as it is beside the last solution; offer what comes out."""
        self.offer(counts)
        aim = self.limits.copy()
        for _ in range(rounds):
            tables, fixed = self.prices.tables(self.loss, self.options, counts)
            found = solved(tables, aim - fixed, states)
            for candidate in found:
                self.offer(candidate)
            counts = min(found, key=self.rank)
            aim *= np.clip(self.limits / np.maximum(self.prices(counts), 1e-3 * self.limits), 0.8, 1.25)

    def every(self) -> None:
        """All choices, where they are few: no linearisation of coupled costs is exact."""
        if float(np.prod([float(len(o)) for o in self.options.values()])) <= EFFORT:
            for counts in itertools.product(*(o.tolist() for o in self.options.values())):
                self.offer(dict(zip(self.options, counts, strict=True)))

    def improve(self) -> None:
        """What still fits, and exchanges between two groups, while they help and the effort allows."""
        until = self.prices.asked + EFFORT
        self.fill()
        while self.prices.asked < until and self._exchange(until):
            self.fill()

    def fill(self) -> None:
        """Give back what still fits, the most valuable first; more units at no loss saved are given back too."""
        while True:
            steps = []
            for n, c in self.best.items():
                i, o = int(np.searchsorted(self.options[n], c)), self.options[n]
                gain = float(self.loss[n][i])
                steps += [
                    (gain - float(self.loss[n][j]), n, int(o[j])) for j in range(i + 1, min(i + 1 + NEAR, len(o)))
                ]
            for _, n, c in sorted(steps, key=lambda s: -s[0]):
                if self._fits({**self.best, n: c}):
                    self.best[n] = c
                    break
            else:
                return

    def _fits(self, counts: Counts) -> bool:
        return bool((self.prices(counts) <= self.limits).all())

    def _exchange(self, until: int) -> bool:
        """The first pair of groups, the most valuable first, of which one gets more and the other less."""
        base = self.prices(self.best)
        up: list[tuple[str, int, float, Floats]] = []
        down: list[tuple[str, int, float, Floats]] = []
        near = max(NEAR, WIDE // len(self.best))
        for n, c in self.best.items():
            o, lost = self.options[n], self.loss[n]
            i = int(np.searchsorted(o, c))
            for j in {*range(max(i - near, 0), min(i + near + 1, len(o)))} - {i}:
                gain = float(lost[i] - lost[j])
                move = (n, int(o[j]), gain, self.prices({**self.best, n: int(o[j])}) - base)
                (up if gain > 0 else down).append(move)
        room = (self.limits - base) + 0.02 * self.limits
        pairs = [
            (a[2] + b[2], a[0], a[1], b[0], b[1])
            for a in up
            for b in down
            if a[0] != b[0] and a[2] + b[2] > 0 and (a[3] + b[3] <= room).all()
        ]
        for _, n, c, m, d in sorted(pairs, key=lambda p: -p[0]):
            if self.prices.asked >= until:
                return False
            tried = {**self.best, n: c, m: d}
            if self._fits(tried) and self.offer(tried):
                return True
        return False


knapsack = knapsack_with()
"""`knapsack_with` its defaults."""
