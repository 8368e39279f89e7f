"""The evidence as files and as a table: report.json, report.html, and the same rows for a terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from secateur.atomic import write_bytes
from secateur.errors import FormatError
from secateur.evidence import words
from secateur.evidence.schema import VERSION, check, report_schema
from secateur.types import Report, Row

__all__ = ["from_json", "read_report", "report_schema", "to_json", "to_table", "write_report"]

JSON_NAME, HTML_NAME = "report.json", "report.html"
_ROW = tuple(f.name for f in dataclasses.fields(Row))


def to_json(report: Report) -> dict[str, Any]:
    """The report as data that satisfies `report_schema`: docs/report.md says what each field means.

    Numbers that are not finite become the strings ``NaN``, ``Infinity``, ``-Infinity``.

    Raises:
        FormatError: a section holds what JSON cannot, or not what the schema expects, named by its path.

    Example:
        >>> to_json(Report(True, 0.0, (Row("parameters", "", 4.0, 2.0),)))["rows"][0]["ratio"]
        0.5
    """
    rows = [{**dataclasses.asdict(r), "ratio": r.ratio} for r in report.rows]
    data = {
        "schema": VERSION,
        "ok": report.ok,
        "max_error": report.max_error,
        "rows": rows,
        "sections": dict(report.sections),
    }
    checked: dict[str, Any] = finite(check(_plain(data, ""), "report"))
    return checked


def from_json(data: Any, where: str = "report") -> Report:
    """The report that `to_json` wrote.

    Args:
        data: the parsed JSON.
        where: what to call it in an error, such as its path.

    Raises:
        FormatError: not a report, another schema version, or a field that is wrong, named by its path.

    Example:
        >>> from_json(to_json(Report(True, 1e-12, ()))).max_error
        1e-12
    """
    if not isinstance(data, Mapping) or "schema" not in data:
        raise FormatError(f"{where}: no field 'schema': not a secateur report; expected the contents of {JSON_NAME}")
    version = data["schema"]
    if version != VERSION:
        raise FormatError(f"{where}: schema {version!r}, this secateur reads {VERSION}; use the version that wrote it")
    good = check(data, where)
    rows = tuple(Row(**{k: v for k, v in row.items() if k in _ROW}) for row in good["rows"])
    return Report(good["ok"], good["max_error"], rows, good["sections"])


def write_report(folder: str | os.PathLike[str], report: Report) -> Path:
    """Write report.json and report.html into a folder, each whole or not at all, and return the page's path.

    Raises:
        FormatError: the sections are not what the schema expects (nothing is written then).
        OSError: the folder cannot be written.
    """
    from secateur.evidence.page import render  # its charts need matplotlib, which is slow to import

    data = to_json(report)
    page = render(from_json(data))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    write_bytes(target / JSON_NAME, text.encode())
    write_bytes(target / HTML_NAME, page.encode("utf-8", "xmlcharrefreplace"))
    return target / HTML_NAME


def read_report(folder: str | os.PathLike[str]) -> Report:
    """The report of a folder, or of a report.json itself.

    Raises:
        FormatError: there is none, it is not JSON, or it does not satisfy the schema.
    """
    path = Path(folder)
    path = path / JSON_NAME if path.is_dir() else path
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise FormatError(f"{path}: no such file; expected a folder that holds {JSON_NAME}") from e
    except ValueError as e:
        raise FormatError(f"{path}: not JSON ({e}); it may be cut off: write the report again") from e
    return from_json(data, str(path))


def to_table(report: Report) -> Table:
    """The rows for a terminal: dense beside pruned, asked beside achieved; the verdict is the title."""
    report = replace(report, rows=words.rows_of(report))
    table = Table(title=Text(words.sentence(report), style="bold green" if words.passed(report) else "bold red"))
    table.add_column("")
    for name in ("dense", "pruned", "ratio", "asked"):
        table.add_column(name, justify="right")
    table.add_column("")
    order = ("latency", "size", "quality", "check")
    last = ""
    for row in sorted(report.rows, key=lambda r: order.index(words.family(r))):
        if last and words.family(row) != last:
            table.add_section()
        last = words.family(row)
        text = words.cells(row)
        pruned = text["pruned"] + (f"\n{text['interval']}" if text["interval"] else "")
        mark = {True: " ✓", False: " ✗", None: ""}[row.ok]
        asked = Text(text["asked"] + mark, style={True: "green", False: "red", None: ""}[row.ok])
        note = "; ".join(filter(None, [text["gloss"], row.note]))
        table.add_row(*map(Text, (row.what, text["dense"], pruned, text["ratio"])), asked, Text(note, style="dim"))
    return table


def _plain(value: Any, path: str) -> Any:
    """The same as dicts, lists, strings, numbers, booleans and None; refuses anything else by its path."""
    if isinstance(value, np.generic):  # first: numpy's float64 is a float too
        return value.item()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, path)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{path}.{i}") for i, v in enumerate(value)]
    raise FormatError(f"report: {path} holds a {type(value).__name__}; give numbers, strings, lists and dicts only")


def finite(value: Any) -> Any:
    """The same, numbers that JSON has no word for as the strings ``NaN``, ``Infinity`` and ``-Infinity``."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    from rich.console import Console

    from secateur.evidence.sample import convolutional, encoder

    where = Path(tempfile.mkdtemp(prefix="secateur-report-"))
    for label, sample in (("encoder", encoder()), ("convolutional", convolutional())):
        Console().print(to_table(sample))
        print(write_report(where / label, sample))
