"""Patterns against plain loops: exact counts, ties by position, nesting, odd sizes, nothing dead."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.choose.patterns import Pattern, balanced, block, nm, per_row, unstructured
from secateur.errors import PlanError


def drawn(shape: tuple[int, ...], seed: int, ties: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, shape, generator=generator).float() if ties else torch.rand(shape, generator=generator)


def best(values: list[float], keep: int, alive: list[bool]) -> set[int]:
    return set(sorted((i for i in range(len(values)) if alive[i]), key=lambda i: -values[i])[:keep])


def nm_by_loops(scores: Tensor, n: int, m: int, dim: int, alive: Tensor | None = None) -> Tensor:
    """Every line along the axis, every m of it; what is left over is kept."""
    mask = torch.ones(scores.shape, dtype=torch.bool)
    others = [range(k) if d != dim else [slice(None)] for d, k in enumerate(scores.shape)]
    for at in itertools.product(*others):
        line, out = scores[at].tolist(), mask[at]
        lives = [True] * len(line) if alive is None else alive[at].tolist()
        for start in range(0, len(line) // m * m, m):
            chosen = best(line[start : start + m], n, lives[start : start + m])
            for i in range(m):
                out[start + i] = i in chosen
    return mask


SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 13)),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5)),
)


@settings(max_examples=150)
@given(SHAPES, st.integers(1, 20), st.integers(-4, 3), st.integers(0, 10**6))
def test_nm_is_the_loop_over_groups_nested_over_n(shape: tuple[int, ...], m: int, dim: int, seed: int) -> None:
    if not -len(shape) <= dim < len(shape):
        with pytest.raises(PlanError, match=f"goes along axis {dim}"):
            nm(1, m, dim).count(shape, 1)
        return
    scores, at = drawn(shape, seed), dim % len(shape)
    before = torch.zeros(shape, dtype=torch.bool)
    for n in range(m + 1):
        pattern = nm(n, m, dim, "dense")
        kept = pattern.count(shape, 0)
        mask = pattern.select(scores, kept, None)
        assert int(mask.sum()) == kept
        assert torch.equal(mask, nm_by_loops(scores, n, m, at))
        if n and shape[at] >= m:
            assert not (before & ~mask).any()
            assert torch.equal(
                pattern.select(scores, kept, nm_by_loops(-scores, n, m, at)), nm_by_loops(-scores, n, m, at)
            )
        before = mask
        if shape[at] % m:
            with pytest.raises(
                PlanError, match=rf'axis {at} of shape .* has {shape[at]} .* groups of {m}.*remainder="dense"'
            ):
                nm(n, m, dim).count(shape, 0)
        else:
            assert torch.equal(nm(n, m, dim).select(scores, kept, None), mask)


@given(st.integers(0, 10**6), st.sampled_from([(1, 4), (2, 4), (3, 4), (4, 8), (9, 20)]))
def test_nm_takes_of_each_group_the_best_that_are_alive(seed: int, ratio: tuple[int, int]) -> None:
    n, m = ratio
    scores, pattern = drawn((4, 2 * m), seed), nm(n, m)
    alive = nm_by_loops(drawn((4, 2 * m), seed + 1, ties=False), n + (m - n) // 2, m, 1)
    mask = pattern.select(scores, pattern.count((4, 2 * m), 0), alive)
    assert torch.equal(mask, nm_by_loops(scores, n, m, 1, alive))
    assert not (mask & ~alive).any()


@given(SHAPES, st.integers(0, 10**6), st.integers(-4, 3), st.floats(0, 1))
def test_slices_keep_equal_counts_the_best_of_each(shape: tuple[int, ...], seed: int, dim: int, density: float) -> None:
    if not -len(shape) <= dim < len(shape):
        return
    scores, pattern, slices = drawn(shape, seed), balanced(dim), shape[dim]
    size = math.prod(shape) // slices
    wanted = round(density * math.prod(shape))
    kept = pattern.count(shape, wanted)
    assert abs(kept - wanted) == min(abs(k * slices - wanted) for k in range(size + 1))
    mask = pattern.select(scores, kept, None)
    for s, part in zip(scores.unbind(dim), mask.unbind(dim), strict=True):
        expected = best(s.reshape(-1).tolist(), kept // slices, [True] * size)
        assert set(part.reshape(-1).nonzero()[:, 0].tolist()) == expected


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_blocks_are_the_best_by_sum(shape: tuple[int, ...], size: tuple[int, int], density: float, seed: int) -> None:
    (r, c), pattern = size, block(*size, remainder="dense")
    rows, columns = shape[0], math.prod(shape[1:])
    down, right = rows // r, columns // c
    rest = rows * columns - down * right * r * c
    wanted = round(density * rows * columns)
    kept = pattern.count(shape, wanted)
    assert abs(kept - wanted) == min(abs(rest + k * r * c - wanted) for k in range(down * right + 1))
    scores = drawn(shape, seed)
    matrix = scores.reshape(rows, columns)
    sums = [float(matrix[i * r : i * r + r, j * c : j * c + c].sum()) for i in range(down) for j in range(right)]
    chosen = best(sums, (kept - rest) // (r * c), [True] * len(sums))
    expected = torch.ones(rows, columns, dtype=torch.bool)
    for k, (i, j) in enumerate(itertools.product(range(down), range(right))):
        expected[i * r : i * r + r, j * c : j * c + c] = k in chosen
    mask = pattern.select(scores, kept, None)
    assert torch.equal(mask, expected.reshape(shape))
    assert int(mask.sum()) == kept
    if rest:
        with pytest.raises(PlanError, match="which groups of .* do not divide"):
            block(*size).count(shape, wanted)
    fewer = pattern.count(shape, wanted // 2)
    again = pattern.select(torch.rand(shape), fewer, mask)  # of what is left, whatever the scores say now
    assert int(again.sum()) == fewer
    assert not (again & ~mask).any()


@pytest.mark.parametrize("pattern", [unstructured, per_row, balanced(1), block(2, 3)])
def test_patterns_are_nested_over_sparsity(pattern: Pattern) -> None:
    shape, scores = (6, 9), drawn((6, 9), 3)
    before = torch.zeros(shape, dtype=torch.bool)
    for wanted in range(55):
        kept = pattern.count(shape, wanted)
        mask = pattern.select(scores, kept, None)
        assert int(mask.sum()) == kept == pattern.count(shape, kept)
        assert not (before & ~mask).any()
        before = mask
    assert bool(before.all())


def test_names_and_densities() -> None:
    said = [
        (p.name, p.density, p.window) for p in (unstructured, per_row, balanced(1), nm(2, 4), nm(1, 3, 3), block(4, 2))
    ]
    assert said == [
        ("unstructured", None, None),
        ("per_row", None, None),
        ("balanced(1)", None, None),
        ("2:4", 0.5, (2, 4, 1)),
        ("1:3 along 3", 1 / 3, (1, 3, 3)),
        ("block(4,2)", None, None),
    ]


@pytest.mark.parametrize(("n", "m"), [(5, 4), (-1, 4), (0, 0), (2.0, 4)])
def test_impossible_ratios_are_refused(n: int, m: int) -> None:
    with pytest.raises(PlanError, match=f"{n}:{m} is no pattern"):
        nm(n, m)


def test_what_cannot_be_kept_is_refused() -> None:
    scores, dead = torch.rand(2, 8), torch.ones(2, 8, dtype=torch.bool)
    dead[1, 4:7] = False
    with pytest.raises(PlanError, match="2:4: a group of 4 has only 1 weights alive; expected 2"):
        nm(2, 4).select(scores, 8, dead)
    with pytest.raises(PlanError, match="cannot keep 6 weights of row 1: 5 of its 8 are alive"):
        per_row.select(scores, 12, dead)
    with pytest.raises(PlanError, match="cannot keep 9 weights here; ask `count`: the nearest is 8"):
        nm(2, 4).select(scores, 9, None)
    with pytest.raises(PlanError, match="the nearest is 12"):
        per_row.select(scores, 11, None)
    with pytest.raises(PlanError, match="remainder that stays dense are gone already"):
        nm(1, 5, remainder="dense").select(scores, 8, dead)
    with pytest.raises(PlanError, match="remainder that stays dense are gone already"):
        block(2, 5, "dense").select(scores, 6, dead)
    with pytest.raises(PlanError, match="two axes or more"):
        per_row.count((8,), 4)
    with pytest.raises(PlanError, match=r"block\(0, 2\): expected"):
        block(0, 2)
    with pytest.raises(PlanError, match='remainder is "dense" or None'):
        nm(2, 4, remainder="keep")  # type: ignore[arg-type]
    for pattern in (nm(2, 4), per_row, block(1, 2)):
        with pytest.raises(PlanError, match="NaN or inf"):
            pattern.select(scores * torch.nan, 8, None)
