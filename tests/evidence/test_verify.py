"""Verification: what is right passes, and each way of being wrong is caught."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import PlanError
from tiny import Attention, assert_same, attention, cnn, cut_evenly, draws, groups_of, mlp, state_of


class Places(nn.Module):
    """Buffers of all sorts: a table that is built and not saved, a permutation, a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.order: Tensor
        self.gain: Tensor
        self.register_buffer("order", torch.randperm(8))
        self.register_buffer("gain", torch.rand(8) + 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x) * self.gain)[..., self.order])


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: mlp(4, 8, 6, 2), torch.randn(3, 4)),
    "cnn": (cnn, torch.randn(2, 3, 8, 8)),
    "attention": (attention, torch.randn(2, 5, 16)),
    "places": (Places, torch.randn(3, 6)),
    "half": (lambda: attention().to(torch.bfloat16), torch.randn(2, 5, 16, dtype=torch.bfloat16)),
}


def failed(report: sc.Report) -> list[str]:
    return [r.what for r in report.rows if r.ok is False]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_a_right_cut_passes(name: str, sparsity: float) -> None:
    make, example = CASES[name]
    model = make().eval()
    plan, small = cut_evenly(model, example, sparsity)
    before, after = state_of(model), state_of(small)
    report = sc.verify(model, plan, small, example)
    assert (report.ok, failed(report)) == (True, [])
    assert report.max_error <= 1e-12
    assert_same(before, state_of(model))
    assert_same(after, state_of(small))


def test_trained_weights_pass_and_are_counted() -> None:
    model, example = CASES["cnn"][0](), CASES["cnn"][1]
    plan, small = cut_evenly(model, example)
    with torch.no_grad():
        small[0].weight.mul_(1.1)
        small[1].running_mean.add_(1)
    report = sc.verify(model, plan, small, example)
    assert report.ok
    assert next(r for r in report.rows if r.what.startswith("order")).note == "2 tensors changed since the cut"


def swap_rows(net: Places) -> None:
    net.up.weight.data[[0, 1]] = net.up.weight.data[[1, 0]]


def swap_columns(net: Places) -> None:
    net.down.weight.data[:, [0, 2]] = net.down.weight.data[:, [2, 0]]


def other_indices(net: Places) -> None:
    net.order = net.order.roll(1)


def uncut_buffer(net: Places) -> None:
    net.gain = torch.rand(8)


def wrong_width(net: Places) -> None:
    net.up = nn.Linear(6, 5)


def missing(net: Places) -> None:
    net.up.bias = None


def surplus(net: Places) -> None:
    net.register_buffer("more", torch.zeros(1))


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (swap_rows, "order follows the plan"),
        (swap_columns, "order follows the plan"),
        (other_indices, "order follows the plan"),
        (uncut_buffer, "shapes follow the plan"),
        (wrong_width, "shapes follow the plan"),
        (missing, "shapes follow the plan"),
        (surplus, "shapes follow the plan"),
    ],
)
def test_a_wrong_cut_is_caught(tamper: Callable[[Places], None], words: str) -> None:
    model, example = Places(), CASES["places"][1]
    plan, small = cut_evenly(model, example)
    tamper(small)  # type: ignore[arg-type]
    report = sc.verify(model, plan, small, example)
    assert not report.ok
    assert words in failed(report)


def test_constants_of_the_code_are_checked() -> None:
    model, example = attention(), CASES["attention"][1]
    plan, small = cut_evenly(model, example)
    assert isinstance(small, Attention)
    small.heads, small.size = 1, 8 if small.heads == 2 else small.size
    report = sc.verify(model, plan, small, example)
    assert not report.ok
    assert failed(report) == ["shrunk computes as planned"]
    small.heads = 3
    report = sc.verify(model, plan, small, example)
    assert "it does not run" in next(r.note for r in report.rows if r.what.startswith("shrunk"))


def test_another_class_is_another_model() -> None:
    class Other(nn.Sequential):
        pass

    model, example = mlp(4, 8, 2), torch.randn(2, 4)
    plan, small = cut_evenly(model, example)
    report = sc.verify(model, plan, Other(*small), example)
    assert failed(report) == ["shapes follow the plan"] + [
        "order follows the plan",
        "shrunk computes as planned",
    ]


def test_a_plan_that_forgets_an_axis_is_caught() -> None:
    """Zeroing what a plan lists must be all that it takes: a half-listed unit gives another function or none."""
    model, example = cnn(), CASES["cnn"][1]
    plan, _ = cut_evenly(model, example)
    without = {k: v for k, v in plan.axes.items() if k[0] != "1.running_mean"}
    wrong = sc.Plan(**{**vars(plan), "axes": without})
    report = sc.verify(model, wrong, sc.apply(wrong, model), example)
    assert not report.ok
    assert "it does not run" in report.rows[0].note
    assert report.max_error == float("inf")


def test_a_plan_that_pairs_the_wrong_positions_is_caught() -> None:
    model, example = mlp(4, 8, 2), torch.randn(2, 4)
    plan, _ = cut_evenly(model, example)
    shifted = {k: (np.roll(v, 1) if k == ("2.weight", 1) else v) for k, v in plan.axes.items()}
    wrong = sc.Plan(**{**vars(plan), "axes": shifted})
    report = sc.verify(model, wrong, sc.apply(wrong, model), example)
    assert failed(report)[0] == "masked against shrunk, float64"
    assert report.max_error > 1e-3


