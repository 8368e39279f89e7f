"""The arguments of ``secateur front`` as a run file, and the run itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

from secateur.errors import ArgumentError
from secateur.evidence.front import Front
from secateur.run import assemble
from secateur.run.folder import Folder, cleared, finished_in_place
from secateur.run.front import front
from secateur.run.job import prepared
from secateur.run.runfile import CostName, Cutting, Positive, checked
from secateur.train.recovery import Recovery
from secateur.types import Batches


def share(value: Any) -> Any:
    """A share of the dense cost: ``90%`` or ``0.9``.

    Example:
        >>> share("90%"), share(0.5), share("0.5")
        (0.9, 0.5, 0.5)
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", value)
        if match is None:
            raise ValueError("write a share of the dense cost, such as 90%")
        value = float(match[1]) / (100 if match[2] else 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError("a share of the dense cost is more than 0 % and at most 100 %")
    return float(value)


Percent = Annotated[
    float,
    BeforeValidator(share),
    PlainSerializer(lambda v: f"{100 * v:.10g}%", return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": "%"}, {"type": "number"}], "examples": ["90%"]}),
]


class FrontFile(Cutting):
    """The arguments of ``secateur front``; names are secateur's public names, or ``module:name``."""

    model_config = ConfigDict(title="secateur front run file", validate_by_alias=True, validate_by_name=False)

    points: Positive = Field(8, description="how many budgets")
    highest: Percent = Field(0.9, alias="from", description="the first budget, as a share of the dense cost")
    lowest: Percent = Field(0.3, alias="to", description="the last one")
    cost: CostName = Field("latency", description="what the budgets limit")
    baselines: Annotated[int, Field(ge=0)] | None = Field(
        None, description="at how many of the budgets uniform and random stand beside; all unless given"
    )
    quality: str | None = Field(
        None, description="module:callable, (model) -> a number or {figure: number}, higher is better"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.cost == "latency" and self.target is None:
            raise ValueError("a front over latency is measured on a target: say which, such as target: onnxruntime")
        if self.lowest > self.highest:
            raise ValueError("the budgets go from the higher share to the lower one: from: 90%, to: 30%")
        if self.quality is None and self.data is None:
            raise ValueError("nothing to judge a point by: give data, or quality: module:function")
        return self


def check_front(arguments: Mapping[str, Any], where: str = "arguments") -> FrontFile:
    """The checked arguments.

    Raises:
        ArgumentError: a key is unknown (says the nearest) or missing, or a value is not valid.

    Example:
        >>> check_front({"model": "nets:cnn", "target": "eager", "data": "x.npy", "from": "80%"}).highest
        0.8
    """
    return checked(FrontFile, arguments, where)


def execute_front(arguments: FrontFile, folder: Folder, tell: Callable[[str], None] = lambda words: None) -> Front:
    """Carry out a front in its folder and return it.

    Raises:
        SecateurError: a text names nothing, or the data or the model is refused.
    """
    quality = None if arguments.quality is None else assemble.quality(arguments.quality)
    ready = prepared(arguments, tell)
    if not folder.resumed:
        cleared(folder)
    cost = assemble.cost_of(arguments.cost, ready.model, ready.example, ready.on)

    def stages(data: Batches | None, place: Path) -> Sequence[Recovery]:
        return assemble.recoveries(arguments.recover, data, arguments.seed, place)

    found = front(
        ready.model,
        ready.example,
        cost=cost,
        points=arguments.points,
        highest=arguments.highest,
        lowest=arguments.lowest,
        criterion=ready.criterion,
        allocation=ready.allocation,
        batches=ready.calibration,
        recover=stages,
        target=ready.on,
        seed=arguments.seed,
        normalize=ready.normalize,
        limits=assemble.limits(arguments),
        ignore=tuple(arguments.ignore),
        quality=quality,
        baselines=arguments.baselines,
        folder=folder.path,
        about={k: v for k, v in arguments.arguments().items() if k != "out"},
        tell=tell,
    )
    finished_in_place(folder)
    return found


def arguments_of(folder: Path, given: Mapping[str, Any]) -> FrontFile:
    """The arguments with which a front was made.

    Raises:
        ArgumentError: the folder holds something else.
    """
    try:
        return check_front(given, str(folder))
    except ArgumentError as error:
        raise ArgumentError(f"{folder} is not a front: {error}; give the folder of `secateur front --out`") from error
