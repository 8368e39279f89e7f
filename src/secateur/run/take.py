"""One point of a front as a model, and as an ordinary result folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from secateur.choose.budgets import parts_of
from secateur.digest import model_hash
from secateur.errors import ArgumentError, DataError, FormatError
from secateur.evidence.front import JSON_NAME, Point, read_point
from secateur.evidence.gather import report_of
from secateur.export.checkpoint import file_hash, load_state_
from secateur.export.plans import load_plan
from secateur.graph.couple import couple
from secateur.graph.record import trace
from secateur.graph.surgery import apply
from secateur.run import assemble
from secateur.run.folder import RUN, WORK, Folder, read_arguments
from secateur.run.frontfile import FrontFile, arguments_of
from secateur.run.job import finish, prepared, with_command
from secateur.run.pipeline import Stage
from secateur.run.runfile import RunFile, check_arguments
from secateur.types import Plan, Report


@dataclass(frozen=True, eq=False)
class Taken:
    """One point of a front: the model with its recovered weights, the plan that cut it, its figures."""

    model: nn.Module
    plan: Plan
    point: Point


def take(folder: Path | str, number: int, model: nn.Module) -> Taken:
    """The model of one point of a front: the saved plan replayed on the dense model, then its recovered weights.

    Args:
        folder: of the front.
        number: of the point, from 1.
        model: the dense model that the front was made from; it stays as it is.

    Raises:
        ArgumentError: there is no such point, it is not done yet, or its budget could not be reached.
        DataError: the dense model is another one now.
        FormatError: a file is missing or damaged.

    Example:
        >>> import secateur as sc
        >>> from secateur.run.front import front
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> data = [torch.randn(8, 4) for _ in range(4)]
        >>> found = front(net, data[0], cost=sc.params(net), points=2, batches=data, baselines=0)
        >>> take(found.folder, 2, net).model[0].out_features
        9
    """
    place = _place(Path(folder), number)
    point = read_point(place)
    plan = load_plan(place)
    wanted, found = plan.made.get("model_sha256"), model_hash(model)
    if wanted != found:
        raise DataError(
            f"point {number} of {folder} was cut from a dense model with hash {str(wanted)[:12]}, and the one given "
            f"has {found[:12]}: its weights changed since. Load the model that the front was made from, or make it anew"
        )
    small = apply(plan, model)
    _load_weights_(small, place / "model.safetensors", point.weights)
    return Taken(small, plan, point)


def _load_weights_(small: nn.Module, file: Path, about: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise FormatError(f"{file} is missing: make the front again")
    if file_hash(file) != about.get("sha256"):
        raise FormatError(f"{file} is damaged or was replaced: its hash is not the one in point.json")
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise FormatError(f"{file} cannot be read: {error}") from error
    state |= {name: state[first] for name, first in about["shared"].items()}
    expected = {k: v.shape for k, v in small.state_dict().items()}
    wrong = sorted(set(expected) ^ set(state)) or [n for n in expected if expected[n] != state[n].shape]
    if wrong:
        raise FormatError(f"{file} does not match the model that the plan cuts: {wrong[:4]} differ")
    load_state_(small, state, about["unsaved"])


def _place(folder: Path, number: int) -> Path:
    """Where a point is kept; refuses one that is not there, and says which are."""
    try:
        front = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        planned, finished = int(front["planned"]), bool(front["finished"])
    except FileNotFoundError as error:
        raise ArgumentError(f"{folder} holds no {JSON_NAME}: give the folder of `secateur front --out`") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{folder / JSON_NAME} is damaged: {error!r}; give the same `secateur front` again"
        ) from error
    places = {i: folder / "points" / f"{i:02d}" for i in range(1, planned + 1)}
    made = {i: read_point(p) for i, p in places.items() if (p / "point.json").is_file()}
    there = ", ".join(str(i) for i, p in made.items() if p.done) or "none"
    if number not in places:
        raise ArgumentError(f"{folder} has no point {number}: there is {there}")
    if number not in made:
        state = "damaged" if finished else "unfinished, and the same `secateur front` goes on"
        raise ArgumentError(f"point {number} of {folder} is not there: the front is {state}; there is {there}")
    if not made[number].done:
        raise ArgumentError(f"point {number} of {folder} has no model: {made[number].why}; there is {there}")
    return places[number]


def front_arguments(folder: Path) -> FrontFile:
    """The arguments of a front, finished or not.

    Raises:
        FormatError: the folder holds none. ArgumentError: it holds something else.
    """
    where = folder if (folder / RUN).is_file() else folder / WORK
    return arguments_of(folder, read_arguments(where))


def point_arguments(folder: Path, number: int) -> RunFile:
    """The arguments with which ``secateur prune`` would go for the same budget.

    Raises:
        ArgumentError: there is no such point. FormatError: the folder is damaged.
    """
    point = read_point(_place(folder, number))
    given = front_arguments(folder).arguments()
    budget = f"{given['cost']}={100 * point.fraction:.10g}%"
    return check_arguments({k: v for k, v in given.items() if k in RunFile.model_fields} | {"budget": budget})


def execute_take(
    front: Path, number: int, folder: Folder, command: str, tell: Callable[[str], None] = lambda words: None
) -> Report:
    """Write one point of a front as a result folder, measured and verified anew, and return its report.

    Raises:
        SecateurError: as `take`, or the dense model or its data cannot be loaded any more.
    """
    arguments = check_arguments(folder.arguments)
    ready = prepared(arguments, tell)
    tell("replaying the plan")
    taken = take(front, number, ready.model)
    torch.manual_seed(arguments.seed)
    groups = couple(trace(ready.model, ready.example), ignore=tuple(arguments.ignore))
    budget = assemble.budget(arguments.budget, ready.model, ready.example, ready.on)
    tell("verifying and measuring")
    dense = read_point(front / "baselines" / "dense" / "00")
    stages = [Stage("dense", dense.quality, 0.0), Stage(f"point {number}", taken.point.quality, taken.point.seconds)]
    report = report_of(ready.model, taken.model, taken.plan, groups, ready.example, budget, ready.on, stages)
    made = {
        **report.sections["made"],
        "front": f"point {number}, {taken.point.fraction:.4g} of the dense {parts_of(budget)[0].cost.name}",
    }
    report = replace(report, sections={**report.sections, "made": made})
    return finish(ready, taken.model, taken.plan, with_command(report, command), folder, tell)
