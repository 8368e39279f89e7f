"""The straight line, end to end: what goes in stays, what comes out holds, and the same command gives the same plan."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.digest import model_hash
from secateur.errors import ArgumentError, BudgetError, CoupleError, DataError, TraceError
from secateur.evidence.gather import difference
from secateur.export.plans import plan_bytes
from secateur.run.pipeline import figures
from secateur.types import Artefact, Example
from tiny import assert_same, attention, cnn, counts, draws, mlp, recount, state_of

IMAGES = draws(3, 4, 3, 8, 8)
TOKENS = draws(3, 4, 5, 16)
CRITERIA = [sc.magnitude, sc.magnitude_l1, sc.fpgm, sc.random(0), sc.taylor, sc.taylor_abs, sc.obs]


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "memory"))


def half(net: nn.Module) -> sc.Budget:
    return sc.Budget.of_dense(sc.params(net), 0.5)


def plan_of(result: sc.Result) -> bytes:
    return b"".join(plan_bytes(result.plan))


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: c.name)
@pytest.mark.parametrize("allocation", [sc.uniform, sc.global_, sc.knapsack])
def test_every_criterion_and_allocation_meets_the_budget(criterion: sc.Criterion, allocation: Any) -> None:
    net = attention()
    given: dict[str, Any] = dict(budget=half(net), criterion=criterion, allocation=allocation, batches=TOKENS)
    result = sc.prune(net, TOKENS[0], **given)
    assert recount(result.model)[0] <= 0.5 * recount(net)[0]
    assert result.report.ok
    assert type(result.model) is type(net)
    made = result.plan.made
    assert (made["criterion"], made["allocation"], made["seed"]) == (criterion.name, allocation.__name__, 0)
    assert made["model_sha256"] == model_hash(net)
    assert plan_of(result) == plan_of(sc.prune(net, TOKENS[0], **given))


def test_the_line_is_the_verbs() -> None:
    net = cnn()
    result = sc.prune(net, IMAGES[0], budget=half(net), criterion=sc.taylor, allocation=sc.knapsack, batches=IMAGES)
    torch.manual_seed(0)
    groups = sc.couple(sc.trace(net, IMAGES[0]))
    scores = sc.by_mean(sc.score(net, groups, sc.taylor, sc.calibrate(net, IMAGES, sc.taylor, groups)))
    plan = sc.allocate(scores, half(net), sc.knapsack)
    assert counts(plan) == counts(result.plan)
    assert all(np.array_equal(plan.keep[n], result.plan.keep[n]) for n in plan.keep)
    small = sc.apply(plan, net)
    with torch.no_grad():
        assert torch.equal(small(IMAGES[0]), result.model(IMAGES[0]))


def test_the_seed_decides_in_another_process_too(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import secateur as sc, hashlib; from tiny import *; from secateur.export.plans import plan_bytes\n"
        "net, data = cnn(), draws(3, 4, 3, 8, 8)\n"
        "r = sc.prune(net, data[0], budget=sc.Budget.of_dense(sc.macs(net, data[0]), 0.5), criterion=sc.taylor,\n"
        "             allocation=sc.knapsack, batches=data, seed=3)\n"
        "print(hashlib.sha256(b''.join(plan_bytes(r.plan))).hexdigest())"
    )
    here = str(Path(__file__).parent.parent)
    paths = [here, *sys.path]
    env = {"PYTHONPATH": ":".join(paths), "PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    there = subprocess.run([sys.executable, "-c", code, here], env=env, capture_output=True, text=True, check=True)
    import hashlib

    net = cnn()
    budget = sc.Budget.of_dense(sc.macs(net, IMAGES[0]), 0.5)
    given: dict[str, Any] = dict(budget=budget, criterion=sc.taylor, allocation=sc.knapsack, batches=IMAGES)
    mine = hashlib.sha256(plan_of(sc.prune(net, IMAGES[0], seed=3, **given))).hexdigest()
    assert there.stdout.strip() == mine
    assert mine != hashlib.sha256(plan_of(sc.prune(net, IMAGES[0], seed=4, **given))).hexdigest()


@pytest.mark.parametrize("training", [True, False])
def test_the_dense_model_is_left_as_it_was(training: bool) -> None:
    net = cnn().train(training)
    net[0].weight.requires_grad_(False)
    before = state_of(net)

    def quality(model: nn.Module) -> dict[str, float]:
        assert not model.training  # judged as it will run
        return {"norm": float(model(IMAGES[0]).detach().norm())}

    result = sc.prune(
        net,
        IMAGES[0],
        budget=half(net),
        criterion=sc.obs,
        batches=IMAGES,
        recover=[sc.refit(IMAGES), sc.recalibrate_bn(IMAGES), sc.distill(IMAGES, steps=3)],
        target=sc.eager,
        quality=quality,
    )
    assert_same(before, state_of(net))
    assert result.model.training == training
    assert not result.model[0].weight.requires_grad


def test_a_recovery_that_writes_to_the_dense_model_is_caught() -> None:
    net = mlp(4, 8, 2)

    def meddle(small: nn.Module, dense: nn.Module, plan: sc.Plan) -> sc.History:
        dense[0].bias.data[0] += 1  # type: ignore[index]
        return sc.History()

    with pytest.raises(DataError, match="dense model changed.*the recovery 'meddling' wrote to it"):
        sc.prune(net, torch.zeros(1, 4), budget=half(net), recover=sc.Recovery("meddling", meddle))


def test_a_quality_function_that_writes_to_the_dense_model_is_caught() -> None:
    net = mlp(4, 8, 2)

    def meddle(model: nn.Module) -> dict[str, float]:
        model[0].bias.data[0] += 1  # type: ignore[index]
        return {}

    with pytest.raises(DataError, match="dense model changed.*the quality function wrote to it"):
        sc.prune(net, torch.zeros(1, 4), budget=half(net), quality=meddle)


def test_a_recovery_that_breaks_the_cut_fails_the_report() -> None:
    net, x = mlp(4, 8, 2), torch.randn(2, 4)

    def shuffle(small: nn.Module, dense: nn.Module, plan: sc.Plan) -> sc.History:
        small[0].weight.data = small[0].weight.data.flip(0)  # type: ignore[index]
        return sc.History()

    report = sc.prune(net, x, budget=half(net), recover=sc.Recovery("shuffle", shuffle)).report
    assert not report.ok
    assert [r.what for r in report.rows if r.ok is False] == ["order follows the plan"]


@pytest.mark.parametrize("given", [0.5, torch.tensor(0.5), {"quality": 0.5}])
def test_a_plain_number_is_a_figure(given: Any) -> None:
    assert figures(given)["quality"].value == 0.5


@pytest.mark.parametrize("given", [None, "good", [1.0, 2.0], {"accuracy": None}])
def test_a_quality_function_that_gives_no_numbers_is_told(given: Any) -> None:
    with pytest.raises(ArgumentError, match="return a number or"):
        figures(given)


def test_quality_is_judged_at_every_stage() -> None:
    net, seen = mlp(4, 8, 2), []

    def quality(model: nn.Module) -> dict[str, Any]:
        seen.append(sum(p.numel() for p in model.parameters()))
        return {"n": len(seen), "with interval": sc.Figure(0.5, 0.4, 0.6, 10)}

    data = draws(2, 6, 4)
    stages = [sc.refit(data), sc.finetune(lambda model: None)]
    result = sc.prune(net, data[0], budget=half(net), recover=stages, quality=quality)
    assert [s.name for s in result.stages] == ["dense", "after cut", "after refit", "after fine-tuning"]
    assert [s.quality["n"].value for s in result.stages] == [1, 2, 3, 4]
    assert seen[0] > seen[1] == seen[2] == seen[3]
    rows = {r.what: r for r in result.report.rows}
    assert (rows["n"].dense, rows["n"].pruned, rows["n"].low) == (1, 4, None)
    assert (rows["with interval"].pruned, rows["with interval"].low, rows["with interval"].high) == (0.5, 0.4, 0.6)
    assert [s["quality"]["n"] for s in result.report.sections["stages"]] == [1, 2, 3, 4]
    assert result.stages[2].history is not None


def test_recoveries_run_in_order_on_the_cut_model() -> None:
    net, heard = mlp(4, 8, 2), []

    def stage(name: str) -> sc.Recovery:
        def run(small: nn.Module, dense: nn.Module, plan: sc.Plan) -> sc.History:
            heard.append((name, small[0].out_features < 8, dense is net))  # type: ignore[index]
            return sc.History()

        return sc.Recovery(name, run)

    told: list[str] = []
    x = torch.zeros(1, 4)
    sc.prune(net, x, budget=half(net), recover=(stage("a"), stage("b")), tell=told.append)
    assert heard == [("a", True, True), ("b", True, True)]
    assert told == ["recording", "scoring", "allocating", "a", "b", "verifying and measuring"]


def test_the_report_is_whole_and_fits_its_schema() -> None:
    net = cnn()
    result = sc.prune(net, IMAGES[0], budget=sc.Budget.of_dense(sc.macs(net, IMAGES[0]), 0.5), target=sc.eager, seed=7)
    data = sc.to_json(result.report)
    jsonschema.validate(json.loads(json.dumps(data)), sc.report_schema())
    rows = {r.what: r for r in result.report.rows}
    parameters, size = recount(net), recount(result.model)
    assert (rows["parameters"].dense, rows["parameters"].pruned) == (parameters[0], size[0])
    assert (rows["bytes of weights"].dense, rows["bytes of weights"].pruned) == (parameters[1], size[1])
    macs = rows["MACs"]
    assert (macs.asked, macs.ok) == (0.5 * macs.dense, True)  # type: ignore[operator]
    assert macs.pruned == sc.macs(result.model, IMAGES[0]).dense
    assert rows["latency median, eager"].asked is None
    assert rows["masked against shrunk, float64"].ok
    sections = result.report.sections
    assert {w["group"]: (w["before"], w["after"]) for w in sections["widths"]} == {
        n: (len(m), int(m.sum())) for n, m in result.plan.keep.items()
    }
    assert [(p["what"], p["ok"], p["limit"]) for p in sections["parity"]] == [
        ("dense, eager against torch", True, 1e-4),
        ("pruned, eager against torch", True, 1e-4),
    ]
    assert all(p["max_error"] == 0 for p in sections["parity"])
    assert sections["frozen"][0].keys() == {"name", "dim", "size", "reason", "module", "line"}
    made = sections["made"]
    assert made["hashes"] == {"dense model": model_hash(net), "pruned model": model_hash(result.model)}
    assert (made["seed"], made["versions"]["torch"]) == (7, str(torch.__version__))
    assert result.report.max_error < 1e-10


def off_by(share: float, count: int = 1) -> sc.Target:
    """A target that answers wrongly by a share of the largest output, with so many outputs."""

    def build(model: nn.Module, example: Example, threads: int) -> Artefact:
        right = sc.eager.build(model, example, threads)

        def call(other: Example) -> list[Any]:
            (y,) = right.call(other)
            return [y + share * np.abs(y).max()] * count

        return Artefact(right.run, call, target="crooked", threads=threads, batch=1)

    return sc.Target("crooked", build)


@pytest.mark.parametrize("target", [off_by(1e-2), off_by(0, 2), off_by(float("nan"))])
def test_a_target_that_disagrees_with_torch_fails_the_report(target: sc.Target) -> None:
    net = mlp(4, 8, 2)
    report = sc.prune(net, torch.randn(2, 4), budget=half(net), target=target).report
    assert not report.ok
    assert [p["ok"] for p in report.sections["parity"]] == [False, False]
    assert all(r.ok is not False for r in report.rows)


def test_half_precision_is_compared_too() -> None:
    net, x = mlp(4, 8, 2).to(torch.bfloat16), torch.randn(2, 4, dtype=torch.bfloat16)
    assert difference(net, sc.eager.build(net, x, 1), x) == 0


def test_a_latency_budget_is_met_on_the_target() -> None:
    net, x = mlp(256, 2048, 256), torch.randn(16, 256)
    budget = sc.Budget.of_dense(sc.latency(net, x, sc.eager, repeats=20), 0.6)
    result = sc.prune(net, x, budget=budget)
    row = next(r for r in result.report.rows if r.what == "latency median, eager")
    assert row.dense is not None
    assert row.asked == pytest.approx(0.6 * row.dense)  # of the dense model as timed in this very run
    assert result.plan.made["budget"] == {"cost": "latency", "fraction": 0.6}
    assert row.pruned is not None
    assert row.ok is (row.pruned <= 1.03 * row.asked)
    assert row.pruned < row.dense
    assert plan_of(result) == plan_of(sc.prune(net, x, budget=budget))


def test_the_report_measures_the_budget_on_its_own_example() -> None:
    net, one, many = mlp(4, 8, 2), torch.randn(1, 4), torch.randn(16, 4)
    cost = sc.latency(net, one, sc.onnxruntime, repeats=3)
    low = sc.Budget(
        dataclasses.replace(cost, of=lambda g, k: cost.dense * g.params(k) / 58, measured=None), cost.dense / 2
    )
    report = sc.prune(net, many, budget=low, target=sc.eager).report
    batches = {m["target"]: m["batch"] for m in report.sections["measurements"]}
    assert batches == {"onnxruntime": 1, "eager": 16}
    assert all(p["ok"] for p in report.sections["parity"])


def test_two_settings_of_one_target_are_both_measured() -> None:
    net, x = mlp(4, 8, 2), torch.randn(2, 4)
    budget = sc.Budget(sc.latency(net, x, sc.eager, repeats=3), 10.0)
    with pytest.raises(sc.PlanError, match="nothing is cut"):
        sc.prune(net, x, budget=budget)
    cost = sc.latency(net, x, sc.eager, repeats=3)
    of = sc.Budget(sc.Cost("latency", "s", 10.0, lambda g, k: 10.0 * g.params(k) / 58, target=cost.target), 5.0)
    report = sc.prune(net, x, budget=of, target=sc.with_threads(sc.eager, 2)).report
    rows = {r.what: r for r in report.rows}
    assert rows["latency median, eager, 1 threads"].asked == 5.0
    assert rows["latency median, eager, 2 threads"].asked is None
    assert [m["threads"] for m in report.sections["measurements"]] == [1, 1, 2, 2]


def test_limits_and_ignored_parts_are_respected() -> None:
    net, x = mlp(4, 16, 16, 2), torch.zeros(1, 4)
    given: dict[str, Any] = dict(budget=sc.Budget.of_dense(sc.params(net), 0.6))
    result = sc.prune(net, x, limits=sc.Limits(multiple=4), **given)
    assert all(n % 4 == 0 for n in counts(result.plan).values())
    result = sc.prune(net, x, ignore=("0",), **given)
    assert list(counts(result.plan)) == ["2:neuron"]
    assert {w["group"] for w in result.report.sections["widths"]} == {"2:neuron"}


def test_the_normalisation_counts_and_is_written_down() -> None:
    net, x = mlp(4, 16, 16, 2), torch.zeros(1, 4)
    net[0].weight.data *= 100
    raw = sc.prune(net, x, budget=half(net), normalize=sc.unnormalized)
    fair = sc.prune(net, x, budget=half(net))
    assert counts(raw.plan)["0:neuron"] == 16 > counts(fair.plan)["0:neuron"]
    assert (raw.plan.made["normalization"], fair.plan.made["normalization"]) == ("none", "mean")


class Refuses(nn.Module):
    """Everything that goes in comes out: no width is free."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


X = torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"criterion": sc.taylor}, DataError, "criterion taylor needs calibration data: give batches"),
        ({"criterion": sc.obs, "batches": []}, DataError, "calibration data is empty"),
        ({"criterion": sc.obs, "batches": [torch.full((1, 4), float("nan"))]}, DataError, "NaN or inf"),
        ({"criterion": sc.random}, ArgumentError, r"sc\.random\(seed\)"),
        ({"example": torch.zeros(1, 5)}, TraceError, r"does not run on the example.*\(1, 5\)"),
        ({"example": "words"}, TypeError, "example must be a tensor, a tuple"),
        ({"model": Refuses()}, CoupleError, "nothing in this model can be cut"),
        ({"ignore": ("*",)}, CoupleError, "is ignored on request"),
        (
            {"limits": sc.Limits(minimum=8)},
            BudgetError,
            "cannot be met: the closest reachable is .* of 58, .*. Ask for at least that",
        ),
        ({"seed": -1}, ArgumentError, "seed must be a whole number in"),
        ({"seed": 1.5}, ArgumentError, "seed must be a whole number in"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    net = mlp(4, 8, 2)
    given = {"model": net, "example": X, "budget": half(net), **change}
    before = state_of(given["model"])
    with pytest.raises(error, match=words):
        sc.prune(given.pop("model"), given.pop("example"), **given)
    assert_same(before, state_of(change.get("model", net)))


def test_weights_that_are_not_finite_are_refused() -> None:
    net = mlp(4, 8, 2)
    net[0].weight.data[0, 0] = float("nan")
    with pytest.raises(sc.PlanError, match="not finite in group 0:neuron"):
        sc.prune(net, X, budget=half(net))
