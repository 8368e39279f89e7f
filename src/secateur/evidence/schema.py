"""What stands in a report.json: the shapes that are checked when one is written and when one is read."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from secateur.errors import FormatError

VERSION = 1
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _real(value: Any) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


Real = Annotated[
    float,
    BeforeValidator(_real),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": list(_NOT_FINITE)}]}),
]
"""A number; JSON has no NaN and no infinity, so these three stand as strings."""

Curve = Annotated[list[Real], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class RowPart(_Part):
    """One line of the table: dense beside pruned, asked beside achieved."""

    what: str
    unit: str = ""
    dense: Real | None = None
    pruned: Real | None = None
    ratio: Real | None = None
    asked: Real | None = None
    ok: bool | None = None
    low: Real | None = None
    high: Real | None = None
    note: str = ""


class Verdict(_Part):
    """The answer in one sentence."""

    ok: bool
    words: str


class Stage(_Part):
    """The model at one point of the run."""

    name: str
    latency_s: Real | None = None
    quality: dict[str, Real] = {}
    seconds: Real | None = None


class Width(_Part):
    """Units of one group before and after."""

    group: str
    kind: str = "unit"
    module: str = ""
    before: int
    after: int


class FrozenAxis(_Part):
    """An axis that could not be cut, and why."""

    name: str
    dim: int
    size: int
    reason: str
    module: str = ""
    line: str = ""


class Baseline(_Part):
    """Another way to the same cost. ``ours`` marks the model of this report, should it stand in the list."""

    name: str
    latency_ratio: Real | None = None
    quality: dict[str, Real] = {}
    note: str = ""
    ours: bool = False


class Timing(_Part):
    """One model measured on one target."""

    target: str
    model: str
    median_s: Real
    p95_s: Real | None = None
    spread: Real | None = None
    threads: int | None = None
    batch: int | None = None
    nbytes: int | None = None
    repeats: int | None = None


class History(_Part):
    """The loss while distilling or fine-tuning; ``steps`` counts from 0 where it is left out."""

    loss: Curve
    steps: list[Real] | None = None


class Parity(_Part):
    """Two forms of the model compared on the same input."""

    what: str
    max_error: Real
    limit: Real
    ok: bool


class Prediction(_Part):
    """How a predicted cost compared with what was measured: relative errors over so many models."""

    cost: str
    target: str
    count: int
    median: Real
    worst: Real


class SparseWeight(_Part):
    """How sparse one weight became, and which share of its saliency stayed."""

    weight: str
    size: int
    kept: int
    sparsity: Real
    saliency_kept: Real | None = None


class DenseWeight(_Part):
    """A parameter of a sparse model that stayed dense, and why."""

    name: str
    size: int
    reason: str


class Made(_Part):
    """Everything needed to make it again."""

    command: str = ""
    versions: dict[str, str] = {}
    seed: int | None = None
    machine: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    date: str = ""


class Sections(_Part):
    """The rest of the evidence; every section is optional."""

    title: str | None = None
    notice: str | None = None
    verdict: Verdict | None = None
    stages: list[Stage] | None = None
    widths: list[Width] | None = None
    frozen: list[FrozenAxis] | None = None
    baselines: list[Baseline] | None = None
    measurements: list[Timing] | None = None
    history: History | None = None
    parity: list[Parity] | None = None
    prediction: list[Prediction] | None = None
    sparsity: list[SparseWeight] | None = None
    stayed_dense: list[DenseWeight] | None = None
    made: Made | None = None


class ReportFile(_Part):
    """report.json."""

    model_config = ConfigDict(extra="allow", strict=True, title="secateur report")
    version: Literal[1] = Field(alias="schema")
    ok: bool
    max_error: Real
    rows: list[RowPart]
    sections: Sections


def check(data: Any, where: str) -> dict[str, Any]:
    """The validated document as plain Python values, numbers as floats; only what was given, no defaults.

    Raises:
        FormatError: naming the first field that is wrong, what it held and what was expected.
    """
    try:
        parsed = ReportFile.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        path = ".".join(str(p) for p in first["loc"]) or "the document"
        more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
        held = repr(first["input"])
        held = held if len(held) <= 80 else held[:77] + "..."
        raise FormatError(
            f"{where}: {path}: {first['msg']}; it holds {held}{more}. docs/report.md has the schema"
        ) from e
    return parsed.model_dump(by_alias=True, exclude_unset=True)


def report_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every report.json satisfies.

    Example:
        >>> report_schema()["properties"]["schema"]["const"]
        1
    """
    schema = ReportFile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
