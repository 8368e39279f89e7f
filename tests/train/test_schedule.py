"""Schedules against their formulas, written out in plain arithmetic, and the identities of the papers."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ArgumentError
from secateur.train.schedule import (
    Curve,
    about,
    constant,
    cubic,
    exponential,
    iterative,
    linear,
    one_cycle,
    one_shot,
    per_epoch,
)

RAMPS: dict[str, Callable[..., Curve]] = {
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
    "one_cycle": one_cycle,
    "iterative": lambda f, a, b, i=0.0: iterative(f, a, b, min(5, b - a), i),
}
sparsities = st.floats(0, 0.99)


@pytest.mark.parametrize("ramp", RAMPS.values(), ids=RAMPS)
@given(one=sparsities, other=sparsities, start=st.integers(0, 1000), length=st.integers(1, 10_000))
def test_ramps_begin_and_end_exactly_and_only_rise(
    ramp: Callable[..., Curve], one: float, other: float, start: int, length: int
) -> None:
    initial, final = sorted((one, other))
    curve = ramp(final, start, start + length, initial)
    assert curve(start) == initial == curve(max(start - 1, 0)) == curve(0)
    assert curve(start + length) == final == curve(start + length + 5) == curve(10**9)
    values = [curve(start + round(k * length / 20)) for k in range(21)]
    assert all(b >= a - 1e-12 for a, b in zip(values, values[1:], strict=False))


@given(final=st.floats(0.01, 0.99), initial=st.floats(0, 0.99), step=st.integers(0, 1300))
def test_formulas(final: float, initial: float, step: int) -> None:
    u = min(max((step - 100) / 1000, 0), 1)
    near = pytest.approx
    assert cubic(final, 100, 1100, initial)(step) == near(final + (initial - final) * (1 - u) ** 3, abs=1e-12)
    assert linear(final, 100, 1100, initial)(step) == near((1 - u) * initial + u * final, abs=1e-12)
    kept = math.exp((1 - u) * math.log(1 - initial) + u * math.log(1 - final))
    assert exponential(final, 100, 1100, initial)(step) == near(1 - kept, abs=1e-12)
    logistic = (1 + math.exp(-14 + 5)) / (1 + math.exp(-14 * u + 5)) if step > 100 else 0
    assert one_cycle(final, 100, 1100, initial)(step) == near(initial + logistic * (final - initial), abs=1e-12)


def test_cubic_ends_flat_and_is_half_way_at_a_fifth() -> None:
    n = 10**6
    curve = cubic(0.9, 0, n)
    assert (curve(n) - curve(n - 1)) * n < 1e-9  # the derivative over the whole ramp
    assert curve(round(n * (1 - 0.5 ** (1 / 3)))) == pytest.approx(0.45, abs=1e-6)
    assert pytest.approx(0.206, abs=5e-4) == 1 - 0.5 ** (1 / 3)


def test_iterative_is_the_lottery_ticket_ladder() -> None:
    curve = iterative(1 - 0.8**20, 0, 2000, rounds=20)
    kept, ladder = 1.0, {}
    for done in range(21):  # the paper's loop: a fifth of what is left, each round
        ladder[done] = kept
        kept *= 0.8
    for step in range(0, 2001, 50):
        assert 1 - curve(step) == pytest.approx(ladder[step // 100], abs=1e-12)
    assert [round(100 * (1 - curve(100 * r)), 1) for r in (3, 7, 9, 12, 15)] == [51.2, 21.0, 13.4, 6.9, 3.5]


def test_exponential_removes_the_same_fraction_each_step() -> None:
    curve = exponential(0.99, 10, 110)
    ratios = [(1 - curve(t + 1)) / (1 - curve(t)) for t in range(10, 110)]
    assert max(ratios) == pytest.approx(min(ratios)) == pytest.approx(0.01 ** (1 / 100))


def test_constant_one_shot_and_epochs() -> None:
    assert {constant(0.7)(t) for t in (0, 1, 10**6)} == {0.7}
    assert [one_shot(0.7, 3, 0.1)(t) for t in (0, 2, 3, 4)] == [0.1, 0.1, 0.7, 0.7]
    by_step, by_epoch = cubic(0.8, 1, 5), per_epoch(cubic(0.8, 1, 5), 7)
    assert [by_epoch(t) for t in range(50)] == [by_step(t // 7) for t in range(50)]


CURVES = [
    constant(0.5), one_shot(0.5, 3), linear(0.5, 0, 9), cubic(0.5, 0, 9), exponential(0.5, 0, 9), one_cycle(0.5, 0, 9),
    iterative(0.5, 0, 9, 3), per_epoch(cubic(0.5, 0, 9), 4), cubic(0.5, 0, 10), cubic(0.6, 0, 9), cubic(0.5, 0, 9, 0.1),
    iterative(0.5, 0, 9, 4), per_epoch(cubic(0.5, 0, 9), 5), one_cycle(0.5, 0, 9, beta=6.0),
]  # fmt: skip


def test_curves_are_values() -> None:
    told = [json.dumps(c.about, sort_keys=True) for c in CURVES]
    assert len(set(told)) == len(set(CURVES)) == len(CURVES)
    for curve, text in zip(CURVES, told, strict=True):
        again = pickle.loads(pickle.dumps(curve))
        assert again == curve
        assert again(4) == curve(4)
        assert json.dumps(about(again), sort_keys=True) == text


def test_any_function_of_the_step_is_told_by_its_values() -> None:
    assert about(lambda step: 0.5) == about(lambda step: 0.5) != about(lambda step: min(0.5, step / 100))
    table = [0.0, 0.1, 0.2]
    assert about(table.__getitem__)["values"] == [0.0, 0.1, 0.2]
    assert about(per_epoch(lambda epoch: 0.5, 3)) != about(per_epoch(lambda epoch: 0.6, 3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: cubic(90, 0, 10), "fraction removed"),
        (lambda: cubic(0.9, 0, 10, -0.1), "fraction removed"),
        (lambda: constant(1.0), "fraction removed"),
        (lambda: constant(float("nan")), "fraction removed"),
        (lambda: linear(0.9, 10, 10), "end must be after start"),
        (lambda: linear(0.9, -1, 10), "start must be a step"),
        (lambda: exponential(0.9, 0, 10.5), "end must be a step"),
        (lambda: one_shot(0.9, at=-1), "at must be a step"),
        (lambda: iterative(0.9, 0, 10, 11), "rounds must be a whole number between 1 and the 10 steps"),
        (lambda: iterative(0.9, 0, 10, 0), "rounds"),
        (lambda: one_cycle(0.9, 0, 10, alpha=0), "alpha of one_cycle"),
        (lambda: per_epoch(cubic(0.9, 0, 2), 0), "steps_per_epoch"),
        (lambda: per_epoch(0.9, 10), "schedule must be a function"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Curve], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        make()
