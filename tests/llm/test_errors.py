"""What can be wrong with the data, the weights and the memory, and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from llm.tiny_models import load, make, tokens, write
from secateur.choose.patterns import nm, unstructured
from secateur.errors import ArgumentError, BudgetError, DataError, PlanError
from secateur.llm import memory
from secateur.llm.allocate import outliers
from secateur.llm.memory import bytes_in
from secateur.llm.prune import Pruning, llm_prune
from secateur.llm.texts import windows
from secateur.solve.scores import wanda_mask
from secateur.solve.sparsegpt import sparsegpt, sparsegpt_with

HALF = Pruning(sparsegpt, nm(2, 4))


def changed(kind: str, name: str, value: float, columns: slice = slice(None)) -> nn.Module:
    model = make(kind)
    with torch.no_grad():
        model.get_parameter(name)[..., columns] = value
    return model


@pytest.mark.parametrize("solver", [sparsegpt, wanda_mask])
def test_inputs_that_are_not_finite_are_named(solver: sc.Solver, tmp_path: Path) -> None:
    model = changed("gqa", "model.layers.1.input_layernorm.weight", float("nan"), slice(1))
    with pytest.raises(
        DataError, match=r"of the 32 inputs of model\.layers\.1\.self_attn\.q_proj\.weight are NaN or inf"
    ):
        llm_prune(model, tokens(), Pruning(solver, unstructured), tmp_path / "out")


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = changed("gqa", "model.layers.1.mlp.down_proj.weight", float("inf"), slice(1))
    with pytest.raises(DataError, match=r"mlp\.down_proj\.weight"):
        llm_prune(model, tokens(), HALF, tmp_path / "out")


def test_dead_inputs_are_pruned_first(tmp_path: Path) -> None:
    model = changed("gqa", "model.layers.1.input_layernorm.weight", 0.0, slice(4))
    llm_prune(model, tokens(8, 32), Pruning(sparsegpt, unstructured), tmp_path / "out")
    assert not bool(load(tmp_path / "out").model.layers[1].self_attn.q_proj.weight[:, :4].any())


def test_too_few_tokens_for_an_undamped_solve(tmp_path: Path) -> None:
    how = Pruning(sparsegpt_with(damping=0.0), unstructured)
    done = llm_prune(make("gqa"), tokens(1, 4), how, tmp_path / "out")  # the damping is raised, and the log says so
    assert all(0 <= row["error"] < 1 for row in done.rows)


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(DataError, match=r"3 windows of 4 tokens are 12 tokens, and .* has 10: .* \(at most 2\)"):
        windows(torch.arange(10), 3, 4)


def test_a_pattern_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: axis 1 of shape \(32, 32\)"):
        llm_prune(make("gqa"), tokens(), Pruning(sparsegpt, nm(3, 5)), tmp_path / "out")


def test_memory_for_less_than_a_block_is_refused_with_what_it_takes(tmp_path: Path) -> None:
    folder = write(make("gqa"), tmp_path / "dense")
    with pytest.raises(BudgetError, match=r"one block does not fit into 0\.00 GB: it takes .* GB \(block .*") as caught:
        llm_prune(folder, tokens(), HALF, tmp_path / "out", memory=1e6)
    needed = caught.value.closest
    assert needed is not None
    assert needed > 1e8  # Python and torch
    assert not (tmp_path / "out" / "llm.json").exists()


def test_hidden_states_go_to_disk_where_memory_is_short_and_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ids = write(make("gqa"), tmp_path / "dense"), tokens(8, 32)
    monkeypatch.setattr(memory, "resident", lambda: 0)
    plain = llm_prune(folder, ids, HALF, tmp_path / "plain", batch=1)
    with pytest.raises(BudgetError) as caught:
        llm_prune(folder, ids, HALF, tmp_path / "disk", batch=1, memory=1.0)
    assert caught.value.closest is not None
    there: list[int] = []

    def look(done: int, of: int, words: str) -> None:
        there.append(len(list((tmp_path / "disk" / ".work").glob("states-0-of-1/hidden/*/0*"))))

    disk = llm_prune(folder, ids, HALF, tmp_path / "disk", batch=1, memory=caught.value.closest, progress=look)
    assert max(there) == 8
    for name, tensor in load(disk.folder).state_dict().items():
        assert torch.equal(tensor, load(plain.folder).state_dict()[name])
        break
    a, b = load(disk.folder).state_dict(), load(plain.folder).state_dict()
    assert all(torch.equal(a[n], b[n]) for n in b)


def test_a_sparsity_that_the_pattern_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"pattern 2:4 removes 0\.5 of the weights, not 0\.7"):
        Pruning(sparsegpt, nm(2, 4), 0.7)
    with pytest.raises(ArgumentError, match="pattern 2:4 makes all blocks equally dense"):
        llm_prune(make("gqa"), tokens(), HALF, tmp_path / "out", allocation=outliers())


def test_sizes_are_read() -> None:
    assert bytes_in("8GB") == 8e9
    assert bytes_in("512 mib") == 512 * 2**20
    for wrong in ("", "8 apples", "-1GB", "GB"):
        with pytest.raises(ArgumentError, match="is no size"):
            bytes_in(wrong)


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("mine")
    with pytest.raises(ArgumentError, match=r"holds thesis\.doc, which secateur did not write"):
        llm_prune(make("gqa"), tokens(), HALF, tmp_path / "out")
    folder = write(make("gqa"), tmp_path / "dense")
    llm_prune(folder, tokens(), HALF, tmp_path / "done")
    with pytest.raises(ArgumentError, match="holds the finished result of this run"):
        llm_prune(folder, tokens(), HALF, tmp_path / "done")
    with pytest.raises(ArgumentError, match="holds a result of other arguments"):
        llm_prune(folder, tokens(seed=2), HALF, tmp_path / "done")


def test_a_sparse_folder_loads_bit_for_bit(tmp_path: Path) -> None:
    for kind in ("tied", "mixtral"):
        folder = write(make(kind, torch.bfloat16), tmp_path / kind)
        llm_prune(folder, tokens(), HALF, tmp_path / f"{kind}-plain")
        llm_prune(folder, tokens(), HALF, tmp_path / f"{kind}-sparse", packed=True)
        plain, packed = load(tmp_path / f"{kind}-plain", dtype="auto"), sc.load_sparse(tmp_path / f"{kind}-sparse")
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, packed.state_dict()[name]), name
        sizes = [
            sum(p.stat().st_size for p in (tmp_path / f"{kind}-{f}").glob("*.safetensors")) for f in ("plain", "sparse")
        ]
        assert sizes[1] < 0.9 * sizes[0]
