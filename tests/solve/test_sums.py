"""Least squares of weights that share their inputs, by rows themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.solve.sums import Sums, chosen, fit


def sums_of(x: torch.Tensor, y: torch.Tensor, constant: bool) -> Sums:
    sums = Sums.zeros(torch.zeros(y.shape[1], x.shape[1] + constant, dtype=torch.float64), x.shape[1])
    sums.add_(x, y)
    return sums


def constant_behind(x: torch.Tensor, constant: bool) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], 1) if constant else x


@given(seed=st.integers(0, 1000), constant=st.booleans(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_weights_that_share_inputs_are_fitted_as_each_alone(seed: int, constant: bool, sizes: list[int]) -> None:
    torch.manual_seed(seed)
    x = torch.randn(40, 5).double()
    y = torch.randn(40, sum(sizes)).double() * torch.linspace(0.1, 10, sum(sizes))
    old = torch.randn(sum(sizes), 5 + constant, dtype=torch.float64)
    rest, aside = (sums_of(x[part], y[part], constant) for part in (slice(30), slice(30, None)))
    taken = chosen(rest, aside, old, (1e-2, 1.0, 100.0), sizes)
    rest += aside
    new, told = fit(rest, old, taken, sizes)
    for i, rows in enumerate(torch.arange(sum(sizes)).split(sizes)):
        one, other = (sums_of(x[part], y[part][:, rows], constant) for part in (slice(30), slice(30, None)))
        (damping,) = chosen(one, other, old[rows], (1e-2, 1.0, 100.0))
        one += other
        alone, (errors,) = fit(one, old[rows], (damping,))
        assert taken[i] == damping
        torch.testing.assert_close(new[rows], alone)
        assert told[i] == pytest.approx(errors)


@given(seed=st.integers(0, 1000), constant=st.booleans(), like=st.booleans())
def test_the_damping_is_that_of_the_least_residual_aside(seed: int, constant: bool, like: bool) -> None:
    """By the rows themselves; where the others are not like those aside, the weight stays."""
    torch.manual_seed(seed)
    x, dampings, old = torch.randn(40, 5), (1e-3, 0.1, 10.0), torch.randn(3, 5 + constant, dtype=torch.float64)
    truth = old.float() + torch.randn(3, 5 + constant) * (0.1 if like else 1)
    y = constant_behind(x, constant) @ truth.T + 0.1 * torch.randn(40, 3)
    if not like:
        y[30:] = constant_behind(x[30:], constant) @ old.float().T
    rest, aside = (sums_of(x[part], y[part], constant) for part in (slice(30), slice(30, None)))

    def residual(weight: torch.Tensor) -> float:
        return float((y[30:].double() - constant_behind(x[30:], constant).double() @ weight.T).square().sum())

    found = [residual(fit(rest, old, (d,))[0]) for d in dampings]
    expected = dampings[int(np.argmin(found))] if min(found) <= residual(old) else None
    assert chosen(rest, aside, old, dampings) == [expected]
    assert (expected is not None) is like


def test_what_is_no_better_stays() -> None:
    """A weight that is left as it is, and one whose sums are not finite."""
    x, old = torch.randn(20, 4), torch.randn(2, 4, dtype=torch.float64)
    y = x.double() @ old.T
    sums = sums_of(x.double(), y, False)
    new, told = fit(sums, old, (None,))
    assert torch.equal(new, old)
    assert told == [(pytest.approx(0, abs=1e-12),) * 2]
    sums.gram[0, 0] = torch.nan
    assert chosen(sums, sums, old, (1e-2,)) == [None]
    assert torch.equal(fit(sums, old, (1e-2,))[0], old)
    assert fit(sums, old, (1e-2,))[1] == [(torch.inf, torch.inf)]
