"""Run files: the arguments of ``secateur prune`` in YAML, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from secateur.errors import ArgumentError
from secateur.run.names import nearest

CostName = Literal["params", "macs", "nbytes", "latency", "energy"]
Kind = Literal["channel", "neuron", "head", "head_dim", "hidden", "expert", "embedding", "width"]

_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_JOULES = {"j": 1.0, "mj": 1e-3, "uj": 1e-6, "µj": 1e-6, "kj": 1e3, "wh": 3600.0}
_UNITS = {"params": _COUNT, "macs": _COUNT, "nbytes": _BYTES, "latency": _SECONDS, "energy": _JOULES}
_WRITTEN = {
    "params": "params=50%, params=10M",
    "macs": "macs=50%, macs=300M",
    "nbytes": "nbytes=50%, nbytes=4MB, nbytes=4MiB",
    "latency": "latency=50%, latency=8ms",
    "energy": "energy=50%, energy=0.2J, energy=5mJ",
}
_BUDGET = r"\s*(?P<cost>\w+)\s*=\s*(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(?P<unit>[A-Za-zµ%]*)\s*"


@dataclass(frozen=True)
class BudgetText:
    """A budget as it is written: a fraction of the dense model's cost, or a limit in the cost's own unit.

    Attributes:
        cost: which cost. fraction: of the dense model, in (0, 1], or None. limit: parameters, MACs, bytes,
            seconds or joules, or None. text: as it was written.
    """

    cost: str
    fraction: float | None
    limit: float | None
    text: str


@dataclass(frozen=True)
class RecoverText:
    """A stage of recovery as it is written.

    Attributes:
        name: a public name, or ``module:name``. args: keyword arguments. call: a single positional argument,
            such as the training function of ``finetune``.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    call: str | None = None

    def written(self) -> str | dict[str, Any]:
        """As it stands in a run file."""
        if self.call is not None:
            return {self.name: self.call}
        return {self.name: dict(self.args)} if self.args else self.name


def parse_budget(text: str) -> BudgetText:
    """Read a budget: ``latency=50%``, ``latency=8ms``, ``params=10M``, ``macs=300M``, ``nbytes=4MB``, ``energy=5mJ``.

    ``MB`` is 10^6 bytes, ``MiB`` 2^20, ``mJ`` millijoules. The case of a unit does not matter.

    Raises:
        ArgumentError: the cost or the unit is unknown, or the number is not positive; says the nearest.

    Example:
        >>> parse_budget("latency=50%").fraction
        0.5
        >>> parse_budget("nbytes=4MB").limit
        4000000.0
    """
    match = re.fullmatch(_BUDGET, text)
    if match is None:
        raise ArgumentError(f"budget {text!r} is not COST=LIMIT, such as latency=50%, latency=8ms or params=10M")
    cost, number, unit = match["cost"], float(match["number"]), match["unit"]
    if cost not in get_args(CostName):
        raise ArgumentError(f"budget {text!r}: no cost is called {cost!r}: {nearest(cost, get_args(CostName))}")
    if unit == "%":
        if not 0 < number <= 100:
            raise ArgumentError(f"budget {text!r}: a share of the dense model is more than 0 % and at most 100 %")
        return BudgetText(cost, number / 100, None, text)
    scale = _UNITS[cost].get(unit.lower())
    if scale is None:
        what = f"has no unit {unit!r}" if unit else "needs a unit, or %"
        raise ArgumentError(f"budget {text!r}: {cost} {what}; write {_WRITTEN[cost]}")
    if not 0 < number * scale < float("inf"):
        raise ArgumentError(f"budget {text!r}: the limit must be positive and finite")
    return BudgetText(cost, None, number * scale, text)


