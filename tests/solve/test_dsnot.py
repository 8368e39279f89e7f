"""DSnoT against the paper's loop, weight by weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.choose.patterns import block, nm, unstructured
from secateur.errors import ArgumentError, PlanError
from secateur.solve.dsnot import dsnot, dsnot_with, swapped
from secateur.solve.gram import Gram
from secateur.solve.scores import magnitude_mask, wanda_mask
from secateur.solve.sparsegpt import sparsegpt
from solving import inputs, layer


def plainly(weight: np.ndarray, gram: Gram, mask: np.ndarray, group: int | None, tolerance: float) -> np.ndarray:
    """Row by row, one swap after another."""
    mean, square = gram.mean.numpy(), gram.second.numpy().diagonal()
    variance = square - mean**2
    out = mask.copy()
    d = weight.shape[1]
    for i, row in enumerate(weight):
        for _ in range(50):
            delta = sum(row[j] * mean[j] for j in range(d) if not out[i, j])
            if abs(delta) <= tolerance:
                break
            sign = np.sign(delta)
            goes = [j for j in range(d) if out[i, j] and row[j] * mean[j] * sign < 0]
            comes = [j for j in range(d) if not out[i, j] and row[j] * mean[j] * sign > 0]
            if group:
                comes = [j for j in comes if any(k // group == j // group for k in goes)]
            if not comes or not goes:
                break
            into = max(comes, key=lambda j: (row[j] * mean[j] * sign / variance[j], -j))
            if group:
                goes = [j for j in goes if j // group == into // group]
            away = min(goes, key=lambda j: (abs(row[j]) * square[j] ** 0.5, j))
            if np.sign(delta - row[into] * mean[into] + row[away] * mean[away]) == -sign:
                break
            out[i, into], out[i, away] = True, False
    return out


@given(st.integers(0, 40), st.sampled_from([None, 4]), st.sampled_from([0.1, 0.5]))
def test_it_is_the_papers_loop(seed: int, group: int | None, tolerance: float) -> None:
    weight, gram = layer(6, 24, seed)
    pattern = unstructured if group is None else nm(2, 4)
    start = wanda_mask(weight, gram, pattern, 72).mask
    expected = plainly(weight.numpy(), gram, start.numpy(), group, tolerance)
    solved = dsnot_with(tolerance=tolerance)(weight, gram, pattern, 72)
    np.testing.assert_array_equal(solved.mask, expected)
    torch.testing.assert_close(solved.weight, weight * solved.mask)
    assert torch.equal(solved.mask.sum(1), start.sum(1))
    effect = weight * gram.mean
    before, after = ((effect * ~m).sum(1).abs() for m in (start, solved.mask))
    assert bool((after <= before + 1e-12).all())


def test_every_swap_brings_the_mean_nearer() -> None:
    weight, gram = layer(16, 48)
    mask = wanda_mask(weight, gram, unstructured, 384).mask
    effect, errors, moved = weight * gram.mean, [], 0
    for cycles in range(1, 12):
        now = swapped(weight, gram, mask, cycles=cycles, tolerance=0.0)
        errors.append((effect * ~now).sum(1).abs())
        moved = int((now ^ mask).sum())
    assert all(bool((b <= a + 1e-12).all()) for a, b in zip(errors, errors[1:], strict=False))
    assert moved > 20


def test_other_masks_and_values_can_be_the_start() -> None:
    weight, gram = layer(8, 24)
    for start in (magnitude_mask, sparsegpt):
        first = start(weight, gram, unstructured, 96)
        solved = dsnot_with(start, tolerance=0.0)(weight, gram, unstructured, 96)
        assert torch.equal(solved.mask.sum(1), first.mask.sum(1))
        both = solved.mask & first.mask
        assert torch.equal(solved.weight[both], first.weight[both])
        new = solved.mask & ~first.mask
        assert bool(new.any())
        assert torch.equal(solved.weight[new], weight[new])
    assert dsnot_with(sparsegpt).name == "sparsegpt+dsnot"
    assert dsnot.name == "dsnot"


def test_an_incomplete_group_stays_dense() -> None:
    weight, gram = layer(6, 22)
    pattern = nm(2, 4, remainder="dense")
    assert dsnot_with(tolerance=0.0)(weight, gram, pattern, pattern.count((6, 22), 0)).mask[:, 20:].all()


def test_inputs_of_no_variance_do_no_harm() -> None:
    x = inputs(40, 8)
    x[:, 2], x[:, 5] = 3.0, 0.0
    weight = layer(4, 8)[0]
    assert int(dsnot(weight, Gram.of(x), unstructured, 16).mask.sum()) == 16


def test_patterns_that_swaps_break_are_refused() -> None:
    weight, gram = layer(8, 24)
    with pytest.raises(PlanError, match=r"breaks pattern block\(2,4\)"):
        dsnot_with(tolerance=0.0)(weight, gram, block(2, 4), 96)
    with pytest.raises(PlanError, match="the groups of 2:4 along 0 go along another axis"):
        dsnot(weight, gram, nm(2, 4, dim=0), 96)
    with pytest.raises(ArgumentError, match="cycles >= 1"):
        dsnot_with(cycles=0)
