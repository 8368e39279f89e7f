"""A rule of one's own: right ones pass, and a wrong one is told what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.testing import check_rule


@torch.library.custom_op("rulebook::gate", mutates_args=())
def gate(x: Tensor, by: Tensor) -> Tensor:
    return x * torch.sigmoid(by)


@gate.register_fake
def _(x: Tensor, by: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("rulebook::halves", mutates_args=())
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sigmoid() - 0.5, x.relu()


@halves.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("rulebook::backwards", mutates_args=())
def backwards(x: Tensor) -> Tensor:
    return x.flip(-1)


@backwards.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("rulebook::real", mutates_args=())
def real(x: Tensor) -> Tensor:  # nothing says what it makes of fake tensors
    return x.tanh()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise NotImplementedError


class Net(nn.Module):
    def __init__(self, op: Any, inputs: int = 1) -> None:
        super().__init__()
        self.op = lambda *xs: op(*xs)  # ops cannot be copied, functions can
        self.before = nn.ModuleList(nn.Linear(4, 8) for _ in range(inputs))
        self.after = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        made = self.op(*(layer(x) for layer in self.before))
        return self.after(sum(made) if isinstance(made, tuple) else made)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def elementwise(axes: Any, call: Any) -> Any:
    return axes.join(call.inputs, call.out.shape)


def each(axes: Any, call: Any) -> Any:
    return [axes[call["x"]], axes[call["x"]]]


def same(axes: Any, call: Any) -> Any:
    return axes[call["x"]]


def turned(axes: Any, call: Any) -> Any:
    rows, columns = axes[call["x"]]
    return [rows, columns[::-1].copy()]


def test_right_rules_pass() -> None:
    torch.manual_seed(0)
    check_rule({"rulebook::gate": elementwise}, Net(gate, 2), X)
    check_rule({"rulebook::halves": each}, Net(halves), X)
    check_rule({"rulebook::backwards": turned}, Net(backwards), X)
    check_rule({"rulebook::real": same}, Net(real), X, sparsities=[0.5], seeds=[3])
    both = nn.Sequential(Net(gate, 2), Net(halves))
    both[1].before[0] = nn.Linear(2, 8)
    check_rule({"rulebook::gate": elementwise, "rulebook::halves": each}, both, X)


def test_a_rule_for_what_runs_in_an_autograd_function() -> None:
    """The calls inside of it are recorded: no rule of its own is needed, nor found."""
    model = Net(Square.apply)
    assert "aten::mul" in {call.op for call in sc.trace(model, X).calls}
    check_rule({"aten::mul": elementwise}, model, X)
    with pytest.raises(AssertionError, match=r"Square was not met: the recording of the model has \['aten::mul'\]"):
        check_rule({"Square": elementwise}, model, X)


def too_free(axes: Any, call: Any) -> Any:
    return axes[call["x"]]  # `by` is left out: its ids may go on their own


def forgotten(axes: Any, call: Any) -> Any:
    return [axes[call["x"]][0], None]


def too_strict(axes: Any, call: Any) -> Any:
    axes.pin("meets a gate", *axes[call["x"]], *axes[call["by"]])
    return axes[call["x"]]


def too_few(axes: Any, call: Any) -> Any:
    return axes[call["x"]][:1]


def too_long(axes: Any, call: Any) -> Any:
    return [None, np.concatenate([axes[call["x"]][1]] * 2)]


def no_list(axes: Any, call: Any) -> Any:
    return axes[call["x"]][1]


def raising(axes: Any, call: Any) -> Any:
    return axes[call["input"]]


def bursting(axes: Any, call: Any) -> Any:
    raise OverflowError("too many gates")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (too_free, r"masked and shrunk differ at sparsity 0.3, seed 0: .*gate is too free.*must tie.*of 8 before.0:neuron"),
        (forgotten, r"is too free.*pin what it cannot do without or returns None for"),
        (too_strict, r"nothing that passes through rulebook::gate can be cut.*The rule pins what meets a gate \(.*py:\d+"),
        (too_few, r"gate returned ids of sizes \[None\] for output 0 of shape \(3, 8\): one vector"),
        (too_long, r"gate returned ids of sizes \[None, 16\] for output 0 of shape \(3, 8\)"),
        (no_list, r"gate returned ndarray, not a list with one id vector"),
        (raising, r"the rule for rulebook::gate raised KeyError: 'input' \(at .*test_testing.py:\d+"),
        (bursting, "the rule for rulebook::gate raised OverflowError: too many gates"),
    ],
)  # fmt: skip
def test_wrong_rules_are_told_what_is_wrong(rule: Any, words: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=words):
        check_rule({"rulebook::gate": rule}, Net(gate, 2), X)


def test_a_rule_that_mistakes_the_order_is_too_free() -> None:
    torch.manual_seed(0)
    with pytest.raises(
        AssertionError, match=r"masked against shrunk, float64: [0-9.]+\. The rule of rulebook::backwards is too free"
    ):
        check_rule({"rulebook::backwards": same}, Net(backwards), X)


def test_a_model_with_nothing_in_front_of_the_op() -> None:
    with pytest.raises(AssertionError, match="nothing that can be cut reaches rulebook::real, so its rule was never"):
        check_rule({"rulebook::real": same}, First(), X)


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(real(x))))


class Normed(nn.Module):
    """An op of somebody's own, and statistics over what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.norm, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(gate(self.up(x), self.gate(x))))


def test_norms_behind_ops_of_ones_own_run_over_what_is_kept() -> None:
    torch.manual_seed(0)
    rules, model, x = {"rulebook::gate": elementwise}, Normed(), torch.randn(5, 4)
    every = {**sc.RESIDUAL_RULES, **rules}
    groups = sc.couple(sc.trace(model, x), every)
    assert [(g.name, g.units) for g in groups] == [("up:width", 8)]
    plan = sc.random_plan(groups, 0.5, seed=0)
    small = sc.apply(plan, model)
    assert not sc.verify(model, plan, small, x).ok  # nothing leads from the cut to the norm
    for known in (rules, every, {**sc.RULES, **rules}):
        report = sc.verify(model, plan, small, x, rules=known)
        assert report.ok, report.rows
    check_rule(rules, model, x)
    half = sc.Budget.of_dense(sc.params(model), 0.6)
    assert sc.prune(model, x, budget=half, rules=every).report.ok
