"""Latency as a cost, on a machine whose times are functions of the model."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.choose.plan import make_plan
from secateur.errors import TargetError
from secateur.targets import latency as latency_module
from secateur.targets.calibrate import fit, left_out
from secateur.targets.latency import DENSE, part_of, probes
from secateur.targets.layers import Layer
from secateur.types import Artefact, Example, Group, Measurement
from tiny import attention, cnn, groups_of, mlp

Seconds = Callable[[nn.Module], float]


class Clock:
    """A target that knows how long each model and each layer takes, and counts what it is asked."""

    def __init__(
        self,
        seconds: Seconds,
        monkeypatch: pytest.MonkeyPatch,
        layer: Callable[[Layer], float] = lambda layer: 1e-6 * layer.macs,
    ) -> None:
        self.seconds, self.models, self.built, self.timed = seconds, {}, 0, 0  # type: ignore[var-annotated]
        self.layer_seconds = layer
        self.target = sc.Target("clock", self.build, layer=self.layer)
        monkeypatch.setattr(latency_module, "measure", self.measure)

    def layer(self, layer: Layer, threads: int) -> float:
        return 1e-4 + self.layer_seconds(layer)

    def build(self, model: nn.Module, example: Example, threads: int) -> Artefact:
        self.built += 1
        artefact = Artefact(lambda: None, lambda e: [], target="clock", threads=threads)
        self.models[id(artefact)] = (artefact, model)
        return artefact

    def measure(self, artefacts: Sequence[Artefact], repeats: int = 50, **_: Any) -> list[Measurement]:
        self.timed += 1
        return [Measurement("clock", np.full(3, self.seconds(self.models[id(a)][1])), 1, 1) for a in artefacts]


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "memory"))
    return tmp_path / "memory"


def linear_macs(model: nn.Module) -> float:
    return float(sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)))


def test_a_device_that_times_work_is_predicted_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, x = mlp(16, 32, 16), torch.zeros(1, 16)
    clock = Clock(lambda m: 1e-3 + 1e-6 * linear_macs(m), monkeypatch)
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    assert (cost.name, cost.unit, cost.target) == ("latency", "s", clock.target)
    assert cost.dense == pytest.approx(1e-3 + 1e-6 * 2 * 16 * 32)
    for kept in (32, 20, 7, 1):
        keep = {"0:neuron": np.arange(32) < kept}
        assert cost.of(groups, keep) == pytest.approx(1e-3 + 1e-6 * 2 * 16 * kept)


def test_predictions_fall_with_what_is_cut_and_start_at_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = attention(), torch.zeros(2, 5, 16)
    clock = Clock(lambda m: 1e-3 + 1e-6 * linear_macs(m), monkeypatch)
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    assert cost.of(groups, groups.all_kept()) == pytest.approx(cost.dense)
    for g in groups:
        values = [cost.of(groups, {g.name: np.arange(g.units) < k}) for k in range(g.units, 0, -1)]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0]


class Pair(nn.Module):
    """Two layers that are alike, which cannot both lose half."""

    def __init__(self) -> None:
        super().__init__()
        self.sides, self.out = nn.ModuleList(nn.Linear(6, 8) for _ in range(2)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([side(x) for side in self.sides], -1)
        return self.out(torch.relu(h) if h.shape[-1] > 8 else torch.tanh(h))  # type: ignore[no-any-return]


def test_what_cannot_go_together_is_predicted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Pair(), torch.zeros(2, 6)
    clock = Clock(lambda m: 1e-3 + 1e-6 * linear_macs(m), monkeypatch)
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    for one, two in ((8, 8), (4, 8), (6, 5), (1, 8), (1, 1)):
        keep = {"sides.0:neuron": np.arange(8) < one, "sides.1:neuron": np.arange(8) < two}
        assert cost.of(groups, keep) == pytest.approx(1e-3 + 1e-6 * (6 + 3) * (one + two))
    for fraction in (0.95, 0.9, 0.8):
        budget = sc.Budget.of_dense(cost, 1 - (1 - 1e-3 / cost.dense) * (1 - fraction))
        plan = sc.allocate(sc.score(net, groups, sc.magnitude), budget, sc.knapsack)
        assert cost.of(groups, plan.keep) <= budget.limit


def test_what_is_measured_is_the_ratio_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down by half between two measurements: ratios, and what follows from them, do not notice."""
    slow = [1.0]
    net, x = mlp(16, 32, 16), torch.zeros(1, 16)
    clock = Clock(lambda m: 1e-6 * linear_macs(m), monkeypatch)
    timed = clock.measure
    monkeypatch.setattr(
        latency_module,
        "measure",
        lambda artefacts, *a, **k: [
            Measurement(m.target, m.seconds * slow[0], 1, 1) for m in timed(artefacts, *a, **k)
        ],
    )
    cost = sc.latency(net, x, clock.target)
    slow[0] = 1.5
    assert cost.measured is not None
    assert cost.measured(mlp(16, 8, 16), False) == pytest.approx(cost.dense / 4)


