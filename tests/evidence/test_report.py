import dataclasses
import io
import json
import math
import os
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import secateur as sc
from secateur.errors import FormatError
from secateur.evidence import charts, page, report, words
from secateur.evidence.gather import prediction_of
from secateur.evidence.sample import convolutional, encoder
from secateur.types import Report, Row

VALID = jsonschema.Draft202012Validator(report.report_schema())
DOCS = Path(__file__).parents[2] / "docs" / "report.md"
real = st.none() | st.floats() | st.integers(-(10**12), 10**12).map(float)
rows = st.builds(
    Row, st.text(), st.sampled_from(["", "s", "B", "MAC", "%", "nats", "relative"]),
    real, real, real, st.none() | st.booleans(), real, real, st.text(),
)  # fmt: skip


def _same(a, b):
    """Equal, NaN to itself, an int to its float."""
    return json.dumps(report.to_json(a)) == json.dumps(report.to_json(b))


def _html(r):
    return page.render(report.from_json(report.to_json(r)))


def _console(r):
    out = io.StringIO()
    Console(file=out, width=200).print(report.to_table(r))
    return out.getvalue()


@pytest.mark.parametrize("sample", [encoder(), convolutional(), Report(True, 0.0, ())])
def test_json_validates_and_comes_back(sample):
    data = report.to_json(sample)
    VALID.validate(data)
    back = report.from_json(json.loads(json.dumps(data)))
    assert back.rows == sample.rows
    assert (back.ok, back.max_error) == (sample.ok, sample.max_error)
    assert back.sections == sample.sections


def test_the_schema_is_a_schema_and_refuses_what_we_refuse():
    jsonschema.Draft202012Validator.check_schema(report.report_schema())
    good = report.to_json(encoder())
    for path, wrong in (("ok", 1), ("max_error", "big"), ("rows", {}), ("schema", 2), ("sections", [])):
        bad = {**good, path: wrong}
        assert not VALID.is_valid(bad)
        with pytest.raises(FormatError, match=path):
            report.from_json(bad)


@given(st.lists(rows, max_size=5), st.booleans(), st.floats())
@settings(max_examples=15, deadline=None)
def test_any_rows_survive_json_page_and_table(many, ok, error):
    r = Report(ok, error, tuple(many))
    data = json.loads(json.dumps(report.to_json(r), allow_nan=False))
    VALID.validate(data)
    assert _same(report.from_json(data), r)
    assert "<h1" in _html(r)
    assert _console(r)


def test_numbers_that_are_not_finite_are_strings_in_json_and_numbers_again():
    r = Report(False, math.nan, (Row("x", pruned=math.inf, low=-math.inf),), {"history": {"loss": [1.0, math.nan]}})
    data = report.to_json(r)
    assert (data["max_error"], data["rows"][0]["pruned"], data["rows"][0]["low"]) == (
        "NaN",
        "Infinity",
        "-Infinity",
    )
    VALID.validate(data)
    back = report.from_json(data)
    assert math.isnan(back.max_error)
    assert math.isnan(back.sections["history"]["loss"][1])
    assert "not finite" in _html(r)


def test_numpy_paths_and_dataclasses_become_plain():
    @dataclasses.dataclass
    class Machine:
        cores: int = 2

    sections = {
        "stages": ({"name": "dense", "latency_s": np.float32(0.5), "quality": {"cosine": np.float64(1)}},),
        "history": {"loss": np.array([2.0, 1.0])},
        "made": {"seed": np.int64(3), "machine": Machine(), "where": Path("a/b")},
    }
    data = report.to_json(Report(True, 0.0, (), sections))
    VALID.validate(data)
    assert data["sections"]["made"] == {"seed": 3, "machine": {"cores": 2}, "where": "a/b"}
    assert data["sections"]["history"]["loss"] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({"made": {"machine": {"x": object()}}}, r"sections\.made\.machine\.x holds a object"),
        ({"stages": [{"name": "dense", "latency_s": "fast"}]}, r"sections\.stages\.0\.latency_s: .*'fast'"),
        ({"widths": [{"group": "a", "before": 1}]}, r"sections\.widths\.0\.after"),
        ({"verdict": {"ok": True}}, r"sections\.verdict\.words"),
        ({"history": {"loss": []}}, r"sections\.history\.loss"),
    ],
)
def test_a_wrong_section_is_named_and_nothing_is_written(tmp_path, sections, names):
    with pytest.raises(FormatError, match=names):
        report.write_report(tmp_path, Report(True, 0.0, (), sections))
    assert list(tmp_path.iterdir()) == []


