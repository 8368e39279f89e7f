"""Scores by what they cost at the output, against the cut carried out and run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.choose.trial import Trial, relative_error
from secateur.errors import DataError
from secateur.solve.refit import refit_
from tiny import Tied, assert_same, attention, cnn, draws, groups_of, mlp, state_of


def halves(scores: sc.Scores) -> dict[str, np.ndarray]:
    """The lowest-scored half of each group as masks of what stays."""
    out = {}
    for g in scores.groups:
        keep = np.ones(g.units, bool)
        keep[np.argsort(scores.values[g.name], kind="stable")[: round(g.units / 2)]] = False
        out[g.name] = keep
    return out


def lost(model: nn.Module, small: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        pairs = [(model(x), small(x)) for x in data]
    return float(np.mean([float((a - b).square().sum() / a.square().sum()) for a, b in pairs]))


@pytest.mark.parametrize(
    ("make", "shape"), [(cnn, (4, 3, 8, 8)), (attention, (3, 5, 16)), (lambda: mlp(4, 8, 6, 2), (9, 4))]
)
def test_half_of_each_group_is_worth_what_it_loses(make: type, shape: tuple[int, ...]) -> None:
    model, data = make(), draws(2, *shape)
    groups = groups_of(model, data[0])
    scores = sc.score(model, groups, sc.magnitude)
    found = sc.by_effect(model, data)(scores)
    assert (found.normalization, found.criterion) == ("effect", "magnitude")
    for name, keep in halves(scores).items():
        small = sc.apply(sc.make_plan(groups, {name: keep}), model)
        assert found.values[name][~keep].sum() == pytest.approx(lost(model, small, data), rel=1e-4)
        ratio = found.values[name] / scores.values[name]
        np.testing.assert_allclose(ratio, ratio[0])  # one factor a group: the ranking stays


@pytest.mark.parametrize("bias", [True, False])
def test_with_obs_what_is_left_makes_up_for_it(bias: bool) -> None:
    model, data = mlp(4, 10, 3, bias=bias).double(), draws(1, 40, 4, dtype=torch.float64)
    groups = groups_of(model, data[0])
    stats = sc.calibrate(model, data, sc.obs)
    scores = sc.score(model, groups, sc.obs, stats)
    (keep,) = halves(scores).values()
    h = torch.relu(model[0](data[0])).detach().numpy()
    y = model(data[0]).detach().numpy()
    w = model[2].weight.detach().numpy()
    mean = h.mean(0) if bias else 0 * h.mean(0)
    x = h - mean
    ridge = (1e-2 * np.square(x).mean(0).mean() * len(x)) ** 0.5  # every column is pulled to where it was
    a = np.vstack([x[:, keep], ridge * np.eye(10)[:, keep]])
    b = np.vstack([x @ w.T, ridge * np.eye(10) @ w.T])
    fitted = np.linalg.lstsq(a, b, rcond=None)[0]
    made = x[:, keep] @ fitted + mean @ w.T + (model[2].bias.detach().numpy() if bias else 0)
    expected = np.square(y - made).sum() / np.square(y).sum()
    found = sc.by_effect(model, data)(scores).values["0:neuron"]
    assert found[~keep].sum() == pytest.approx(expected, rel=1e-5)


def test_a_head_that_is_the_embedding_makes_up_for_nothing() -> None:
    """What was fitted for the head changed every input too."""
    torch.manual_seed(0)
    model, data = Tied(), [torch.randint(0, 20, (8, 12)) for _ in range(4)]
    groups = groups_of(model, data[0])
    scores = sc.score(model, groups, sc.obs, sc.calibrate(model, data, sc.obs))
    trial = Trial(model, scores, data, None, 1e-2)
    assert set(trial.fed) == {"a.weight", "b.weight"}
    keep = {"b:neuron": halves(scores)["b:neuron"]}
    plan = sc.make_plan(groups, keep)
    small = sc.apply(plan, model)
    refit_(small, model, plan, data)  # `a` alone, on what comes in now
    assert trial(keep) == pytest.approx(lost(model, small, data), rel=0.2)


def test_a_distance_of_ones_own_hears_the_batch() -> None:
    model, x = mlp(4, 8, 2), draws(1, 5, 4)[0]
    heard: list[object] = []

    def distance(output: Tensor, dense: Tensor, batch: object) -> Tensor:
        heard.append(batch)
        return (output - dense).abs().max()

    batch = (x, torch.zeros(5))
    sc.by_effect(model, [batch], distance)(sc.score(model, groups_of(model, x), sc.magnitude))
    assert heard == [batch]


def test_the_model_is_left_as_it_was() -> None:
    model, data = cnn().train(), draws(1, 4, 3, 8, 8)
    before = state_of(model)
    scores = sc.score(model, groups_of(model, data[0]), sc.obs, sc.calibrate(model, data, sc.obs))
    sc.by_effect(model, data)(scores)
    assert_same(before, state_of(model))


def test_bad_data_is_refused() -> None:
    model = mlp(4, 8, 2)
    with pytest.raises(DataError, match="empty"):
        sc.by_effect(model, [])
    with pytest.raises(DataError, match="NaN or inf"):
        sc.by_effect(model, [torch.full((2, 4), float("nan"))])
    x = torch.ones(2, 4)
    scores = sc.score(model, groups_of(model, x), sc.magnitude)
    with pytest.raises(DataError, match="not finite with a part of 0:neuron cut"):
        sc.by_effect(model, [x], lambda output, dense, batch: torch.tensor(float("nan")))(scores)


def test_relative_error_sums_over_outputs() -> None:
    a, b = (
        {"x": torch.tensor([1.0, 2.0]), "n": torch.tensor([1])},
        {"x": torch.tensor([1.0, 4.0]), "n": torch.tensor([2])},
    )
    assert relative_error(a, b) == pytest.approx(4 / 17)
    assert relative_error(b, b) == 0
    assert relative_error((a["x"], a["x"]), (b["x"], torch.zeros(2))) == pytest.approx(9 / 17)


def test_an_error_table_is_what_each_cut_model_gives() -> None:
    from secateur.choose.effect import error_table
    from secateur.choose.plan import make_plan

    model, data = mlp(4, 8, 6, 2), [torch.randn(16, 4, generator=torch.Generator().manual_seed(0))]
    scores = sc.score(model, groups_of(model, data[0]), sc.magnitude)
    table = error_table(model, scores, data, (0.25, 0.5, 0.51))  # the last cuts as many
    for g in scores.groups:
        assert table[g.name][g.units] == 0
        for kept, error in table[g.name].items():
            keep = {g.name: scores.values[g.name] >= sorted(scores.values[g.name])[g.units - kept]}
            small = sc.apply(make_plan(scores.groups, keep), model)
            assert error == pytest.approx(relative_error(small(data[0]), model(data[0])).item(), abs=1e-9)
