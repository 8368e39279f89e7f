"""GMP, SET, RigL, AC/DC and the fixed control, against the papers' loops written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tiny
from secateur.choose.density import erk, even, ranked
from secateur.choose.patterns import nm, unstructured
from secateur.errors import ArgumentError, PlanError
from secateur.score.weigh_inputs import wanda
from secateur.train.acdc import acdc, alternating
from secateur.train.dynamic import cosine, fixed, gmp, regrown, rigl, sparse_evolution, static
from secateur.train.movement import movement
from secateur.train.schedule import cubic, linear
from secateur.train.sparse import Method, Sparse
from secateur.train.srste import srste
from secateur.train.threshold import learned_threshold

RATE, MOMENTUM = 0.05, 0.9
LATER = alternating(50, 20, 10, 100)
SLOW = linear(0.9, 0, 440, initial=0.504)  # the end of a schedule of 1000 steps
BATCHES = list(zip(tiny.draws(8, 16, 6), tiny.draws(8, 16, 3, seed=1), strict=True))


def net() -> nn.Sequential:
    return tiny.mlp(6, 20, 12, 3)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, foreach=False)


def backward(model: nn.Module, step: int) -> None:
    x, y = BATCHES[step % len(BATCHES)]
    model.zero_grad()
    (model(x) - y).square().mean().backward()


def driven(method: Method, steps: int, model: nn.Module | None = None) -> Iterator[Sparse]:
    """The run before the first step and after every one."""
    model = model or net()
    run = Sparse(model, sgd(model), method)
    yield run
    for step in range(steps):
        backward(model, step)
        run.optimizer.step()
        yield run


def last(runs: Iterator[Sparse]) -> Sparse:
    *_, run = runs
    return run


def momentum_of(run: Sparse) -> dict[str, Tensor]:
    state = run.optimizer.state
    return {n: state[w]["momentum_buffer"] for n, w in run.masks.weights.items() if w in state}


def assert_quiet(run: Sparse) -> None:
    """What is masked is zero, and so is its momentum."""
    buffers = momentum_of(run)
    for n, w in run.masks.weights.items():
        gone = ~run.masks.masks[n]
        assert not w[gone].any()
        assert n not in buffers or not buffers[n][gone].any()


def loop_regrown(weight: list[float], growth: list[float], mask: list[bool], k: int) -> list[bool]:
    """Drop the k smallest active, then grow the k of largest growth that are not active; ties: the earlier stays."""
    mask = list(mask)
    for _ in range(k):
        active = [i for i, m in enumerate(mask) if m]
        mask[min(active, key=lambda i: (abs(weight[i]), -i))] = False
    free = [i for i, m in enumerate(mask) if not m]
    for i in sorted(free, key=lambda i: (-growth[i], i))[:k]:
        mask[i] = True
    return mask


@given(st.data())
def test_one_update_is_the_papers_loop(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 24))
    few = st.lists(st.integers(-3, 3).map(float), min_size=n, max_size=n)
    weight, growth = data.draw(few), data.draw(few)
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k = data.draw(st.integers(0, sum(mask)))
    made = regrown(torch.tensor(weight), torch.tensor(growth), torch.tensor(mask), k)
    assert made.tolist() == loop_regrown(weight, growth, mask, k)


def test_rigl_is_the_papers_loop_bit_for_bit() -> None:
    every, end, steps, method = 5, 60, 80, rigl(0.7, end=60, every=5, fraction=0.4, seed=3)
    runs, model = driven(method, steps), net()
    masks = {n: m.clone() for n, m in next(runs).masks.masks.items()}
    parameters = dict(model.named_parameters())
    buffers = {n: torch.zeros_like(p) for n, p in parameters.items()}
    with torch.no_grad():
        for n, m in masks.items():
            parameters[n].mul_(m)
    for t, run in enumerate(runs):
        backward(model, t)
        update = 0 < t < end and t % every == 0
        with torch.no_grad():
            for n, p in parameters.items():
                if n in masks and update:
                    k = math.floor(0.4 / 2 * (1 + math.cos(math.pi * t / end)) * int(masks[n].sum()))
                    flat = (p.flatten().tolist(), p.grad.abs().flatten().tolist(), masks[n].flatten().tolist())
                    masks[n] = torch.tensor(loop_regrown(*flat, k)).view_as(p)
                else:
                    buffers[n] = buffers[n].mul(MOMENTUM).add(p.grad)
                    p.add_(buffers[n], alpha=-RATE)
                if n in masks:
                    p.mul_(masks[n])
                    buffers[n].mul_(masks[n])
        for n, p in run.model.named_parameters():
            assert torch.equal(p, parameters[n]), (t, n)
        assert all(torch.equal(run.masks.masks[n], m) for n, m in masks.items()), t


@pytest.mark.parametrize("make", [rigl, sparse_evolution])
def test_counts_stay_and_new_weights_start_at_zero(make: Callable[..., Method]) -> None:
    runs = driven(make(0.8, end=150, every=10), 200)
    before = {n: m.clone() for n, m in next(runs).masks.masks.items()}
    counts = {n: int(m.sum()) for n, m in before.items()}
    assert counts == erk(before, 0.8)
    updates = 0
    for run in runs:
        assert {n: int(m.sum()) for n, m in run.masks.masks.items()} == counts
        assert_quiet(run)
        moved = {n: m & ~before[n] for n, m in run.masks.masks.items()}
        updates += any(bool(m.any()) for m in moved.values())
        for n, new in moved.items():
            assert not run.masks.weights[n][new].any()
            assert not momentum_of(run)[n][new].any()
        if run.step > 150 or (run.step - 1) % 10:
            assert not any(bool(m.any()) for m in moved.values())
        before = {n: m.clone() for n, m in run.masks.masks.items()}
    assert updates >= 10


def test_rigl_grows_where_the_dense_gradient_is_largest() -> None:
    runs = driven(rigl(0.8, end=100, every=1, fraction=1.0), 1)
    run = last(runs)
    before = {n: m.clone() for n, m in run.masks.masks.items()}
    backward(run.model, 1)
    gradients = {n: w.grad.abs() for n, w in run.masks.weights.items()}
    run.optimizer.step()
    for n, m in run.masks.masks.items():
        k = math.floor(cosine(1.0, 100)(1) * int(before[n].sum()))
        grown = m & ~before[n]
        stays = before[n] & m
        left_out = ~before[n] & ~m
        assert grown.any()
        assert k >= int(grown.sum())
        assert gradients[n][grown].min() >= gradients[n][left_out].max()
        assert stays.sum() + grown.sum() == before[n].sum()


def test_what_was_just_dropped_keeps_its_value_when_it_comes_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    full = {"0.weight": torch.ones(2, 2, dtype=torch.bool)}
    run = Sparse(model, sgd(model), rigl(0.0, end=10, every=1, fraction=1.0))
    for step in range(3):  # dense: all that goes comes back
        was = model[0].weight.detach().clone()
        model.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        run.optimizer.step()
        assert torch.equal(run.masks.masks["0.weight"], full["0.weight"])
        assert torch.equal(model[0].weight, was) == (step > 0)


def test_the_cosine_runs_from_its_fraction_to_zero() -> None:
    f = cosine(0.3, 1000)
    assert f(0) == 0.3
    assert f(1000) == f(5000) == 0.0
    assert f(500) == pytest.approx(0.15)


def test_set_draws_on_from_the_state_in_memory() -> None:
    one, other = (last(driven(sparse_evolution(0.8, end=90, every=10, seed=s), 60)) for s in (0, 0))
    tiny.assert_same(one.masks.masks, other.masks.masks)
    third = last(driven(sparse_evolution(0.8, end=90, every=10, seed=1), 60))
    assert any(not torch.equal(m, third.masks.masks[n]) for n, m in one.masks.masks.items())
    other.memory["generator"] = torch.Generator().manual_seed(7).get_state()
    for run in (one, other):
        for step in range(60, 61):
            backward(run.model, step)
            run.optimizer.step()
    assert any(not torch.equal(m, other.masks.masks[n]) for n, m in one.masks.masks.items())


def test_a_weight_that_took_no_part_in_the_step_keeps_its_mask() -> None:
    model = net()
    run = Sparse(model, sgd(model), rigl(0.5, end=10, every=1))
    for step in range(3):
        backward(model, step)
        model[0].weight.grad = None
        was = run.masks.masks["0.weight"].clone()
        run.optimizer.step()
        assert torch.equal(run.masks.masks["0.weight"], was)


def test_static_masks_never_move() -> None:
    runs = driven(static(0.9, seed=5), 30)
    first = {n: m.clone() for n, m in next(runs).masks.masks.items()}
    assert {n: int(m.sum()) for n, m in first.items()} == erk(first, 0.9)
    for run in runs:
        tiny.assert_same(run.masks.masks, first)
        assert_quiet(run)
    other = next(driven(static(0.9, seed=6), 0)).masks.masks
    assert any(not torch.equal(m, other[n]) for n, m in first.items())
    assert {n: int(m.sum()) for n, m in next(driven(static(0.5, density=even), 0)).masks.masks.items()} == even(
        first, 0.5
    )


def test_fixed_takes_the_given_masks() -> None:
    masks = {"0.weight": torch.arange(120).reshape(20, 6) % 3 == 0}
    run = last(driven(fixed(masks), 5))
    assert torch.equal(run.masks.masks["0.weight"], masks["0.weight"])
    assert run.masks.masks["2.weight"].all()
    assert_quiet(run)
    assert fixed(masks).about != fixed({"0.weight": ~masks["0.weight"]}).about


def test_gmp_is_the_papers_loop() -> None:
    schedule = cubic(0.9, 5, 45)
    runs, model = driven(gmp(schedule, every=10), 60), net()
    next(runs)
    optimizer = sgd(model)
    masks = {f"{i}.weight": torch.ones_like(model[i].weight, dtype=torch.bool) for i in (0, 2, 4)}
    for t, run in enumerate(runs):
        backward(model, t)
        optimizer.step()
        with torch.no_grad():
            for n, m in masks.items():
                w = model.get_parameter(n)
                if (t + 1) % 10 == 0:
                    alive = m.flatten().nonzero()[:, 0].tolist()
                    size = w.abs().flatten().tolist()
                    left = w.numel() - round(schedule(t + 1) * w.numel())
                    for i in sorted(alive, key=lambda i: (-size[i], i))[left:]:
                        m.view(-1)[i] = False
                w.mul_(m)
                optimizer.state[w]["momentum_buffer"].mul_(m)
        tiny.assert_same(run.masks.masks, masks)
        assert_quiet(run)
        for n, p in run.model.named_parameters():
            assert torch.equal(p, model.get_parameter(n))
    assert run.masks.sparsity == pytest.approx(0.9, abs=0.01)


def test_gmp_goes_on_where_rounded_shares_of_a_smaller_total_would_grow() -> None:
    model = tiny.mlp(7, 13, 29, 11, 17, 23, 5)
    shapes = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
    wanted = [erk(shapes, SLOW(t)) for t in range(351)]
    assert any(b[n] > a[n] for a, b in itertools.pairwise(wanted) for n in a)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run, total = Sparse(model, optimizer, gmp(SLOW, density=erk)), sum(p.numel() for p in shapes.values())
    for step in range(1, 351):
        optimizer.step()
        kept = sum(int(m.sum()) for m in run.masks.masks.values())
        assert kept == total - round(SLOW(step) * total)


@pytest.mark.parametrize(
    "make", [lambda: gmp(linear(0.5, 50, 100), pattern=nm(2, 4)), lambda: acdc(0.5, LATER, nm(2, 4))]
)
def test_a_pattern_that_does_not_fit_is_refused_at_the_start(make: Callable[[], Method]) -> None:
    with pytest.raises(PlanError, match="0.weight: axis 1 .* 6 positions, which groups of 4 do not divide"):
        next(driven(make(), 0))


def test_acdc_of_other_phases_is_refused() -> None:
    run, same, other = (next(driven(acdc(0.5, alternating(*p)), 0)) for p in ((2, 3, 2, 9), (2, 3, 2, 9), (5, 3, 2, 9)))
    same.load_state_dict(run.state_dict())
    with pytest.raises(ArgumentError, match="phase: .*'warmup': 2.* there, .*'warmup': 5"):
        other.load_state_dict(run.state_dict())


def test_acdc_is_the_papers_loop() -> None:
    phase = alternating(warmup=10, compressed=15, decompressed=10, final=75)
    runs, model = driven(acdc(0.8, phase), 100), net()
    next(runs)
    optimizer, weights = sgd(model), {n: p for n, p in model.named_parameters() if p.dim() > 1}
    mask: dict[str, Tensor] = {}
    lifted = 0
    for t, run in enumerate(runs):
        backward(model, t)
        optimizer.step()
        with torch.no_grad():
            if phase(t):
                for n, w in weights.items():
                    w.mul_(mask[n])
                    optimizer.state[w]["momentum_buffer"].mul_(mask[n])
            if phase(t + 1) and not phase(t):
                order = sorted(
                    ((-abs(v), n, i) for n, w in weights.items() for i, v in enumerate(w.flatten().tolist()))
                )
                total = len(order)
                kept = {(n, i) for _, n, i in order[: total - round(0.8 * total)]}
                mask = {
                    n: torch.tensor([(n, i) in kept for i in range(w.numel())]).view_as(w) for n, w in weights.items()
                }
                for n, w in weights.items():
                    w.mul_(mask[n])
                    optimizer.state[w]["momentum_buffer"].mul_(mask[n])
        for n, p in run.model.named_parameters():
            assert torch.equal(p, model.get_parameter(n)), (t, n)
        for n, b in momentum_of(run).items():
            assert torch.equal(b, optimizer.state[weights[n]]["momentum_buffer"])
        if phase(t) and not phase(t + 1):  # lifted: all may move, from zero and without momentum
            lifted += 1
            assert run.masks.sparsity == 0
            for n, w in run.masks.weights.items():
                assert not w[~mask[n]].any()
                assert not momentum_of(run)[n][~mask[n]].any()
        assert_quiet(run)
    assert lifted == 2
    assert run.masks.sparsity == pytest.approx(0.8, abs=0.002)


def test_acdc_may_begin_sparse() -> None:
    run = next(driven(acdc(0.5, lambda step: True, density=ranked), 0))
    assert run.masks.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rigl(0.5, end=0),
        lambda: rigl(0.5, end=5, every=0),
        lambda: rigl(0.5, end=5, every=1.5),
        lambda: rigl(0.5, end=4.5),
        lambda: gmp(cubic(0.5, 0, 9), criterion=wanda),
        lambda: gmp(cubic(0.5, 0, 9), criterion="magnitude"),
        lambda: rigl(0.5, end=5, fraction=1.5),
        lambda: rigl(1.0, end=5),
        lambda: static(1.0),
        lambda: acdc(-0.1, lambda step: True),
        lambda: alternating(5, 0, 1, 10),
        lambda: alternating(20, 1, 1, 10),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: sparse_evolution(0.8, end=30, every=4),
        lambda: rigl(0.8, end=30, every=4),
        lambda: acdc(0.7, alternating(5, 6, 4, 30)),
        lambda: movement(cubic(0.7, 2, 20)),
        lambda: learned_threshold(0.02, initial=-4.0),
        lambda: srste(unstructured, sparsity=0.5),
    ],
)
def test_a_saved_run_goes_on_as_if_it_had_not_stopped(make: Callable[[], Method]) -> None:
    straight = last(driven(make(), 40))
    first = last(driven(make(), 17))
    model = net()
    optimizer = sgd(model)
    run = Sparse(model, optimizer, make())
    model.load_state_dict(first.model.state_dict())
    optimizer.load_state_dict(first.optimizer.state_dict())
    run.load_state_dict(first.state_dict())
    for step in range(17, 40):
        backward(model, step)
        optimizer.step()
    tiny.assert_same(dict(model.named_parameters()), dict(straight.model.named_parameters()))
    tiny.assert_same(run.masks.masks, straight.masks.masks)
    tiny.assert_same(run.memory, straight.memory)
