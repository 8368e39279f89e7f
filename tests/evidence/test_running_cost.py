"""CO2 and price against figures worked out by hand, and the rows that a report shows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import secateur as sc
from secateur.cli.app import main
from secateur.errors import ArgumentError, TargetError
from secateur.evidence import running_cost
from secateur.evidence.running_cost import (
    Grid,
    Running,
    co2_per_million,
    cost_per_million,
    grid,
    running,
    running_facts,
    running_rows,
)
from secateur.evidence.words import family, quantity
from secateur.run.assemble import budget as budget_of
from secateur.run.runfile import check_arguments, parse_budget
from secateur.run.subjects import costs
from secateur.targets import energy as energy_room
from secateur.targets import meters
from secateur.targets.energy import Energy
from secateur.targets.meters import Meter
from secateur.types import Artefact, Measurement
from tiny import mlp


@given(
    joules=st.floats(1e-6, 1e3), batch=st.integers(1, 64), grams=st.floats(0, 1000), seconds=st.floats(1e-6, 10),
    hour=st.floats(0, 100), kwh=st.floats(0, 10),
)  # fmt: skip
def test_a_million_inferences(joules: float, batch: int, grams: float, seconds: float, hour: float, kwh: float) -> None:
    runs = 1_000_000 / batch
    kilowatt_hours = runs * joules / 1000 / 3600
    assert co2_per_million(joules, batch, grams) == pytest.approx(kilowatt_hours * grams)
    assert cost_per_million(seconds, joules, batch, hour, kwh) == pytest.approx(
        runs * seconds / 3600 * hour + kilowatt_hours * kwh
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    countries = {
        "FRA": {"carbon_intensity": 56.0, "country_name": "France", "year": 2023},
        "FRO": {"carbon_intensity": 400.0, "country_name": "Faroe Islands", "year": 2022},
        "XXX": {"carbon_intensity": None},
    }
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(countries))
    return path


def test_a_country_is_looked_up(table: Path) -> None:
    assert grid("fra", table) == Grid("FRA", "France", 56.0, 2023, "mix.json")


@pytest.mark.parametrize("country", ["FR", "France", "XXX", ""])
def test_an_unknown_country_is_refused(country: str, table: Path) -> None:
    with pytest.raises(ArgumentError, match="ISO code of three letters, such as FRA"):
        grid(country, table)


def test_without_codecarbon_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise running_cost.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(running_cost.importlib.metadata, "distribution", missing)
    with pytest.raises(TargetError, match=r"secateur\[energy\]"):
        grid("FRA")


def still(measured: bool) -> Meter:
    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[], dict[str, float]]]:
        yield dict

    return Meter("RAPL", measured, "a fake", 1.0, opened)


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dense run draws 3.6 J, every other 1.8 J, and 0.36 J in memory."""

    def measure_energy(artefacts: list[Artefact], meter: Meter) -> list[Energy]:
        return [
            Energy("clock", np.full(3, j), np.ones(3), 1, meter, batch=2, apart={"DRAM": np.full(3, 0.36)})
            for j in (3.6, 1.8)[: len(artefacts)]
        ]

    monkeypatch.setattr(running_cost, "measure_energy", measure_energy)


ARTEFACTS = [Artefact(lambda: None, lambda e: [], target="clock", batch=2)] * 2
TIMINGS = [Measurement("clock", np.full(3, t), 1, 2) for t in (7.2e-3, 3.6e-3)]
PLACE = Grid("FRA", "France", 56.0, 2023)


@pytest.mark.usefixtures("metered")
@pytest.mark.parametrize("measured", [True, False])
def test_the_rows_say_what_they_rest_on(measured: bool) -> None:
    word = "measured" if measured else "estimated"
    rows = running_rows(Running(still(measured), PLACE, 0.10, 0.25), ARTEFACTS, TIMINGS, "clock", fraction=0.5)
    drawn, memory, co2, price = rows
    assert (drawn.dense, drawn.pruned, drawn.asked, drawn.ok) == (3.6, 1.8, 1.8, True)
    assert drawn.note == f"{word}: a fake; gross; spread 0.0%"
    assert (memory.dense, memory.unit) == (0.36, "J")
    assert (co2.dense, co2.pruned, co2.unit) == (pytest.approx(28.0), pytest.approx(14.0), "g")
    assert co2.note == f"estimated: energy {word}, 56 g a kWh in France (2023, codecarbon)"
    assert price.dense == pytest.approx(0.10 + 0.125)
    assert price.note == f"at 0.1 an hour, 0.25 a kWh, energy {word}"
    assert {family(r) for r in rows} == {"size"}
    report = sc.Report(True, 0.0, tuple(rows))
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(sc.to_table(report))
    console.file.close()
    assert "3.60 J" in console.export_text()
    assert sc.to_json(report)["rows"][0]["ratio"] == 0.5


@pytest.mark.usefixtures("metered")
def test_only_what_was_asked_for_is_told() -> None:
    (price,) = running_rows(Running(price_per_hour=0.10), ARTEFACTS, TIMINGS, "clock")
    assert price.dense == pytest.approx(0.10)
    limited = running_rows(Running(still(True)), ARTEFACTS, TIMINGS, "clock", limit=1.7)[0]
    assert (limited.asked, limited.ok) == (1.7, False)
    facts = running_facts(Running(still(True), PLACE), ARTEFACTS, TIMINGS)
    assert facts[1]["energy_j"] == 1.8
    assert facts[0]["co2_g_per_million"] == pytest.approx(28.0)
    assert [c.header for c in costs(["a", "b"], facts).columns] == ["model", "energy a run", "spread", "CO2 a million"]
    assert running_facts(Running(), ARTEFACTS, TIMINGS) == [{}, {}]


