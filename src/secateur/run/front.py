"""One calibration, many budgets: each point solved, recovered, measured against dense, judged and kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import nn

from secateur.atomic import new_folder, write_bytes
from secateur.choose.allocate import check_limits, global_, uniform
from secateur.choose.rank import Allocation
from secateur.digest import model_hash
from secateur.errors import ArgumentError, BudgetError, PlanError
from secateur.evidence.fidelity import fidelity, held_back
from secateur.evidence.front import Front, Point, read_point, write_front, write_point
from secateur.evidence.gather import TOLERANCE, environment
from secateur.evidence.quality import Figure
from secateur.export.checkpoint import file_hash, save_weights, unsaved
from secateur.export.plans import save_plan
from secateur.graph.couple import Groups, couple
from secateur.graph.record import trace
from secateur.graph.rules import RULES, Rule
from secateur.run.folder import WORK
from secateur.run.meet import meet
from secateur.run.pipeline import Quality, Stage, carry_out, check_unchanged, figures, stats_for
from secateur.score.calibrate import quiet_eval
from secateur.score.criteria import by_mean, magnitude, random, score
from secateur.scratch import scratch
from secateur.targets.latency import Built
from secateur.targets.measure import compare, measure
from secateur.train.recovery import Recovery
from secateur.types import Artefact, Batches, Budget, Cost, Criterion, Example, Limits, Plan, Scores, Target

Recover: TypeAlias = Recovery | Sequence[Recovery] | Callable[[Batches | None, Path], Sequence[Recovery]] | None
"""Stages, or ``(data to fit on, folder of its own) -> stages``, called anew for every point."""

REPEATS = 80
"""Rounds in which a point is timed against dense."""


@dataclass(frozen=True, eq=False)
class Task:
    """One budget for one method."""

    method: str
    number: int
    fraction: float

    def place(self, folder: Path) -> Path:
        """Where its point is kept."""
        inside = folder / "points" if self.method == "plan" else folder / "baselines" / self.method
        return inside / f"{self.number:02d}"


def front(
    model: nn.Module,
    example: Example,
    *,
    cost: Cost,
    points: int = 8,
    highest: float = 0.9,
    lowest: float = 0.3,
    criterion: Criterion = magnitude,
    allocation: Allocation = global_,
    batches: Batches | None = None,
    recover: Recover = None,
    target: Target | None = None,
    seed: int = 0,
    normalize: Callable[[Scores], Scores] = by_mean,
    limits: Limits | None = None,
    ignore: Sequence[str] = (),
    rules: Mapping[str, Rule] = RULES,
    quality: Quality | None = None,
    baselines: int | None = None,
    folder: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> Front:
    """Quality against cost at many budgets, from one calibration; beside dense, uniform magnitude and random units.

    Budgets are spread evenly, as fractions of the dense cost. Each is solved (measured costs on the target, in a closed
    loop), recovered, timed against dense in one interleaved run, judged, and kept in a folder of its own as soon as it
    is done: plan, weights, figures. A budget that cannot be reached is kept as such, and the others go on. The same
    call with the same folder keeps what is done and goes on behind it; Ctrl-C leaves a front of the points done.

    Args:
        model: the dense model; it stays as it is, bit for bit.
        example: what its forward takes; latencies are measured on it.
        cost: what the budgets limit, such as ``sc.latency(model, example, sc.onnxruntime)``.
        points: how many budgets. highest, lowest: the first and the last, as fractions of dense.
        criterion, allocation, normalize, limits, ignore, rules: as for `sc.prune`.
        batches: data; without ``quality`` every fourth batch is held back and judged on.
        recover: stages for every point; or a function of the data to fit on and a folder that gives them, called for
            each point: the only way for stages to leave alone what is held back.
        target: measured on, where the cost is not measured itself.
        seed: of everything drawn.
        quality: judges each model; its first figure is drawn, higher is better. Fidelity to dense unless given. In a
            folder it is told from others by its name alone.
        baselines: at how many of the budgets; all unless given, 0 for none.
        folder: where points are kept; a temporary one unless given.
        about: what else tells this run from others, such as the settings of an allocation or a criterion, which go by
            their names alone: points of a run with another one are made again.
        tell: hears what is being done.

    Raises:
        SecateurError: says what was given, what was expected, and what to do.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> data = [torch.randn(8, 4) for _ in range(4)]
        >>> found = front(net, torch.zeros(1, 4), cost=sc.params(net), points=2, batches=data, baselines=0)
        >>> [(p.fraction, p.value, p.met) for p in found.points]
        [(0.9, 198.0, True), (0.3, 65.0, True)]
    """
    tasks = _tasks(points, highest, lowest, baselines)
    if quality is None and batches is None:
        raise ArgumentError("nothing to judge a point by: give data (batches=..., --data) or a quality function")
    fit, judged = (batches, batches) if quality is not None or batches is None else held_back(batches)
    judge = "fidelity" if quality is None else getattr(quality, "__qualname__", type(quality).__qualname__)
    if quality is None:
        assert judged is not None
        quality = fidelity(model, judged)
    work = Path(tempfile.mkdtemp(prefix="front-", dir=scratch())) if folder is None else Path(folder)
    (work / WORK).mkdir(parents=True, exist_ok=True)
    before = model_hash(model)
    tell("recording")
    groups = couple(trace(model, example), rules, ignore)
    check_limits(groups, limits or Limits())
    stages = recover if callable(recover) else lambda data, place: _as_list(recover)
    on = target or cost.target
    same = cost.build is not None and on == cost.target
    build = cost.build if same else None if on is None else Built(on, example)
    made = {"seed": seed, "model_sha256": before, "versions": environment()["versions"]}
    names = {"criterion": criterion.name, "allocation": _name(allocation), "normalization": _name(normalize)}
    settings = {
        **made, **names, "cost": cost.name, "limits": asdict(limits or Limits()), "ignore": list(ignore),
        "target": None if on is None else [on.name, on.threads], "about": dict(about or {}), "quality": judge,
        "recover": "function" if callable(recover) else [s.name for s in _as_list(recover)],
    }  # fmt: skip
    job = _Job(
        model, cost, groups, criterion, allocation, normalize, limits or Limits(), fit, stages, quality, build, seed,
        made, settings, work, tell,
    )  # fmt: skip
    facts = {**names, "seed": seed, "dense_sha256": before, "target": "" if on is None else on.name, **environment()}
    return _all_of(job, tasks, facts)


@dataclass(eq=False)
class _Job:
    """What all points share."""

    model: nn.Module
    cost: Cost
    groups: Groups
    criterion: Criterion
    allocation: Allocation
    normalize: Callable[[Scores], Scores]
    limits: Limits
    fit: Batches | None
    stages: Callable[[Batches | None, Path], Sequence[Recovery]]
    quality: Quality
    build: Callable[[nn.Module], Artefact] | None
    seed: int
    made: Mapping[str, Any]
    settings: Mapping[str, Any]
    folder: Path
    tell: Callable[[str], None]
    scores: dict[str, Scores] = field(default_factory=dict)
    dense: Point | None = None

    def key(self, task: Task) -> str:
        """Digest of all that decides a point."""
        mine = {"method": task.method, "fraction": task.fraction, **self.settings}
        return hashlib.sha256(json.dumps(mine, sort_keys=True, default=str).encode()).hexdigest()


def _tasks(points: int, highest: float, lowest: float, baselines: int | None) -> list[Task]:
    """Dense, then every budget from the first to the last, then the baselines at some of them."""
    if points < 1 or not 0 < lowest <= highest <= 1:
        raise ArgumentError(
            f"a front of {points} points from {highest:.0%} to {lowest:.0%}: give at least one point, and two shares "
            "of the dense cost, above 0 % and at most 100 %, the higher one first"
        )
    many = points if baselines is None else min(baselines, points)
    if many < 0:
        raise ArgumentError(f"baselines at {baselines} budgets: give 0 or more")
    budgets = [float(round(f, 6)) for f in np.linspace(highest, lowest, points)]
    tasks = [Task("dense", 0, 1.0), *(Task("plan", i, f) for i, f in enumerate(budgets, 1))]
    chosen = sorted({round(i) for i in np.linspace(0, points - 1, many)})
    return tasks + [Task(m, i + 1, budgets[i]) for m in ("uniform", "random") for i in chosen]


def _all_of(job: _Job, tasks: Sequence[Task], facts: Mapping[str, Any]) -> Front:
    done: list[Point] = []
    planned = sum(t.method == "plan" for t in tasks)

    def so_far() -> Front:
        plans = tuple(p for p in done if p.method == "plan")
        others = tuple(p for p in done if p.method not in ("plan", "dense"))
        whole = len(done) == len(tasks)
        return Front(job.cost.name, job.cost.unit, done[0], plans, others, planned, whole, facts, job.folder)

    _tidy(job.folder)
    try:
        for i, task in enumerate(tasks, 1):
            key, place = job.key(task), task.place(job.folder)
            found = _kept(place, key)
            if found is None:
                words = "dense" if task.method == "dense" else f"{task.method} at {task.fraction:.0%}"
                job.tell(f"{i} of {len(tasks)}: {words}")
                found = _make(job, task, key, place)
            if not done:
                write_bytes(job.folder / WORK / "begun", b"")  # from here on there is something to go on from
            job.dense = job.dense or found
            done.append(found)
            write_front(job.folder, so_far(), page=False)
    finally:
        if done:
            write_front(job.folder, so_far())
    return so_far()


def _tidy(folder: Path) -> None:
    """Take away what a killed run left half written."""
    for inside in (folder / "points", *(folder / "baselines").glob("*")):
        for path in inside.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def _kept(place: Path, key: str) -> Point | None:
    """The point that an earlier run finished, if it is the one that is wanted."""
    if not (place / "point.json").is_file():
        return None
    found = read_point(place)
    return found if found.key == key else None


def _make(job: _Job, task: Task, key: str, place: Path) -> Point:
    """Solve, recover, judge, measure, keep; all of it or nothing."""
    begun = time.perf_counter()
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)
    limit = task.fraction * job.cost.dense
    if task.method == "dense":
        return _dense(job, Point("dense", 0, 1.0, limit, key), place)
    try:
        plan = _solved(job, task)
    except (BudgetError, PlanError) as error:
        missed = Point(
            task.method, task.number, task.fraction, limit, key, why=str(error), closest=getattr(error, "closest", None)
        )
        with new_folder(place, True) as temporary:
            write_point(temporary, missed)
        return missed
    assert job.dense is not None
    work = job.folder / WORK / key[:16]
    work.mkdir(exist_ok=True)
    whole = Stage("dense", job.dense.quality, 0.0)
    small, stages = carry_out(
        job.model, plan, job.stages(job.fit, work), job.quality, job.tell, job.made["model_sha256"], whole
    )
    timing = _timing(job, small)
    sizes = _sizes(job, plan)
    measured = job.cost.measured is not None
    value = timing["ratio"] * job.cost.dense if measured and timing else float(job.cost.of(job.groups, plan.keep))
    point = Point(
        task.method, task.number, task.fraction, limit, key, value, value <= limit * (1 + TOLERANCE * measured),
        stages[-1].quality, sizes, timing,
        tuple({"name": s.name, "seconds": s.seconds, "quality": {k: f.value for k, f in s.quality.items()}}
              for s in stages),
        time.perf_counter() - begun,
    )  # fmt: skip
    point = _save(place, point, plan, small)
    shutil.rmtree(work, ignore_errors=True)
    return point


def _dense(job: _Job, point: Point, place: Path) -> Point:
    """The model as it is: its quality, and what it takes."""
    with quiet_eval(job.model):
        quality: dict[str, Figure] = figures(job.quality(job.model))
    check_unchanged(job.model, job.made["model_sha256"], "the quality function")
    if not quality:
        raise ArgumentError("the quality function gave no figure: return a number or {name: number}, higher is better")
    timing: dict[str, Any] = {}
    if job.cost.measured is not None:
        timing = {"median_s": job.cost.dense, "ratio": 1.0, "low": 1.0, "high": 1.0}
    elif job.build is not None:
        timing = {"median_s": measure([job.build(job.model)], REPEATS)[0].median, "ratio": 1.0, "low": 1.0, "high": 1.0}
    full = job.groups.all_kept()
    sizes = {"params": job.groups.params(full), "macs": job.groups.macs(full), "nbytes": job.groups.nbytes(full)}
    found = Point(
        "dense", 0, 1.0, job.cost.dense, point.key, job.cost.dense, None, quality,
        {k: float(v) for k, v in sizes.items()}, timing,
    )  # fmt: skip
    with new_folder(place, True) as temporary:
        write_point(temporary, found)
    return found


def _sizes(job: _Job, plan: Plan) -> dict[str, float]:
    g = job.groups
    return {
        "params": float(g.params(plan.keep)),
        "macs": float(g.macs(plan.keep)),
        "nbytes": float(g.nbytes(plan.keep)),
    }


def _solved(job: _Job, task: Task) -> Plan:
    """The plan of one budget, measured on the target until it holds."""
    allocation = job.allocation if task.method == "plan" else uniform
    budget = Budget.of_dense(job.cost, task.fraction)
    return meet(job.model, _scores(job, task.method), budget, allocation, job.limits, job.made, job.tell)


def _scores(job: _Job, method: str) -> Scores:
    """Scores of a method, made once; those that took data are kept on disk for a run that goes on."""
    if method not in job.scores:
        if method == "plan":
            job.scores[method] = _calibrated(job)
        else:
            job.scores[method] = score(job.model, job.groups, magnitude if method == "uniform" else random(job.seed))
    return job.scores[method]


def _calibrated(job: _Job) -> Scores:
    file = job.folder / WORK / f"scores-{job.key(Task('scores', 0, 1.0))[:16]}.safetensors"
    full = job.groups.all_kept()
    if file.is_file():
        with safe_open(str(file), "pt") as kept:
            values = {name: kept.get_tensor(name).numpy() for name in full}
            about = kept.metadata()
        return Scores(job.groups, values, about["criterion"], about["normalization"])
    job.tell("scoring")
    stats = stats_for(job.model, job.groups, job.criterion, job.fit)
    found = job.normalize(score(job.model, job.groups, job.criterion, stats))
    values = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.values.items()}
    about = {"criterion": found.criterion, "normalization": found.normalization}
    write_bytes(file, save_tensors(values, about))
    return found


def _timing(job: _Job, small: nn.Module) -> dict[str, Any]:
    """Dense and pruned in one interleaved run."""
    if job.build is None:
        return {}
    job.tell("measuring")
    whole, cut = measure([job.build(job.model), job.build(small)], REPEATS)
    versus = compare(whole, cut)
    return {
        "median_s": cut.median,
        "p95_s": cut.p95,
        "dense_s": whole.median,
        "ratio": versus.ratio,
        "low": versus.low,
        "high": versus.high,
        "spread": cut.spread,
        "rounds": versus.rounds,
        "nbytes": cut.nbytes,
        "note": cut.note,
    }


def _save(place: Path, point: Point, plan: Plan, small: nn.Module) -> Point:
    """Plan and figures; of one's own points the weights too, so that they can be taken."""
    with new_folder(place, True) as temporary:
        save_plan(temporary, plan)
        weights: dict[str, Any] = {}
        if point.method == "plan":
            file = temporary / "model.safetensors"
            shared = save_weights(small, file)
            weights = {"shared": shared, "unsaved": unsaved(small), "sha256": file_hash(file)}
        size = sum(p.stat().st_size for p in temporary.iterdir())
        kept = {f: getattr(point, f) for f in point.__dataclass_fields__} | {"weights": weights, "disk_bytes": size}
        point = Point(**kept)
        write_point(temporary, point)
    return point


def _as_list(recover: Any) -> list[Recovery]:
    return [recover] if isinstance(recover, Recovery) else list(recover or ())


def _name(value: Any) -> str:
    return str(getattr(value, "__name__", type(value).__name__))