def test_one_load_that_is_slow_for_life_confirms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, small = mlp(16, 32, 16), torch.zeros(1, 16), mlp(16, 8, 16)
    clock = Clock(lambda m: 1e-6 * linear_macs(m), monkeypatch)
    cost = sc.latency(net, x, clock.target)
    loads = iter([1.0, 1.6, 1.0])
    timed = latency_module.measure

    def with_loads(artefacts: Any, *a: Any, **k: Any) -> list[Measurement]:
        whole, cut = timed(artefacts, *a, **k)
        return [whole, Measurement(cut.target, next(loads) * cut.seconds, 1, 1)]

    monkeypatch.setattr(latency_module, "measure", with_loads)
    assert cost.measured is not None
    assert cost.measured(small, True) == pytest.approx(cost.dense / 4)


def test_figures_are_remembered_and_confirmed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, small = mlp(16, 32, 16), torch.zeros(1, 16), mlp(16, 8, 16)
    clock = Clock(lambda m: 1e-6 * linear_macs(m), monkeypatch)
    cost = sc.latency(net, x, clock.target)
    assert cost.measured is not None
    first = cost.measured(small, False)
    groups = groups_of(net, x)
    guess = cost.of(groups, {"0:neuron": np.arange(32) < 9})
    clock.seconds = lambda m: 5e-6 * linear_macs(m) ** 1.1  # the machine is another by now
    again = cost.measured(small, True)
    assert again != first
    timed = clock.timed
    cost = sc.latency(net, x, clock.target)  # as the next command would
    assert cost.measured is not None
    assert (cost.measured(small, False), cost.measured(small, True)) == (first, again)
    assert cost.of(groups, {"0:neuron": np.arange(32) < 9}) == guess
    assert clock.timed == timed


