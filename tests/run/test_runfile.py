"""Run files: what is read, what is refused, and the schema."""

import json
import math

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ArgumentError
from secateur.run.runfile import (
    RunFile,
    check_arguments,
    load_run_file,
    parse_budget,
    parse_recover,
    read_run_file,
    schema,
)

FULL = """
model: nets:cnn
budget: latency=50%
target: onnxruntime
data: data:batches
example: 1x3x32x32
criterion: obs
allocation: knapsack
normalization: by_cost
threads: 2
multiple: 8
by_kind: {head: 1, neuron: 32}
minimum: 4
max_sparsity: 0.9
per_group: {"stem*": 0, "head": 0.5}
ignore: ["*.embedding"]
batch_size: 16
recover:
  - refit
  - recalibrate_bn: {}
  - distill: {steps: 500, lr: 5e-4, hidden: ["encoder.layer.*"]}
  - finetune: mine:train
seed: 3
out: pruned
"""


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "fraction", "limit"),
    [
        ("latency=50%", 0.5, None),
        ("latency=100%", 1.0, None),
        ("latency=8ms", None, 8e-3),
        ("latency=250us", None, 250e-6),
        ("latency=0.5s", None, 0.5),
        ("params=10M", None, 10e6),
        ("params=1200", None, 1200.0),
        ("macs=300M", None, 300e6),
        ("macs=1.5G", None, 1.5e9),
        ("nbytes=4MB", None, 4e6),
        ("nbytes=4MiB", None, 4 * 2**20),
        (" nbytes = 512kb ", None, 512e3),
        ("params=1e6", None, 1e6),
    ],
)
def test_budgets(text, fraction, limit):
    found = parse_budget(text)
    assert found.fraction == fraction
    assert found.limit is limit is None or math.isclose(found.limit, limit)
    assert text.strip().startswith(found.cost)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("latency", "is not COST=LIMIT"),
        ("latency=fast", "is not COST=LIMIT"),
        ("latency=-8ms", "is not COST=LIMIT"),
        ("latency=8", "latency needs a unit, or %; write latency=50%, latency=8ms"),
        ("latency=8MB", "latency has no unit 'MB'"),
        ("nbytes=4", "nbytes needs a unit"),
        ("lattency=50%", "did you mean 'latency'"),
        ("params=0%", "more than 0 % and at most 100 %"),
        ("params=101%", "more than 0 % and at most 100 %"),
        ("params=0", "must be positive"),
        ("params=1e999", "must be positive and finite"),
    ],
)
def test_budgets_refused(text, why):
    with pytest.raises(ArgumentError, match=why):
        parse_budget(text)


@given(st.text(max_size=20))
def test_any_text_is_a_budget_or_a_clear_refusal(text):
    said = ""
    try:
        found = parse_budget(text)
    except ArgumentError as error:
        said = str(error)
    assert repr(text) in said if said else (found.fraction is None) != (found.limit is None)


def test_recoveries_on_the_command_line():
    assert parse_recover("refit").written() == "refit"
    assert parse_recover("mine:stage").name == "mine:stage"
    assert parse_recover("finetune=mine:train").written() == {"finetune": "mine:train"}
    found = parse_recover("distill:steps=500,lr=5e-4,hidden=[a.*, b],dropout=true")
    assert found.args == {"steps": 500, "lr": 5e-4, "hidden": ["a.*", "b"], "dropout": True}
    for bad in ("", "a b", "distill:steps=1,lr", "distill:2x=1"):
        with pytest.raises(ArgumentError):
            parse_recover(bad)


def test_a_full_file_is_read(tmp_path):
    run = load_run_file(write(tmp_path, FULL))
    assert run.budget.fraction == 0.5
    assert run.by_kind == {"head": 1, "neuron": 32}
    assert run.per_group == {"stem*": 0.0, "head": 0.5}
    assert [r.name for r in run.recover] == ["refit", "recalibrate_bn", "distill", "finetune"]
    assert run.recover[2].args["lr"] == 5e-4
    assert run.recover[3].call == "mine:train"


def test_arguments_survive_a_round_trip_and_satisfy_the_schema(tmp_path):
    run = load_run_file(write(tmp_path, FULL))
    again = check_arguments(json.loads(json.dumps(run.arguments())))
    assert again == run
    jsonschema.validate(run.arguments(), schema())
    jsonschema.validate(yaml.safe_load(FULL), schema())


def test_the_schema_refuses_what_the_reader_refuses():
    jsonschema.Draft202012Validator.check_schema(schema())
    for bad in (
        {"model": "a:b"},
        {"model": "a:b", "budget": "size=3"},
        {"model": "a:b", "budget": "params=1", "x": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("model: a:b\nbudjet: params=50%", "unknown key 'budjet': did you mean 'budget'"),
        ("model: a:b\nbudget: params=50%\nrecover:\n - distill: 3", "a recovery is a name"),
        ("model: a:b\nbudget: params=50%\nrecover:\n - {refit: {}, distill: {}}", "a recovery is a name"),
        ("model: a:b", "budget is missing"),
        ("budget: params=50%", "model is missing"),
        ("model: a:b\nbudget: 50", "written as text"),
        ("model: a:b\nbudget: speed=50%", "no cost is called 'speed'"),
        ("model: a:b\nbudget: latency=50%", "say which, such as target: onnxruntime"),
        ("model: a:b\nbudget: params=50%\nthreads: 0", "threads: .*greater than or equal to 1"),
        ("model: a:b\nbudget: params=50%\nthreads: two", "threads"),
        ("model: a:b\nbudget: params=50%\nseed: true", "seed"),
        ("model: a:b\nbudget: params=50%\nmax_sparsity: 1.5", "max_sparsity"),
        ("model: a:b\nbudget: params=50%\nby_kind: {haed: 1}", "by_kind"),
        ("model: a:b\nmodel: c:d\nbudget: params=50%", "the key 'model' stands twice"),
        ("- model", "must hold arguments"),
        ("", "must hold arguments"),
        ("model: [", "is not YAML"),
        ("model: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("? [a]\n: b", "is not YAML|must hold arguments"),
    ],
)
def test_files_refused(tmp_path, text, why):
    path = write(tmp_path, text)
    with pytest.raises(ArgumentError, match=why) as error:
        load_run_file(path)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_run_file(tmp_path / "nosuch.yaml")


def test_every_key_is_described():
    assert all(f.description for f in RunFile.model_fields.values())


def test_several_budgets_are_a_list_and_no_cost_stands_twice():
    two = check_arguments({"model": "a:b", "budget": ["params=50%", "nbytes=4MB"]})
    assert [b.cost for b in two.budget] == ["params", "nbytes"]
    assert two.arguments()["budget"] == ["params=50%", "nbytes=4MB"]
    jsonschema.validate(two.arguments(), schema())
    assert check_arguments({"model": "a:b", "budget": ["params=50%"]}).arguments()["budget"] == "params=50%"
    for wrong, words in (
        ([], "at least one"),
        (["params=50%", "params=1M"], "limited twice"),
        (["latency=8ms", "params=1M"], "target"),
        (["size=3"], "size"),
    ):
        with pytest.raises(ArgumentError, match=words):
            check_arguments({"model": "a:b", "budget": wrong})
