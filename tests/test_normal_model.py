"""What comes out of a cut is a model like any other: saved, compiled, trained, spread out, exported, generated with."""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import secateur as sc
from normal_nets import MAKERS, llama, pruned, tokens
from secateur.calling import run, tensors_of
from secateur.export.onnx import parity

ALL = pytest.mark.parametrize("name", MAKERS)


def out(model: nn.Module, example: Any) -> Tensor:
    return tensors_of(run(model, example))[0]


def loss(model: nn.Module, example: Any) -> Tensor:
    return out(model, example).float().square().mean()


def gradients(model: nn.Module, example: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model, example).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_plan(one: sc.Plan, other: sc.Plan) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)

    masks = equal(one.axes, other.axes) and equal(one.keep, other.keep) and equal(one.renumber, other.renumber)
    return masks and (one.attributes, one.sizes, one.kinds) == (other.attributes, other.sizes, other.kinds)


@ALL
def test_names_of_the_state_stay(name: str) -> None:
    case = pruned(name)
    assert list(case.small.state_dict()) == list(case.dense.state_dict())
    assert [n for n, _ in case.small.named_modules()] == [n for n, _ in case.dense.named_modules()]
    assert sum(p.numel() for p in case.small.parameters()) < sum(p.numel() for p in case.dense.parameters())


@ALL
def test_a_deep_copy_computes_the_same(name: str) -> None:
    case = pruned(name)
    twin = copy.deepcopy(case.small)
    expected = out(case.small, case.example)
    assert torch.equal(out(twin, case.example), expected)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(out(case.small, case.example), expected)


@ALL
def test_the_state_loads_into_an_equally_cut_model(name: str, tmp_path: Path) -> None:
    case = pruned(name)
    torch.save(case.small.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(1)
    other = sc.apply(case.plan, case.make().eval())
    assert not torch.equal(out(other, case.example), out(case.small, case.example))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(out(other, case.example), out(case.small, case.example))


@ALL
def test_half_precision(name: str) -> None:
    case = pruned(name)
    expected = out(case.small, case.example).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = out(case.small, case.example)
    floats = case.example if isinstance(case.example, dict) else case.example.bfloat16()
    cast = out(copy.deepcopy(case.small).bfloat16(), floats)
    assert cast.dtype == torch.bfloat16
    for found in (mixed, cast):
        assert ((found.detach().float() - expected).abs().max() / expected.abs().max()).item() < 0.03


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@ALL
def test_it_compiles_as_the_uncut_model_does(name: str, backend: str) -> None:
    """In one graph, at this batch size and at another."""
    case = pruned(name)
    torch._dynamo.reset()
    torch.compile(case.dense, backend=backend, fullgraph=True)(**as_keywords(case))
    torch._dynamo.reset()
    compiled = torch.compile(case.small, backend=backend, fullgraph=True)
    assert torch.allclose(out(compiled, as_keywords(case)), out(case.small, case.example), atol=1e-6)
    more = {k: torch.cat([v, v, v]) for k, v in as_keywords(case).items()}  # batch sizes are symbols from here on
    assert torch.allclose(out(compiled, more), out(case.small, more), atol=1e-6)


def as_keywords(case: Any) -> dict[str, Tensor]:
    first = next(iter(inspect.signature(case.dense.forward).parameters))
    return case.example if isinstance(case.example, dict) else {first: case.example}


@ALL
def test_a_few_steps_lower_the_loss(name: str) -> None:
    case = pruned(name)
    model = copy.deepcopy(case.small).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = loss(model, case.example).item()
    for _ in range(5):
        optimizer.zero_grad()
        loss(model, case.example).backward()
        optimizer.step()
    assert loss(model, case.example).item() < before


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # its newer name is too new
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_transformers_checkpoints_its_gradients(name: str, reentrant: bool) -> None:
    case = pruned(name)
    model = copy.deepcopy(case.small).train()
    model.config.use_cache = False
    expected = gradients(model, case.example)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(model, case.example)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_whose_sizes_are_replaced(reentrant: bool) -> None:
    case = pruned("vit")
    assert case.plan.sizes  # its forward hands on sizes that no attribute holds
    model = copy.deepcopy(case.small).train()
    expected = gradients(model, case.example)
    for block in model.blocks:
        block.forward = checkpointed(block.forward, reentrant)
    found = gradients(model, case.example)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)