def test_a_ratio_belongs_to_its_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small model, cut from two dense ones: the ratio to one is not the ratio to the other."""
    x, small = torch.zeros(1, 16), mlp(16, 8, 16)
    clock = Clock(lambda m: 1e-6 * linear_macs(m), monkeypatch)
    for width in (16, 64):
        cost = sc.latency(mlp(16, width, 16), x, clock.target)
        assert cost.measured is not None
        assert cost.measured(small, False) == pytest.approx(1e-6 * linear_macs(small))


def test_the_dense_model_is_exported_once_and_probes_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(8, *(range(10, 30)), 4), torch.zeros(1, 8)
    clock = Clock(lambda m: 1e-6 * linear_macs(m), monkeypatch)
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    cost.of(groups, groups.all_kept())
    assert len(groups) == 20
    assert clock.built <= 1 + latency_module.PROBES
    cost.of(groups, {groups.groups[0].name: np.arange(10) < 3})
    assert clock.built <= 1 + latency_module.PROBES


def test_a_device_that_is_never_faster_is_predicted_by_work(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(16, 32, 16), torch.zeros(1, 16)
    clock = Clock(lambda m: 2e-3 if m[0].out_features < 32 else 1e-3, monkeypatch)  # type: ignore[index]
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    assert cost.of(groups, {"0:neuron": np.arange(32) < 16}) == pytest.approx(cost.dense / 2)
    assert cost.measured is not None
    assert cost.measured(mlp(16, 8, 16), False) == pytest.approx(2 * cost.dense)


@pytest.mark.parametrize(
    ("model", "example"), [(mlp(40, 80, 80, 20), torch.zeros(1, 40)), (cnn(), torch.zeros(1, 3, 8, 8))]
)
def test_probes_differ_and_can_be_carried_out(model: nn.Module, example: Tensor) -> None:
    groups = groups_of(model, example)
    found = probes(groups, 6)
    assert len({b"".join(m.tobytes() for m in k.values()) for k in found}) == len(found) == 6
    work = [groups.macs(k) / groups.macs(groups.all_kept()) for k in found]
    assert max(work) - min(work) > 0.25
    for keep in found:
        sc.apply(make_plan(groups, keep), model)(example)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.floats(0.1, 1), st.booleans())
def test_part_of_a_group(units: int, density: float, even: bool) -> None:
    kept = int(part_of(Group("g", "neuron", units, ()), density, even).sum())
    assert 1 <= kept <= units
    if kept > 1:
        assert abs(kept - units * density) <= 8.5
    if units >= 80:
        assert kept % 8 == 0 if even else kept % 2 == 1


def stairs(layer: Layer) -> float:
    """Blocks of eight outputs, each as dear as a whole one; widths that are no multiple of four take twice as long."""
    a, b = layer.widths
    if layer.kind != "linear":
        return 0.0
    return 1e-6 * a * (-(-b // 8) * 8) * (2.0 if b % 4 else 1.0)


@pytest.mark.parametrize("share", [1.0, 1.7])
def test_a_staircase_is_predicted_where_the_grid_sees_it(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    net, x = mlp(16, 64, 48, 16), torch.zeros(1, 16)

    def seconds(m: nn.Module) -> float:
        linear = [Layer("linear", (1, 1), (n.in_features, n.out_features)) for n in m.modules() if is_linear(n)]
        return 2e-4 + share * sum(map(stairs, linear))

    clock = Clock(seconds, monkeypatch, stairs)
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    keep = {g.name: np.ones(g.units, bool) for g in groups}
    errors = []
    for one in range(8, 65, 4):
        for other in (8, 16, 23, 25, 33, 40):
            keep = {"0:neuron": np.arange(64) < one, "2:neuron": np.arange(48) < other}
            true = seconds(sc.apply(make_plan(groups, keep), net))
            errors.append(abs(cost.of(groups, keep) / true - 1))
    assert max(errors) < 1e-6


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def test_errors_of_predictions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(16, 32, 32, 16), torch.zeros(1, 16)
    clock = Clock(lambda m: 1e-3 + 1e-6 * linear_macs(m), monkeypatch)
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    assert cost.errors is not None
    assert cost.errors() == []
    keep = {"0:neuron": np.arange(32) < 9, "2:neuron": np.arange(32) < 16}
    guess = cost.of(groups, keep)
    probed = list(cost.errors())
    assert len(probed) == 4
    assert all(p == pytest.approx(m) for p, m in probed)
    assert cost.measured is not None
    clock.seconds = lambda m: 2e-3 + 1e-6 * linear_macs(m)  # the dense figure is remembered; the ratio is another
    small = sc.apply(make_plan(groups, keep), net)
    found = cost.measured(small, False)
    cost.measured(small, True)
    assert cost.errors()[4:] == [(pytest.approx(guess), found)]


def test_a_probe_left_out_is_predicted_by_the_fit_that_predicts_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(16, 32, 32, 16), torch.zeros(1, 16)
    clock = Clock(lambda m: 1e-3 + 1e-9 * linear_macs(m) ** 2, monkeypatch)
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(latency_module, "left_out", lambda *given: seen.append(given) or left_out(*given))
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    cost.of(groups, groups.all_kept())
    ((sums, seconds, _),) = seen
    assert cost.errors is not None
    for i, (guess, _) in enumerate(cost.errors(), 1):
        rest = np.arange(len(seconds)) != i
        weights = np.array([DENSE] + [1.0] * (len(seconds) - 2))
        assert guess == pytest.approx(fit(sums[rest], seconds[rest], weights)(sums[i]), rel=1e-12)


def test_a_machine_too_busy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(16, 32, 16), torch.zeros(1, 16)
    clock = Clock(lambda m: 1.0, monkeypatch)
    monkeypatch.setattr(latency_module, "SPREAD", 0.3)
    monkeypatch.setattr(
        latency_module, "measure", lambda *a, **k: [Measurement("clock", np.array([1.0, 2.0, 4.0]), 1, 1)]
    )
    with pytest.raises(TargetError, match="clock: this machine is too busy.* spread by 38%"):
        sc.latency(net, x, clock.target)


def test_predicting_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(8, *(range(10, 60)), 4), torch.zeros(1, 8)
    clock = Clock(lambda m: 1e-6 * linear_macs(m), monkeypatch)
    groups, cost = groups_of(net, x), sc.latency(net, x, clock.target)
    keep = groups.all_kept()
    cost.of(groups, keep)
    taken = []
    for _ in range(20):
        begun = perf_counter()
        cost.of(groups, keep)
        taken.append(perf_counter() - begun)
    assert min(taken) < 2e-3


def test_a_target_that_refuses_says_so() -> None:
    def refuse(model: nn.Module, example: Example, threads: int) -> Artefact:
        raise TargetError("clock: no such operation")

    with pytest.raises(TargetError, match="no such operation"):
        sc.latency(mlp(4, 8, 2), torch.zeros(1, 4), sc.Target("clock", refuse))


def test_a_real_target_is_built_on() -> None:
    net, x = mlp(8, 16, 2), torch.zeros(1, 8)
    cost = sc.latency(net, x, sc.eager, repeats=3)
    assert cost.build is not None
    assert cost.build(net).call(x)[0] == pytest.approx(net(x).detach().numpy())
    assert cost.dense > 0


def test_the_same_content_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, small, x, exports = mlp(16, 32, 16), mlp(16, 8, 16), torch.randn(1, 16), []

    def build(model: nn.Module, example: Example, threads: int) -> Artefact:
        exports.append(model)
        return sc.onnxruntime.build(model, example, threads)

    cost = sc.latency(net, x, sc.Target("counted", build), repeats=2)
    assert cost.build is not None
    assert cost.measured is not None
    cost.measured(small, False)
    cost.measured(small, True)
    first, again = cost.build(small), cost.build(copy.deepcopy(small))
    assert len(exports) == 2  # net and small
    assert first is not again
    np.testing.assert_array_equal(first.call(x)[0], again.call(x)[0])
    with torch.no_grad():
        next(small.parameters()).add_(1)
    assert not np.array_equal(cost.build(small).call(x)[0], first.call(x)[0])
    assert len(exports) == 3
    gone = cost.build(small)
    del cost, first, again
    gc.collect()
    assert gone.again is not None
    np.testing.assert_array_equal(gone.again().call(x)[0], gone.call(x)[0])  # its file outlives the cost
