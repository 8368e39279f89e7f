"""Trainings that a method makes sparse: gradual pruning against the paper's loop, saved and gone on with."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.choose.density import ranked
from secateur.choose.patterns import per_row
from secateur.errors import ArgumentError, FormatError, PlanError
from secateur.train.dynamic import gmp, rigl
from secateur.train.movement import movement
from secateur.train.saved import load_training, save_training
from secateur.train.schedule import Schedule, cubic, linear, one_shot
from secateur.train.sparse import Method, Sparse
from secateur.train.srste import srste
from secateur.train.threshold import learned_threshold
from secateur.types import Criterion, Weighing

Making = Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw)


def train_(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(("make", "every"), [(sgd, 1), (adamw, 5)])
def test_gmp_is_the_papers_loop(make: Making, every: int) -> None:
    """Oracle: after each step, in each layer, the smallest of what is left go by a plain sort; for good."""
    net = small_net()
    by_hand = copy.deepcopy(net)
    curve = cubic(0.8, 5, 25)
    optimizer = make(net.parameters())
    sparse = Sparse(net, optimizer, gmp(curve, every))
    train_(net, optimizer, range(30))

    optimizer = make(by_hand.parameters())
    layers = [p for p in by_hand.parameters() if p.dim() == 2]
    gone: list[set[int]] = [set() for _ in layers]
    for step in range(30):
        train_(by_hand, optimizer, range(step, step + 1))
        done = step + 1
        for p, mine in zip(layers, gone, strict=True):
            flat = p.data.view(-1)
            if done % every == 0:
                target = round(curve(done) * flat.numel())
                left = sorted((abs(float(flat[i])), -i) for i in range(flat.numel()) if i not in mine)
                for _, i in left[: target - len(mine)]:
                    mine.add(-i)
            for i in mine:
                flat[i] = 0
                for value in optimizer.state[p].values():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        value.view(-1)[i] = 0
    assert sparse.masks.sparsity == pytest.approx(0.8, abs=0.01)
    for a, b in zip(net.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_gone_stays_gone_whatever_the_scores_say() -> None:
    draw = torch.Generator().manual_seed(3)
    fresh = Criterion(
        "fresh", weights=Weighing(lambda model, ws, _: {n: torch.randn(w.shape, generator=draw) for n, w in ws.items()})
    )
    net = small_net()
    optimizer = sgd(net.parameters())
    sparse = Sparse(net, optimizer, gmp(linear(0.9, 0, 10), criterion=fresh, density=ranked))
    before = dict(sparse.masks.masks)
    for step in range(12):
        train_(net, optimizer, range(step, step + 1))
        now = sparse.masks.masks
        assert all(bool((before[n] | ~m).all()) for n, m in now.items())
        total = sum(m.numel() for m in now.values())
        assert sum(int((~m).sum()) for m in now.values()) == round(linear(0.9, 0, 10)(step + 1) * total)
        before = dict(now)
    assert all(not bool(w[~sparse.masks.masks[n]].any()) for n, w in sparse.masks.weights.items())


def test_nothing_is_ranked_once_the_schedule_rests() -> None:
    calls = []

    def counted(model: nn.Module, weights: Mapping[str, Tensor], stats: Any) -> dict[str, Tensor]:
        calls.append(1)
        return {n: w.detach().abs() for n, w in weights.items()}

    net = small_net()
    optimizer = sgd(net.parameters())
    Sparse(net, optimizer, gmp(one_shot(0.777, at=3), criterion=Criterion("counted", weights=Weighing(counted))))
    train_(net, optimizer, range(20))
    assert len(calls) == 1


def swapping(seed: int = 0) -> Method:
    """Keeps half of each weight; every third step it draws anew, instead of a step: remembers its generator."""

    def draw(run: Sparse) -> None:
        source = torch.Generator()
        source.set_state(run.memory["generator"])
        run.masks.put({n: torch.rand(m.shape, generator=source) > 0.5 for n, m in run.masks.masks.items()})
        run.memory["generator"] = source.get_state()

    def start(run: Sparse) -> None:
        run.memory["generator"] = torch.Generator().manual_seed(seed).get_state()
        draw(run)

    def before(run: Sparse) -> bool:
        if run.step % 3 != 2:
            return False
        draw(run)
        return True

    return Method("swapping", start, before, about={"seed": seed})


METHODS = {"gmp": lambda: gmp(cubic(0.8, 2, 15), every=2), "swapping": swapping}


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("first", ["weights", "masks"])
def test_going_on_is_bit_for_bit_the_same(
    make: Making, method: Callable[[], Method], first: str, tmp_path: Path
) -> None:
    straight = small_net()
    optimizer = make(straight.parameters())
    whole = Sparse(straight, optimizer, method())
    train_(straight, optimizer, range(20))

    net = small_net()
    optimizer = make(net.parameters())
    half = Sparse(net, optimizer, method())
    train_(net, optimizer, range(10))
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "sparse": half.state_dict()}, file)
    save_training(tmp_path / "sparse", half)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    net = small_net(seed=9)
    if first == "weights":  # before the first masks are laid on them
        net.load_state_dict(saved["model"])
    optimizer = make(net.parameters())
    again = Sparse(net, optimizer, method())
    if first == "weights":
        again.load_state_dict(saved["sparse"])
    else:
        load_training(tmp_path / "sparse", again)
        net.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert again.step == 10
    train_(net, optimizer, range(10, 20))
    assert again.step == whole.step == 20
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), straight.parameters(), strict=True))
    assert all(torch.equal(again.masks.masks[n], m) for n, m in whole.masks.masks.items())
    assert all(torch.equal(again.memory[n], t) for n, t in whole.memory.items())
    assert again.memory.keys() == whole.memory.keys()


def snapshot(run: Sparse) -> list[Tensor]:
    return [t.clone() for t in (*run.model.state_dict().values(), *run.masks.masks.values())]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda net: Sparse(net, adamw(net.parameters()), gmp(cubic(0.8, 2, 15))), "optimizer: 'SGD' there, 'AdamW'"),
        (lambda net: Sparse(net, sgd(net.parameters()), gmp(cubic(0.9, 2, 15))), "schedule: .*0.8.* there, .*0.9"),
        (lambda net: Sparse(net, sgd(net.parameters()), gmp(lambda t: 0.5)), "schedule: "),
        (lambda net: Sparse(net, sgd(net.parameters()), gmp(cubic(0.8, 2, 15), every=2)), "every: 1 there, 2 here"),
        (lambda net: Sparse(net, sgd(net.parameters()), swapping()), "method: 'gmp' there, 'swapping' here"),
        (
            lambda net: Sparse(net, sgd(net.parameters()), gmp(cubic(0.8, 2, 15)), {"0.weight": net[0].weight}),
            r"masks other weights, \['2.weight', '4.weight'\]",
        ),
    ],
)
def test_a_state_of_another_training_is_refused(
    other: Callable[[nn.Sequential], Sparse], says: str, tmp_path: Path
) -> None:
    net = small_net()
    optimizer = sgd(net.parameters())
    run = Sparse(net, optimizer, gmp(cubic(0.8, 2, 15)))
    train_(net, optimizer, range(10))
    save_training(tmp_path, run)
    different = other(small_net())
    before = snapshot(different)
    for load in (lambda: different.load_state_dict(run.state_dict()), lambda: load_training(tmp_path, different)):
        with pytest.raises(ArgumentError, match=says):
            load()
    assert different.step == 0
    assert all(torch.equal(a, b) for a, b in zip(snapshot(different), before, strict=True))


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def run(width: int) -> Sparse:
        net = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))
        return Sparse(net, sgd(net.parameters()), gmp(one_shot(0.5)))

    here, there = run(4), run(6)
    before = snapshot(here)
    with pytest.raises(PlanError, match="the mask of 0.weight is"):
        here.load_state_dict(there.state_dict())
    with pytest.raises(ArgumentError, match="lacks"):
        here.load_state_dict(here.model.state_dict())
    with pytest.raises(FormatError, match="holds no state"):
        load_training(tmp_path / "nothing", here)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(here), before, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_do_not_count_and_methods_see_true_gradients(fused: bool) -> None:
    seen = []

    def before(run: Sparse) -> bool:
        seen.append(run.masks.weights["0.weight"].grad.clone())
        return False

    def loss(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        return F.cross_entropy(model(x), y)

    net = small_net()
    twin = copy.deepcopy(net)
    make = lambda p: torch.optim.AdamW(p, lr=1e-2, fused=fused)  # noqa: E731
    optimizer, plain = make(net.parameters()), make(twin.parameters())
    run = Sparse(net, optimizer, Method("watch", lambda run: None, before))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(loss(net, step)).backward()
        if step == 2:
            net[0].weight.grad[0, 0] = float("inf")
        else:
            plain.zero_grad()
            loss(twin, step).backward()
            plain.step()
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            torch.testing.assert_close(seen[-1], twin[0].weight.grad, rtol=1e-3, atol=1e-6)
    assert run.step == len(seen) == 5
    torch.testing.assert_close(net[0].weight, twin[0].weight, rtol=1e-4, atol=1e-6)


def test_accumulated_gradients_are_one_step() -> None:
    net = small_net()
    optimizer = sgd(net.parameters())
    run = Sparse(net, optimizer, gmp(cubic(0.5, 0, 4)))
    for micro in range(12):
        x, y = batch(micro)
        F.cross_entropy(net(x), y).backward()
        if micro % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    assert run.step == 4
    assert run.masks.sparsity == pytest.approx(0.5, abs=0.01)
    assert run.strip() is net
    train_(net, optimizer, range(2))
    assert run.step == 4


CLOSED: dict[str, Callable[[], Method]] = {
    "srste": lambda: srste(per_row, sparsity=0.5),
    "movement": lambda: movement(lambda step: 0.5 if step > 2 else 0.0),
    "rigl": lambda: rigl(0.5, end=100, every=3),
    "learned_threshold": lambda: learned_threshold(1e-2, initial=-3.0),
}


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("method", CLOSED.values(), ids=CLOSED)
def test_a_closure_is_the_loop_written_out(method: Callable[[], Method], keyword: bool) -> None:
    net, twin = small_net(), small_net()
    runs = [Sparse(n, sgd(n.parameters()), method()) for n in (net, twin)]
    optimizer = runs[0].optimizer

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for step in range(12):
        x, y = batch(step)
        assert isinstance(optimizer.step(closure=closure) if keyword else optimizer.step(closure), Tensor)
        train_(twin, runs[1].optimizer, range(step, step + 1))
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert runs[0].masks.sparsity == runs[1].masks.sparsity > 0


def test_an_optimizer_that_calls_its_closure_twice_is_refused() -> None:
    net = small_net()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
    Sparse(net, optimizer, movement(cubic(0.5, 0, 4)))
    x, y = batch(0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    with pytest.raises(ArgumentError, match="LBFGS calls its closure more than once in a step, which movement"):
        optimizer.step(closure)


def test_a_folder_that_was_used_before_holds_the_new_training(tmp_path: Path) -> None:
    def at(step: int) -> Sparse:
        net = small_net()
        run = Sparse(net, sgd(net.parameters()), gmp(one_shot(0.5)))
        run.step = step
        return run

    for step in (90, 100):
        save_training(tmp_path, at(step))
    for step in (10, 20, 30):
        assert save_training(tmp_path, at(step)).exists()
        run = at(0)
        load_training(tmp_path, run)
        assert run.step == step


def test_bad_arguments_are_refused() -> None:
    net = small_net()
    with pytest.raises(ArgumentError, match="method must be a Method"):
        Sparse(net, sgd(net.parameters()), cubic(0.5, 0, 4))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="optimizer must be"):
        Sparse(net, net, gmp(cubic(0.5, 0, 4)))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="every must be"):
        gmp(cubic(0.5, 0, 4), every=0)
    schedule: Schedule = lambda step: 1.5  # noqa: E731
    with pytest.raises(ArgumentError, match="fraction removed"):
        Sparse(net, sgd(net.parameters()), gmp(schedule))
