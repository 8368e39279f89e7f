"""Scores against the papers' formulas and against the criteria that look at whole models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.choose.patterns import Pattern, block, nm, per_row, unstructured
from secateur.errors import ArgumentError, PlanError
from secateur.solve.gram import Gram
from secateur.solve.scores import even_rows, magnitude_mask, ria_mask, ria_mask_with, wanda_mask
from secateur.solve.solver import Solver
from solving import inputs, layer


@pytest.mark.parametrize("pattern", [per_row, nm(2, 4), block(2, 4)], ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("solver", "criterion"), [(magnitude_mask, sc.magnitude), (wanda_mask, sc.wanda), (ria_mask, sc.ria)]
)
def test_they_are_the_criteria_of_whole_models(solver: Solver, criterion: sc.Criterion, pattern: Pattern) -> None:
    net = nn.Linear(16, 6).double()
    x = inputs(40, 16)
    result = sc.sparsify(net, [x], criterion=criterion, pattern=pattern, sparsity=0.5)
    solved = solver(net.weight.detach(), Gram.of(x), pattern, 48)
    assert torch.equal(solved.mask, result.masks["weight"])
    assert torch.equal(solved.weight, result.model.weight)


def test_wanda_compares_within_rows_as_in_the_paper() -> None:
    x = inputs(40, 16)
    weight, gram = layer(6, 16)[0], Gram.of(x)
    score = weight.abs() * x.norm(dim=0)
    expected = torch.zeros_like(weight, dtype=torch.bool)
    expected.scatter_(1, score.argsort(dim=1)[:, 8:], True)
    assert torch.equal(wanda_mask(weight, gram, unstructured, 48).mask, expected)


@given(st.integers(0, 9))
def test_wanda_does_not_see_a_rescaling_that_keeps_the_function(seed: int) -> None:
    x, weight = inputs(60, 12, seed), layer(5, 12, seed)[0]
    factors = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(4).exp()
    one = wanda_mask(weight, Gram.of(x), unstructured, 25).mask
    assert torch.equal(wanda_mask(weight / factors, Gram.of(x * factors), unstructured, 25).mask, one)
    white = Gram.of(torch.eye(12, dtype=torch.float64))
    assert torch.equal(wanda_mask(weight, white, unstructured, 25).mask, magnitude_rows(weight, 25)), (
        "with inputs alike it is magnitude by rows"
    )


def magnitude_rows(weight: torch.Tensor, kept: int) -> torch.Tensor:
    return per_row.select(weight.abs(), kept, None)


@given(st.data())
def test_rows_are_even(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    values = st.lists(st.integers(0, 4), min_size=rows * columns, max_size=rows * columns)
    scores = torch.tensor(data.draw(values), dtype=torch.float32).reshape(rows, columns)
    alive = torch.tensor(data.draw(values)).reshape(rows, columns) > data.draw(st.sampled_from([-1, 0, 2]))
    kept = data.draw(st.integers(0, int(alive.sum())))
    mask = even_rows(scores, kept, alive)
    counts, room = mask.sum(1), alive.sum(1)
    assert int(mask.sum()) == kept
    assert not (mask & ~alive).any()
    assert all(int(c) >= int(counts.max()) - 1 or int(c) == int(r) for c, r in zip(counts, room, strict=True))
    for row in range(rows):  # the best of each, the earlier of equals
        order = sorted(np.flatnonzero(alive[row]), key=lambda j: (-float(scores[row, j]), j))
        assert mask[row].nonzero()[:, 0].tolist() == sorted(order[: int(counts[row])])
    if kept < int(alive.sum()):
        assert not (even_rows(scores, kept, alive) & ~even_rows(scores, kept + 1, alive)).any()


def test_ria_shares_by_row_and_column() -> None:
    weight = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    gram = Gram.of(torch.tensor([[2.0, 1.0]]))
    # shares 3/4 + 3/4, 1/4 + 1/2; 1/4 + 1/2, 1/2 + 1/2; times sqrt of the norm
    assert ria_mask(weight, gram, unstructured, 2).mask.tolist() == [[True, False], [True, False]]
    assert ria_mask_with(0.0)(weight, gram, unstructured, 2).mask.tolist() == [[True, False], [False, True]]
    with pytest.raises(ArgumentError, match="power of at least 0"):
        ria_mask_with(-1)


def test_too_few_alive() -> None:
    with pytest.raises(PlanError, match="nearest is 3"):
        wanda_mask(
            torch.ones(2, 2), Gram.of(torch.eye(2)), unstructured, 4, torch.tensor([[True, True], [True, False]])
        )