def checkpointed(forward: Any, reentrant: bool) -> Any:
    return lambda x: torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=reentrant)


def step_in_a_group(rank: int, name: str, folder: str) -> None:
    """One of two processes: a step on data of its own, and what the parameters are afterwards."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        case = pruned(name)
        model = DistributedDataParallel(copy.deepcopy(case.small).train())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        mine = {k: v[rank:][:1] for k, v in case.example.items()} if name == "llama" else case.example[rank:][:1]
        loss(model, mine).backward()
        optimizer.step()
        torch.save(model.module.state_dict(), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_two_processes_train_it_together(name: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(step_in_a_group, (name, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[n], other[n]) for n in one)
    start = pruned(name).small.state_dict()
    assert any(not torch.equal(one[n], start[n]) for n in one)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generating_with_a_cache_and_without(name: str) -> None:
    case = pruned(name)
    model, x = copy.deepcopy(case.small), tokens()
    with torch.no_grad():
        for p in model.parameters():  # tell the tokens apart
            p.mul_(4)
    with_cache = model.generate(**x, max_new_tokens=12, do_sample=False, use_cache=True)
    assert with_cache.shape[1] > 8
    assert len(with_cache[:, 8:].unique()) > 2
    assert torch.equal(with_cache, model.generate(**x, max_new_tokens=12, do_sample=False, use_cache=False))
    found = model(**x, use_cache=True).past_key_values
    heads = {k.shape[1] for k in (layer.keys for layer in found.layers)}
    assert heads == {1 if name == "llama" else 2}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cnn", "vit", "encoder"])
def test_it_exports_to_onnx(name: str, tmp_path: Path) -> None:
    case = pruned(name)
    file = sc.to_onnx(case.small, case.example, tmp_path / "small.onnx")
    assert file.dynamic
    assert parity(file.path, case.small, [case.example]) < 1e-5


BILLIONS = """
import json, resource, sys, time
import torch, transformers
import secateur as sc

def plan_of(config):
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    groups = sc.couple(sc.trace(model, torch.zeros(1, 16, dtype=torch.long, device="meta")))
    return model, groups, sc.random_plan(groups, 0.5, seed=0)

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
plan_of(transformers.LlamaConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
                                 intermediate_size=24, use_cache=False))  # what every process loads once
before, start = peak(), time.perf_counter()
model, groups, plan = plan_of(transformers.LlamaConfig(use_cache=False))
seconds = time.perf_counter() - start
small = sc.apply(plan, model)
print(json.dumps({
    "seconds": seconds, "grown_gb": peak() - before, "dense": groups.params(groups.all_kept()),
    "planned": groups.params(plan.keep), "built": sum(p.numel() for p in model.parameters()),
    "cut": sum(p.numel() for p in small.parameters()), "devices": sorted({p.device.type for p in small.parameters()}),
    "units": sorted({(g.kind, g.units) for g in groups}),
}))
"""


@pytest.mark.filterwarnings("ignore")
def test_seven_billion_parameters_are_planned_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BILLIONS], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n7B on meta: {found['seconds']:.1f} s, {found['grown_gb']:.2f} GB more at the peak")
    assert found["dense"] == found["built"] == 6_738_415_616
    assert found["planned"] == found["cut"] < found["dense"]
    assert found["devices"] == ["meta"]
    assert ["head", 32] in found["units"]
    assert ["neuron", 11008] in found["units"]
    assert found["grown_gb"] < 1.5


def test_a_plan_made_on_meta_is_the_plan() -> None:
    with torch.device("meta"):
        ghost = llama().eval()
    example = {k: v.to("meta") for k, v in tokens().items()}
    plan = sc.random_plan(sc.couple(sc.trace(ghost, example)), 0.5, seed=0)
    case = pruned("llama")
    assert same_plan(plan, case.plan)
    small = sc.apply(plan, case.dense)
    assert torch.equal(out(small, case.example), out(case.small, case.example))
    assert sc.verify(case.dense, plan, small, case.example).ok