def parse_recover(text: str) -> RecoverText:
    """Read a stage of recovery from the command line.

    ``refit``; ``distill:steps=500,lr=5e-4`` (arguments as in YAML, lists in brackets);
    ``finetune=module:function``.

    Raises:
        ArgumentError: it is none of these.

    Example:
        >>> parse_recover("distill:steps=500,lr=5e-4").args
        {'steps': 500, 'lr': 0.0005}
        >>> parse_recover("finetune=mine:train").call
        'mine:train'
    """
    match = re.fullmatch(r"(\w+)(?:([:=])(.*))?", text, re.DOTALL)
    if match is None:
        raise ArgumentError(
            f"recovery {text!r}: write refit, distill:steps=500,lr=5e-4, finetune=module:function or module:name"
        )
    name, separator, rest = match.groups()
    if separator == "=":
        return RecoverText(name, call=rest)
    if separator is None:
        return RecoverText(name)
    if "=" not in rest:
        return RecoverText(text)  # module:name
    args = {}
    for part in re.split(r",(?![^\[]*\])", rest):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ArgumentError(f"recovery {text!r}: {part.strip()!r} is not argument=value")
        args[key.strip()] = _yaml(value, f"recovery {text!r}")
    return RecoverText(name, args)


def _budget(value: Any) -> Any:
    if isinstance(value, BudgetText):
        return value
    if not isinstance(value, str):
        raise ValueError('a budget is written as text, such as "latency=50%"')
    try:
        return parse_budget(value)
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def _budgets(value: Any) -> Any:
    """One budget as it is; a list of several as a tuple, no cost twice."""
    if not isinstance(value, (list, tuple)):
        return _budget(value)
    found = tuple(_budget(v) for v in value)
    if not found:
        raise ValueError('give at least one budget, such as "latency=50%"')
    costs = [b.cost for b in found]
    for cost in costs:
        if costs.count(cost) > 1:
            raise ValueError(f"{cost} is limited twice; keep the lower of the two")
    return found[0] if len(found) == 1 else found


def _recover(value: Any) -> Any:
    if isinstance(value, RecoverText):
        return value
    if isinstance(value, str):
        try:
            return parse_recover(value)
        except ArgumentError as error:
            raise ValueError(str(error)) from error
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, args),) = value.items()
        if isinstance(args, str):
            return RecoverText(str(name), call=args)
        if args is None or (isinstance(args, Mapping) and all(isinstance(k, str) for k in args)):
            return RecoverText(str(name), dict(args or {}))
    raise ValueError("a recovery is a name, or one name with its arguments: {distill: {steps: 500, lr: 0.0005}}")


_ARGUMENTS = {"type": ["object", "string", "null"]}
_BUDGET_SCHEMA = {
    "type": "string",
    "pattern": r"^\s*(params|macs|nbytes|latency|energy)\s*=",
    "examples": ["latency=50%"],
}
Budget = Annotated[
    BudgetText | tuple[BudgetText, ...],
    BeforeValidator(_budgets),
    PlainSerializer(lambda b: b.text if isinstance(b, BudgetText) else [t.text for t in b]),
    WithJsonSchema({"anyOf": [_BUDGET_SCHEMA, {"type": "array", "minItems": 1, "items": _BUDGET_SCHEMA}]}),
]
Recover = Annotated[
    RecoverText,
    BeforeValidator(_recover),
    PlainSerializer(lambda r: r.written()),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": _ARGUMENTS,
                },
            ],
            "examples": [{"distill": {"steps": 500, "lr": 0.0005}}],
        }
    ),
]
Checked = TypeVar("Checked", bound=BaseModel)
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Cutting(BaseModel):
    """What the run files of all commands that cut units share."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="secateur run file")

    model: str = Field(description="module:factory, a Hugging Face model folder, or a folder that secateur wrote")
    data: str | None = Field(None, description="module:callable, or a .npy, .npz or .safetensors file")
    batch_size: Positive = Field(32, description="items in a batch, where data is a file")
    example: str | None = Field(
        None,
        description="a shape such as 1x3x224x224, or module:callable; the first item of data unless given",
    )
    criterion: str = Field("magnitude", description="how important each unit is")
    allocation: str = Field("global", description="how much goes where")
    normalization: str = Field("by_mean", description="how scores of different groups are made comparable")
    target: str | None = Field(None, description="the runtime on which latency is measured")
    threads: Positive = Field(1, description="threads of the target")
    multiple: Positive = Field(1, description="kept counts are multiples of this")
    by_kind: dict[Kind, Positive] = Field({}, description="kind of unit -> multiple, over multiple")
    minimum: Positive = Field(1, description="fewest units kept in any group")
    max_sparsity: Share = Field(1.0, description="largest fraction removed from any one group")
    per_group: dict[str, Share] = Field({}, description="group name or glob -> largest fraction removed there")
    ignore: list[str] = Field([], description="globs over parameters, modules or groups that stay whole")
    recover: list[Recover] = Field([], description="stages of recovery, in order")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of everything that is drawn")
    out: str | None = Field(None, description="folder for the result")

    def arguments(self) -> dict[str, Any]:
        """As plain data: what a run file with the same meaning holds."""
        return self.model_dump(mode="json", by_alias=True)


class RunFile(Cutting):
    """The arguments of ``secateur prune``; names are secateur's public names, or ``module:name``."""

    budget: Budget = Field(
        description="COST=LIMIT: latency=50%, latency=8ms, params=10M, macs=300M, nbytes=4MB; or a list of several"
    )
    energy: bool = Field(False, description="report joules a run on the target")
    watts: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="power drawn while it runs, an estimate for where no counter can be read"
    )
    country: str | None = Field(None, description="ISO code of three letters: report the CO2 of a million inferences")
    price_per_hour: Price | None = Field(None, description="of the machine: report the price of a million inferences")
    price_per_kwh: Price | None = Field(None, description="of electricity, for the same")

    @model_validator(mode="after")
    def _latency_needs_target(self) -> Self:
        if any(b.cost == "latency" for b in self._budgets()) and self.target is None:
            raise ValueError("a latency budget is measured on a target: say which, such as target: onnxruntime")
        return self

    @model_validator(mode="after")
    def _energy_needs_target(self) -> Self:
        asked = [k for k in ("watts", "country", "price_per_hour", "price_per_kwh") if getattr(self, k) is not None]
        asked = (
            ["an energy budget"] * any(b.cost == "energy" for b in self._budgets()) + ["energy"] * self.energy + asked
        )
        if asked and self.target is None:
            raise ValueError(f"{asked[0]} needs a target to run on: say which, such as target: onnxruntime")
        return self

    def _budgets(self) -> tuple[BudgetText, ...]:
        return (self.budget,) if isinstance(self.budget, BudgetText) else self.budget