def test_unknown_sections_and_fields_are_kept():
    r = Report(True, 0.0, (), {"audit": {"a": [1, math.inf]}, "parity": []})
    assert report.to_json(r)["sections"] == {"audit": {"a": [1, "Infinity"]}, "parity": []}


def test_write_and_read(tmp_path):
    html = report.write_report(tmp_path / "new", encoder())
    assert html == tmp_path / "new" / "report.html"
    assert sorted(p.name for p in html.parent.iterdir()) == ["report.html", "report.json"]
    for source in (html.parent, html.parent / "report.json"):
        assert report.read_report(source).rows == encoder().rows


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    report.write_report(tmp_path, encoder())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.write_report(tmp_path, convolutional())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, "no such file"),
        ('{"schema": 1, "ok": tr', "not JSON.*cut off"),
        ("[]", "no field 'schema'"),
        ('{"schema": 2}', "schema 2, this secateur reads 1"),
        ('{"schema": 1, "ok": true, "max_error": 0, "sections": {}}', "rows"),
    ],
)
def test_reading_what_is_not_a_report(tmp_path, text, names):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(FormatError, match=names):
        report.read_report(tmp_path)


def test_the_same_report_gives_the_same_bytes(tmp_path):
    one, two = (report.write_report(tmp_path / n, encoder()) for n in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_docs_name_every_field():
    text = DOCS.read_text()
    schema = report.report_schema()
    for part in (schema, *schema["$defs"].values()):
        for field in part["properties"]:
            assert f"`{field}`" in text, f"{field} of {part['title']} is missing in docs/report.md"
    example = re.search(r"```json\n(.*?)```", text, re.S)
    VALID.validate(json.loads(example[1]))


def test_verdict_is_made_from_rows_or_given():
    start = "Half the latency: 2.02× faster on onnxruntime, cosine to dense 0.910, 79 % of the parameters"
    assert words.sentence(encoder()) == start
    given = dataclasses.replace(encoder(), sections={"verdict": {"ok": False, "words": "No gain here"}})
    assert words.sentence(given) == "No gain here"
    assert not words.passed(given)
    assert words.sentence(convolutional()).startswith(
        "Limit not met: latency median, onnxruntime 9.81 ms (asked ≤ 9.16 ms)"
    )


def test_rows_of_verify_are_checks_not_quality():
    checks = (
        Row("masked against shrunk, float64", "relative", pruned=0.2, asked=1e-10, ok=False),
        Row("control: another draw must differ", "relative", pruned=0.9, asked=1e-10, ok=True),
        Row("shapes follow the plan", "tensors", pruned=8, ok=True),
        Row("outputs are finite", ok=True, pruned=1.5),
    )
    assert {words.family(r) for r in checks} == {"check"}
    assert words.cells(checks[0])["asked"].startswith("≤")
    assert words.cells(checks[1])["asked"].startswith("≥")
    r = Report(False, 0.2, (*checks, *encoder().rows))
    assert words.sentence(r) == "Check failed: masked against shrunk, float64 0.200 relative (asked ≤ 1e-10 relative)"
    assert 'class="hero bad"' in _html(r)
    assert words.find(r.rows, "quality").what == "cosine to dense"


def test_a_change_within_the_spread_is_not_called_a_gain():
    def made(pruned):
        measured = [{"target": "eager", "model": m, "median_s": 1.0, "spread": 0.02} for m in ("dense", "pruned")]
        return Report(True, 0.0, (Row("latency, eager", "s", 1.0, pruned),), {"measurements": measured})

    for text in (_html(made(0.97)), _console(made(0.97)), words.sentence(made(0.97))):
        assert "noise" in text
        assert "faster" not in text
    assert "1.25× faster on eager" in words.sentence(made(0.8))
    judged = made(0.97)
    rows = (dataclasses.replace(judged.rows[0], note="1.03x faster (1.02-1.04)"),)
    assert words.rows_of(dataclasses.replace(judged, rows=rows)) == rows  # its interval leaves out 1
    noted = Report(True, 0.0, (Row("latency, eager", "s", 1.0, 0.9, note="within noise"),))
    assert "faster" not in _html(noted)


def test_one_failure_anywhere_turns_the_page_red():
    parity = {"what": "onnx vs torch", "max_error": 0.1, "limit": 1e-4, "ok": False}
    failing = dataclasses.replace(encoder(), sections={"parity": [parity]})
    assert words.sentence(failing) == "Parity failed: onnx vs torch 0.10"
    assert 'class="hero bad"' in _html(failing)
    assert 'class="hero good"' in _html(encoder())
    claimed = dataclasses.replace(convolutional(), sections={"verdict": {"ok": True, "words": "Fine"}})
    assert 'class="hero bad"' in _html(claimed)


NASTY = """<script>alert(1)</script>"'><img src=x onerror=alert(1)> {{ 7*7 }} $x_$ 中 \x00 --> &amp;"""


def test_every_text_is_escaped():
    r = Report(
        True,
        0.0,
        (Row(NASTY, NASTY, 1.0, 0.5, 0.6, True, note=NASTY), Row("latency " + NASTY, "s", 1.0, 0.5, 0.6)),
        {
            "title": NASTY,
            "notice": NASTY,
            "stages": [{"name": NASTY, "latency_s": 1.0, "quality": {NASTY: 0.5}}, {"name": "b" + NASTY}],
            "widths": [{"group": NASTY, "kind": NASTY, "module": NASTY, "before": 4, "after": 2}] * 2,
            "frozen": [{"name": NASTY, "dim": 0, "size": 1, "reason": NASTY, "module": NASTY, "line": NASTY}],
            "baselines": [{"name": NASTY, "latency_ratio": 0.5, "quality": {NASTY: 0.4}, "note": NASTY}],
            "measurements": [{"target": NASTY, "model": NASTY, "median_s": 1.0}],
            "history": {"loss": [1.0, 0.5]},
            "parity": [{"what": NASTY, "max_error": 0.0, "limit": 1.0, "ok": True}],
            "made": {"command": NASTY, "versions": {NASTY: NASTY}, "hashes": {NASTY: NASTY}, "date": NASTY},
        },
    )
    html = _html(r)
    assert "<script" not in html
    assert "<img" not in html
    assert "{{ 7*7 }}" in html
    assert re.search(r"<[^>]*\sonerror=", html) is None
    assert _console(r)


def test_how_predictions_did_stands_in_one_line():
    def cost(pairs):
        return sc.Cost("latency", "s", 1.0, lambda g, k: 1.0, target=sc.eager, errors=lambda: pairs)

    assert prediction_of(cost([])) == prediction_of(sc.Cost("macs", "MAC", 1.0, lambda g, k: 1.0)) == {}
    found = prediction_of(cost([(1.1, 1.0), (0.98, 1.0), (2.0, 2.5), (0.5, 0.5)]))
    (line,) = found["prediction"]
    assert (line["cost"], line["target"], line["count"]) == ("latency", "eager", 4)
    assert (line["median"], line["worst"]) == (pytest.approx(0.06), pytest.approx(0.2))
    made = Report(True, 0.0, (), found)
    assert report.from_json(report.to_json(made)).sections["prediction"][0]["worst"] == line["worst"]
    assert "over 4 models that were predicted and measured: off by 6.0 % at the median, by 20 % at worst" in _html(made)


def test_only_what_is_there_is_shown():
    bare = _html(Report(True, 0.0, ()))
    assert "<section" not in bare
    assert "<svg" not in bare
    assert "Every check holds" in bare


@pytest.mark.parametrize("n", [1, 6, 16, 17, 100])
def test_every_group_stands_in_the_widths_chart(n):
    r = convolutional(n)
    html = _html(r)
    svgs = re.findall(r'<svg class="chart"[^>]*aria-labelledby="width-.*?</svg>', html, re.S)
    assert sum(len(re.findall(r">\d+ of \d+</text>", s)) for s in svgs) == n
    assert len(svgs) == (1 if n <= 16 else 2 * math.ceil(n / 64))
    heights = [float(re.search(r'viewBox="0 0 \S+ (\S+)"', s)[1]) for s in svgs]
    assert max(heights) <= 640


def test_charts_hold_ids_of_their_own():
    html = _html(encoder())
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html):
        assert set(used.split()) <= set(ids)


