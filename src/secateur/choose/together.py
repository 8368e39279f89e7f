"""Groups that cannot all be cut as chosen: what of the choice can be carried out, and what comes nearest to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from secateur.errors import CoupleError, PlanError
from secateur.graph.couple import Groups
from secateur.types import Bools, Ints, Keep

Counts: TypeAlias = Mapping[str, int]
"""Group name -> units kept."""

Options: TypeAlias = Mapping[str, Ints]
"""Group name -> counts that may be kept of it, ascending; the last is the whole group."""

ROUNDS = 16
"""How often an allocation is asked again, at most."""


def fits(groups: Groups, keep: Keep) -> bool:
    """Whether these masks can be carried out: something is left of every axis, and sizes in the code can follow."""
    try:
        groups.axes(keep)
        groups.repairs(keep)
    except (PlanError, CoupleError):
        return False
    return True


def together(groups: Groups, keep: Keep) -> Keep:
    """The masks that can be carried out together: none of a group that cannot go with the ones before it."""

    def add(accepted: dict[str, Bools], names: list[str]) -> dict[str, Bools]:
        tried = accepted | {n: keep[n] for n in names}
        if fits(groups, tried):
            return tried
        half = len(names) // 2
        return accepted if len(names) < 2 else add(add(accepted, names[:half]), names[half:])

    return add({}, list(keep))


@dataclass(frozen=True, eq=False)
class Choices:
    """What may be chosen of every group, which of it can be carried out, and what it costs.

    Attributes:
        options: counts that may be kept of each group. possible: whether such a choice can be carried out; keeping
            all can. price: what the choice costs.
    """

    options: Options
    possible: Callable[[Counts], bool]
    price: Callable[[Counts], float]

    @property
    def least(self) -> dict[str, int]:
        """The fewest that may be kept of each group by itself."""
        return {n: int(o[0]) for n, o in self.options.items()}

    def raised(self, counts: Counts) -> tuple[dict[str, int], Choices]:
        """The choice with more kept where it cannot be carried out, and the choices without what was refused.

        One conflict after another: of the groups in it, the one that it is cheapest to keep more of gets the fewest
        units that end it. What it had, and what lies below if that is refused too, is an option no more.
        """
        counts, options = dict(counts), dict(self.options)
        while names := self._conflict(counts):
            name, count = self._cheapest(counts, names, options)
            mine = options[name]
            lowest = {**{n: counts[n] for n in names}, name: int(mine[0])}
            refused = (mine < count) & ((mine >= counts[name]) | (not self._alone(lowest)))
            options[name], counts[name] = mine[~refused], count
        return counts, Choices(options, self.possible, self.price)

    def above(self, counts: Counts) -> Choices:
        """The choices that keep at least so many of every group."""
        return Choices({n: o[o >= counts[n]] for n, o in self.options.items()}, self.possible, self.price)

    def _alone(self, counts: Counts) -> bool:
        """Whether some groups can go to these counts while all others stay whole."""
        return self.possible({**{n: int(o[-1]) for n, o in self.options.items()}, **counts})

    def _conflict(self, counts: Counts) -> list[str]:
        """Groups, as few as can be, that cannot go to their counts although all others stay whole."""
        if self.possible(counts):
            return []
        names = [n for n, c in counts.items() if c < self.options[n][-1]]
        found: list[str] = []
        while self._alone({n: counts[n] for n in found}):  # while the first ``high`` names with those found cannot go
            low, high = 0, len(names)
            while high - low > 1:
                middle = (low + high) // 2
                can = self._alone({n: counts[n] for n in [*names[:middle], *found]})
                low, high = (middle, high) if can else (low, middle)
            found.append(names[high - 1])
            del names[high - 1 :]
        return sorted(found, key=list(counts).index)

    def _cheapest(self, counts: Counts, names: list[str], options: Options) -> tuple[str, int]:
        """The group of a conflict whose fewest units that end it cost least, and how many those are."""
        found = []
        for name in names:
            others = {n: counts[n] for n in names if n != name}
            if self._alone(others):
                more = options[name][options[name] > counts[name]].tolist()
                count = self._fewest(name, more, others)
                found.append((self.price({**counts, name: count}), name, count))
        _, name, count = min(found, key=lambda f: f[0])
        return name, count

    def _fewest(self, name: str, more: list[int], others: Counts) -> int:
        return more[least(len(more) - 1, lambda i: self._alone({**others, name: more[i]}))]


def reconciled(
    choices: Choices, refused: Counts, allocation: Callable[[Options], Counts], limit: float, floor: Counts
) -> Counts:
    """What an allocation chooses once nothing that it is offered is refused.

    It is asked again without the options that were refused, up to 16 times while what is left lets the budget hold;
    then with nothing below the floor; and if that is refused too, it is the floor.

    Args:
        choices: all that may be chosen. refused: what was chosen of it. allocation: options -> counts, within the
            limit if all the least are. limit: on the price. floor: can be carried out, within the limit.
    """
    left, counts = choices, refused
    for _ in range(ROUNDS):
        _, left = left.raised(counts)
        if left.price(left.least) > limit:
            break
        counts = allocation(left.options)
        if choices.possible(counts):
            return counts
    counts = allocation(choices.above(floor).options)
    return counts if choices.possible(counts) else floor


def least(n: int, holds: Callable[[int], bool]) -> int:
    """Smallest i in 0..n for which ``holds`` is true, given that it is true from some i on and at n."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
