"""Densities from tables against exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.choose.tables import by_sensitivity, by_table, least_error
from secateur.errors import ArgumentError, PlanError

options = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5)


def exhaustive(costs: list[list[float]], errors: list[list[float]], limit: float) -> float | None:
    found = None
    for choice in itertools.product(*(range(len(c)) for c in costs)):
        if sum(c[i] for c, i in zip(costs, choice, strict=True)) <= limit * (1 + 1e-9):
            error = sum(e[i] for e, i in zip(errors, choice, strict=True))
            found = error if found is None else min(found, error)
    return found


@settings(max_examples=100)
@given(st.lists(options, min_size=1, max_size=5), st.integers(0, 60), st.sampled_from([1.0, 0.1, 1e-9, 1e6]))
def test_the_choice_is_the_best_of_all(choices: list[list[tuple[int, int]]], limit: int, unit: float) -> None:
    costs = [[c * unit for c, _ in choice] for choice in choices]
    errors = [[float(e) for _, e in choice] for choice in choices]
    expected = exhaustive(costs, errors, limit * unit)
    if expected is None:
        with pytest.raises(PlanError, match="cost .* at least, more than the limit"):
            least_error(costs, errors, limit * unit)
        return
    chosen = least_error(costs, errors, limit * unit)
    assert sum(c[i] for c, i in zip(costs, chosen, strict=True)) <= limit * unit * (1 + 1e-9)
    assert sum(e[i] for e, i in zip(errors, chosen, strict=True)) == pytest.approx(expected)


@given(st.integers(0, 10**6), st.integers(2, 9))
def test_few_states_hold_the_limit_and_many_come_no_later(seed: int, states: int) -> None:
    rng = np.random.default_rng(seed)
    costs = [sorted(rng.random(4).tolist(), reverse=True) for _ in range(6)]
    errors = [sorted(rng.random(4).tolist()) for _ in range(6)]
    limit = sum(c[-1] for c in costs) + rng.random() * sum(c[0] - c[-1] for c in costs)
    totals = []
    for n in (states, 20_000):
        chosen = least_error(costs, errors, limit, n)
        assert sum(c[i] for c, i in zip(costs, chosen, strict=True)) <= limit * (1 + 1e-9)
        totals.append(sum(e[i] for e, i in zip(errors, chosen, strict=True)))
    assert totals[1] <= totals[0] + 1e-12
    assert totals[1] == pytest.approx(exhaustive(costs, errors, limit))


def test_a_larger_limit_is_never_worse() -> None:
    rng = np.random.default_rng(0)
    costs = [rng.random(5).tolist() for _ in range(8)]
    errors = [rng.random(5).tolist() for _ in range(8)]
    found = []
    for limit in np.linspace(sum(map(min, costs)), sum(map(max, costs)), 30):
        chosen = least_error(costs, errors, float(limit))
        found.append(sum(e[i] for e, i in zip(errors, chosen, strict=True)))
    assert found == sorted(found, reverse=True)


def test_by_table_spends_the_cost_and_not_the_count() -> None:
    weights = {"a": torch.rand(10, 10), "b": torch.rand(20, 20)}
    tables = {
        "a": {0.0: (8.0, 0.0), 0.5: (5.0, 1.0), 0.9: (1.0, 2.0)},
        "b": {0.0: (2.0, 0.0), 0.5: (1.5, 0.1), 0.9: (1.0, 0.2)},
    }
    assert by_table(tables)(weights, 0.0) == {"a": 100, "b": 400}
    assert by_table(tables)(weights, 0.5) == {"a": 10, "b": 400}
    assert by_table(tables)(weights, 0.35) == {"a": 50, "b": 200}
    assert by_table(tables, limit=6.0)(weights, 0.0) == {"a": 50, "b": 40}
    with pytest.raises(PlanError, match="cost 2 at least, more than the limit of 1: measure higher"):
        by_table(tables)(weights, 0.9)
    with pytest.raises(PlanError, match=r"nothing was measured of \['c'\]"):
        by_table(tables)({"c": weights["a"]}, 0.5)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 0.9))
def test_by_sensitivity_is_exact_in_total_and_the_best_on_its_grid(seed: int, sparsity: float) -> None:
    rng = np.random.default_rng(seed)
    weights = {n: torch.rand(int(rng.integers(1, 9)), int(rng.integers(1, 9))) for n in "abcd"}
    grid = [0.0, 0.25, 0.5, 0.75, 1.0]
    curves = {n: dict(zip(grid, np.cumsum(rng.random(5)).tolist(), strict=True)) for n in weights}
    counts = by_sensitivity(curves)(weights, sparsity)
    total = sum(w.numel() for w in weights.values())
    kept = total - round(sparsity * total)
    assert sum(counts.values()) == kept
    assert all(0 <= c <= weights[n].numel() for n, c in counts.items())
    costs = [[float(w.numel() - round(s * w.numel())) for s in grid] for w in weights.values()]
    errors = [[curves[n][s] for s in grid] for n in weights]
    at_least = sum(  # where the counts lie on the grid or above it, the error is that of the grid
        min(e for c, e in zip(costs[i], errors[i], strict=True) if c <= counts[n]) for i, n in enumerate(weights)
    )
    assert at_least == pytest.approx(exhaustive(costs, errors, kept))


def test_curves_that_do_not_reach_or_do_not_hold_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"the table of a lacks sparsity 0; add .*\{0.0: ...\}"):
        by_sensitivity({"a": {0.5: 1.0}})
    with pytest.raises(ArgumentError, match="the table of a has 0.5.*expected finite numbers at 0 to 1"):
        by_table({"a": {0.0: (1.0, 0.0), 0.5: (1.0, float("nan"))}})
    with pytest.raises(ArgumentError, match="the table of a has 1.5"):
        by_sensitivity({"a": {0.0: 0.0, 1.5: 1.0}})
    with pytest.raises(PlanError, match="more than the limit"):
        by_sensitivity({"a": {0.0: 0.0, 0.5: 1.0}})({"a": torch.rand(4, 4)}, 0.75)
