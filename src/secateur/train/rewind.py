"""Rounds of pruning, as values: how much goes, where the next training begins, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from secateur.choose.select import top_counts
from secateur.errors import ArgumentError
from secateur.score.weights import matches

Weights: TypeAlias = Mapping[str, Tensor]
"""A model's state, by name."""


@dataclass(frozen=True)
class Cut:
    """How many weights of each tensor survive a round.

    Attributes:
        name: as it stands in files. counts: ``(magnitudes, alive) -> kept`` by name, both tensors by name.
    """

    name: str
    counts: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, int]]


def layerwise(rate: float = 0.2, rates: Mapping[str, float] | None = None) -> Cut:
    """Each tensor loses ``round(rate * alive)`` of its surviving weights (arXiv:1803.03635).

    Args:
        rate: in (0, 1). rates: glob over parameter names and module paths -> another rate; the first match holds.

    Raises:
        ArgumentError: a rate is not in (0, 1), or (in the first round) a glob matches no weight.

    Example:
        >>> alive = {"1.weight": torch.ones(100, dtype=torch.bool), "2.weight": torch.ones(10, dtype=torch.bool)}
        >>> layerwise(0.2, {"2": 0.1}).counts({}, alive)
        {'1.weight': 80, '2.weight': 9}
    """
    other = dict(rates or {})
    for given in (rate, *other.values()):
        _check_rate(given)

    def counts(magnitudes: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> dict[str, int]:
        for glob in other:
            if not any(matches(n, glob) for n in alive):
                raise ArgumentError(f"rates: {glob!r} matches no weight; there are {list(alive)[:20]}")
        found = {}
        for name, mask in alive.items():
            mine = next((r for glob, r in other.items() if matches(name, glob)), rate)
            left = int(mask.sum())
            found[name] = left - round(mine * left)
        return found

    return Cut(f"layerwise {rate:g}" + (f" {other}" if other else ""), counts)


def across_layers(rate: float = 0.2) -> Cut:
    """One ranking of all surviving weights, of which ``round(rate * alive)`` go (arXiv:1903.01611).

    Raises:
        ArgumentError: the rate is not in (0, 1).

    Example:
        >>> across_layers(0.5).counts({"a": torch.tensor([1.0, 4.0])}, {"a": torch.tensor([True, True])})
        {'a': 1}
    """
    _check_rate(rate)

    def counts(magnitudes: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> dict[str, int]:
        left = sum(int(m.sum()) for m in alive.values())
        names = list(alive)
        kept = top_counts([magnitudes[n] for n in names], left - round(rate * left), [alive[n] for n in names])
        return dict(zip(names, kept, strict=True))

    return Cut(f"across layers {rate:g}", counts)


def _check_rate(rate: float) -> None:
    if not isinstance(rate, (int, float)) or not 0 < rate < 1:
        raise ArgumentError(f"rate is the fraction of what is left that goes each round, in (0, 1); got {rate!r}")


@dataclass(frozen=True)
class Rewind:
    """Where the training after a round begins.

    Attributes:
        name: as it stands in files.
        first: steps of the first training -> the step at which the next one begins.
        weights: the step whose weights come back, or None where the trained ones stay.
    """

    name: str
    first: Callable[[int], int]
    weights: int | None = None


def rewind_to(step: int = 0) -> Rewind:
    """Survivors go back to what they were at a step of the first training, and so does the schedule.

    Step 0 is arXiv:1803.03635, 0.1 to 7 % of a training arXiv:1912.05671.

    Raises:
        ArgumentError: the step is negative.

    Example:
        >>> rewind_to(100).first(5000), rewind_to(100).weights
        (100, 100)
    """
    _check_step("rewind_to", step)
    return Rewind(f"weights to step {step}", lambda steps: step, step)


def rewind_learning_rate(step: int = 0) -> Rewind:
    """Survivors stay as trained, the schedule goes back to a step (arXiv:2003.02389).

    Raises:
        ArgumentError: the step is negative.

    Example:
        >>> rewind_learning_rate().first(5000), rewind_learning_rate().weights
        (0, None)
    """
    _check_step("rewind_learning_rate", step)
    return Rewind(f"learning rate to step {step}", lambda steps: step)


def fine_tune(steps: int) -> Rewind:
    """Survivors stay as trained and see the last steps of the schedule again.

    Raises:
        ArgumentError: the number is negative.

    Example:
        >>> fine_tune(300).first(5000)
        4700
    """
    _check_step("fine_tune", steps)
    return Rewind(f"last {steps} steps", lambda total: max(total - steps, 0))


def _check_step(what: str, step: int) -> None:
    if not isinstance(step, int) or step < 0:
        raise ArgumentError(f"{what} takes a number of optimizer steps, 0 or more; got {step!r}")


@dataclass(frozen=True, eq=False)
class Start:
    """Where a training begins: the weights, the masks and the step."""

    weights: Weights
    masks: Mapping[str, Tensor]
    first_step: int


Control: TypeAlias = Callable[[Start, Callable[[], Weights], torch.Generator], Start]
"""``(the ticket's start, draws new weights, generator) -> another start``, trained beside the ticket."""


def random_init(start: Start, fresh: Callable[[], Weights], generator: torch.Generator) -> Start:
    """The control of a ticket's weights: its masks over newly drawn weights, trained from the first step."""
    return replace(start, weights=fresh(), first_step=0)


def shuffled_mask(start: Start, fresh: Callable[[], Weights], generator: torch.Generator) -> Start:
    """The control of a ticket's masks: each shuffled within its tensor, the densities as they are."""
    masks = {}
    for name, mask in start.masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        masks[name] = mask.reshape(-1)[order].reshape(mask.shape)
    return replace(start, masks=masks)
