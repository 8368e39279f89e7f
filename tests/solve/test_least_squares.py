"""Masked least squares against numpy's, row by row, and the choice by data kept aside."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.choose.patterns import nm, unstructured
from secateur.errors import ArgumentError, DataError
from secateur.solve import least_squares as module
from secateur.solve.gram import Gram
from secateur.solve.least_squares import best_of, fitted, least_squares, least_squares_with, refit_with
from secateur.solve.scores import magnitude_mask, wanda_mask
from secateur.solve.solver import Solved, Solver
from secateur.solve.sparsegpt import sparsegpt
from solving import best_values, damped, inputs, layer, quadratic


@given(st.integers(0, 50), st.sampled_from([0.0, 0.01, 1.0]), st.integers(0, 80))
def test_it_is_least_squares_row_by_row(seed: int, damping: float, kept: int) -> None:
    weight, gram = layer(5, 16, seed)
    for start in (wanda_mask, magnitude_mask):  # even and uneven rows
        solved = least_squares_with(start, damping)(weight, gram, unstructured, kept)
        assert torch.equal(solved.mask, start(weight, gram, unstructured, kept).mask)
        np.testing.assert_allclose(
            solved.weight, best_values(weight, solved.mask, damped(gram, damping)), rtol=1e-6, atol=1e-7
        )


def test_no_values_on_the_mask_are_better() -> None:
    weight, gram = layer(4, 12)
    solved = least_squares_with(damping=0.1)(weight, gram, nm(2, 4), 24)
    h = damped(gram, 0.1)
    best = quadratic(weight - solved.weight, h)
    g = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1):
        other = solved.weight + size * solved.mask * torch.randn(4, 12, generator=g, dtype=torch.float64)
        assert quadratic(weight - other, h) > best


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = layer(20, 16)
    whole = least_squares_with(magnitude_mask)(weight, gram, unstructured, 150).weight
    monkeypatch.setattr(module, "CHUNK", 8000.0)
    torch.testing.assert_close(least_squares_with(magnitude_mask)(weight, gram, unstructured, 150).weight, whole)


@given(st.integers(0, 20))
def test_the_pull_is_towards_what_is_asked(seed: int) -> None:
    """``min ||(w - t) x||² + λ ||w - v||²`` on a support, by lstsq on stacked rows; also relative to each input."""
    weight, gram = layer(3, 9, seed)
    mask = wanda_mask(weight, gram, unstructured, 13).mask
    towards = torch.randn(3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    root = np.linalg.cholesky(gram.second.numpy()).T
    for shrink in (False, True):
        ridge = 0.3 * (gram.second.diagonal().numpy() if shrink else np.full(9, gram.scale))
        out = fitted(weight, gram, mask, 0.3, towards, shrink)
        for i in range(3):
            s = np.flatnonzero(mask[i])
            a = np.vstack([root[:, s], np.diag(ridge**0.5)[:, s]])
            aim = np.zeros(9)
            aim[s] = towards[i].numpy()[s]
            b = np.concatenate([root @ weight[i].numpy(), ridge**0.5 * aim])
            np.testing.assert_allclose(out[i].numpy()[s], np.linalg.lstsq(a, b, rcond=None)[0], rtol=1e-6, atol=1e-8)


def test_the_dense_models_outputs_can_be_the_target() -> None:
    weight = layer(3, 6)[0]
    x, dense = inputs(50, 6, 7), inputs(50, 6)
    gram = Gram.of(x, dense)
    solved = least_squares_with(damping=0.0)(weight, gram, unstructured, 9)
    for i in range(3):
        s = np.flatnonzero(solved.mask[i])
        expected = np.linalg.lstsq(x.numpy()[:, s], dense.numpy() @ weight[i].numpy(), rcond=None)[0]
        np.testing.assert_allclose(solved.weight[i].numpy()[s], expected, rtol=1e-6)


def constant(value: float) -> Solver:
    return Solver(f"all_{value}", lambda w, gram, pattern, kept, alive: Solved(torch.full_like(w, value), w == w))


def test_the_best_on_data_kept_aside_stays() -> None:
    weight, gram = layer(4, 12, rows=14)  # few rows: fitting them well fits others badly
    held = Gram.of(inputs(400, 12, 0)[200:])
    split = Gram(gram.second, gram.mean, gram.rows, held=held)
    tried = [wanda_mask(weight, gram, unstructured, 20).weight]
    dampings = (0.0, 1e-3, 0.1, 1.0)
    tried += [least_squares_with(damping=d)(weight, gram, unstructured, 20).weight for d in dampings]
    losses = [held.loss(w, weight) for w in tried]
    solved = refit_with(wanda_mask, dampings)(weight, split, unstructured, 20)
    assert held.loss(solved.weight, weight) == min(losses)
    assert torch.equal(solved.weight, tried[int(np.argmin(losses))])
    assert torch.equal(refit_with(wanda_mask, dampings)(weight, gram, unstructured, 20).weight, tried[1])
    several = best_of(*(least_squares_with(damping=d) for d in dampings))
    assert held.loss(several(weight, split, unstructured, 20).weight, weight) == min(losses[1:])
    assert several(weight, gram, unstructured, 20).weight.equal(tried[1])  # without, what fits the data best
    far = constant(100.0)
    assert best_of(far, wanda_mask).name == "best_of(all_100.0,wanda)"
    assert best_of(far, wanda_mask)(weight, split, unstructured, 20).weight.equal(tried[0])


def test_a_refit_pulls_towards_the_start_when_asked() -> None:
    weight, gram = layer(4, 12)
    near = refit_with(sparsegpt, [1e9], from_start=True)(weight, gram, unstructured, 20)
    torch.testing.assert_close(near.weight, sparsegpt(weight, gram, unstructured, 20).weight, rtol=1e-6, atol=1e-6)


def test_on_tiny_layers_no_mask_is_better_than_exhaustive_search_finds() -> None:
    """The best support with the best values bounds every solver, and SparseGPT comes near."""
    weight, gram = layer(1, 8, 3)
    h = damped(gram, 0.01)
    losses = {}
    for s in itertools.combinations(range(8), 4):
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[0, list(s)] = True
        losses[s] = quadratic(weight - torch.from_numpy(best_values(weight, mask, h)), h)
    best = min(losses.values())
    for solver in (least_squares, least_squares_with(sparsegpt)):
        loss = quadratic(weight - solver(weight, gram, unstructured, 4).weight, h)
        assert best * (1 - 1e-9) <= loss <= sorted(losses.values())[len(losses) // 2]


def test_singular_systems_and_arguments_are_named() -> None:
    x = inputs(40, 4)
    gram = Gram.of(torch.cat([x, x], 1), name="mlp.down")
    everything = torch.ones(2, 8, dtype=torch.bool)
    weight = torch.ones(2, 8, dtype=torch.float64)
    with pytest.raises(
        DataError, match=r"least squares of mlp.down: .* singular on the inputs of output \d with damping 0"
    ):
        fitted(weight, Gram(gram.second - 1e-6 * torch.eye(8), gram.mean, 40, name=gram.name), everything, 0.0)
    with pytest.raises(ArgumentError, match="damping of at least 0"):
        least_squares_with(damping=-1.0)
    with pytest.raises(ArgumentError, match="one or more; got"):
        refit_with(wanda_mask, [])
    with pytest.raises(ArgumentError, match="got none"):
        best_of()
