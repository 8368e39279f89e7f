"""Densities from what was measured: tables of what each sparsity of a weight costs and what error it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from secateur.choose.density import Densities, check_sparsity, total_kept, whole_counts
from secateur.errors import ArgumentError, PlanError
from secateur.types import Floats, Ints

Curves: TypeAlias = Mapping[str, Mapping[float, float]]
"""Weight -> sparsity -> error (a loss, a squared relative error); sparsity 0 is the dense weight."""

Tables: TypeAlias = Mapping[str, Mapping[float, tuple[float, float]]]
"""Weight -> sparsity -> (cost, error); sparsity 0 is the dense weight."""


def by_table(tables: Tables, limit: float | None = None, states: int = 20_000) -> Densities:
    """The sparsities of the tables whose errors sum to the least while their costs sum to no more than a limit.

    The costs (seconds, say, or bytes) are what sparsity then speaks of: the limit is ``(1 - sparsity)`` times the cost
    of all weights dense, so the number of weights kept is whatever is best, not ``n - round(sparsity n)``.

    Args:
        tables: weight -> sparsity -> (cost, error), as measured; all have sparsity 0.
        limit: on the summed cost, in its unit, instead of ``(1 - sparsity)`` of the dense cost.
        states: of the dynamic program, at most; exact while there are no more, and within the limit always.

    Raises:
        ArgumentError: a table lacks sparsity 0, or has an entry that is no number or no sparsity.
        PlanError: on use: a weight has no table, or even the cheapest choice costs more than the limit.

    Layerwise dynamic programming as in OBC (arXiv:2208.11580) and SPDY.

    Example:
        >>> import torch
        >>> table = {0.0: (10.0, 0.0), 0.5: (6.0, 1.0), 0.9: (2.0, 9.0)}
        >>> weights = {"a": torch.ones(10, 10), "b": torch.ones(10, 10)}
        >>> by_table({"a": table, "b": table})(weights, 0.4)
        {'a': 50, 'b': 50}
    """
    for name, table in tables.items():
        _check_table(name, {s: (*entry,) for s, entry in table.items()})

    def densities(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        _check_names(saliency, tables)
        mine = {n: sorted(tables[n].items()) for n in saliency}
        costs = [[cost for _, (cost, _) in table] for table in mine.values()]
        errors = [[error for _, (_, error) in table] for table in mine.values()]
        room = (1 - check_sparsity(sparsity)) * sum(c[0] for c in costs) if limit is None else limit
        chosen = least_error(costs, errors, room, states)
        picked = {n: mine[n][i][0] for n, i in zip(mine, chosen, strict=True)}
        return {n: s.numel() - round(picked[n] * s.numel()) for n, s in saliency.items()}

    return densities


def by_sensitivity(curves: Curves, states: int = 20_000) -> Densities:
    """The sparsities of measured curves whose errors sum to the least at ``n - round(sparsity n)`` weights kept.

    Where the sparsities of the curves do not add up to the total, what is left over is shared out evenly among what
    was to go: no weight becomes sparser than chosen.

    Args:
        curves: weight -> sparsity -> error, such as `sensitivity` measures; all have sparsity 0.
        states: as in `by_table`.

    Raises:
        ArgumentError: a curve lacks sparsity 0, or has an entry that is no number or no sparsity.
        PlanError: on use: a weight has no curve, or the curves do not reach the sparsity.

    Example:
        >>> import torch
        >>> curves = {"a": {0.0: 0.0, 0.5: 0.1, 0.9: 0.2}, "b": {0.0: 0.0, 0.5: 3.0, 0.9: 9.0}}
        >>> by_sensitivity(curves)({"a": torch.ones(10, 10), "b": torch.ones(10, 10)}, 0.4)
        {'a': 20, 'b': 100}
    """
    for name, curve in curves.items():
        _check_table(name, {s: (error,) for s, error in curve.items()})

    def densities(saliency: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        _check_names(saliency, curves)
        total, sizes = total_kept(saliency, sparsity), {n: s.numel() for n, s in saliency.items()}
        mine = {n: sorted(curves[n].items()) for n in saliency}
        kept = [[float(sizes[n] - round(s * sizes[n])) for s, _ in curve] for n, curve in mine.items()]
        errors = [[error for _, error in curve] for curve in mine.values()]
        chosen = least_error(kept, errors, float(total), states)
        counts = {n: kept[i][j] for (i, n), j in zip(enumerate(mine), chosen, strict=True)}
        gone = sum(sizes[n] - c for n, c in counts.items())
        back = (total - sum(counts.values())) / gone if gone else 0.0
        return whole_counts({n: c + back * (sizes[n] - c) for n, c in counts.items()}, sizes, total)

    return densities


def least_error(
    costs: Sequence[Sequence[float]], errors: Sequence[Sequence[float]], limit: float, states: int = 20_000
) -> list[int]:
    """Which option of each to take: the least summed error at a summed cost of no more than the limit.

    Keeps every sum that no other beats in cost and error at once. Where these are more than ``states``, the best of
    each of as many equal steps of the cost is kept: no cost is rounded, so the limit holds all the same. Time and
    memory: choices times options times states, at most. Of equal errors the cheaper, of equal options the earlier.

    Args:
        costs, errors: of every option of every choice. limit: on the summed cost. states: see above.

    Raises:
        PlanError: even the cheapest options cost more than the limit.

    Example:
        >>> least_error([[5.0, 1.0], [5.0, 2.0]], [[0.0, 9.0], [0.0, 1.0]], 7.0)
        [0, 1]
    """
    cheapest = [min(c) for c in costs]
    if sum(cheapest) > limit * (1 + 1e-12):
        raise PlanError(
            f"the tables cost {sum(cheapest):.6g} at least, more than the limit of {limit:.6g}: measure higher "
            "sparsities, or ask for a lower one"
        )
    cost, error = np.zeros(1), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []  # of every state: its option, and the state that it came from
    rest = sum(cheapest)
    for mine, lost, least in zip(costs, errors, cheapest, strict=True):
        rest -= least
        sums = (cost[:, None] + np.asarray(mine, float)).reshape(-1)
        total = (error[:, None] + np.asarray(lost, float)).reshape(-1)
        front = _front(sums, total, limit * (1 + 1e-12) - rest, states)
        trail.append((front % len(mine), front // len(mine)))
        cost, error = sums[front], total[front]
    at, chosen = int(np.argmin(error)), []
    for option, before in reversed(trail):
        chosen.append(int(option[at]))
        at = int(before[at])
    return chosen[::-1]


def _front(cost: Floats, error: Floats, limit: float, states: int) -> Ints:
    """Which sums no other beats, by rising cost and so by falling error."""
    slack = 1e-12 * abs(limit)  # sums in another order differ in their last digits
    inside = np.nonzero(cost <= limit + slack)[0]
    order = inside[np.lexsort((error[inside], cost[inside]))]
    best = np.minimum.accumulate(error[order])
    front = order[np.concatenate([[True], best[1:] < best[:-1]])]
    if len(front) > states:
        low, high = cost[front[0]], cost[front[-1]]
        step = np.minimum((cost[front] - low) * (states / (high - low)), states - 1).astype(np.int64)
        last = np.concatenate([step[1:] != step[:-1], [True]])  # the least error of a step is its last
        last[0] = True  # the cheapest: what comes next may need the room
        front = front[last]
    found: Ints = front.astype(np.int64)
    return found


def _check_names(saliency: Mapping[str, Tensor], tables: Mapping[str, object]) -> None:
    if lacking := [n for n in saliency if n not in tables]:
        raise PlanError(f"nothing was measured of {lacking[:5]}; there are {list(tables)[:20]}: measure them too")


def _check_table(name: str, table: Mapping[float, tuple[float, ...]]) -> None:
    if 0 not in table:
        raise ArgumentError(f"the table of {name} lacks sparsity 0; add what the dense weight gives: {{0.0: ...}}")
    for sparsity, entry in table.items():
        if not 0 <= sparsity <= 1 or not all(math.isfinite(x) for x in entry):
            raise ArgumentError(f"the table of {name} has {sparsity!r}: {entry}; expected finite numbers at 0 to 1")
