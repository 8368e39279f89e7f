"""Schedules: the sparsity at each step of a training, as values that can be compared and saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

from secateur.choose.density import check_sparsity
from secateur.errors import ArgumentError

Schedule: TypeAlias = Callable[[int], float]
"""``step -> sparsity``, the fraction removed, in [0, 1)."""


@dataclass(frozen=True)
class Curve:
    """A schedule that says what it is: equal to, and saved as, its formula and the formula's arguments.

    Attributes:
        formula: ``(step, **arguments) -> sparsity``, a function of a module. arguments: name and value of each.

    Example:
        >>> cubic(0.9, 0, 100) == cubic(0.9, 0, 100), cubic(0.9, 0, 100) == linear(0.9, 0, 100)
        (True, False)
        >>> linear(0.9, 0, 100).about
        {'schedule': 'linear', 'final': 0.9, 'start': 0, 'end': 100, 'initial': 0.0}
    """

    formula: Callable[..., float]
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, step: int) -> float:
        """The sparsity after so many steps."""
        return self.formula(step, **dict(self.arguments))

    @property
    def about(self) -> dict[str, Any]:
        """The same as plain data."""
        name = self.formula.__name__.strip("_")
        return {"schedule": name, **{k: about(v) if callable(v) else v for k, v in self.arguments}}


def about(schedule: Schedule) -> Any:
    """A schedule as plain data: two trainings may go on from each other only if these are equal.

    A `Curve` and any other frozen record tell their arguments; a bare function is known by its name and by its
    values at steps 0, 1, 2, 5, 10, 20, 50 and so on to a million.

    Example:
        >>> about(lambda step: 0.5)["values"][:3]
        [0.5, 0.5, 0.5]
    """
    if not callable(schedule):
        raise ArgumentError(f"schedule must be a function of the step, such as cubic(0.9, 0, 1000), got {schedule!r}")
    if isinstance(schedule, Curve):
        return schedule.about
    record: Any = schedule
    if is_dataclass(record):
        told = {f.name: _plain(getattr(record, f.name)) for f in fields(record)}
        return {"schedule": type(record).__qualname__, **told}
    values = []
    for step in [0, *(k * 10**e for e in range(6) for k in (1, 2, 5)), 10**6]:
        try:
            values.append(float(schedule(step)))
        except Exception:  # a table that is shorter than this
            break
    return {"schedule": getattr(schedule, "__qualname__", type(schedule).__qualname__), "values": values}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return about(value) if callable(value) else repr(value)


def constant(sparsity: float) -> Curve:
    """The same at every step.

    Example:
        >>> constant(0.8)(0), constant(0.8)(1000)
        (0.8, 0.8)
    """
    return Curve(_constant, (("sparsity", check_sparsity(sparsity)),))


def _constant(step: int, sparsity: float) -> float:
    return sparsity


def one_shot(final: float, at: int = 0, initial: float = 0.0) -> Curve:
    """``s_i`` before step ``at``, ``s_f`` from then on.

    Example:
        >>> [one_shot(0.9, at=2)(t) for t in range(4)]
        [0.0, 0.0, 0.9, 0.9]
    """
    _step("at", at)
    return Curve(_one_shot, (("final", check_sparsity(final)), ("at", at), ("initial", check_sparsity(initial))))


def _one_shot(step: int, final: float, at: int, initial: float) -> float:
    return final if step >= at else initial


def linear(final: float, start: int, end: int, initial: float = 0.0) -> Curve:
    """``s_i + (s_f - s_i) (t - t0) / (t1 - t0)`` between the two steps.

    Example:
        >>> [round(linear(0.8, 0, 4)(t), 3) for t in range(6)]
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """
    return _ramp(_linear, final, start, end, initial)


def _linear(step: int, final: float, start: int, end: int, initial: float) -> float:
    return _between(initial, final, _done(step, start, end))


def cubic(final: float, start: int, end: int, initial: float = 0.0) -> Curve:
    """``s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))³`` between the two steps (Zhu and Gupta, arXiv:1710.01878).

    Example:
        >>> [round(cubic(0.9, 0, 4)(t), 3) for t in range(6)]
        [0.0, 0.52, 0.787, 0.886, 0.9, 0.9]
    """
    return _ramp(_cubic, final, start, end, initial)


def _cubic(step: int, final: float, start: int, end: int, initial: float) -> float:
    return _between(final, initial, (1 - _done(step, start, end)) ** 3)


def exponential(final: float, start: int, end: int, initial: float = 0.0) -> Curve:
    """``1 - κ_i (κ_f / κ_i)^((t - t0) / (t1 - t0))``: what is kept, ``κ = 1 - s``, falls by the same factor each step.

    Example:
        >>> [round(1 - exponential(0.9375, 0, 4)(t), 4) for t in range(6)]
        [1.0, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    """
    return _ramp(_exponential, final, start, end, initial)


def _exponential(step: int, final: float, start: int, end: int, initial: float) -> float:
    return _geometric(initial, final, _done(step, start, end))


def one_cycle(
    final: float, start: int, end: int, initial: float = 0.0, alpha: float = 14.0, beta: float = 5.0
) -> Curve:
    """``s_i + (s_f - s_i) (1 + e^(β - α)) / (1 + e^(β - α u))``, ``u = (t - t0) / (t1 - t0)`` (arXiv:2107.02086).

    Up to and at ``t0`` it is ``s_i`` itself, of which the formula falls short of by ``(s_f - s_i) / (1 + e^β)``.

    Example:
        >>> [round(one_cycle(0.9, 0, 4)(t), 3) for t in range(6)]
        [0.0, 0.164, 0.793, 0.896, 0.9, 0.9]
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise ArgumentError(f"{name} of one_cycle must be a positive number, got {value!r}")
    ramp = _ramp(_one_cycle, final, start, end, initial)
    return Curve(_one_cycle, (*ramp.arguments, ("alpha", float(alpha)), ("beta", float(beta))))


def _one_cycle(step: int, final: float, start: int, end: int, initial: float, alpha: float, beta: float) -> float:
    done = _done(step, start, end)
    rise = (1 + math.exp(beta - alpha)) / (1 + math.exp(beta - alpha * done)) if done > 0 else 0.0
    return _between(initial, final, rise)


def iterative(final: float, start: int, end: int, rounds: int, initial: float = 0.0) -> Curve:
    """``n`` rounds that each remove the same fraction of what is left; the k-th ends at ``t0 + k (t1 - t0) / n``.

    After it ``κ_i (κ_f / κ_i)^(k/n)`` is kept: the fraction is ``1 - (κ_f / κ_i)^(1/n)``, and 20 % a round in the
    lottery-ticket papers (arXiv:1803.03635) is ``final=1 - 0.8**n``.

    Example:
        >>> [round(iterative(1 - 0.8**3, 0, 6, rounds=3)(t), 3) for t in range(7)]
        [0.0, 0.0, 0.2, 0.2, 0.36, 0.36, 0.488]
    """
    ramp = _ramp(_iterative, final, start, end, initial)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= end - start:
        raise ArgumentError(f"rounds must be a whole number between 1 and the {end - start} steps, got {rounds!r}")
    return Curve(_iterative, (*ramp.arguments, ("rounds", rounds)))


def _iterative(step: int, final: float, start: int, end: int, initial: float, rounds: int) -> float:
    ended = min(max((step - start) * rounds // (end - start), 0), rounds)
    return _geometric(initial, final, ended / rounds)


def per_epoch(schedule: Schedule, steps_per_epoch: int) -> Curve:
    """A schedule whose steps are epochs: it changes where an epoch begins.

    Example:
        >>> [per_epoch(linear(0.5, 0, 2), 3)(t) for t in range(8)]
        [0.0, 0.0, 0.0, 0.25, 0.25, 0.25, 0.5, 0.5]
    """
    if not callable(schedule):
        raise ArgumentError(f"schedule must be a function of the step, such as cubic(0.9, 0, 10), got {schedule!r}")
    if not isinstance(steps_per_epoch, int) or isinstance(steps_per_epoch, bool) or steps_per_epoch < 1:
        raise ArgumentError(f"steps_per_epoch must be a whole number of at least 1, got {steps_per_epoch!r}")
    return Curve(_per_epoch, (("by_epoch", schedule), ("steps_per_epoch", steps_per_epoch)))


def _per_epoch(step: int, by_epoch: Schedule, steps_per_epoch: int) -> float:
    return by_epoch(step // steps_per_epoch)


def _ramp(formula: Callable[..., float], final: float, start: int, end: int, initial: float) -> Curve:
    _step("start", start)
    _step("end", end)
    if start >= end:
        raise ArgumentError(
            f"a ramp from step {start} to step {end} has no length: end must be after start, or use one_shot"
        )
    told = (("final", check_sparsity(final)), ("start", start), ("end", end), ("initial", check_sparsity(initial)))
    return Curve(formula, told)


def _step(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ArgumentError(f"{name} must be a step, a whole number of at least 0, got {value!r}")


def _done(step: int, start: int, end: int) -> float:
    return min(max((step - start) / (end - start), 0.0), 1.0)


def _between(one: float, other: float, way: float) -> float:
    return one if way == 0 else other if way == 1 else one + (other - one) * way


def _geometric(initial: float, final: float, way: float) -> float:
    if way in (0, 1):
        return final if way else initial
    return float(1 - (1 - initial) * ((1 - final) / (1 - initial)) ** way)
