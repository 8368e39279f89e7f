"""Moments against numpy's, and what is made of them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ArgumentError, DataError
from secateur.solve.gram import PANEL, Gram, GramSum, invert_upper_
from secateur.solve.least_squares import fitted
from solving import inputs, layer


def test_moments_are_means_over_all_tokens() -> None:
    x = inputs(60, 7)
    gram = Gram.of(x.reshape(3, 20, 7))
    np.testing.assert_allclose(gram.second, x.T.numpy() @ x.numpy() / 60, rtol=1e-12)
    np.testing.assert_allclose(gram.mean, x.mean(0), rtol=1e-12)
    assert gram.rows == 60
    assert gram.cross is None


@pytest.mark.parametrize("d", [PANEL - 1, PANEL, 2 * PANEL + 3])
def test_panels_make_the_whole_symmetric_matrix(d: int) -> None:
    x = torch.randn(20, d, dtype=torch.float64)
    second = Gram.of(x).second
    np.testing.assert_allclose(second, x.T @ x / 20, rtol=1e-9, atol=1e-12)
    assert torch.equal(second, second.T)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.booleans())
def test_batches_and_parts_add_up(sizes: list[int], cross: bool) -> None:
    d = 5
    total = sum(sizes) + 1
    x, dense = inputs(total, d), inputs(total, d, 1)
    whole = Gram.of(x, dense if cross else None)
    sums = [GramSum.zeros(d, torch.float64, cross=cross) for _ in range(2)]
    for i, (a, b) in enumerate(zip(x.split([*sizes, 1]), dense.split([*sizes, 1]), strict=True)):
        sums[i % 2].add_(a, b if cross else None)
    merged = sums[0].merge_(GramSum(**sums[1].tensors())).gram()
    np.testing.assert_allclose(merged.second, whole.second, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-10, atol=1e-12)
    assert merged.rows == whole.rows
    if cross:
        assert merged.cross is not None
        assert whole.cross is not None
        np.testing.assert_allclose(merged.cross, dense.T.numpy() @ x.numpy() / total, rtol=1e-10, atol=1e-12)


def test_half_precision_is_summed_in_float32() -> None:
    x = inputs(4096, 6, dtype=torch.bfloat16)
    sums = GramSum.zeros(6)
    for part in x.split(100):
        sums.add_(part)
    exact = x.double().T @ x.double() / 4096
    np.testing.assert_allclose(sums.gram().second, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_saved_sums_go_on_bit_for_bit() -> None:
    x = inputs(90, 5, dtype=torch.float32)
    straight = GramSum.zeros(5).add_(x[:40]).add_(x[40:])
    again = GramSum(**{k: v.clone() for k, v in GramSum.zeros(5).add_(x[:40]).tensors().items()}).add_(x[40:])
    assert all(torch.equal(straight.tensors()[k], again.tensors()[k]) for k in straight.tensors())


@pytest.mark.parametrize("d", [1, 2, 63, 128, 129, 300])
def test_triangles_are_inverted(d: int) -> None:
    r = torch.randn(d, d, dtype=torch.float64).triu() / d**0.5
    r.diagonal().abs_().add_(1)
    np.testing.assert_allclose(r @ invert_upper_(r.clone()), np.eye(d), atol=1e-9)


@given(st.integers(1, 40), st.sampled_from([1.0, 0.01, 1e-6]), st.integers(0, 5))
def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse(d: int, damping: float, seed: int) -> None:
    gram = Gram.of(inputs(3 * d + 1, d, seed))
    inverse = np.linalg.inv(gram.damped(damping).numpy())
    expected = np.linalg.cholesky((inverse + inverse.T) / 2).T
    upper = gram.factor(damping)
    np.testing.assert_allclose(upper, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())
    assert torch.equal(upper, upper.triu())
    for j in {0, d // 2, d - 1}:  # one factor holds every shrinking inverse
        rest = np.linalg.inv(gram.damped(damping).numpy()[j:, j:])
        np.testing.assert_allclose(float(upper[j, j]) ** 2, rest[0, 0], rtol=1e-6)
        np.testing.assert_allclose(upper[j, j:] / upper[j, j], rest[0] / rest[0, 0], rtol=1e-4, atol=1e-6)


def test_factors_are_made_once() -> None:
    gram = Gram.of(inputs(20, 4))
    assert gram.factor(0.01) is gram.factor(0.01)
    assert gram.factor(0.1) is not gram.factor(0.01)


def test_float32_is_near_float64() -> None:
    x = inputs(400, 90)
    one, other = Gram.of(x).factor(), Gram.of(x.float()).factor()
    assert other.dtype == torch.float32
    assert float((one - other).norm() / one.norm()) < 1e-4


def test_dead_inputs_stand_alone() -> None:
    x = inputs(40, 6)
    x[:, [1, 4]] = 0
    gram = Gram.of(x)
    assert gram.dead.tolist() == [False, True, False, False, True, False]
    live = [0, 2, 3, 5]
    assert gram.scale == pytest.approx(float(x[:, live].square().mean()))
    damped = gram.damped(0.1)
    np.testing.assert_allclose(damped[1], np.eye(6)[1] * 1.1 * gram.scale)
    only = Gram.of(x[:, live])
    np.testing.assert_allclose(gram.factor(0.1)[live][:, live], only.factor(0.1), rtol=1e-9)
    nothing = Gram.of(torch.zeros(5, 3))
    assert nothing.scale == 1.0
    assert bool(nothing.factor(0.0).isfinite().all())


def test_singular_moments_raise_the_damping(caplog: pytest.LogCaptureFixture) -> None:
    x = inputs(30, 4)
    gram = Gram.of(torch.cat([x, x], 1), name="layers.0.up")
    with caplog.at_level(logging.WARNING, "secateur"):
        upper = gram.factor(0.0)
    assert "of layers.0.up is singular with damping 0: trying" in caplog.text
    assert bool(upper.isfinite().all())
    with pytest.raises(DataError, match=r"layers.0.up \(8 inputs, 30 rows\) stays singular with damping"):
        Gram(torch.full((8, 8), -9.0) + 10 * torch.eye(8), gram.mean, 30, name="layers.0.up").factor(0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = inputs(30, 4)
    x[3, 2] = bad
    with pytest.raises(DataError, match=r"4 inputs of q_proj are NaN or inf on the calibration data"):
        Gram.of(x, name="q_proj")


def test_no_rows_and_unlike_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="no calibration token reached the inputs of experts.3"):
        GramSum.zeros(3).gram(name="experts.3")
    with pytest.raises(ArgumentError, match=r"moments of 3 inputs have shape \(3, 3\)"):
        Gram(torch.eye(2), torch.zeros(3), 1)
    with pytest.raises(ArgumentError, match="belong to every batch"):
        GramSum.zeros(2).add_(torch.ones(1, 2)).add_(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ArgumentError, match="belong to every batch"):
        GramSum.zeros(2).add_(torch.ones(2, 2), torch.ones(1, 2))
    with pytest.raises(ArgumentError, match="one of two sums"):
        GramSum.zeros(2).merge_(GramSum.zeros(2, cross=True))


@given(st.integers(0, 9), st.sampled_from([0.0, 0.01, 0.5]))
def test_the_target_for_dense_outputs_is_ridge_regression(seed: int, damping: float) -> None:
    """``min ||W x_dense - V x||² + λ ||V - W||²`` by lstsq on stacked rows; its loss is a parabola about it."""
    weight, _ = layer(3, 6, seed)
    dense, x = inputs(50, 6, seed), inputs(50, 6, seed + 100)
    gram = Gram.of(x, dense)
    ridge = damping * gram.scale
    a = np.vstack([x.numpy() / 50**0.5, ridge**0.5 * np.eye(6)])
    b = np.vstack([dense.numpy() @ weight.T.numpy() / 50**0.5, ridge**0.5 * weight.T.numpy()])
    expected = np.linalg.lstsq(a, b, rcond=None)[0].T
    target = gram.target(weight, damping)
    np.testing.assert_allclose(target, expected, rtol=1e-6, atol=1e-8)
    everything = torch.ones_like(weight, dtype=torch.bool)
    np.testing.assert_allclose(fitted(weight, gram, everything, damping), expected, rtol=1e-6, atol=1e-8)
    other = weight + 0.1
    loss = lambda v: float(np.square(b - a @ v.T.numpy()).sum())  # noqa: E731
    change = (other - target).numpy()
    assert loss(other) - loss(target) == pytest.approx(
        float(np.trace(change @ gram.damped(damping).numpy() @ change.T))
    )
    error = lambda v: float((dense @ weight.T - x @ v.T).square().sum() / 50)  # noqa: E731
    assert gram.loss(other, weight) == pytest.approx(error(other) - error(weight))
