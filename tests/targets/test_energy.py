"""Joules of a run, on devices whose power and time are functions of the model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, TargetError
from secateur.run.meet import meet
from secateur.targets import energy as room
from secateur.targets.energy import counter_for, energy, measure_energy
from secateur.targets.meters import Meter, rapl, watts
from secateur.types import Artefact, Example
from tiny import mlp

NET = mlp(16, 64, 48, 8)
X = torch.zeros(1, 16)


class Device:
    """Runs take seconds and joules that a function of the model gives; a clock and a counter add them up."""

    def __init__(self, joules: Callable[[nn.Module], float], seconds: Callable[[nn.Module], float] = lambda _: 1e-3):
        self.joules, self.seconds = joules, seconds
        self.now = self.drawn = 0.0
        self.order: list[int] = []
        self.target = sc.Target("clock", self.build)

    def build(self, model: nn.Module, example: Example, threads: int) -> Artefact:
        joules, seconds = self.joules(model), self.seconds(model)

        def run() -> None:
            self.now += seconds
            self.drawn += joules
            self.order.append(id(model))

        return Artefact(run, lambda e: [], target="clock", threads=threads)

    def clock(self) -> float:
        return self.now

    def meter(self, measured: bool = True) -> Meter:
        @contextlib.contextmanager
        def opened() -> Iterator[Callable[[], dict[str, float]]]:
            yield lambda: {"package": self.drawn, "DRAM": self.drawn / 4}

        return Meter("RAPL", measured, "a fake", 0.05, opened)


def size(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))


def test_a_run_has_its_share_of_a_block() -> None:
    device = Device(lambda m: 1e-4 * size(m))
    small = mlp(16, 8, 8)
    artefacts = [device.build(m, X, 1) for m in (NET, small)]
    found = measure_energy(artefacts, device.meter(), blocks=4, window=0.1, clock=device.clock)
    for model, e in zip((NET, small), found, strict=True):
        assert e.joules == pytest.approx(np.full(4, 1e-4 * size(model)))
        assert e.apart["DRAM"] == pytest.approx(e.joules / 4)
        assert e.seconds == pytest.approx(np.full(4, 1e-3))
        assert e.watts == pytest.approx(0.1 * size(model))
        assert (e.note, e.spread) == ("", pytest.approx(0, abs=1e-9))
        assert e.runs == pytest.approx(100, abs=1)


def test_blocks_take_turns_and_the_order_rotates() -> None:
    device = Device(lambda m: 1.0, lambda m: 1.0)
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    measure_energy([device.build(m, X, 1) for m in (a, b)], device.meter(), blocks=3, window=1.0, clock=device.clock)
    names = {id(a): "a", id(b): "b"}
    assert "".join(names[i] for i in device.order)[-6:] == "abbaab"


def test_a_disturbed_machine_is_measured_longer_and_said() -> None:
    draws = iter(range(10**6))
    device = Device(lambda m: 1.0, lambda m: 1.0)
    made = device.build(NET, X, 1)

    def run() -> None:
        device.now += 1.0
        device.drawn += 1.0 + next(draws) % 2 * 4

    (found,) = measure_energy([dataclasses.replace(made, run=run)], device.meter(), 4, 1.0, device.clock)
    assert found.joules.size == 4 * room.EXTRA_SETS
    assert found.note.startswith("disturbed: joules spread by")


def test_a_counter_that_stands_still_is_refused() -> None:
    device = Device(lambda m: 0.0)
    with pytest.raises(TargetError, match="did not move"):
        measure_energy([device.build(NET, X, 1)], device.meter(), 2, 0.01, device.clock)
    with pytest.raises(TargetError, match="at least one"):
        measure_energy([], device.meter())


def test_what_is_metered_is_what_runs() -> None:
    (found,) = measure_energy([sc.eager.build(NET, X, 1)], watts(20.0), blocks=3, window=0.01)
    assert (found.joules >= 19.99 * found.seconds).all()  # the readings enclose the block
    assert not found.meter.measured


def cost_on(device: Device, monkeypatch: pytest.MonkeyPatch, measured: bool = True) -> sc.Cost:
    plain = room.measure_energy

    def quick(artefacts: list[Artefact], meter: Meter, blocks: int) -> list[room.Energy]:
        return plain(artefacts, meter, 2, 0.005, device.clock)

    def predicted(model: nn.Module, example: Example, target: sc.Target) -> sc.Cost:
        of = lambda g, keep: 2.0 * g.macs(keep) / g.macs(g.all_kept())  # noqa: E731
        return sc.Cost("latency", "s", 2.0, of, lambda m: target.build(m, example, 1))

    monkeypatch.setattr(room, "measure_energy", quick)
    monkeypatch.setattr(room, "latency", predicted)
    return energy(NET, X, device.target, device.meter(measured))


def test_it_is_predicted_as_the_latency_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = cost_on(Device(lambda m: 1e-4 * size(m)), monkeypatch)
    groups = sc.couple(sc.trace(NET, X))
    full = groups.all_kept()
    half = {n: np.arange(k.size) < k.size // 2 for n, k in full.items()}
    assert cost.dense == pytest.approx(1e-4 * size(NET))
    assert cost.of(groups, full) == pytest.approx(cost.dense)
    assert cost.of(groups, half) == pytest.approx(cost.dense * groups.macs(half) / groups.macs(full))


@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_a_budget_is_met_by_measurement(fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(model: nn.Module) -> float:
        return 0.05 + 1e-4 * size(model)

    cost = cost_on(Device(drawn), monkeypatch)
    scores = sc.by_mean(sc.score(NET, sc.couple(sc.trace(NET, X)), sc.magnitude))
    plan = meet(NET, scores, sc.Budget.of_dense(cost, fraction), sc.knapsack, sc.Limits(), {})
    assert 0.97 * fraction * drawn(NET) <= drawn(sc.apply(plan, NET)) <= fraction * drawn(NET)


def test_figures_are_remembered_by_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(lambda m: 1e-4 * size(m))
    cost = cost_on(device, monkeypatch)
    assert cost.measured is not None
    small = mlp(16, 8, 8)
    first = cost.measured(small, False)
    ran = len(device.order)
    assert cost.measured(small, False) == first
    assert len(device.order) == ran
    cost.measured(small, True)
    assert len(device.order) > ran
    assert first == pytest.approx(1e-4 * size(small))


def test_an_estimate_is_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = cost_on(Device(lambda m: 1.0), monkeypatch, measured=False)
    assert cost.measured is None
    with pytest.raises(BudgetError, match=r"only estimated \(a fake\).*budget on latency"):
        sc.Budget.of_dense(cost, 0.5)


def test_without_a_counter_there_is_no_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_counter", lambda device: rapl(tmp_path))
    with pytest.raises(BudgetError, match=r"only where a counter measures it: RAPL: no package counters"):
        counter_for(NET)