def test_noise_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = np.array([0.8, 1.0, 1.2])
    pair = [Energy("clock", noisy * scale, np.ones(3), 1, still(True)) for scale in (1.0, 0.95)]
    monkeypatch.setattr(running_cost, "measure_energy", lambda artefacts, meter: pair)
    drawn, co2 = running_rows(Running(still(True), PLACE), ARTEFACTS, TIMINGS, "clock")
    assert "within noise" in drawn.note
    assert "within noise" in co2.note


def test_what_was_asked_for_is_found() -> None:
    assert running() is None
    asked = running(price_per_hour=0.5)
    assert asked is not None
    assert asked.meter is None
    with pytest.raises(ArgumentError, match="at least 0"):
        running(price_per_hour=-1.0)
    with pytest.raises(ArgumentError, match="give a meter"):
        Running(price_per_kwh=1.0)


@pytest.mark.parametrize(
    ("text", "fraction", "limit"),
    [
        ("energy=50%", 0.5, None),
        ("energy=0.2J", None, 0.2),
        ("energy=5mJ", None, 5e-3),
        ("energy=0.001Wh", None, 3.6),
    ],
)
def test_budgets_in_joules(text: str, fraction: float | None, limit: float | None) -> None:
    read = parse_budget(text)
    assert (read.fraction, read.limit) == (fraction, None if limit is None else pytest.approx(limit))


@pytest.mark.parametrize(
    "more",
    [{"budget": "energy=50%"}, {"energy": True}, {"country": "FRA"}, {"price_per_hour": 0.1}, {"watts": 5.0}],
)
def test_joules_need_a_target(more: dict[str, object]) -> None:
    given = {"model": "nets:cnn", "budget": "params=50%", **more}
    with pytest.raises(ArgumentError, match="target"):
        check_arguments(given)
    assert check_arguments({**given, "target": "eager"}).target == "eager"


def test_an_energy_budget_needs_a_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_room, "find_counter", lambda device: meters.rapl(tmp_path))
    with pytest.raises(sc.BudgetError, match="no package counters"):
        budget_of(parse_budget("energy=50%"), mlp(4, 4, 4), torch.zeros(1, 4), sc.eager)


def test_a_pruning_run_reports_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    net, x = mlp(16, 32, 4), torch.zeros(1, 16)
    asked = Running(meters.watts(15.0), PLACE, 0.1)
    result = sc.prune(net, x, budget=sc.Budget.of_dense(sc.params(net), 0.5), target=sc.eager, running=asked)
    found = {r.what.partition(",")[0]: r for r in result.report}
    assert found["energy a run"].note.startswith("estimated: 15 W as stated")
    assert found["energy a run"].asked is None
    assert found["CO2 of a million inferences"].unit == "g"
    assert found["price of a million inferences"].dense
    assert sc.read_report(sc.write_report(tmp_path / "report", result.report).parent).ok


def test_an_energy_budget_is_reported_with_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    net, x = mlp(16, 32, 4), torch.zeros(1, 16)
    dense = sum(p.numel() for p in net.parameters())
    drawn = [0.0]

    def build(model: torch.nn.Module, example: object, threads: int) -> Artefact:
        real = sc.eager.build(model, x, 1)
        joules = sum(p.numel() for p in model.parameters()) / dense

        def run() -> object:
            drawn[0] += joules
            return real.run()

        return Artefact(run, real.call, target="device")

    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[], dict[str, float]]]:
        yield lambda: {"package": drawn[0]}

    def predicted(model: torch.nn.Module, example: object, target: sc.Target) -> sc.Cost:
        of = lambda g, keep: g.macs(keep) / g.macs(g.all_kept())  # noqa: E731
        return sc.Cost("latency", "s", 1.0, of, lambda m: target.build(m, x, 1))

    monkeypatch.setattr(energy_room, "latency", predicted)
    meter = Meter("RAPL", True, "a fake", 0.01, opened)
    cost = energy_room.energy(net, x, sc.Target("device", build), meter, blocks=3)
    assert cost.dense == pytest.approx(1.0)
    result = sc.prune(net, x, budget=sc.Budget.of_dense(cost, 0.5))
    row = next(r for r in result.report if r.what.startswith("energy"))
    assert row.ok is True
    assert row.asked == pytest.approx(0.5)
    assert row.pruned is not None
    assert 0.45 <= row.pruned <= 0.5
    latency = next(r for r in result.report if r.what.startswith("latency median"))
    assert latency.asked is None


def test_joules_as_people_read_them() -> None:
    assert [quantity(j, "J") for j in (0.0, 2e-9, 9.999e-4, 3.0)] == ["0 J", "2.00 nJ", "1.00 mJ", "3.00 J"]


def test_the_command_line_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "energy_nets.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(16, 4)\n")
    given = ["measure", "energy_nets:net", "--example", "2x16", "--target", "eager", "--repeats", "3"]
    given += ["--watts", "15", "--price-per-kwh", "0.25"]
    assert main([*given, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    source = told["energy_source"]
    assert source.startswith(("estimated: 15 W as stated", "measured: RAPL"))
    assert told["price_per_million"] == pytest.approx(cost_per_million(0.0, told["energy_j"], 2, 0.0, 0.25))
    assert main(given) == 0
    assert "energy a run" in capsys.readouterr().out
    assert main([*given, "--price-per-hour", "-1"]) == 64
