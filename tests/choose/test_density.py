"""Densities against their formulas in plain loops, and selection by them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.choose.density import (
    Densities,
    block_of,
    check_sparsity,
    erk,
    even,
    lamp,
    owl,
    ranked,
    select,
    uniform_plus,
)
from secateur.choose.patterns import Pattern, balanced, block, nm, per_row
from secateur.errors import ArgumentError, PlanError
from secateur.train.dynamic import gmp
from secateur.train.schedule import one_shot

SHAPES: dict[str, tuple[int, ...]] = {
    "stem.weight": (8, 3, 3, 3),
    "layers.0.conv.weight": (8, 8, 3, 3),
    "layers.0.depthwise.weight": (8, 1, 3, 3),
    "layers.1.conv.weight": (16, 8, 1, 1),
    "layers.1.up.weight": (20, 16),
    "head.weight": (10, 20),
}


def weights(seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: (i + 1) * torch.randn(s, generator=generator).abs() for i, (n, s) in enumerate(shapes.items())}


def size(saliency: Mapping[str, Tensor]) -> int:
    return sum(s.numel() for s in saliency.values())


matrices = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)
kernels = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)), max_size=4)
sparsities = st.floats(0, 0.99)


@settings(max_examples=80)
@given(matrices, kernels, sparsities, st.integers(0, 10**6), st.booleans())
def test_totals_are_exact(
    flat: list[tuple[int, ...]], deep: list[tuple[int, ...]], sparsity: float, seed: int, coarse: bool
) -> None:
    saliency = weights(seed, {f"b.{i}.weight": s for i, s in enumerate([*deep, *flat])})
    if coarse:  # many ties
        saliency = {n: s.round() for n, s in saliency.items()}
    total = size(saliency)
    for density in (ranked, erk, lamp, owl(), uniform_plus):
        try:
            counts = density(saliency, sparsity)
        except PlanError as error:
            assert density is uniform_plus
            assert "uniform_plus keeps" in str(error)  # noqa: PT017
            continue
        assert list(counts) == list(saliency)
        assert sum(counts.values()) == total - round(sparsity * total)
        masks = select(saliency, sparsity, density=density)
        assert {n: int(m.sum()) for n, m in masks.items()} == counts
    counts = even(saliency, sparsity)
    assert counts == {n: s.numel() - round(sparsity * s.numel()) for n, s in saliency.items()}


@given(matrices, kernels, sparsities)
def test_erk_is_the_fixed_point(flat: list[tuple[int, ...]], deep: list[tuple[int, ...]], sparsity: float) -> None:
    shapes = [*deep, *flat]
    sizes, r = [math.prod(s) for s in shapes], [sum(s) / math.prod(s) for s in shapes]
    kept = 1 - round(sparsity * sum(sizes)) / sum(sizes)
    dense: set[int] = set()
    while True:  # algorithm of the paper's code: the largest go dense first
        free = [i for i in range(len(shapes)) if i not in dense]
        if not free:
            break
        room = sum(kept * sizes[i] for i in free) - sum((1 - kept) * sizes[i] for i in dense)
        epsilon = room / sum(r[i] * sizes[i] for i in free)
        largest = max(r[i] for i in free)
        if epsilon * largest <= 1:
            break
        dense |= {i for i in free if r[i] == largest}
    counts = list(erk({str(i): torch.zeros(s) for i, s in enumerate(shapes)}, sparsity).values())
    for i, count in enumerate(counts):
        assert abs(count - sizes[i] * (1 if i in dense else epsilon * r[i])) < 1 + 1e-6


def test_erk_densities_by_hand() -> None:
    shapes = {"a": (1000, 1000), "b": (1000, 100), "c": (100, 10)}  # r: 0.002, 0.011, 0.11; c is dense
    counts = erk({n: torch.zeros(s) for n, s in shapes.items()}, 0.8)
    epsilon = (0.2 * 1_101_000 - 1000) / (2000 + 1100)
    assert counts == {"a": round(2000 * epsilon), "b": round(1100 * epsilon), "c": 1000}


@settings(max_examples=40)
@given(st.integers(0, 10**6), sparsities)
def test_lamp_is_the_loop_over_scores(seed: int, sparsity: float) -> None:
    saliency = weights(seed)
    scored = []
    for k, s in enumerate(saliency.values()):
        squares = sorted((v * v for v in s.double().reshape(-1).tolist()), reverse=True)
        for i, q in enumerate(squares):
            scored.append((q / math.fsum(squares[: i + 1]), k))
        assert scored[-len(squares)][0] == 1
    total = len(scored)
    chosen = sorted(scored, key=lambda pair: -pair[0])[: total - round(sparsity * total)]
    expected = {n: sum(k == i for _, k in chosen) for i, n in enumerate(saliency)}
    found = lamp(saliency, sparsity)
    assert found == expected
    assert min(found.values()) >= 1 or sum(found.values()) < len(found)
    scale = {n: s * 8.0 ** (i - 3) for i, (n, s) in enumerate(saliency.items())}
    assert lamp(scale, sparsity) == found


def test_lamp_of_large_layers_does_not_cancel() -> None:
    tail = torch.cat([torch.full((1,), 1e4), torch.full((100_000,), 1e-6)])  # total - cumsum is 0 in float32
    assert lamp({"a": tail, "b": torch.full((10,), 1e-3)}, 1 - 13 / 100_011) == {"a": 3, "b": 10}
    scores = lamp({"a": tail, "b": torch.tensor([1.0])}, 1 - 2 / 100_002)
    assert scores == {"a": 1, "b": 1}


def test_lamp_of_a_layer_of_zeros() -> None:
    assert lamp({"a": torch.zeros(4), "b": torch.tensor([1.0, 2.0])}, 0.5) == {"a": 1, "b": 2}


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_owl_is_the_formula_weighted_by_size(sparsity: float) -> None:
    torch.manual_seed(0)
    shapes = {"layers.0.a.w": (40, 50), "layers.0.b.w": (30, 10), "layers.1.a.w": (100, 70), "layers.2.a.w": (60, 60)}
    saliency = {n: torch.randn(s).abs() ** (i + 1) for i, (n, s) in enumerate(shapes.items())}
    lam, m = 0.08, 5.0
    blocks = {"layers.0": ["layers.0.a.w", "layers.0.b.w"], "layers.1": ["layers.1.a.w"], "layers.2": ["layers.2.a.w"]}
    share, n = {}, {}
    for b, names in blocks.items():
        every = torch.cat([saliency[x].reshape(-1) for x in names]).double()
        share[b], n[b] = 100 * float((every > m * every.mean()).double().mean()), every.numel()
    low, high = min(share.values()), max(share.values())
    density = {b: 2 * lam * (d - low) / (high - low) for b, d in share.items()}
    total = sum(n.values())
    shift = (total - round(sparsity * total)) / total - sum(density[b] * n[b] for b in n) / total
    counts = owl(lam, m)(saliency, sparsity)
    for name, count in counts.items():
        assert abs(count - (density[block_of(name)] + shift) * saliency[name].numel()) < 1
    achieved = [density[b] + shift for b in blocks]
    assert max(achieved) - min(achieved) == pytest.approx(2 * lam, abs=1e-12)
    assert sum(d * k for d, k in zip(achieved, n.values(), strict=True)) == pytest.approx(
        sum(counts.values()), abs=1e-6
    )


def test_owl_without_outliers_is_even_and_holds_densities_in_bounds() -> None:
    same = {f"layers.{i}.w": torch.ones(10, 10) for i in range(3)}
    assert owl()(same, 0.4) == dict.fromkeys(same, 60)
    spiky = {"layers.0.w": torch.ones(10, 10), "layers.1.w": torch.ones(10, 10)}
    spiky["layers.0.w"][0, 0] = 1e4
    assert owl(lam=0.4)(spiky, 0.1) == {"layers.0.w": 100, "layers.1.w": 80}
    assert owl(lam=0.4)(spiky, 0.9) == {"layers.0.w": 20, "layers.1.w": 0}
    with pytest.raises(ArgumentError, match=r"lam in \[0, 0.5\]"):
        owl(lam=-0.1)


def test_owl_is_known_by_its_settings() -> None:
    assert owl(0.02) == owl(0.02) != owl(0.3)
    assert repr(owl(0.02)) == "owl(0.02, 5.0, block_of)"
    assert gmp(one_shot(0.5), density=owl(0.02)).about != gmp(one_shot(0.5), density=owl(0.3)).about


def test_uniform_plus_is_the_rule() -> None:
    saliency = weights()
    n, total = {k: s.numel() for k, s in saliency.items()}, size(saliency)
    counts = uniform_plus(saliency, 0.6)
    rest = (total - round(0.6 * total) - n["stem.weight"]) / (total - n["stem.weight"])
    assert rest > 0.2
    assert counts["stem.weight"] == n["stem.weight"]
    assert all(abs(c - rest * n[k]) < 1 for k, c in counts.items() if k != "stem.weight")
    counts = uniform_plus(saliency, 0.75)
    assert (counts["stem.weight"], counts["head.weight"]) == (n["stem.weight"], 40)
    rest = (total - round(0.75 * total) - 216 - 40) / (total - 216 - 200)
    assert all(abs(c - rest * n[k]) < 1 for k, c in counts.items() if k.startswith("layers"))
    with pytest.raises(
        PlanError, match=r"keeps stem.weight whole and a fifth of head.weight: 256 weights, more than the"
    ):
        uniform_plus(saliency, 0.95)
    with pytest.raises(PlanError, match="keeps a fifth of only: 20 weights, more than the 10"):
        uniform_plus({"only": torch.rand(10, 10)}, 0.9)
    with pytest.raises(PlanError, match="keeps conv whole: 36 weights, more than the 26"):
        uniform_plus({"conv": torch.rand(2, 2, 3, 3), "deep": torch.rand(2, 2, 2, 2)}, 0.5)
    no_kernels = {"a": torch.rand(4, 5), "b": torch.rand(5, 10)}
    assert uniform_plus(no_kernels, 0.5) == {"a": 10, "b": 25}


@pytest.mark.parametrize("density", [even, ranked, erk, lamp, owl()])
@pytest.mark.parametrize("pattern", [per_row, balanced(1), block(2, 1), nm(1, 2, 0)])
def test_patterns_come_nearest_to_the_densities(density: Densities, pattern: Pattern) -> None:
    saliency = weights()
    masks = select(saliency, 0.5, pattern, density)
    wanted = density(saliency, 0.5)
    for name, mask in masks.items():
        if pattern.density is None:
            assert int(mask.sum()) == pattern.count(SHAPES[name], wanted[name])
        else:
            assert int(mask.sum()) == mask.numel() / 2


@pytest.mark.parametrize("density", [even, ranked, lamp])
def test_what_is_gone_stays_gone(density: Densities) -> None:
    saliency = weights(3)
    masks = select(saliency, 0.2, density=density)
    for step in (0.5, 0.8, 0.9):
        again = weights(int(step * 100))  # whatever the weights are by then
        before, masks = masks, select(again, step, density=density, alive=masks)
        assert all(not (masks[n] & ~before[n]).any() for n in masks)
        if density is not even:
            assert sum(int(m.sum()) for m in masks.values()) == size(saliency) - round(step * size(saliency))


def test_a_global_ranking_leaves_out_what_is_gone_although_it_scores_the_same_or_more() -> None:
    saliency = {"a": torch.tensor([0.0, 0.0, 5.0]), "b": torch.tensor([0.0, -3.0, 9.0])}
    alive = {"a": torch.tensor([False, False, True]), "b": torch.tensor([True, True, False])}
    masks = select(saliency, 0.5, density=ranked, alive=alive)
    assert {n: m.tolist() for n, m in masks.items()} == {"a": [False, False, True], "b": [True, True, False]}
    assert saliency["b"].tolist() == [0.0, -3.0, 9.0]


def test_errors_name_the_weight() -> None:
    saliency = {"up.weight": torch.rand(4, 6), "down.weight": torch.rand(6, 4)}
    alive = {n: torch.ones(s.shape, dtype=torch.bool) for n, s in saliency.items()}
    alive["down.weight"][:3] = False
    with pytest.raises(PlanError, match=r"down.weight: cannot keep 22 of the 12 weights that are alive \(of 24\)"):
        select(saliency, 0.1, alive=alive)
    with pytest.raises(PlanError, match="up.weight: axis 1 .* 6 positions, which groups of 4"):
        select(saliency, 0.5, nm(2, 4))
    with pytest.raises(PlanError, match=r"alive has no masks for \['down.weight'\]"):
        select(saliency, 0.5, alive={"up.weight": alive["up.weight"]})
    with pytest.raises(PlanError, match="up.weight: the densities keep 25 of its 24 weights"):
        select(saliency, 0.5, density=lambda s, sparsity: dict.fromkeys(s, 25))
    with pytest.raises(PlanError, match="up.weight: 24 of 24 scores are NaN"):
        select({"up.weight": torch.full((4, 6), torch.nan)}, 0.5)


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, float("nan"), "0.5", None, False, np.float32(1)])
def test_sparsity_is_a_fraction_below_one(sparsity: float) -> None:
    with pytest.raises(ArgumentError, match=r"fraction removed, in \[0, 1\)"):
        select({"a": torch.rand(2, 2)}, sparsity)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(0), 0.5, 0])
def test_sparsity_may_be_any_real_number(number: float) -> None:
    assert type(check_sparsity(number)) is float
    assert check_sparsity(number) == float(number)
