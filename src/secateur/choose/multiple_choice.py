"""The multiple-choice knapsack: one option of every group, least loss in all, under one room or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from secateur.choose.pricing import Table
from secateur.choose.tables import least_error
from secateur.choose.together import Counts
from secateur.errors import PlanError
from secateur.types import Floats, Ints

Tables: TypeAlias = Mapping[str, Table]
"""Group -> its options."""

SMALL = 400_000
"""Options times states up to which every sum of costs is told apart."""
STEPS = 80
"""Of the multipliers of several rooms."""


def solved(tables: Tables, room: Floats, states: int = 4096) -> list[Counts]:
    """Choices of least loss within the room, the best of one room; for several rooms, candidates for the best.

    One room: dynamic programming, exact where the options are few, else in ``states`` steps of the cost, rounded up.
    Several: multipliers are found that make the rooms one (subgradients of the dual), and what the one room's program
    says for them is among the candidates, with what every multiplier chose on the way; where all sums of costs can be
    told apart, the program over all rooms at once is there too, which is exact.

    Args:
        tables: of each group. room: of each cost, what may be spent. states: of the program.
    """
    tables = {n: t.undominated() for n, t in tables.items()}
    room = np.maximum(room, 0.0)
    if len(room) == 1:
        return [_one(tables, {n: t.costs[0] for n, t in tables.items()}, float(room[0]), states)]
    largest = np.sum([t.costs.max(1) for t in tables.values()], axis=0)
    scale = 1 / np.maximum(room, np.where(largest > 0, 1e-9 * largest, 1.0))
    weights, found = _multipliers(tables, scale)
    for w in [weights, *(0.5 * weights + 0.5 * one for one in np.eye(len(room)))]:
        mixed = {n: (w * scale) @ t.costs for n, t in tables.items()}
        found.append(_one(tables, mixed, float(w.sum()), states))
    exact = _several(tables, room, states)
    return found if exact is None else [exact, *found]


def _one(tables: Tables, costs: Mapping[str, Floats], room: float, states: int) -> Counts:
    """The best under one room; the cheapest where nothing is within it."""
    names = list(tables)
    if sum(len(t.counts) for t in tables.values()) * states <= SMALL:
        try:
            chosen = least_error(
                [costs[n].tolist() for n in names], [tables[n].loss.tolist() for n in names], room, states
            )
        except PlanError:
            chosen = [int(np.argmin(costs[n])) for n in names]
    else:
        chosen = _stepped([costs[n] for n in names], [tables[n].loss for n in names], room, states)
    return {n: int(tables[n].counts[j]) for n, j in zip(names, chosen, strict=True)}


def _stepped(costs: list[Floats], losses: list[Floats], room: float, states: int) -> list[int]:
    """Dynamic programming over the room in steps; costs are rounded up, so the sum never exceeds it."""
    unit, best = room / states, np.zeros(states + 1)
    taken: list[Ints] = []
    steps = [
        np.minimum(np.ceil(c / unit - 1e-9), states + 1).astype(np.int64) if unit > 0 else (c > 0) * (states + 1)
        for c in costs
    ]
    for mine, lost in zip(steps, losses, strict=True):
        after, choice = np.full(states + 1, np.inf), np.zeros(states + 1, np.int64)
        for j, (step, loss) in enumerate(zip(mine.tolist(), lost.tolist(), strict=True)):
            if step > states:
                continue
            candidate = best[: states + 1 - step] + loss
            better = candidate < after[step:]
            after[step:][better], choice[step:][better] = candidate[better], j
        best, taken = after, [*taken, choice]
    if not np.isfinite(best[states]):
        return [int(np.argmin(c)) for c in costs]
    at, chosen = states, []
    for mine, choice in zip(reversed(steps), reversed(taken), strict=True):
        chosen.append(int(choice[at]))
        at -= int(mine[chosen[-1]])
    return chosen[::-1]


def _multipliers(tables: Tables, scale: Floats) -> tuple[Floats, list[Counts]]:
    """Multipliers that make the dual largest, summing to 1, and the choices within all rooms met on the way."""
    m, weights, found = len(scale), np.full(len(scale), 1.0), {}
    lost = {n: (t.loss - t.loss.min(), scale[:, None] * t.costs) for n, t in tables.items()}
    size = sum(float(loss.max()) for loss, _ in lost.values()) or 1.0
    best, kept = -np.inf, weights
    lam = weights * size
    for i in range(STEPS):
        chosen = {n: int(np.argmin(loss + lam @ c)) for n, (loss, c) in lost.items()}
        used = np.sum([lost[n][1][:, j] for n, j in chosen.items()], axis=0)
        dual = sum(float(lost[n][0][j]) for n, j in chosen.items()) + float(lam @ (used - 1))
        if dual > best:
            best, kept = dual, lam
        if (used <= 1 + 1e-12).all():
            counts = {n: int(tables[n].counts[j]) for n, j in chosen.items()}
            found[tuple(counts.values())] = counts
        lam = np.maximum(lam * np.exp(np.clip(used - 1, -1, 1) * 2 / (1 + i / 10)), 1e-9 * size)
    total = float(kept.sum())
    return (kept / total if total > 0 else np.full(m, 1 / m)), list(found.values())


def _several(tables: Tables, room: Floats, states: int) -> Counts | None:
    """The program over all rooms at once; None where its sums are too many to be told apart."""
    slack = 1e-12 * room
    least = [t.costs.min(1) for t in tables.values()]
    rest = np.sum(least, axis=0)
    costs, loss, trail = np.zeros((len(room), 1)), np.zeros(1), []
    for table, low in zip(tables.values(), least, strict=True):
        rest = rest - low
        k = len(table.counts)
        if costs.shape[1] * k > 16 * states:
            return None
        sums = (costs[:, :, None] + table.costs[:, None, :]).reshape(len(room), -1)
        total = (loss[:, None] + table.loss[None, :]).reshape(-1)
        inside = np.nonzero((sums + rest[:, None] <= (room + slack)[:, None]).all(0))[0]
        if not len(inside):
            return None
        kept = _undominated(sums[:, inside], total[inside])
        front = inside[kept]
        trail.append((front % k, front // k))
        costs, loss = sums[:, front], total[front]
    at, chosen = int(np.argmin(loss)), []
    for option, before in reversed(trail):
        chosen.append(int(option[at]))
        at = int(before[at])
    return {n: int(t.counts[j]) for (n, t), j in zip(tables.items(), reversed(chosen), strict=True)}


def _undominated(costs: Floats, loss: Floats) -> Ints:
    """Which sums are dearer in some cost than each of the first few hundred of no more loss."""
    order = np.lexsort((*costs[::-1], loss))
    sorted_, alive = costs[:, order], np.ones(len(order), bool)
    for i in range(min(len(order), 512)):
        if alive[i]:
            worse = (sorted_[:, i, None] <= sorted_[:, i + 1 :]).all(0)
            alive[i + 1 :] &= ~worse
    found: Ints = order[alive]
    return found
