"""The adapter to lm-eval: against a stand-in, and against lm-eval itself where it is installed."""

import importlib.util
import json
import math
import os
import sys
import types
from pathlib import Path

import pytest
import tiny_llm
import torch

from secateur.errors import ArgumentError, DataError, TargetError
from secateur.llm.harness import harness

TASK = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ITEMS = [{"question": f"w{i} w{i + 1}", "choices": ["w3", "w4 w5", "w6"], "answer": i % 3} for i in range(9)]


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "choice.yaml").write_text(TASK)
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    return tmp_path


@pytest.fixture
def stand_in(monkeypatch):
    """Modules of lm-eval that write down how they are called."""
    calls = {}
    package, models, tasks_, wrapper = (types.ModuleType(n) for n in ("lm_eval", "models", "tasks", "huggingface"))

    class Manager:
        def __init__(self, **given):
            calls["manager"] = given
            self.all_tasks = ["b", "a"]

    def simple_evaluate(**given):
        calls["evaluate"] = given | {"where": Path.cwd(), "offline": os.environ["HF_DATASETS_OFFLINE"]}
        if given["limit"] == 99:
            raise ValueError("no such split\nsecond line")
        return {
            "results": {
                "a": {"alias": "a", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 1},
                "b": {"word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
            }
        }

    package.simple_evaluate, tasks_.TaskManager = simple_evaluate, Manager
    wrapper.HFLM = lambda **given: calls.setdefault("wrapper", given)
    for name, module in (
        ("lm_eval", package), ("lm_eval.models", models), ("lm_eval.tasks", tasks_), ("lm_eval.models.huggingface", wrapper),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_what_lm_eval_is_given_and_what_comes_back(tasks, stand_in):
    before, environment = Path.cwd(), dict(os.environ)
    found = harness("model", "tokenizer", tasks, limit=2, batch=3, seed=7)
    assert found == {"a": {"acc": (0.5, 0.1), "f1 (strict)": (1.0, None)}, "b": {"word_perplexity": (12.0, None)}}
    assert stand_in["manager"] == {"include_path": str(tasks.resolve()), "include_defaults": False}
    assert stand_in["wrapper"] == {"pretrained": "model", "tokenizer": "tokenizer", "batch_size": 3}
    given = stand_in["evaluate"]
    assert given["tasks"] == ["a", "b"]
    assert given["limit"] == 2
    assert {given[k] for k in given if k.endswith("seed")} == {7}
    assert (given["where"], given["offline"]) == (tasks.resolve(), "1")
    assert Path.cwd() == before
    assert dict(os.environ) == environment


def test_a_relative_folder_is_the_one_where_the_command_was_given(tasks, stand_in, monkeypatch):
    monkeypatch.chdir(tasks.parent)
    harness("model", "tokenizer", tasks.name)
    assert stand_in["manager"]["include_path"] == str(tasks)
    assert stand_in["evaluate"]["where"] == tasks


def test_libraries_that_were_imported_before_stay_offline_too(tasks, stand_in, monkeypatch):
    constants, config = sys.modules["huggingface_hub.constants"], types.ModuleType("config")
    config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = False
    monkeypatch.setitem(sys.modules, "datasets.config", config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = []

    def simple_evaluate(**given):
        seen.append((constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE, config.HF_DATASETS_OFFLINE))
        return {"results": {}}

    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", simple_evaluate)
    harness("model", "tokenizer", tasks)
    assert seen == [(True, True, True)]
    assert (constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE, config.HF_DATASETS_OFFLINE) == (False, False, False)


def test_a_task_that_fails_says_where(tasks, stand_in):
    before = Path.cwd()
    with pytest.raises(DataError, match=r"lm-eval failed: ValueError: no such split; tasks need local data"):
        harness("model", "tokenizer", tasks, limit=99)
    assert Path.cwd() == before


def test_without_lm_eval_the_extra_is_named(tasks, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(TargetError, match=r"pip install 'secateur\[lm-eval\]'"):
        harness(None, None, tasks)


def test_a_folder_without_tasks_is_refused(tmp_path):
    for where in (tmp_path, tmp_path / "none"):
        with pytest.raises(ArgumentError, match=r"give a folder of lm-eval tasks"):
            harness(None, None, where)


@torch.no_grad()
def likeliest(net, tokenizer, item):
    """The choice whose tokens, after the question, are likeliest together."""
    sums = []
    for choice in item["choices"]:
        ids = tokenizer(f"{item['question']} {choice}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(item["question"])["input_ids"])
        logs = net(ids).logits[0].log_softmax(1)
        sums.append(sum(logs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
    return max(range(len(sums)), key=sums.__getitem__)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (the extra lm-eval)")
def test_lm_eval_itself(tasks):
    net, tokenizer = tiny_llm.llama(), tiny_llm.tokenizer()
    expected = [likeliest(net, tokenizer, item) == item["answer"] for item in ITEMS]
    value, error = harness(net, tokenizer, tasks)["choice"]["acc"]
    assert value == pytest.approx(sum(expected) / len(ITEMS))
    assert error is not None
    assert math.isfinite(error)
