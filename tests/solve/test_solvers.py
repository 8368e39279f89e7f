"""What every solver keeps to: exact counts, the pattern's shape, what is alive, the same answer twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.choose.patterns import Pattern, balanced, block, nm, per_row, unstructured
from secateur.errors import ArgumentError, DataError, PlanError
from secateur.solve.admm import admm, admm_with, alps
from secateur.solve.dsnot import dsnot
from secateur.solve.gram import Gram
from secateur.solve.least_squares import best_of, least_squares, refit_with
from secateur.solve.scores import magnitude_mask, ria_mask, wanda_mask
from secateur.solve.solver import Solver, loosened
from secateur.solve.sparsegpt import sparsegpt, sparsegpt_with
from solving import fits, inputs, layer

SCORES = [magnitude_mask, wanda_mask, ria_mask]
SOLVERS = [*SCORES, sparsegpt, sparsegpt_with(8), admm, admm_with(start=wanda_mask), alps, least_squares, dsnot]
SOLVERS += [refit_with(sparsegpt), best_of(wanda_mask, sparsegpt)]
PATTERNS = [unstructured, per_row, nm(2, 4), nm(4, 8), nm(1, 3), nm(3, 16), nm(2, 4, dim=0), block(2, 4), block(4, 1)]
PATTERNS += [nm(2, 4, remainder="dense"), nm(2, 5, remainder="dense"), block(3, 5, "dense"), balanced(1)]
ids = lambda v: getattr(v, "name", None)  # noqa: E731
WEIGHT, GRAM = layer(8, 48)


def can(solver: Solver, pattern: Pattern) -> bool:
    """Swaps within rows keep to no blocks and to no groups of outputs."""
    return "dsnot" not in solver.name or not (pattern.tile or pattern.name in ("2:4 along 0", "balanced(1)"))


@pytest.mark.parametrize("pattern", PATTERNS, ids=ids)
@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_counts_are_exact_in_every_pattern(solver: Solver, pattern: Pattern, density: float) -> None:
    if not can(solver, pattern):
        return
    kept = pattern.count((8, 48), round(density * 8 * 48))
    solved = solver(WEIGHT, GRAM, pattern, kept)
    assert fits(solved.mask, pattern, kept)
    assert solved.weight.dtype == WEIGHT.dtype
    assert solved.weight.is_contiguous()
    assert solved.mask.is_contiguous()
    assert not solved.weight[~solved.mask].any()
    if density == 1.0 and pattern.density is None:
        torch.testing.assert_close(solved.weight, WEIGHT)


@given(st.data())
def test_any_shape_and_count(data: st.DataObject) -> None:
    outputs, d = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    kept = data.draw(st.integers(0, outputs * d))
    weight, gram = layer(outputs, d, data.draw(st.integers(0, 3)), rows=data.draw(st.sampled_from([2, 60])))
    for solver in (wanda_mask, sparsegpt_with(data.draw(st.sampled_from([1, 7, 16, 128]))), alps, admm, least_squares):
        solved = solver(weight, gram, unstructured, kept)
        assert int(solved.mask.sum()) == kept
        assert not solved.weight[~solved.mask].any()
        assert bool(solved.weight.isfinite().all())


def gone(pattern: Pattern) -> Tensor:
    """A mask of what is alive that leaves the pattern room."""
    shape = (8, 48)
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    if pattern.window is not None:
        n, m, dim = pattern.window
        return nm(min(n + 1, m), m, dim, "dense").select(
            scores, nm(min(n + 1, m), m, dim, "dense").count(shape, 0), None
        )
    return pattern.select(scores, pattern.count(shape, 300), None)


@pytest.mark.parametrize("pattern", PATTERNS, ids=ids)
@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_only_what_is_alive_stays(solver: Solver, pattern: Pattern) -> None:
    if not can(solver, pattern):
        return
    alive = gone(pattern)
    kept = pattern.count((8, 48), 190)
    solved = solver(WEIGHT, GRAM, pattern, kept, alive)
    assert fits(solved.mask, pattern, kept)
    assert not (solved.mask & ~alive).any()
    if pattern.density is None:  # all that are alive can stay
        all_of = solver(WEIGHT, GRAM, pattern, int(alive.sum()), alive)
        assert torch.equal(all_of.mask, alive)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_twice_is_the_same_and_nothing_else_changes(solver: Solver) -> None:
    weight, second = WEIGHT.clone(), GRAM.second.clone()
    one = solver(WEIGHT, GRAM, unstructured, 150)
    two = solver(WEIGHT, Gram(GRAM.second, GRAM.mean, GRAM.rows), unstructured, 150)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(weight, WEIGHT)
    assert torch.equal(second, GRAM.second)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
@pytest.mark.parametrize("pattern", [unstructured, nm(2, 4)], ids=ids)
def test_float32_is_near_float64(solver: Solver, pattern: Pattern) -> None:
    x = inputs(400, 48)
    kept = 8 * 24
    exact = solver(WEIGHT, Gram.of(x), pattern, kept)
    single = solver(WEIGHT.float(), Gram.of(x.float()), pattern, kept)
    assert single.weight.dtype == torch.float32
    assert float((exact.mask != single.mask).double().mean()) < 0.02
    loss = Gram.of(x).loss(exact.weight, WEIGHT)
    assert Gram.of(x).loss(single.weight.double(), WEIGHT) == pytest.approx(loss, rel=0.02)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_dead_and_duplicate_inputs(solver: Solver) -> None:
    x = inputs(100, 24)
    x[:, 3] = 0
    x[:, 9] = x[:, 8]
    gram = Gram.of(x)
    weight = layer(6, 24)[0]
    solved = solver(weight, gram, unstructured, 72)
    assert bool(solved.weight.isfinite().all())
    assert gram.loss(solved.weight, weight) <= gram.loss(torch.zeros_like(weight), weight)
    if solver not in (magnitude_mask, dsnot):
        assert not solved.mask[:, 3].any()
    nothing = solver(weight, Gram.of(torch.zeros(4, 24)), unstructured, 72)
    assert int(nothing.mask.sum()) == 72
    assert bool(nothing.weight.isfinite().all())


@pytest.mark.parametrize("solver", [sparsegpt, admm, alps, least_squares], ids=ids)
def test_few_rows_make_a_singular_moment_that_damping_mends(solver: Solver) -> None:
    weight, gram = layer(6, 24, rows=5)
    solved = solver(weight, gram, nm(2, 4), 72)
    assert gram.loss(solved.weight, weight) < gram.loss(wanda_mask(weight, gram, nm(2, 4), 72).weight, weight)


def test_ties_go_to_the_earlier() -> None:
    weight, gram = torch.ones(2, 8), Gram.of(torch.eye(8))
    for solver in SCORES:
        halves = solver(weight, gram, nm(2, 4), 8).mask
        assert halves.tolist() == [[True, True, False, False] * 2] * 2
        assert solver(weight, gram, per_row, 6).mask.tolist() == [[True] * 3 + [False] * 5] * 2


def test_what_is_given_is_checked() -> None:
    with pytest.raises(ArgumentError, match=r"weight is torch.float16 \(8, 48\): give a matrix, weight.float\(\)"):
        wanda_mask(WEIGHT.half(), GRAM, unstructured, 1)
    with pytest.raises(ArgumentError, match=r"shape \(8, 4\); expected 48 columns"):
        wanda_mask(WEIGHT[:, :4], GRAM, unstructured, 1)
    bad = WEIGHT.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(DataError, match="weight up has 1 entries that are NaN or inf"):
        sparsegpt(bad, Gram(GRAM.second, GRAM.mean, 1, name="up"), unstructured, 1)
    with pytest.raises(PlanError, match="cannot keep 400 of 384 weights: the nearest is 384"):
        wanda_mask(WEIGHT, GRAM, unstructured, 400)
    with pytest.raises(PlanError, match="cannot keep 100 of 384 weights: the nearest is 192"):
        sparsegpt(WEIGHT, GRAM, nm(2, 4), 100)
    with pytest.raises(ArgumentError, match=r"expected bool \(8, 48\)"):
        wanda_mask(WEIGHT, GRAM, unstructured, 1, torch.ones(8, 48))
    alive = torch.ones(8, 48, dtype=torch.bool)
    alive[2, 4:7] = False
    for solver in SOLVERS:
        with pytest.raises(PlanError, match="alive"):
            solver(WEIGHT, GRAM, nm(2, 4), 192, alive)
    with pytest.raises(PlanError, match="axis 1 of shape"):
        sparsegpt(*layer(2, 6), nm(2, 4), 6)


def test_patterns_loosen_on_the_way() -> None:
    assert loosened(nm(2, 4), (2, 8), 8, 0.0)[1] == 16
    assert loosened(nm(2, 4), (2, 8), 8, 1.0)[1] == 8
    assert loosened(unstructured, (2, 8), 4, 0.5) == (unstructured, 10)
    assert loosened(per_row, (2, 8), 4, 0.5)[1] == 10
    assert loosened(block(2, 2), (2, 8), 4, 0.6)[1] in (8, 12)
