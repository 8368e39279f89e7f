"""SparseGPT against the paper's loop and its identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.choose.patterns import block, nm, per_row, unstructured
from secateur.errors import ArgumentError
from secateur.solve.gram import Gram
from secateur.solve.sparsegpt import sparsegpt, sparsegpt_with
from solving import best_values, damped, inputs, layer, quadratic


def plainly(
    weight: Tensor, h: np.ndarray, size: int, lost: list[int], group: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """The paper's loop: masks of ``size`` columns (``lost`` weights of each) or of n:m; also the sum of squared errors."""
    w, total = weight.double().numpy().copy(), 0.0
    mask = np.ones(w.shape, bool)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    d = w.shape[1]
    for j in range(d):
        step = group[1] if group else size
        if j % step == 0:
            part = slice(j, min(j + step, d))
            scores = np.square(w[:, part] / upper.diagonal()[part])
            if group:
                order = np.argsort(scores, axis=1, kind="stable")
                np.put_along_axis(mask[:, part], order[:, : group[1] - group[0]], False, 1)
            else:
                order = np.argsort(scores.ravel(), kind="stable")[: lost[j // size]]
                chosen = np.ones(scores.size, bool)
                chosen[order] = False
                mask[:, part] = chosen.reshape(scores.shape)
        error = np.where(mask[:, j], 0, w[:, j]) / upper[j, j]
        w[:, j:] -= np.outer(error, upper[j, j:])
        w[:, j] *= mask[:, j]
        total += float(np.square(error).sum())
    return w, mask, total


@pytest.mark.parametrize(("d", "size"), [(40, 8), (40, 128), (200, 128), (70, 33), (64, 16), (20, 1)])
def test_it_is_the_papers_loop(d: int, size: int) -> None:
    weight, gram = layer(12, d)
    ends = [min(at + size, d) for at in range(0, d, size)]
    kept = [(2 * (12 * d // 3) * e + d) // (2 * d) for e in ends]  # a third, in proportion, as a rounded running sum
    lost = (12 * np.diff([0, *ends]) - np.diff([0, *kept])).tolist()
    w, mask, total = plainly(weight, damped(gram, 0.01), size, lost)
    solved = sparsegpt_with(size)(weight, gram, unstructured, int(mask.sum()))
    np.testing.assert_array_equal(solved.mask, mask)
    np.testing.assert_allclose(solved.weight, w, rtol=1e-6, atol=1e-7)
    assert quadratic(weight - solved.weight, damped(gram, 0.01)) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 3), (5, 24), (1, 2), (9, 40)])
def test_groups_are_chosen_as_they_come(n: int, m: int) -> None:
    weight, gram = layer(10, 120)
    w, mask, total = plainly(weight, damped(gram, 0.05), 120, [], (n, m))
    solved = sparsegpt_with(48, damping=0.05)(weight, gram, nm(n, m), int(mask.sum()))
    np.testing.assert_array_equal(solved.mask, mask)
    np.testing.assert_allclose(solved.weight, w, rtol=1e-6, atol=1e-7)
    assert quadratic(weight - solved.weight, damped(gram, 0.05)) == pytest.approx(total, rel=1e-9)


def test_rows_and_blocks_as_the_columns_go_by() -> None:
    weight, gram = layer(6, 32)
    upper = gram.factor().numpy()
    rows = sparsegpt_with(8)(weight, gram, per_row, 6 * 12).mask
    assert rows[:, :8].sum(1).tolist() == [3] * 6  # 12 of 32, eight columns at a time
    first = np.square(weight[:, :8].numpy() / upper.diagonal()[:8])
    expected = np.argsort(-first, axis=1, kind="stable")[:, :3]
    assert [sorted(r) for r in expected.tolist()] == [r.nonzero()[:, 0].tolist() for r in rows[:, :8]]
    tiles = sparsegpt_with(9)(weight, gram, block(2, 4), 96).mask  # whole blocks: eight columns at a time
    sums = first.reshape(3, 2, 2, 4).sum((1, 3)).ravel()
    best = np.zeros(6, bool)
    best[np.argsort(-sums, kind="stable")[:3]] = True
    np.testing.assert_array_equal(tiles[::2, :8:4].reshape(-1), best)


@given(st.integers(0, 50), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_loss_is_above_least_squares(seed: int, density: float) -> None:
    weight, gram = layer(5, 18, seed)
    h = damped(gram, 0.01)
    solved = sparsegpt_with(6)(weight, gram, unstructured, round(density * 90))
    loss = quadratic(weight - solved.weight, h)
    assert loss >= quadratic(weight - torch.from_numpy(best_values(weight, solved.mask, h)), h) * (1 - 1e-9)


def test_the_loss_is_below_no_update() -> None:
    """No theorem (what makes up for one weight may be pruned later), but so it is on layers of any size."""
    weight, gram = layer(32, 96)
    for kept in (600, 1536, 2500):
        solved = sparsegpt_with(32)(weight, gram, unstructured, kept)
        h = damped(gram, 0.01)
        assert quadratic(weight - solved.weight, h) < quadratic(weight * ~solved.mask, h)


def test_with_inputs_alike_it_is_magnitude_and_nothing_moves() -> None:
    weight = layer(6, 24)[0]
    gram = Gram.of(torch.eye(24, dtype=torch.float64) * 3)
    solved = sparsegpt_with(24)(weight, gram, unstructured, 60)
    assert torch.equal(solved.mask, unstructured.select(weight.abs(), 60, None))
    torch.testing.assert_close(solved.weight, weight * solved.mask)


def test_dead_inputs_lose_their_weights() -> None:
    x = inputs(60, 20)
    x[:, 7] = 0
    weight = layer(4, 20)[0]
    solved = sparsegpt(weight, Gram.of(x), unstructured, 80)
    assert not solved.weight[:, 7].any()
    live = [j for j in range(20) if j != 7]
    without = sparsegpt_with(128)(weight[:, live], Gram.of(x[:, live]), unstructured, 40)
    assert torch.equal(sparsegpt(weight, Gram.of(x), unstructured, 40).mask[:, live], without.mask)


def test_the_dense_models_outputs_can_be_the_target() -> None:
    """Nothing pruned: what is left is ridge regression of the dense outputs on the inputs there are."""
    weight = layer(3, 6)[0]
    gram = Gram.of(inputs(50, 6, 7), inputs(50, 6))
    torch.testing.assert_close(sparsegpt(weight, gram, unstructured, 18).weight, gram.target(weight, 0.01))
    pruned = sparsegpt(weight, gram, unstructured, 9)
    only = Gram(gram.second, gram.mean, gram.rows)
    torch.testing.assert_close(pruned.weight, sparsegpt(gram.target(weight), only, unstructured, 9).weight)
    assert gram.loss(pruned.weight, weight) < gram.loss(sparsegpt(weight, only, unstructured, 9).weight, weight)


def test_arguments_are_checked() -> None:
    with pytest.raises(ArgumentError, match="block of 1 column or more"):
        sparsegpt_with(0)
    with pytest.raises(ArgumentError, match="damping >= 0"):
        sparsegpt_with(damping=-1.0)


@pytest.mark.parametrize(("columns", "most"), [(200, 128), (48, 32), (96, 64)])
def test_masks_wider_than_a_block_are_chosen_on_weights_that_are_up_to_date(columns: int, most: int) -> None:
    weight, gram = layer(8, 2 * columns)
    kept = weight.numel() // 2
    found = sparsegpt_with(block=most)(weight, gram, nm(columns // 2, columns), kept)
    whole = sparsegpt_with(block=4 * columns)(weight, gram, nm(columns // 2, columns), kept)
    assert torch.equal(found.mask, whole.mask)
    assert torch.allclose(found.weight, whole.weight, atol=1e-4)
