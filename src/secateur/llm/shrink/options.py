"""What a block may become: how many units of each family, or none of the block; its error, and what it frees."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from secateur.choose.multiple_choice import solved
from secateur.choose.pricing import Table
from secateur.errors import BudgetError
from secateur.llm.shrink.hollow import Meter
from secateur.llm.shrink.units import Family
from secateur.types import Floats, Ints

FINEST = 10
"""How many times the states asked for are taken where no cost of whole numbers is rounded then."""


@dataclass(frozen=True, eq=False)
class Price:
    """What a budget limits, as a sum over blocks.

    Attributes:
        name: ``params``, ``macs``, ``kv``, ``prefill`` or ``decode``. unit: of it. dense: of the whole model.
        narrower: what a narrower residual stream saves of that, whatever is chosen.
        saved: family -> what is saved at each of its offered counts; 0 at the last.
        dropped: what is saved without each block, float64 (blocks,).
        limit: what is asked. meter: counts it on a cut model; None where it is a time.
    """

    name: str
    unit: str
    dense: float
    saved: Mapping[str, Floats]
    dropped: Floats
    limit: float
    meter: Meter | None = None
    narrower: float = 0.0

    @property
    def whole(self) -> float:
        """Of the model that choices are taken from."""
        return self.dense - self.narrower


@dataclass(frozen=True, eq=False)
class Menu:
    """All that may be chosen.

    Attributes:
        blocks: how many. families: of them. counts: family -> offered counts, ascending, the last all units.
        errors: family -> error at each of these. drop: error without each block, (blocks,); inf keeps it.
        scores: family -> float64 (units,); larger stays.
    """

    blocks: int
    families: Sequence[Family]
    counts: Mapping[str, Ints]
    errors: Mapping[str, Floats]
    drop: Floats
    scores: Mapping[str, Floats]

    def of(self, block: int) -> list[Family]:
        """The families of a block."""
        return [f for f in self.families if f.block == block]


@dataclass(frozen=True)
class Choice:
    """What was chosen: units kept by family, those of dropped blocks left out; the blocks that go; the error."""

    kept: Mapping[str, int]
    dropped: tuple[int, ...]
    error: float


def cost_of(choice: Choice, menu: Menu, price: Price) -> float:
    """What a price predicts of a choice."""
    saved = sum(float(price.dropped[b]) for b in choice.dropped)
    for f in menu.families:
        if f.block not in choice.dropped:
            saved += float(price.saved[f.name][int(np.searchsorted(menu.counts[f.name], choice.kept[f.name]))])
    return price.whole - saved


def mixed(menu: Menu, prices: Sequence[Price], states: int = 20_000) -> Choice:
    """Least total error under all budgets, each block chosen for itself: depth, heads and neurons at once.

    ``min sum_b e_b(o_b)  s.t.  sum_b c_b(o_b) <= limit``, an option of a block being counts of its families or its
    absence: a multiple-choice knapsack, solved by dynamic programming as SPDY and ZipLM do (arXiv:2302.04089). Exact
    under one budget that is a count, where the counts' common divisor leaves few enough sums; else costs are rounded
    up to one of ``states`` steps.

    Raises:
        BudgetError: no choice meets the budgets; names the closest.

    Time: options x states. Memory: blocks x states.
    """
    options = {str(b): _options(menu, b) for b in range(menu.blocks)}
    tables, room = {}, np.array([p.limit - p.whole for p in prices])
    for b in range(menu.blocks):
        saved = np.array([[_saved(menu, p, b, o) for o in options[str(b)]] for p in prices])
        most = saved.max(1, keepdims=True)
        room = room + most[:, 0]
        loss = np.array([_loss(menu, b, o) for o in options[str(b)]])
        allowed = np.isfinite(loss)
        tables[str(b)] = Table(np.arange(len(loss))[allowed], loss[allowed], (most - saved)[:, allowed])
    if (room < -1e-9 * np.array([p.dense for p in prices])).any():
        refuse(menu, prices)
    if len(prices) == 1:
        costs = np.concatenate([t.costs[0] for t in tables.values()])
        whole, states = _unrounded(costs, float(room[0]) + 1e-9 * prices[0].limit, states)
        room = room if whole is None else np.array([whole])
    chosen = [_choice(menu, {b: options[b][i] for b, i in found.items()}) for found in solved(tables, room, states)]
    return _best(chosen, menu, prices)


def _unrounded(costs: Floats, room: float, states: int) -> tuple[float | None, int]:
    """The room, and so many states of it that each cost is a whole number of steps; no room where that is too many.

    Example:
        >>> _unrounded(np.array([0.0, 6.0, 4.0]), 9.0, 20)
        (8.0, 20)
    """
    if (costs != np.rint(costs)).any() or not costs.any():
        return None, states
    divisor = int(np.gcd.reduce(costs.astype(np.int64)))
    sums = int(room // divisor)
    if not 0 < sums <= FINEST * states:
        return None, states
    return float(sums * divisor), sums * max(states // sums, 1)


def uniform(menu: Menu, prices: Sequence[Price]) -> Choice:
    """The least error where all blocks that stay keep equally many of each kind: what one configuration can say.

    For every pair of counts and number of blocks dropped, those go whose absence adds least: exact.
    """
    kinds = sorted({f.kind for f in menu.families})
    first = {k: next(f for f in menu.families if f.kind == k) for k in kinds}
    if any((menu.counts[f.name] != menu.counts[first[f.kind].name]).any() for f in menu.families):
        raise BudgetError("the blocks are not alike: they have families of other sizes; leave uniform out")
    found = []
    for at in itertools.product(*(range(len(menu.counts[first[k].name])) for k in kinds)):
        where = dict(zip(kinds, at, strict=True))
        own = np.array([sum(float(menu.errors[f.name][where[f.kind]]) for f in menu.of(b)) for b in range(menu.blocks)])
        order = np.argsort(menu.drop - own, kind="stable")
        droppable = int(np.isfinite(menu.drop).sum())
        for gone in range(min(droppable, menu.blocks - 1) + 1):
            dropped = tuple(sorted(order[:gone].tolist()))
            kept = {
                f.name: int(menu.counts[f.name][where[f.kind]]) for f in menu.families if f.block not in set(dropped)
            }
            error = float(own[order[gone:]].sum() + menu.drop[order[:gone]].sum())
            found.append(Choice(kept, dropped, error))
    return _best(found, menu, prices)


def ranked(menu: Menu, prices: Sequence[Price]) -> Choice:
    """One ranking of all units by standardised scores, the lowest first: as few go as meet the budgets (FLAP).

    ``(s - mean) / std`` in each family (arXiv:2312.11983); kept counts are rounded up to those offered; no block goes
    whole.
    """
    rows = []
    for i, f in enumerate(menu.families):
        s = menu.scores[f.name]
        standard = (s - s.mean()) / (s.std() if s.std() > 0 else 1.0)
        rows += [(float(standard[u]), i, u) for u in range(f.units)]
    order = [menu.families[i].name for _, i, _ in sorted(rows)]

    def after(gone: int) -> Choice:
        left = {f.name: f.units for f in menu.families}
        for name in order[:gone]:
            left[name] -= 1
        kept = {
            n: int(menu.counts[n][np.searchsorted(menu.counts[n], max(c, menu.counts[n][0]))]) for n, c in left.items()
        }
        return Choice(kept, (), 0.0)

    low, high = 0, len(order)
    if not fits(after(high), menu, prices):
        refuse(menu, prices)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(after(middle), menu, prices) else (middle + 1, high)
    return after(low)


_Option = tuple[int, ...] | None
"""Places in the counts of a block's families; None: the block goes."""