def test_bar_lengths_are_to_scale():
    svg = str(charts.bars("k", "t", "a", [charts.Bar("x", 1.0, "one"), charts.Bar("y", 4.0, "four")]))
    ends = [[float(v) for v in re.findall(r"[ML] (\S+)", d)] for d in re.findall(r'<path d="([^"]+)"', svg)]
    lengths = [max(e) - min(e) for e in ends]
    assert lengths[1] == pytest.approx(4 * lengths[0], rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_stage_charts_take_any_number_of_stages_and_gaps(count):
    stages = [
        {"name": f"after round number {i}", "latency_s": None if i == 1 else 0.01 * (i + 1)} for i in range(count)
    ]
    for i, s in enumerate(stages):
        s["quality"] = {"cosine": 0.9 - 0.01 * i, "perplexity": 12.0 + i} if i != 1 else {}
    html = _html(Report(True, 0.0, (), {"stages": stages}))
    assert html.count("<svg") == 3
    assert "nan" not in "".join(re.findall(r'<path d="([^"]+)"', html))


@pytest.mark.parametrize(
    "loss", [[1.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 2.0], [1e4, 1e-4], [1.0, math.nan, 0.5], [1.0] * 5000]
)
def test_loss_curves_of_any_shape(loss):
    html = _html(Report(True, 0.0, (), {"history": {"loss": loss}}))
    assert "Loss while recovering" in html
    assert len(html) < 40_000


def test_table_has_every_row():
    text = _console(encoder())
    for row in encoder().rows:
        assert row.what in text
    assert "≤ 22.6 ms ✓" in text
    assert "2.02× faster" in text
    assert "[red]x" in _console(Report(True, 0.0, (Row("[red]x", "", 1.0, 2.0),)))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (22_713_216, "", "22.7 M"), (0.0451, "s", "45.1 ms"), (90.86e6, "B", "90.9 MB"),
        (999_999, "B", "1.00 MB"), (512, "B", "512 B"), (0, "s", "0 s"), (0.9996, "s", "1.00 s"),
        (61.2, "s", "61.2 s"), (7300, "s", "2 h 2 min"),
        (3.1e-13, "", "3.1e-13"), (1e-4, "relative", "1e-4 relative"), (0.9104, "", "0.910"), (64, "", "64"),
        (-2.5e-3, "s", "-2.50 ms"), (math.nan, "s", "not finite"), (5e-10, "s", "0.500 ns"),
    ],
)  # fmt: skip
def test_quantities(value, unit, text):
    assert words.quantity(value, unit) == text


def test_a_gain_is_said_once() -> None:
    row = Row("latency median, clock", "s", 0.04, 0.02, note="2.00x faster (1.95-2.05)")
    assert words.cells(row)["gloss"] == ""
    assert words.cells(Row("latency median, clock", "s", 0.04, 0.02))["gloss"] == "2.00× faster"
