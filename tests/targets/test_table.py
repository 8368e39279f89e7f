"""Cost tables on a clock that is a formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import TargetError
from secateur.targets import table as table_module
from secateur.targets.layers import Layer, from_key
from secateur.targets.table import Table, bracket, cached, grid, load_table, save_table, table_of, where
from secateur.types import Artefact, Device, Elsewhere

LINEAR = Layer("linear", (4, 1), (48, 64))


class Clock:
    """Layers that take what a formula says, and how many were asked for."""

    def __init__(self, formula: Any) -> None:
        self.formula, self.asked = formula, []  # type: ignore[var-annotated]
        self.target = sc.Target("clock", lambda *a: pytest.fail("the layer has a way of its own"), layer=self.layer)

    def layer(self, layer: Layer, threads: int) -> float:
        self.asked.append(layer)
        return 1e-3 + (0.0 if layer.kind == "elements" else self.formula(*layer.widths))


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "memory"))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_width_stands_between_neighbours_of_its_alignment(width: int, dense: int) -> None:
    found = bracket(width, dense)
    assert sum(share for _, share in found) == pytest.approx(1)
    assert sum(w * share for w, share in found) == pytest.approx(width)
    if len(found) == 2:
        (low, _), (high, _) = found
        assert low < width < high <= 2 * low + 16
        align = next(a for a in (16, 8, 4, 1) if width % a == 0)
        assert {next(a for a in (16, 8, 4, 1) if w % a == 0) for w, _ in found} == {align}


@pytest.mark.parametrize("align", [16, 8, 4, 1])
def test_a_grid_holds_one_alignment(align: int) -> None:
    nodes = grid(align)
    assert list(nodes) == sorted(set(nodes))
    assert all(w % align == 0 and (align == 16 or w % (2 * align) or align == 1) for w in nodes)


def test_what_is_bilinear_is_exact_and_the_rest_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def bilinear(a: int, b: int) -> float:
        return 1e-6 * (3 + a) * (5 + b) * (1 if a % 8 == 0 else 1.5) * (2 if b % 16 else 1)

    table = Table(Clock(bilinear).target)
    for a, b in ((48, 64), (40, 64), (41, 33), (112, 208), (500, 700), (501, 97)):
        assert table.at("linear", (4, 1), (a, b), (48, 64)) == pytest.approx(bilinear(a, b))
    squared = Table(Clock(lambda a, b: 1e-9 * a * a * b * b).target)
    for a, b in ((72, 80), (110, 230), (333, 501)):
        assert squared.at("linear", (4, 1), (a, b), (48, 64)) == pytest.approx(1e-9 * a * a * b * b, rel=0.15)


def test_depthwise_has_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda a, b: 1e-6 * a)
    table = Table(clock.target)
    assert table.at("depthwise", (1,), (81, 81), (96, 96)) == pytest.approx(81e-6)
    assert all(n.widths[0] == n.widths[1] for n in clock.asked)


def test_entries_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda a, b: 1e-6 * a * b)
    table = table_of(clock.target)
    value = table.measured(LINEAR)
    asked = len(clock.asked)
    assert table.measured(LINEAR) == value == pytest.approx(48 * 64e-6)
    table.keep()
    clock.formula = lambda a, b: 1.0
    assert table_of(clock.target).measured(LINEAR) == value
    assert len(clock.asked) == asked
    assert table_of(sc.Target("other", clock.target.build)).entries == {}


def test_a_damaged_cache_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda a, b: 1e-6 * a * b)
    table = table_of(clock.target)
    table.measured(LINEAR)
    table.keep()
    whole = cached(clock.target).read_text()
    for text in (
        "",
        "{",
        "[]",
        whole[:-20],
        whole.replace("48 64", "48 x"),
        whole.replace('"s"', '"s"').replace("0.", "-1."),
        whole.replace("0.", "1" + "0" * 400, 1),
        whole.replace("[4,1]", "[" * 100_000),
    ):
        cached(clock.target).write_text(text)
        assert table_of(clock.target).entries == {}
        again = table_of(clock.target)
        again.measured(LINEAR)
        again.keep()
        assert len(table_of(clock.target).entries) == 2


def test_a_table_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(lambda a, b: 1e-6 * a * b)
    with pytest.raises(TargetError, match="clock: no layer was measured here"):
        save_table(clock.target, tmp_path / "t.json")
    table = table_of(clock.target)
    table.measured(LINEAR)
    table.keep()
    assert save_table(clock.target, tmp_path / "t.json") == 2
    held = json.loads((tmp_path / "t.json").read_text())
    assert {"machine", "versions", "threads", "target", "unit"} <= set(held)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "elsewhere"))
    assert load_table(clock.target, tmp_path / "t.json") == 2
    assert load_table(clock.target, tmp_path / "t.json") == 0
    assert table_of(clock.target).entries == table.entries


@pytest.mark.parametrize(
    ("what", "value"), [("machine", "another, 64 cores"), ("threads", 8), ("versions", {}), ("target", "tock")]
)
def test_a_table_from_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, value: Any
) -> None:
    clock = Clock(lambda a, b: 1e-6 * a * b)
    table = table_of(clock.target)
    table.measured(LINEAR)
    table.keep()
    save_table(clock.target, tmp_path / "t.json")
    held = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**held, what: value}))
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(TargetError, match=f"measured elsewhere: {what} is .*force=True"):
        load_table(clock.target, tmp_path / "t.json")
    assert table_of(clock.target).entries == {}
    assert load_table(clock.target, tmp_path / "t.json", force=True) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "secateur cost table", "version": 1}', '{"format": "x", "version": 1, "entries": {}}'],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TargetError, match=r"t\.json is no cost table"):
        load_table(sc.eager, tmp_path / "t.json")


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.json cannot be read .*save_table"):
        load_table(sc.eager, tmp_path / "none.json")


def test_layers_of_another_device_are_timed_there() -> None:
    def timings(jobs: list[Any], *how: float) -> list[list[float]]:
        return [[3e-3 if job == "Linear" else 1e-3] * 4 for job in jobs]

    def build(model: nn.Module, example: Any, threads: int) -> Artefact:
        here = Elsewhere("board", type(model).__name__, timings)
        return Artefact(lambda: pytest.fail("it was timed from here"), lambda e: [], elsewhere=here)

    board = sc.Target("board", build, device=Device("a board, 4 cores", ()))
    assert Table(board).measured(LINEAR) == pytest.approx(2e-3)
    assert where(board)["machine"] == "a board, 4 cores"
    assert cached(board) != cached(sc.Target("board", build))


def test_keys_tell_layers() -> None:
    for layer in (
        LINEAR,
        Layer("conv", (1, (28, 28), (3, 3), (1, 1), (1, 1), (1, 1), 1), (3, 5)),
        Layer("attention", (2, 8, 8), (4, 16)),
        Layer("elements", (), (100, 1)),
    ):
        assert from_key(layer.key) == layer


def test_a_target_that_is_slow_to_build_is_asked_at_quarters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, int]] = []
    now = [0.0]

    def build(model: nn.Module, example: Any, threads: int) -> Artefact:
        now[0] += 1.0
        if isinstance(model, nn.Linear):
            built.append((model.in_features, model.out_features))
        return Artefact(lambda: None, lambda e: [])

    monkeypatch.setattr(table_module, "perf_counter", lambda: now[0])
    table = Table(sc.Target("slow", build))
    for width in range(1, 65):
        table.at("linear", (4, 1), (width, 32), (64, 32))
    assert built == [(1, 32), (16, 32), (32, 32), (48, 32), (64, 32)]