def _options(menu: Menu, block: int) -> list[_Option]:
    places = [range(len(menu.counts[f.name])) for f in menu.of(block)]
    return [*itertools.product(*places), None]


def _saved(menu: Menu, price: Price, block: int, option: _Option) -> float:
    if option is None:
        return float(price.dropped[block])
    return sum(float(price.saved[f.name][i]) for f, i in zip(menu.of(block), option, strict=True))


def _loss(menu: Menu, block: int, option: _Option) -> float:
    if option is None:
        return float(menu.drop[block])
    return sum(float(menu.errors[f.name][i]) for f, i in zip(menu.of(block), option, strict=True))


def _choice(menu: Menu, options: Mapping[str, _Option]) -> Choice:
    kept: dict[str, int] = {}
    for b, option in options.items():
        if option is not None:
            kept |= {f.name: int(menu.counts[f.name][i]) for f, i in zip(menu.of(int(b)), option, strict=True)}
    dropped = tuple(int(b) for b, option in options.items() if option is None)
    return Choice(kept, dropped, sum(_loss(menu, int(b), o) for b, o in options.items()))


def fits(choice: Choice, menu: Menu, prices: Sequence[Price]) -> bool:
    """Whether a choice holds all budgets."""
    return all(cost_of(choice, menu, p) <= p.limit * (1 + 1e-9) for p in prices)


def _best(choices: Sequence[Choice], menu: Menu, prices: Sequence[Price]) -> Choice:
    fitting = [c for c in choices if fits(c, menu, prices) and len(c.dropped) < menu.blocks]
    if not fitting:
        refuse(menu, prices)
    return min(fitting, key=lambda c: c.error)


def refuse(menu: Menu, prices: Sequence[Price]) -> NoReturn:
    """Say which budget cannot be met, and the closest to it."""
    for p in prices:
        most = []
        for b in range(menu.blocks):
            saved = [_saved(menu, p, b, o) for o in _options(menu, b) if np.isfinite(_loss(menu, b, o))]
            most.append(max(saved))
        least = p.whole - sum(most)
        if least > p.limit:
            raise BudgetError(
                f"budget {p.name} {p.limit:.6g} {p.unit}".rstrip()
                + f" cannot be met: the least that can be reached is {least:.6g} ({least / p.dense:.1%} of dense). "
                "Ask for more, or allow more kinds"
            )
    told = ", ".join(f"{p.name} {p.limit:.6g}" for p in prices)
    raise BudgetError(f"the budgets {told} cannot be met together, or only without any block: ask for more")