def test_outputs_that_are_not_finite_fail() -> None:
    class Blows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * float("inf")

    model, example = Blows(), torch.randn(2, 4)
    plan, small = cut_evenly(model, example)
    report = sc.verify(model, plan, small, example)
    assert not report.ok
    assert "outputs are finite" in failed(report)


def test_a_model_that_hides_the_cut_fails_the_control() -> None:
    class Hides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-12 * torch.sin(self.net(x)).sum()

    model, example = Hides(), torch.randn(2, 4)
    plan, small = cut_evenly(model, example)
    assert failed(sc.verify(model, plan, small, example)) == ["control: the uncut model must differ"]


def test_units_that_are_dead_on_the_example_hide_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    plan = sc.random_plan(sc.couple(sc.trace(net, x)), 0.5, seed=0)
    with torch.no_grad():
        net[0].bias.copy_(torch.from_numpy(np.where(plan.keep["0:neuron"], 0.0, -2.0)))
    assert torch.equal(net(x), sc.masked(plan, net)(x))
    assert sc.verify(net, plan, sc.apply(plan, net), x).ok


def test_zeros_do_not_hide_errors() -> None:
    """With the second matrix at zero everything agrees; the check moves every weight first."""
    model, example = mlp(4, 8, 2), torch.randn(2, 4)
    model[2].weight.data.zero_()
    plan, _ = cut_evenly(model, example)
    shifted = {k: (np.roll(v, 1) if k == ("2.weight", 1) else v) for k, v in plan.axes.items()}
    wrong = sc.Plan(**{**vars(plan), "axes": shifted})
    assert not sc.verify(model, wrong, sc.apply(wrong, model), example).ok


def test_models_that_compute_a_norm_in_float32_are_checked_in_float64() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.out = mlp(4, 8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.net(x)
            h = (h.float() * torch.rsqrt(h.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
            return self.out(h)

    model, (example,) = Norm(), draws(1, 3, 4)
    groups = groups_of(model, example)
    plan = sc.random_plan(groups, 0.5, 0)
    report = sc.verify(model, plan, sc.apply(plan, model), example)
    assert report.ok
    assert report.max_error < 1e-14


def test_a_plan_for_another_model_is_refused() -> None:
    plan, small = cut_evenly(mlp(4, 8, 2), torch.randn(2, 4))
    with pytest.raises(PlanError, match="another architecture"):
        sc.verify(mlp(4, 9, 2), plan, small, torch.randn(2, 4))


class Single(nn.Module):
    """Has a kernel that refuses float64."""

    def __init__(self, *refused: torch.dtype) -> None:
        super().__init__()
        self.up, self.down, self.refused = nn.Linear(4, 8), nn.Linear(8, 2), refused

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in self.refused:
            raise RuntimeError(f"expected Float or Half, got {x.dtype}")
        return self.down(torch.relu(self.up(x)))


def test_a_model_that_refuses_float64_is_checked_in_float32() -> None:
    model, x = Single(torch.float64), torch.randn(3, 4)
    plan = sc.random_plan(sc.couple(sc.trace(model, x)), 0.5, seed=0)
    small = sc.apply(plan, model)
    report = sc.verify(model, plan, small, x)
    row = next(r for r in report.rows if r.what.startswith("masked against shrunk"))
    assert report.ok
    assert row.what == "masked against shrunk, float32"
    assert row.asked == 1e-4
    assert "expected Float or Half, got torch.float64" in row.note
    wrong = copy.deepcopy(small)
    with torch.no_grad():
        wrong.up.weight.copy_(wrong.up.weight.flip(0))
    assert not sc.verify(model, plan, wrong, x).ok


def test_a_model_that_runs_in_no_precision_says_why_itself() -> None:
    model, x = Single(torch.float64, torch.float32), torch.randn(3, 4)
    plan = sc.random_plan(sc.couple(sc.trace(Single(), x)), 0.5, seed=0)
    with pytest.raises(RuntimeError, match="expected Float or Half, got torch.float32"):
        sc.verify(model, plan, sc.apply(plan, model), x)


def test_want_of_memory_is_not_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weaker proof must not stand in for one that there was no room for."""

    def fails(self: nn.Module, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    model, x = Single(), torch.randn(3, 4)
    plan = sc.random_plan(sc.couple(sc.trace(model, x)), 0.5, seed=0)
    small = sc.apply(plan, model)
    monkeypatch.setattr(Single, "forward", fails)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        sc.verify(model, plan, small, x)


@functools.lru_cache
def _remembered(size: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(0, 1, size, dtype=dtype) / 3


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x + _remembered(4, torch.float32).to(x.dtype))))


def test_what_a_model_remembers_keeps_its_precision() -> None:
    """The check runs in float64, whatever a model asks for: a result cached on the way would stay so."""
    model, x = Remembering(), torch.randn(3, 4)
    plan = sc.random_plan(sc.couple(sc.trace(model, x)), 0.5, seed=0)
    assert sc.verify(model, plan, sc.apply(plan, model), x).ok
    assert _remembered(4, torch.float32).dtype == torch.float32
