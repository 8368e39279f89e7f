"""Advice: what pays on devices whose times are functions of the model, within a time that a fake clock keeps."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur as sc
from secateur.cli.app import app
from secateur.errors import ArgumentError, TargetError
from secateur.evidence.advice import (
    LIKELY,
    NOTHING,
    PAYS,
    REFUSED,
    SLOWER,
    UNDECIDED,
    UNLIKELY,
    Advice,
    Advised,
    ranked,
)
from secateur.run import advise as advise_module
from secateur.run import stairs as stairs_module
from secateur.run.advise import advise, confirm
from secateur.run.candidates import (
    FRACTIONS,
    MULTIPLES,
    Candidate,
    Spot,
    fitting,
    following,
    lower,
    masks,
    unaligned,
    width,
    widths,
)
from secateur.targets import latency as latency_module
from secateur.targets import table as table_module
from secateur.targets.measure import Speedup
from secateur.types import Artefact, Example, Group, Measurement
from tiny import attention, cnn, groups_of, mlp

Seconds = Callable[[nn.Module], float]
ROUNDS = 24


class Device:
    """A target whose models take what a function says, give or take noise; exports take time on its own clock."""

    def __init__(self, seconds: Seconds, monkeypatch: pytest.MonkeyPatch, export: float = 1.0, noise: float = 0.0):
        self.seconds, self.export, self.noise, self.now, self.held = seconds, export, noise, 0.0, []
        self.rng = np.random.default_rng(0)
        self.target = sc.Target("clock", self.build)
        for module in (latency_module, advise_module, stairs_module):
            monkeypatch.setattr(module, "measure", self.measure)
        monkeypatch.setattr(table_module, "timed", self.seconds_of)
        monkeypatch.setattr(advise_module, "monotonic", lambda: self.now)

    def build(self, model: nn.Module, example: Example, threads: int, factor: float = 1.0) -> Artefact:
        self.now += self.export
        artefact = Artefact(lambda: None, lambda e: [], 10, target="clock", threads=threads)
        self.held.append((artefact, factor * self.seconds(model)))
        return artefact

    def seconds_of(self, run: Callable[[], object]) -> float:
        return next(s for a, s in self.held if a.run is run)

    def measure(self, artefacts: Sequence[Artefact], repeats: int = 50, **_: Any) -> list[Measurement]:
        self.now += 0.1 * len(artefacts)
        noise = [1 + self.noise * self.rng.uniform(-1, 1, ROUNDS) for _ in artefacts]
        return [Measurement("clock", self.seconds_of(a.run) * n, 1, 1) for a, n in zip(artefacts, noise, strict=True)]


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "memory"))


def linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def work(model: nn.Module) -> float:
    return 1e-4 + 1e-7 * sum(m.weight.numel() for m in linears(model))


def stairs(model: nn.Module) -> float:
    """Kernels work in eights; the last columns of a width that is no multiple cost ten times that."""

    def cost(n: int) -> int:
        return -(-n // 8) * 8 + 80 * (n % 8 > 0)

    return 1e-6 * sum(cost(m.in_features) * cost(m.out_features) for m in linears(model))


def skipping(model: nn.Module) -> float:
    """Zeros are free."""
    return 1e-6 + 1e-7 * sum(int((m.weight != 0).sum()) for m in linears(model))


NET, X = mlp(16, 128, 96, 8), torch.zeros(1, 16)


def kinds(advice: Advice) -> dict[str, list[Advised]]:
    out: dict[str, list[Advised]] = {}
    for row in advice.rows:
        out.setdefault(row.kind, []).append(row)
    return out


def test_the_closed_form_decides_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(work, monkeypatch)
    groups = groups_of(NET, X)
    found = advise(NET, X, device.target, 1000)
    dense = work(NET)
    assert found.dense_seconds == pytest.approx(dense)
    expected = {
        c.row.what: work(c.make()) / dense
        for c in [*widths(NET, groups, "M"), *unaligned(NET, groups, "M", []), *masks(NET, "M")]
    }
    for row in found.rows:
        assert row.ratio == pytest.approx(expected[row.what], abs=1e-6)
        if row.measured is not None:
            assert row.verdict == (PAYS if expected[row.what] < 0.99 else NOTHING)
    ratios = [expected[r.what] for r in found.rows]
    assert ratios == sorted(ratios)
    assert all(r.verdict in (NOTHING, UNLIKELY) for k in ("2:4", "blocks", "unstructured") for r in kinds(found)[k])
    assert "Unstructured, 95% zero will not help (no gain measurable" in found.sentence
    assert f"{dense / min(ratios) / dense:.2f}x faster" in found.sentence


def test_zeros_pay_where_they_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(skipping, monkeypatch)
    found = advise(NET, X, device.target, 1000)
    measured = [r for r in kinds(found)["unstructured"] if r.measured]
    assert measured
    assert measured[0].what == "Unstructured, 95% zero"
    assert all(r.verdict == PAYS for r in measured)
    assert "will not help" not in found.sentence


def test_the_unaligned_count_is_worse_than_the_aligned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(stairs, monkeypatch)
    found = advise(NET, X, device.target, 1000)
    (bad,) = kinds(found)["unaligned widths"]
    good = next(r for r in found.rows if r.what == bad.beside)
    assert bad.params > good.params
    assert bad.rank > good.rank
    assert bad.aside.endswith(")")
    assert "slower" in bad.words()
    assert "slower" in bad.aside
    assert found.staircase is not None
    points = {p.width: p.seconds for p in found.staircase.points}
    assert all(w % 8 == 0 for w in [p.width for p in found.staircase.points if p.aligned])
    for w in points:  # the same closed form, of the layer and the one behind it
        layer = nn.Sequential(nn.Linear(128, w), nn.Linear(w, 8)) if "2" in found.staircase.what else None
        layer = layer or nn.Sequential(nn.Linear(16, w), nn.Linear(w, 96))
        assert points[w] in (
            pytest.approx(stairs(layer)),
            pytest.approx(stairs(nn.Sequential(nn.Linear(16, w), nn.Linear(w, 96)))),
        )
    assert "slower" in found.staircase.sentence


def test_noise_is_never_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(lambda m: 1e-3, monkeypatch, noise=0.08)
    found = advise(NET, X, device.target, 1000)
    assert found.measured
    assert all(r.verdict in (NOTHING, UNDECIDED) for r in found.measured)
    assert "nothing that was measured pays" in found.sentence
    assert all(r.rank >= 1 for r in found.measured)


def test_a_machine_too_noisy_says_so_with_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(lambda m: 1e-3, monkeypatch, noise=0.95)
    found = advise(NET, X, device.target, 1000)
    assert {r.verdict for r in found.measured} <= {UNDECIDED, NOTHING}
    (row,) = [r for r in found.measured if r.kind == "widths"][:1]
    assert row.verdict == UNDECIDED
    assert "timings spread by" in row.words()
    assert found.spread > 0.2
    wild = Speedup(0.9, 0.6, 1.4, 30, 0.5)
    noisy = Advised("a", "widths", 1, 1, "", measured=wild)
    told = Advice("clock", 1, 1, "Net", (noisy,), None, 1e-3, 0.5, 1, 1, None, 1, 1).sentence
    assert told.startswith("On clock (1 thread, batch 1) this machine is too noisy to decide: timings spread by 50%")


@pytest.mark.parametrize("seconds", [3, 10, 25, 60])
@pytest.mark.parametrize("export", [0.5, 2.0, 7.0])
def test_the_time_is_kept(seconds: float, export: float, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(work, monkeypatch, export)
    found = advise(NET, X, device.target, seconds)
    assert found.seconds == device.now
    assert found.seconds <= max(seconds, export + 0.1) + export  # one export may be under way at the end
    if seconds >= 3 * export + 1:
        assert found.measured
    if seconds < 2 * export:
        assert not found.measured
        assert "no time to measure" in found.sentence
    assert len(found.rows) == len(advise(NET, X, device.target, 1000).rows)  # the rest stays predicted


def test_the_same_model_gives_the_same_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(work, monkeypatch, noise=0.05)
    first, second = (advise(NET, X, device.target, s) for s in (20, 300))
    facts = [{(r.what, r.how, r.params, r.nbytes) for r in a.rows} for a in (first, second)]
    assert facts[0] == facts[1]
    assert len(facts[0]) == len(first.rows)


def test_figures_of_a_row_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = attention(), torch.zeros(2, 5, 16)
    groups = groups_of(net, x)
    for c in [*widths(net, groups, "M"), *masks(net, "M")]:
        made = c.make()
        assert c.row.params == sum(int((p != 0).sum()) if c.keep is None else p.numel() for p in made.parameters())
        assert c.row.nbytes == sum(t.numel() * t.element_size() for t in (*made.parameters(), *made.buffers()))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.sampled_from(FRACTIONS), st.sampled_from(MULTIPLES), st.integers(1, 3))
def test_a_width_is_the_nearest_multiple(units: int, fraction: float, multiple: int, least: int) -> None:
    kept = width(Group("g", "channel", units, (), least=min(least, units)), fraction, multiple)
    allowed = [n for n in range(multiple, units, multiple) if n >= least]
    assert kept in (*allowed, units)
    if kept < units:
        assert abs(kept - fraction * units) == min(
            abs(n - fraction * units) for n in range(multiple, units + multiple, multiple)
        )


def test_lower_precision_alone_and_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(work, monkeypatch)
    int8 = sc.Target("clock_int8", lambda m, e, t: device.build(m, e, t, 0.5))
    found = advise(NET, X, device.target, 1000, lower=[int8])
    (alone,) = kinds(found)["lower precision"]
    assert alone.ratio == pytest.approx(0.5)
    both = kinds(found)["lower precision with others"]
    assert {r.what.removesuffix(", with clock_int8") for r in both} == {
        r.what for r in found.rows if r.kind in ("widths", "depth", "2:4", "neuron")
    }
    rows = {r.what: r for r in found.rows}
    for r in both:
        assert r.ratio == pytest.approx(0.5 * rows[r.what.removesuffix(", with clock_int8")].rank, rel=1e-6)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def test_depth_is_predicted_by_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), *(Block() for _ in range(8)), nn.Linear(16, 4))
    device = Device(lambda m: 1e-7 * sum(x.weight.numel() for x in linears(m)), monkeypatch)
    found = advise(net, torch.randn(2, 16), device.target, 5.2)  # hardly more than one measurement
    rows = kinds(found)["depth"]
    assert [r.what for r in rows] == ["Depth without 4 of 9 layers", "Depth without 2 of 9 layers"]
    whole = 16 * 16 + 8 * 2 * 16 * 32 + 16 * 4
    for row, gone in zip(rows, (4, 2), strict=True):
        assert row.ratio == pytest.approx(1 - gone * 2 * 16 * 32 / whole)
        assert row.params == sum(p.numel() for p in net.parameters()) - gone * (2 * 16 * 32 + 48)
        assert "sc.drop_layers" in row.how


def test_a_candidate_that_is_refused_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(work, monkeypatch)

    def picky(model: nn.Module, example: Example, threads: int) -> Artefact:
        found = linears(model)
        if len(found) > 1 and found[0].out_features == 32:  # one layer alone is what cost tables are made of
            raise TargetError("clock: aten::nothing is not known here (net.py:3)")
        return device.build(model, example, threads)

    found = advise(NET, X, sc.Target("clock", picky), 1000)
    refused = [r for r in found.rows if r.verdict == REFUSED]
    assert refused
    assert list(found.rows[-len(refused) :]) == refused
    assert all("25%" in r.what for r in refused)
    assert "aten::nothing is not known here (net.py:3)" in refused[0].words()
    assert any(r.verdict == PAYS for r in found.rows)


def test_a_candidate_is_not_blamed_for_what_it_is_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    device, groups = Device(stairs, monkeypatch), groups_of(NET, X)
    (bad,) = unaligned(NET, groups, "M", widths(NET, groups, "M"))
    beside = next(c for c in widths(NET, groups, "M") if c.row.what == bad.row.beside)
    shapes = [m.out_features for m in linears(beside.make())]

    def picky(model: nn.Module, example: Example, threads: int) -> Artefact:
        if [m.out_features for m in linears(model)] == shapes:
            raise TargetError("clock: not these widths")
        return device.build(model, example, threads)

    found = {r.what: r for r in advise(NET, X, sc.Target("clock", picky), 1000).rows}
    assert found[beside.row.what].verdict == REFUSED
    assert found[bad.row.what].measured is not None
    assert found[bad.row.what].measured.ratio == pytest.approx(stairs(bad.make()) / stairs(NET))


def test_commands_name_the_threads_that_were_timed() -> None:
    (one,) = lower(NET, [sc.Target("clock_int8", sc.eager.build, threads=2)], "M", [])
    assert one.row.how == "secateur measure M --target clock_int8 --threads 2"


def test_the_dense_model_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module, example: Example, threads: int) -> Artefact:
        raise TargetError("clock is needed: pip install 'secateur[clock]'")

    with pytest.raises(TargetError, match=r"secateur\[clock\]"):
        advise(NET, X, sc.Target("clock", refuse))
    for bad in (0, -1, float("nan"), "10"):
        with pytest.raises(ArgumentError, match="positive number"):
            advise(NET, X, Device(work, monkeypatch).target, bad)  # type: ignore[arg-type]


def test_patterns_are_tried_on_the_weights_that_they_fit() -> None:
    net = cnn()
    assert list(fitting(net, sc.nm(2, 4))) == ["3.weight", "8.weight"]  # the first has three inputs
    row = next(c.row for c in masks(net, "M") if c.row.kind == "2:4")
    assert "--ignore 0.weight" in row.how


def candidate(what: str, kind: str, beside: str = "") -> Candidate:
    return Candidate(Advised(what, kind, 1, 1, "", beside=beside), lambda: NET)


def test_one_of_each_kind_comes_first_then_the_fastest() -> None:
    found = [
        candidate("w1", "widths"),
        candidate("w2", "widths"),
        candidate("u1", "unaligned widths", "w1"),
        candidate("n1", "neuron"),
        candidate("s1", "unstructured"),
        candidate("s2", "unstructured"),
        candidate("b", "blocks"),
    ]
    predicted = {"w1": 0.5, "w2": 0.3, "u1": 0.6, "n1": 0.7, "s1": 1.0, "s2": 1.0, "b": 1.0}
    spots: dict[str, Spot] = {}
    order = []
    while some := following(found, spots, predicted):
        order.append([c.row.what for c in some])
        spots |= {c.row.what: Spot(Speedup(1.0, 0.9, 1.1, 30)) for c in some}
    assert order == [["w2"], ["s1"], ["u1", "w1"], ["n1"], ["b"]]


def test_ranks_count_what_is_not_significant_as_none() -> None:
    rows = [
        Advised("slow", "a", 1, 1, "", measured=Speedup(1.3, 1.2, 1.4, 30)),
        Advised("noise", "a", 1, 1, "", measured=Speedup(0.9, 0.8, 1.1, 30)),
        Advised("guess", "a", 1, 1, "", 0.95),
        Advised("fast", "a", 1, 1, "", 0.9, measured=Speedup(0.5, 0.4, 0.6, 30)),
        Advised("none", "a", 1, 1, "", refused="no"),
    ]
    assert [r.what for r in ranked(rows)] == ["fast", "guess", "noise", "slow", "none"]
    assert [r.verdict for r in ranked(rows)] == [PAYS, UNLIKELY, NOTHING, SLOWER, REFUSED]
    assert Advised("x", "a", 1, 1, "", 0.5).verdict == LIKELY


def test_recommendations_are_confirmed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(work, monkeypatch)
    found = advise(NET, X, device.target, 1000)
    sure = confirm(found, 3)
    assert [c.what for c in sure] == [r.what for r in found.rows[:3]]
    assert all(c.holds and c.found.ratio == pytest.approx(c.said) for c in sure)
    device.seconds = lambda m: 1e-3  # the machine is another by now
    assert not any(c.holds for c in confirm(found, 2))
    with pytest.raises(ArgumentError):
        confirm(found, 0)


def test_it_is_saved_as_data_and_as_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = advise(NET, X, Device(stairs, monkeypatch).target, 1000, subject="<nets>:make")
    page = found.save(tmp_path / "out")
    data = json.loads((tmp_path / "out" / "advice.json").read_text())
    assert sorted(p.name for p in page.parent.iterdir()) == ["advice.html", "advice.json"]
    assert data["sentence"] == found.sentence
    assert [r["what"] for r in data["rows"]] == [r.what for r in found.rows]
    assert data["rows"][0]["measured"]["ratio"] == found.rows[0].ratio
    assert [p["width"] for p in data["staircase"]["points"]] == [p.width for p in found.staircase.points]  # type: ignore[union-attr]
    html = page.read_text()
    assert "<nets>" not in html
    assert "&lt;nets&gt;:make" in html
    assert html.count('class="chart"') == 2
    assert all(r.verdict in html for r in found.rows)
    assert found.table().row_count == len(found.rows)


def test_the_table_fits_a_terminal_and_says_nothing_twice() -> None:
    """At 80 columns no figure is cut off; a verdict that its words hold already does not stand before them."""
    rows = (
        Advised("Every second unit of width, multiples of 16", "widths", 50, 200, "", 0.5, measured=Speedup(0.52, 0.51, 0.54, 40)),
        Advised("2:4 sparsity", "2:4", 100, 400, "", 1.0, measured=Speedup(1.0, 0.97, 1.03, 40)),
        Advised("int8", "lower precision", 100, 100, "", 0.4, measured=Speedup(1.3, 1.2, 1.4, 30)),
    )  # fmt: skip
    advice = Advice("clock", 1, 1, "net", rows, None, 0.045, 0.02, 100, 400, None, 100, 150)
    printed = io.StringIO()
    Console(width=80, file=printed).print(advice.table())
    lines = printed.getvalue().splitlines()
    text = " ".join(" ".join(line.split("│")[5].split()) for line in lines if line.startswith("│"))
    assert max(map(len, lines)) <= 80
    assert text == (
        "pays: 1.92x faster (1.85-1.96) no gain measurable: 1.00x is within noise (0.97-1.03) 1.30x slower (1.20-1.40)"
    )


def test_a_small_network_on_a_real_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "advised_nets.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(512, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["advise", "advised_nets:make", "--example", "1x3x8x8", "--seconds", "6", "--batch", "2", "--out", "out"]
    done = CliRunner().invoke(app, [*words, "--json"], obj=words)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert (data["target"], data["batch"], data["rows"][0]["rank"]) == ("onnxruntime", 2, 1)
    assert data["file_bytes"] > data["nbytes"] > 4 * 512
    assert {r["kind"] for r in data["rows"]} >= {"widths", "unstructured", "2:4", "blocks"}
    assert all(r["how"].startswith(("secateur ", "sc.")) for r in data["rows"])
    assert any("2x3x8x8" in r["how"] for r in data["rows"])
    assert not any("1x3x8x8" in r["how"] for r in data["rows"])
    assert (tmp_path / "out" / "advice.html").is_file()
