"""Allocation by errors measured beside the plan, against the plans it begins with and exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.choose.rank import keep_best
from secateur.choose.trial import Trial, lowest
from secateur.errors import ArgumentError, DataError, PlanError
from tiny import cnn, draws, groups_of, mlp

FRACTIONS = (0.25, 0.5, 0.75)


def counts_of(plan: sc.Plan) -> dict[str, int]:
    return {n: int(m.sum()) for n, m in plan.keep.items()}


def masks_of(plan: sc.Plan) -> dict[str, list[bool]]:
    return {n: m.tolist() for n, m in plan.keep.items()}


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every plan that is tried."""
    seen: list[object] = []
    before = Trial.__call__

    def heard(self: Trial, keep: sc.types.Keep) -> float:
        seen.append(keep)
        return before(self, keep)

    monkeypatch.setattr(Trial, "__call__", heard)
    return seen


def fitted(x: np.ndarray, y: np.ndarray, weight: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of what a layer gives on the inputs that stay, each pulled to its own weight; and the bias."""
    mean = x.mean(0)
    centred, ridge = x - mean, (1e-2 * np.square(x - mean).mean(0).mean() * len(x)) ** 0.5
    a = np.vstack([centred[:, keep], ridge * np.eye(len(keep))[:, keep]])
    w = np.linalg.lstsq(a, np.vstack([centred @ weight.T, ridge * weight.T]), rcond=None)[0].T
    return w, y.mean(0) - w @ mean[keep]


def test_a_trial_cuts_groups_together_and_each_layer_makes_up_for_its_own() -> None:
    model, (x,) = mlp(4, 10, 8, 3).double(), draws(1, 60, 4, dtype=torch.float64)
    scores = sc.score(model, groups_of(model, x), sc.obs, sc.calibrate(model, [x], sc.obs))
    keep = {n: lowest(scores, n, 0.5) for n in ("0:neuron", "2:neuron")}
    with torch.no_grad():
        h1 = torch.relu(model[0](x)).numpy()
        z2 = model[2](torch.relu(model[0](x))).numpy()
        h2, y = np.maximum(z2, 0), model(x).numpy()
    w2, b2 = fitted(h1, z2, model[2].weight.detach().numpy(), keep["0:neuron"])
    w4, b4 = fitted(h2, y, model[4].weight.detach().numpy(), keep["2:neuron"])
    left = np.maximum(h1[:, keep["0:neuron"]] @ w2.T + b2, 0)[:, keep["2:neuron"]]
    expected = np.square(left @ w4.T + b4 - y).sum() / np.square(y).sum()
    trial = Trial(model, scores, [x], None, 1e-2)
    assert trial(keep) == pytest.approx(expected, rel=1e-6)
    assert trial({"2:neuron": keep["2:neuron"]}) < trial(keep) == trial(dict(reversed(keep.items())))


@pytest.mark.parametrize("make", [cnn, lambda: mlp(4, 12, 9, 3)])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_outputs_lose_no_more_than_by_any_plan_it_begins_with(make: type, share: float) -> None:
    model = make()
    data = draws(3, *((4, 3, 8, 8) if make is cnn else (16, 4)))
    scores = sc.score(model, groups_of(model, data[0]), sc.obs, sc.calibrate(model, data[1:], sc.obs))
    budget, trial = sc.Budget.of_dense(sc.params(model), share), Trial(model, scores, data[:1], None, 1e-2)
    plan = sc.allocate(scores, budget, sc.measured(model, data[:1]))
    table = sc.error_table(model, scores, data[:1], (0.25, 0.5, 0.75, 0.9))
    scaled = sc.by_effect(model, data[:1])(scores)
    others = [sc.allocate(scores, budget, a) for a in (sc.dp(table), sc.uniform)]
    others.append(sc.allocate(scaled, budget, sc.knapsack))
    assert budget.cost.of(scores.groups, plan.keep) <= budget.limit
    assert trial(plan.keep) <= min(trial(other.keep) for other in others) + 1e-12


def test_it_comes_near_the_best_of_all_plans() -> None:
    model, data = mlp(4, 8, 6, 2), draws(2, 40, 4)
    scores = sc.score(model, groups_of(model, data[0]), sc.obs, sc.calibrate(model, data[1:], sc.obs))
    budget, trial = sc.Budget.of_dense(sc.params(model), 0.5), Trial(model, scores, data[:1], None, 1e-2)
    names = [g.name for g in scores.groups]
    every = (dict(zip(names, c, strict=True)) for c in itertools.product(range(1, 9), range(1, 7)))
    keeps = [keep_best(scores, c) for c in every]
    inside = sorted(trial(k) for k in keeps if budget.cost.of(scores.groups, k) <= budget.limit)
    found = trial(sc.allocate(scores, budget, sc.measured(model, data[:1])).keep)
    alone = trial(sc.allocate(scores, budget, sc.measured(model, data[:1], rounds=0)).keep)
    assert inside[0] <= found <= alone
    assert found <= inside[1]


def test_without_rounds_it_is_dp_over_a_table_made_once_for_the_same_scores(tries: list[object]) -> None:
    model, data = mlp(4, 8, 6, 2), draws(1, 16, 4)
    groups, cost = groups_of(model, data[0]), sc.params(model)
    allocation = sc.measured(model, data, fractions=FRACTIONS, rounds=0)
    for criterion in (sc.magnitude, sc.fpgm):
        scores = sc.score(model, groups, criterion)
        errors = sc.error_table(model, scores, data, FRACTIONS)
        for share, new in ((0.4, len(FRACTIONS) * len(groups)), (0.6, 0)):
            budget = sc.Budget.of_dense(cost, share)
            tries.clear()
            found = sc.allocate(sc.score(model, groups, criterion), budget, allocation)
            assert len(tries) == new
            assert masks_of(found) == masks_of(sc.allocate(scores, budget, sc.dp(errors)))


def test_budgets_that_hardly_differ_are_solved_by_the_same_errors(tries: list[object]) -> None:
    model, data = mlp(4, 30, 20, 2), draws(1, 16, 4)
    scores, cost = sc.score(model, groups_of(model, data[0]), sc.magnitude), sc.params(model)
    allocation = sc.measured(model, data)
    first = sc.allocate(scores, sc.Budget.of_dense(cost, 0.5), allocation)
    tries.clear()
    again = sc.allocate(scores, sc.Budget.of_dense(cost, 0.5), allocation)
    less = sc.Budget.of_dense(cost, 0.49)
    assert cost.of(scores.groups, sc.allocate(scores, less, allocation).keep) <= less.limit
    assert masks_of(again) == masks_of(first)
    assert not tries
    sc.allocate(scores, sc.Budget.of_dense(cost, 0.3), allocation)
    assert tries
    tries.clear()
    sc.allocate(scores, sc.Budget.of_dense(sc.nbytes(model), 0.3), allocation)  # another cost
    assert tries


def test_plans_that_cannot_be_carried_out_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = mlp(4, 12, 10, 2), draws(1, 16, 4)
    scores, before = sc.score(model, groups_of(model, data[0]), sc.magnitude), Trial.__call__

    def refuses(self: Trial, keep: sc.types.Keep) -> float:
        if keep.keys() == {"0:neuron", "2:neuron"} and keep["0:neuron"].sum() % 2:
            raise PlanError("an odd count")
        return before(self, keep)

    monkeypatch.setattr(Trial, "__call__", refuses)
    plan = sc.allocate(scores, sc.Budget.of_dense(sc.params(model), 0.5), sc.measured(model, data))
    assert counts_of(plan)["0:neuron"] % 2 == 0


def test_where_no_plan_can_be_carried_out_nothing_is_remembered_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = mlp(4, 12, 10, 2), draws(1, 16, 4)
    scores, before = sc.score(model, groups_of(model, data[0]), sc.magnitude), Trial.__call__
    budget, allocation = sc.Budget.of_dense(sc.params(model), 0.5), sc.measured(model, data)

    def refuses(self: Trial, keep: sc.types.Keep) -> float:
        if len(keep) > 1:
            raise PlanError("together")
        return before(self, keep)

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "__call__", refuses)
        alone = sc.allocate(scores, budget, allocation)
    assert masks_of(alone) == masks_of(sc.allocate(scores, budget, sc.measured(model, data, rounds=0)))
    assert masks_of(sc.allocate(scores, budget, allocation)) == masks_of(
        sc.allocate(scores, budget, sc.measured(model, data))
    )


def test_a_matrix_that_has_two_names_is_made_up_for() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.again = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
            self.again.weight = self.down.weight

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.up(x))
            return self.down(h) + self.again(h)

    model, data = Tied(), draws(2, 30, 4)
    scores = sc.score(model, groups_of(model, data[0]), sc.obs, sc.calibrate(model, data[1:], sc.obs))
    plan = sc.allocate(scores, sc.Budget.of_dense(sc.params(model), 0.6), sc.measured(model, data[:1]))
    assert 0 < Trial(model, scores, data[:1], None, 1e-2)(plan.keep) < 1


def test_data_that_can_be_read_once_serve_other_scores_too() -> None:
    model, data = mlp(4, 8, 6, 2), draws(1, 9, 4)
    once, budget = sc.measured(model, iter(data)), sc.Budget.of_dense(sc.params(model), 0.6)
    for criterion in (sc.magnitude, sc.fpgm):
        scores = sc.score(model, groups_of(model, data[0]), criterion)
        found, expected = (sc.allocate(scores, budget, a) for a in (once, sc.measured(model, data)))
        assert masks_of(found) == masks_of(expected)
    scaled, expected = (by(scores).values for by in (sc.by_effect(model, iter(data)), sc.by_effect(model, data)))
    assert all(np.array_equal(v, expected[n]) for n, v in scaled.items())


def test_the_model_is_left_as_it_was() -> None:
    model, data = cnn().train(), draws(1, 4, 3, 8, 8)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    scores = sc.score(model, groups_of(model, data[0]), sc.obs, sc.calibrate(model, data, sc.obs))
    sc.allocate(scores, sc.Budget.of_dense(sc.params(model), 0.5), sc.measured(model, data))
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_single_batch_in_the_place_of_batches_is_refused() -> None:
    model, batch = mlp(4, 8, 2), draws(1, 9, 4)[0]
    scores = sc.score(model, groups_of(model, batch), sc.magnitude)
    half = sc.Budget.of_dense(sc.params(model), 0.6)
    with pytest.raises(DataError, match="pass \\[batch\\]"):
        sc.by_effect(model, batch)
    with pytest.raises(DataError, match="pass \\[batch\\]"):
        sc.allocate(scores, half, sc.measured(model, batch))


def test_what_makes_no_sense_is_refused_before_anything_runs() -> None:
    with pytest.raises(ArgumentError, match=r"in \(0, 1\), got 1.5"):
        sc.measured(mlp(4, 8, 2), [], fractions=(0.5, 1.5))
    with pytest.raises(ArgumentError, match="0 or more, got -1"):
        sc.measured(mlp(4, 8, 2), [], rounds=-1)


def test_outputs_that_are_not_finite_are_named() -> None:
    model, data = mlp(4, 8, 2), draws(1, 9, 4)

    class Blows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) / (0 if len(self.net[0].weight) < 8 else 1)

    blows = Blows()
    scores = sc.score(blows, groups_of(blows, data[0]), sc.magnitude)
    with pytest.raises(DataError, match="not finite with a part of net.0:neuron cut"):
        sc.allocate(scores, sc.Budget.of_dense(sc.params(blows), 0.6), sc.measured(blows, data))
