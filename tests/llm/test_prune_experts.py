"""Experts of a folder: the oracle is the model in memory, cut block after block."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mixtures import MAMBA, mixture, parts, texts
from torch import Tensor

import secateur as sc
from secateur.llm.experts import prune_experts_, random_experts
from secateur.llm.merging import BY_LOGITS, BY_OUTPUTS, Merge, output_likeness
from secateur.llm.prune_experts import llm_prune_experts
from secateur.llm.saved import told as held

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = ["Mixtral", "Qwen2Moe", "Qwen3Moe", "GptOss", "DeepseekV3"]


def saved(family: str, folder: Path, **sizes: Any) -> Any:
    model = mixture(family, **sizes)
    model.save_pretrained(folder)
    return model


def one_after_another(model: Any, x: Tensor, remove: int, **options: Any) -> Any:
    """Each layer is cut while the layers before it are cut already."""
    small = copy.deepcopy(model)
    for i, layer in enumerate(small.model.layers):
        given: dict[str, Any] = {}
        hook = layer.register_forward_pre_hook(
            lambda m, a, k, g=given: g.update(hidden_states=a[0], **k), with_kwargs=True
        )
        with torch.no_grad():
            small(input_ids=x)
        hook.remove()
        prune_experts_(
            layer, given, lambda layer=layer, given=given: layer(**given), remove, prefix=f"model.layers.{i}", **options
        )
    return small


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_cut_block_after_block_and_loads(family: str, tmp_path: Path) -> None:
    model, x = saved(family, tmp_path / "dense"), texts(8, 16)
    options = {"merge": BY_LOGITS} if family == "Mixtral" else {}
    found = llm_prune_experts(tmp_path / "dense", x, tmp_path / "small", 2, **options)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    expected = one_after_another(model, x, 2, **options)
    for (_, a), (_, b) in zip(parts(loaded), parts(expected), strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert p.shape[0] == 4
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=x).logits, expected(input_ids=x).logits, rtol=1e-3, atol=1e-3)
    assert loaded.generate(x[:1], max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] > x.shape[1]
    told = json.loads((tmp_path / "small" / "llm.json").read_text())
    assert [len(b["banks"]) for b in told["blocks"]] == [len(r["banks"]) for r in found.rows] == [1, 1]
    assert held(tmp_path / "small")["made"] == told["asked"]
    assert told["asked"]["criterion"] == ("reap, merged by logit_likeness" if options else "reap")


def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    saved("Qwen3Moe", tmp_path / "dense", num_hidden_layers=3)
    x = texts(8, 16)

    class Killed(BaseException):
        pass

    def kill(done: int, of: int, words: str) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        llm_prune_experts(tmp_path / "dense", x, tmp_path / "one", 3, progress=kill)
    llm_prune_experts(tmp_path / "dense", x, tmp_path / "one", 3)
    llm_prune_experts(tmp_path / "dense", x, tmp_path / "two", 3)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_killed_run_is_not_taken_up_by_another_draw_or_merge(tmp_path: Path) -> None:
    model, x = mixture("Qwen3Moe"), texts(8, 16)

    class Killed(BaseException):
        pass

    def kill(done: int, of: int, words: str) -> None:
        if done == 1:
            raise Killed

    others = ({"score": random_experts(0)}, {"score": random_experts(1)})
    merges = ({"merge": BY_OUTPUTS}, {"merge": dataclasses.replace(BY_OUTPUTS, align=True)})
    for i, (one, other) in enumerate((others, merges)):
        for _ in range(2):  # the same goes on
            with pytest.raises(Killed):
                llm_prune_experts(model, x, tmp_path / f"{i}", 3, progress=kill, **one)
        with pytest.raises(sc.ArgumentError, match="unfinished run of other arguments"):
            llm_prune_experts(model, x, tmp_path / f"{i}", 3, **other)


def test_a_convolution_is_no_bank_of_experts(tmp_path: Path) -> None:
    """A block of Mamba has a weight of three axes: it stays as it is."""
    model, x = saved("Jamba", tmp_path / "dense", **MAMBA), texts(4, 8)
    found = llm_prune_experts(tmp_path / "dense", x, tmp_path / "small", 2)
    assert [len(r["banks"]) for r in found.rows] == [0, 1]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    kept = loaded.model.layers[0].state_dict()
    assert "mamba.conv1d.weight" in kept
    assert all(torch.equal(value, kept[name]) for name, value in model.model.layers[0].state_dict().items())


def test_blocks_without_experts_stay(tmp_path: Path) -> None:
    model, x = saved("Qwen2Moe", tmp_path / "dense", mlp_only_layers=[0], num_hidden_layers=3), texts(8, 16)
    found = llm_prune_experts(tmp_path / "dense", x, tmp_path / "small", 2, score=random_experts(0))
    assert [len(r["banks"]) for r in found.rows] == [0, 1, 1]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    for p, q in zip(loaded.model.layers[0].parameters(), model.model.layers[0].parameters(), strict=True):
        assert torch.equal(p, q)
    assert found.rows[1]["banks"][0]["kept"] != found.rows[2]["banks"][0]["kept"]


def test_sets_of_experts_stay_a_matter_of_the_code(tmp_path: Path) -> None:
    """The number of sets shows in no shape: a configuration that is wrong about it must not be written."""
    sizes = dict(n_routed_experts=8, n_group=4, topk_group=2)
    model, x = mixture("DeepseekV3", **sizes), texts(2, 8)
    small = copy.deepcopy(model)
    cut = prune_experts_(small, {"input_ids": x}, lambda: small(input_ids=x), 1)
    assert [len(row["kept"]) for row in cut.rows] == [6, 6]
    assert sc.verify(model, cut.plan, small, {"input_ids": x}).ok
    with pytest.raises(sc.ArgumentError, match=r"has 4 sets of 2 experts, of which 2 are chosen .* remove 0 to 2"):
        prune_experts_(model, {"input_ids": x}, lambda: model(input_ids=x), 3)
    with pytest.raises(sc.FormatError, match="no configuration found for DeepseekV3ForCausalLM"):
        llm_prune_experts(model, x, tmp_path / "out", 1)


def test_refusals(tmp_path: Path) -> None:
    x = texts(2, 8)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
        )
    )
    with pytest.raises(sc.CoupleError, match="LlamaForCausalLM has no experts"):
        llm_prune_experts(llama, x, tmp_path / "out", 1)
    with pytest.raises(sc.ArgumentError, match=r"model.layers.0.mlp.experts has 6 experts, of which 2 .* got 5"):
        llm_prune_experts(mixture("Mixtral"), x, tmp_path / "out", 5)
    with pytest.raises(sc.ArgumentError, match=r"Merge\(output_likeness, means=True\)"):
        llm_prune_experts(mixture("Mixtral"), x, tmp_path / "more", 2, merge=Merge(output_likeness))