def read_run_file(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML run file; `check_arguments` makes a `RunFile` of them.

    Raises:
        ArgumentError: no such file, not YAML, a key twice, or not a mapping.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"run file {path} cannot be read: {error}") from error
    value = _yaml(text, f"run file {path}")
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise ArgumentError(f"run file {path} must hold arguments as `name: value` lines; `secateur schema` says which")
    return value


def check_arguments(arguments: Mapping[str, Any], where: str = "arguments") -> RunFile:
    """The checked arguments.

    Raises:
        ArgumentError: a key is unknown (says the nearest) or missing, or a value is not valid.

    Example:
        >>> check_arguments({"model": "nets:cnn", "budget": "params=50%"}).criterion
        'magnitude'
        >>> check_arguments({"model": "nets:cnn", "budjet": "params=50%"})
        Traceback (most recent call last):
        ...
        secateur.errors.ArgumentError: arguments: unknown key 'budjet': did you mean 'budget'?
    """
    return checked(RunFile, arguments, where)


def checked(kind: type[Checked], arguments: Mapping[str, Any], where: str) -> Checked:
    """The arguments as a record of that kind.

    Raises:
        ArgumentError: as `check_arguments` does.
    """
    try:
        return kind.model_validate(dict(arguments))
    except ValidationError as error:
        raise ArgumentError(_in_words(error, where, kind)) from error


def load_run_file(path: str | Path) -> RunFile:
    """Read and check a YAML run file.

    Raises:
        ArgumentError: as `read_run_file` and `check_arguments` do.
    """
    return check_arguments(read_run_file(path), f"run file {path}")


def schema(kind: type[BaseModel] = RunFile) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a run file, for editors and checks.

    Example:
        >>> schema()["required"]
        ['model', 'budget']
    """
    found = kind.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _in_words(error: ValidationError, where: str, kind: type[BaseModel]) -> str:
    """The first error, unknown keys before all others: they often cause the rest."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    path = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {path!r}: {nearest(path, kind.model_fields)}"
    if first["type"] == "missing":
        return f"{where}: {path} is missing: {kind.model_fields[path].description}"
    message = first["msg"].removeprefix("Value error, ")
    if not path or message.startswith((f"{path} ", "recovery ")):
        return f"{where}: {message}"
    return f"{where}: {path}: {message} (given: {first['input']!r})"


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 5e-4 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; `yaml` itself silently takes the last of equal keys."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ArgumentError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
