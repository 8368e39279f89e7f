"""ADMM and ALPS against the papers' loops and against least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.choose.patterns import Pattern, nm, per_row, unstructured
from secateur.errors import ArgumentError
from secateur.solve.admm import Scaled, admm, admm_with, alps, alps_with, conjugate
from secateur.solve.gram import Gram
from secateur.solve.least_squares import fitted
from secateur.solve.scores import wanda_mask
from secateur.solve.sparsegpt import sparsegpt
from solving import best_values, inputs, layer, quadratic


def scaled(gram: Gram, damping: float) -> np.ndarray:
    """``H + damping diag H``."""
    h = gram.second.numpy()
    return h + damping * np.diag(h.diagonal())


def largest(scores: np.ndarray, keep: int) -> np.ndarray:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:keep]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("kept", [40, 100, 150])
def test_it_is_the_papers_loop(kept: int) -> None:
    weight, gram = layer(8, 24)
    norm = np.sqrt(gram.second.numpy().diagonal())
    g = gram.second.numpy() / np.outer(norm, norm) + 0.1 * np.eye(24)
    start = weight.numpy() * norm
    w, u, mask = start.copy(), np.zeros_like(start), None
    inverse = np.linalg.inv(g + np.eye(24))
    for t in range(1, 21):
        if t <= 15:
            mask = largest(np.abs(w + u), 192 - int((192 - kept) * (1 - (1 - t / 15) ** 3)))
        z = (w + u) * mask
        u = u + w - z
        w = (start @ g + z - u) @ inverse
    solved = admm(weight, gram, unstructured, kept)
    np.testing.assert_array_equal(solved.mask, mask)
    np.testing.assert_allclose(solved.weight, (w + u) * mask / norm, rtol=1e-7, atol=1e-9)


@given(st.integers(0, 30), st.sampled_from([wanda_mask, sparsegpt]))
def test_on_a_fixed_mask_it_tends_to_least_squares(seed: int, start: object) -> None:
    weight, gram = layer(4, 10, seed)
    solved = admm_with(iterations=500, start=start)(weight, gram, unstructured, 22)  # type: ignore[arg-type]
    assert torch.equal(solved.mask, start(weight, gram, unstructured, 22).mask)  # type: ignore[operator]
    expected = best_values(weight, solved.mask, scaled(gram, 0.1))
    np.testing.assert_allclose(solved.weight, expected, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(fitted(weight, gram, solved.mask, 0.1, shrink=True), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pattern", [unstructured, per_row, nm(2, 4)], ids=lambda p: p.name)
def test_alps_ends_in_least_squares_on_its_support(pattern: Pattern) -> None:
    weight, gram = layer(8, 24)
    solved = alps_with(0.01, polish=60)(weight, gram, pattern, 96)
    np.testing.assert_allclose(
        solved.weight, best_values(weight, solved.mask, scaled(gram, 0.01)), rtol=1e-6, atol=1e-8
    )


@given(st.integers(0, 30))
def test_conjugate_gradients_never_do_harm(seed: int) -> None:
    weight, gram = layer(5, 16, seed)
    solved = sparsegpt(weight, gram, unstructured, 40)
    at = Scaled.of(weight, gram, 0.05)
    norm, h = at.norm, scaled(gram, 0.05)
    losses = [
        quadratic(weight - conjugate(at, solved.weight * norm, solved.mask, steps) / norm, h) for steps in (0, 1, 3, 9)
    ]
    assert losses == sorted(losses, reverse=True)
    best = quadratic(weight - torch.from_numpy(best_values(weight, solved.mask, h)), h)
    assert quadratic(weight - conjugate(at, solved.weight * norm, solved.mask, 40) / norm, h) == pytest.approx(best)


def loop(weight: Tensor, gram: Gram, kept: int, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """ALPS without its last step, an inverse at every new rho."""
    norm = np.sqrt(gram.second.numpy().diagonal())
    d_in = len(norm)
    g = gram.second.numpy() / np.outer(norm, norm) + damping * np.eye(d_in)
    start, rho = weight.numpy() * norm, 0.1
    mask = largest(np.abs(start), kept)
    d, v, before = start * mask, np.zeros_like(start), mask
    for t in range(1, 301):
        w = (start @ g - v + rho * d) @ np.linalg.inv(g + rho * np.eye(d_in))
        mask = largest(np.abs(w + v / rho), kept)
        d = (w + v / rho) * mask
        v = v + rho * (w - d)
        if t % 3 == 0:
            changed = (before ^ mask).sum()
            if not changed:
                break
            rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
            before = mask
    return mask, d / norm


def test_alps_is_the_papers_loop() -> None:
    weight, gram = layer(8, 24)
    mask, values = loop(weight, gram, 80, 0.01)
    solved = alps_with(0.01, polish=0)(weight, gram, unstructured, 80)
    np.testing.assert_array_equal(solved.mask, mask)
    np.testing.assert_allclose(solved.weight, values, rtol=1e-6, atol=1e-8)


def test_supports_are_better_than_those_of_scores() -> None:
    """By the loss on the data itself, with the best values on each support."""
    weight, gram = layer(24, 64)
    h = scaled(gram, 0.01)
    loss = {
        solver.name: quadratic(
            weight - torch.from_numpy(best_values(weight, solver(weight, gram, unstructured, 460).mask, h)), h
        )
        for solver in (wanda_mask, sparsegpt, alps_with(0.01))
    }
    assert loss["alps"] < 0.8 * min(loss["sparsegpt"], loss["wanda"])


def test_on_tiny_layers_alps_comes_near_the_best_support() -> None:
    within = []
    for seed in range(12):
        weight, gram = layer(1, 8, seed)
        h = scaled(gram, 0.01)
        losses = []
        for s in itertools.combinations(range(8), 4):
            mask = torch.zeros(1, 8, dtype=torch.bool)
            mask[0, list(s)] = True
            losses.append(quadratic(weight - torch.from_numpy(best_values(weight, mask, h)), h))
        found = quadratic(weight - alps_with(0.01, polish=20)(weight, gram, unstructured, 4).weight, h)
        assert found >= min(losses) * (1 - 1e-9)
        within.append(sum(x < found * (1 - 1e-9) for x in losses))
    assert np.median(within) <= 2  # of 70 supports


@pytest.mark.parametrize(
    "solver", [admm_with(iterations=3000, damping=0.05), alps_with(0.05, polish=60)], ids=["admm", "alps"]
)
def test_the_dense_models_outputs_can_be_the_target(solver: object) -> None:
    weight = layer(3, 6)[0]
    x, dense = inputs(50, 6, 7), inputs(50, 6)
    solved = solver(weight, Gram.of(x, dense), unstructured, 9)  # type: ignore[operator]
    ridge = (0.05 * x.square().sum(0)).sqrt().numpy()
    for i in range(3):
        s = np.flatnonzero(solved.mask[i])
        a = np.vstack([x.numpy()[:, s], np.diag(ridge)[:, s]])
        pull = np.zeros(6)
        pull[s] = (ridge * weight[i].numpy())[s]
        b = np.concatenate([dense.numpy() @ weight[i].numpy(), pull])
        np.testing.assert_allclose(
            solved.weight[i].numpy()[s], np.linalg.lstsq(a, b, rcond=None)[0], rtol=1e-3, atol=1e-4
        )


def test_few_steps_still_end_in_the_pattern() -> None:
    weight, gram = layer(4, 8)
    assert admm_with(iterations=2)(weight, gram, nm(2, 4), 16).mask.reshape(4, 2, 4).sum(2).eq(2).all()


def test_arguments_are_checked() -> None:
    for wrong in ({"iterations": 0}, {"ramp": 0}, {"rho": 0.0}, {"damping": -1.0}):
        with pytest.raises(ArgumentError, match="ADMM takes"):
            admm_with(**wrong)  # type: ignore[arg-type]
    for wrong in ({"every": 0}, {"limit": 0}, {"polish": -1}, {"rho": 0.0}, {"damping": -1.0}):
        with pytest.raises(ArgumentError, match="ALPS takes"):
            alps_with(**wrong)  # type: ignore[arg-type]
    assert alps.name == "alps"
    assert admm_with(start=wanda_mask).name == "wanda+admm"
