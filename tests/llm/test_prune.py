"""Pruning through the stream equals the plain loop over a model in memory, on every kind of model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llm.tiny_models import CONFIGS, load, make, tokens, twin, write
from secateur.choose.patterns import nm, per_row, unstructured
from secateur.errors import ArgumentError, DataError, PlanError, TraceError
from secateur.llm.allocate import measured, outliers
from secateur.llm.moments import Moments, experts_in
from secateur.llm.prune import Pruning, llm_prune, settings
from secateur.solve.admm import admm
from secateur.solve.least_squares import best_of, refit_with
from secateur.solve.scores import magnitude_mask, wanda_mask
from secateur.solve.solver import Solved, Solver
from secateur.solve.sparsegpt import sparsegpt, sparsegpt_with


def reference_sparsegpt(w: Tensor, h: Tensor, n: int, m: int, damping: float = 0.01) -> Tensor:
    """The loop of the paper's code, n:m, column by column."""
    w, h = w.double().clone(), h.double().clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * h.diagonal().mean() * torch.eye(len(h))
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    mask = torch.zeros_like(w, dtype=torch.bool)
    for j in range(w.shape[1]):
        if j % m == 0:
            score = w[:, j : j + m] ** 2 / u.diagonal()[j : j + m] ** 2
            mask[:, j : j + m] = torch.zeros_like(score, dtype=torch.bool).scatter_(
                1, score.topk(m - n, dim=1, largest=False).indices, True
            )
        q = w[:, j].masked_fill(mask[:, j], 0)
        e = (w[:, j] - q) / u[j, j]
        w[:, j:] -= e[:, None] * u[j, j:]
        w[:, j] = q
    return w


def reference_wanda(w: Tensor, h: Tensor, sparsity: float) -> Tensor:
    score = w.abs() * h.diagonal().sqrt()
    gone = score.sort(dim=1, stable=True).indices[:, : round(w.shape[1] * sparsity)]
    return w.scatter(1, gone, 0.0)


def adder(name: str, sums: dict[str, Tensor]) -> Callable[[nn.Module, Any], None]:
    def add(module: nn.Module, args: Any) -> None:
        x = args[0].reshape(-1, args[0].shape[-1]).double()
        sums[name] = sums.get(name, 0) + x.T @ x

    return add


def plain_loop(model: nn.Module, ids: Tensor, prune: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Whole model in memory; blocks in order, each fed by the pruned ones; all inputs of a block from one pass."""
    layers = model.model.layers
    for layer in layers:
        sums: dict[str, Tensor] = {}
        parts = {name: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
        handles = [part.register_forward_pre_hook(adder(name, sums)) for name, part in parts.items()]
        with torch.no_grad():
            model(input_ids=ids)
        for handle in handles:
            handle.remove()
        for name, h in sums.items():
            weight = layer.get_submodule(name).weight
            with torch.no_grad():
                weight.copy_(prune(weight, h / ids.numel()))
    return model


@pytest.mark.parametrize("kind", ["gqa", "mqa", "tied", "biases"])
def test_sparsegpt_is_the_plain_loop(kind: str, tmp_path: Path) -> None:
    dense, ids = make(kind), tokens(8, 32)
    done = llm_prune(write(dense, tmp_path / "dense"), ids, Pruning(sparsegpt, nm(2, 4)), tmp_path / "out", batch=3)
    expected = plain_loop(twin(dense), ids, lambda w, h: reference_sparsegpt(w, h, 2, 4))
    found = load(tmp_path / "out")
    for (name, mine), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine == 0, theirs == 0), name
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert done.sparsity == 0.5
    assert len(done.rows) == 3 * 7
    assert all(0 < row["error"] < 1 and row["density"] == 0.5 for row in done.rows)


def test_wanda_is_the_plain_loop_and_its_errors_are_those_of_the_outputs(tmp_path: Path) -> None:
    dense, ids = make("gqa"), tokens(8, 32)
    done = llm_prune(write(dense, tmp_path / "dense"), ids, Pruning(wanda_mask, per_row, 0.25), tmp_path / "out")
    expected = plain_loop(twin(dense), ids, lambda w, h: reference_wanda(w, h, 0.25))
    found = load(tmp_path / "out")
    for (name, mine), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    with torch.no_grad():
        x = dense.model.layers[0].input_layernorm(dense.model.embed_tokens(ids)).reshape(-1, 32)[::8]  # the sample
        before, after = (m.model.layers[0].self_attn.q_proj(x) for m in (dense, found))
        error = float((before - after).square().sum() / before.square().sum())
    assert done.rows[0]["error"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_is_half_zeros_and_runs(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    dense = make(kind, dtype)
    how = Pruning(sparsegpt, unstructured, 0.5)
    done = llm_prune(write(dense, tmp_path / "dense"), tokens(8, 32), how, tmp_path / "out")
    found = load(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in found.parameters()} == {p.dtype for p in dense.parameters()}
    zeros = sum(int((p == 0).sum()) for p in found.parameters())
    assert zeros >= sum(r["shape"][0] * r["shape"][1] - r["kept"] for r in done.rows) > 0
    pruned = {r["name"].partition("[")[0] for r in done.rows}
    blocks = {n for n, p in found.named_parameters() if p.dim() > 1 and any(c.isdigit() for c in n)}
    routers = {n for n in blocks if n.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))}
    assert pruned == blocks - routers
    for name, p in found.named_parameters():
        if name not in pruned:
            assert torch.equal(p, dense.get_parameter(name)), name
    with torch.no_grad():
        assert bool(found(input_ids=tokens()).logits.isfinite().all())


def test_what_is_written_is_what_the_next_block_sees(tmp_path: Path) -> None:
    """In bfloat16 the rounded weights are passed on: a second, dense pass over the result sees the same inputs."""
    dense, ids = make("gqa", torch.bfloat16), tokens(8, 32)
    llm_prune(write(dense, tmp_path / "dense"), ids, Pruning(sparsegpt, nm(2, 4)), tmp_path / "out")
    expected = make("gqa", torch.bfloat16)
    errors = {
        r["name"]: r["error"] for r in json.loads((tmp_path / "out" / "llm.json").read_text())["blocks"][2]["matrices"]
    }
    found = load(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        states = found(input_ids=ids, output_hidden_states=True).hidden_states[2]
        x = found.model.layers[2].input_layernorm(states)
    before = expected.model.layers[2].self_attn.q_proj.weight.float()
    after = found.model.layers[2].self_attn.q_proj.weight
    with torch.no_grad():
        error = float((x @ (before - after).T).square().sum() / (x @ before.T).square().sum())
    assert errors["model.layers.2.self_attn.q_proj.weight"] == pytest.approx(error, rel=1e-2)


def test_outliers_and_measured_allocations_meet_the_sparsity(tmp_path: Path) -> None:
    dense, ids = make("gqa"), tokens(8, 32)
    with torch.no_grad():
        dense.model.layers[1].mlp.up_proj.weight[:, :4] *= 30
    folder = write(dense, tmp_path / "dense")
    for i, allocation in enumerate((outliers(), measured())):
        done = llm_prune(
            folder, ids, Pruning(magnitude_mask, unstructured, 0.5), tmp_path / f"out{i}", allocation=allocation
        )
        assert done.sparsity == pytest.approx(0.5, abs=0.02)
        densities = [{r["density"] for r in done.rows if r["block"] == b} for b in range(3)]
        assert len({round(max(d), 2) for d in densities}) > 1
        if not i:
            assert max(densities[1]) == pytest.approx(max(max(d) for d in densities))
            assert max(max(d) for d in densities) - min(min(d) for d in densities) == pytest.approx(0.16, abs=0.01)


def test_matrices_can_be_left_out(tmp_path: Path) -> None:
    dense = make("gqa")
    how = Pruning(magnitude_mask, unstructured, 0.5, only=["*mlp*"], ignore=["*.1.mlp.up_proj*"])
    done = llm_prune(write(dense, tmp_path / "dense"), tokens(), how, tmp_path / "out")
    assert len(done.rows) == 8
    assert not any("attn" in r["name"] or "1.mlp.up" in r["name"] for r in done.rows)


def test_a_model_in_memory_is_left_as_it_was(tmp_path: Path) -> None:
    dense = make("tied")
    before = {n: t.clone() for n, t in dense.state_dict().items()}
    llm_prune(dense, tokens(), Pruning(wanda_mask, unstructured), tmp_path / "out")
    assert all(torch.equal(t, before[n]) for n, t in dense.state_dict().items())
    found = load(tmp_path / "out")
    assert float((found.model.layers[0].mlp.up_proj.weight == 0).float().mean()) == 0.5
    assert found.lm_head.weight is found.model.embed_tokens.weight


def test_towards_dense_outputs_each_matrix_sees_those_before_it_pruned(tmp_path: Path) -> None:
    """What was made up for once would be made up for again by what was fed to the block as it was."""
    dense, ids = make("gqa"), tokens(8, 32)
    llm_prune(write(dense, tmp_path / "dense"), ids, Pruning(admm, sparsity=0.6, cross=True), tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "llm.json").read_text())["blocks"][0]["matrices"]
    told = {row["name"]: row["error"] for row in rows}
    found, seen = load(tmp_path / "out", dtype=torch.float32), []
    found.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        found(input_ids=ids)
        before, after = (m.model.layers[0].mlp.down_proj.weight for m in (dense, found))
        error = float((seen[0] @ (before - after).T).square().sum() / (seen[0] @ before.T).square().sum())
    assert told["model.layers.0.mlp.down_proj.weight"] == pytest.approx(error, rel=1e-4)


def test_one_by_one_and_cross_and_held_run(tmp_path: Path) -> None:
    folder = write(make("gqa"), tmp_path / "dense")
    plain = Pruning(sparsegpt, nm(2, 4))
    for i, how in enumerate((plain, Pruning(sparsegpt, nm(2, 4), one_by_one=True, held=0.5, cross=True))):
        llm_prune(folder, tokens(8, 32), how, tmp_path / f"out{i}", batch=2)
    a, b = load(tmp_path / "out0"), load(tmp_path / "out1")
    assert not torch.equal(a.model.layers[2].mlp.up_proj.weight, b.model.layers[2].mlp.up_proj.weight)


def test_methods_of_other_settings_are_told_apart() -> None:
    for a, b in [
        (refit_with(wanda_mask, (0.01,)), refit_with(wanda_mask, (1.0,))),
        (best_of(sparsegpt_with(damping=0.1), wanda_mask), best_of(sparsegpt_with(damping=0.5), wanda_mask)),
        (measured((0.0,)), measured((0.0, 0.3, -0.3))),
    ]:
        assert settings(a) != settings(b)
        assert settings(a) == json.loads(json.dumps(settings(a)))


def test_kernels_of_convolutions_are_no_experts() -> None:
    block = nn.ModuleDict({"conv": nn.Conv1d(32, 32, 3, groups=32), "out": nn.Linear(48, 32)})
    assert experts_in(block) == set()
    block["experts"] = nn.ParameterList([torch.zeros(4, 8, 8)])
    assert experts_in(block) == {4}


class Listed(nn.Module):
    """Experts in a list, as remote code has them: one without tokens is not run, the last never has any."""

    def __init__(self, width: int, inner: int, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner, bias=False), nn.SiLU(), nn.Linear(inner, width, bias=False))
            for _ in range(experts)
        )
        with torch.no_grad():
            self.gate.bias[-1] = -1e9

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scores, out = self.gate(flat).softmax(-1), torch.zeros_like(flat)
        best = scores.argmax(-1)
        for i, expert in enumerate(self.experts):
            rows = (best == i).nonzero()[:, 0]
            if len(rows):
                out[rows] += scores[rows, i, None] * expert(flat[rows])
        return out.reshape(x.shape)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_experts_in_lists_are_all_pruned(one_by_one: bool, tmp_path: Path) -> None:
    """Reached on some batches only, or on none; the matrix used last in one batch may not be in the next."""
    model = make("gqa")
    torch.manual_seed(0)
    for layer in model.model.layers:
        layer.mlp = Listed(layer.mlp.up_proj.in_features, 24)
    text = torch.cat([tokens(1, 2), tokens(1, 2).flip(0) + 1, tokens(1, 2) + 2]) % 32
    done = llm_prune(model, text, Pruning(sparsegpt, nm(2, 4), one_by_one=one_by_one), tmp_path / "out", batch=1)
    state = load_file(tmp_path / "out" / "model.safetensors")
    for name, p in model.named_parameters():
        if ".experts." in name:
            assert int((state[name] != 0).sum()) == p.numel() // 2, name
    assert all(torch.equal(state[n], p) for n, p in model.named_parameters() if ".gate." in n)
    assert {m["name"] for m in done.rows} >= {n for n, _ in model.named_parameters() if ".experts." in n}


@pytest.mark.parametrize("held", [-0.1, 0.7, 2.0])
def test_what_is_kept_aside_is_half_at_most(held: float) -> None:
    with pytest.raises(ArgumentError, match="from 0 to 0.5"):
        Pruning(wanda_mask, held=held)


@pytest.mark.parametrize("globs", [{"only": ["*.mpl.*"]}, {"ignore": ["*.mlp.up_proj.*", "*attention*"]}])
def test_a_glob_that_means_nothing_is_refused(globs: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"'\*(\.mpl\.|attention)\*' matches no matrix; the model has \d+, such as model"
    ):
        llm_prune(make("gqa"), tokens(), Pruning(wanda_mask, **globs), tmp_path / "out")  # type: ignore[arg-type]


def test_measured_densities_go_with_solutions_towards_dense_outputs(tmp_path: Path) -> None:
    how = Pruning(admm, sparsity=0.5, cross=True)
    done = llm_prune(make("gqa"), tokens(8, 32), how, tmp_path / "out", allocation=measured((0.0, 0.1, -0.1)))
    assert done.sparsity == pytest.approx(0.5, abs=0.02)


class Shares(nn.Module):
    """Two matrices that share an input, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, apart: bool) -> Tensor:
        return self.a(x) + self.b(x.clone() if apart else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("first", [False, True])
def test_an_input_that_is_shared_on_some_batches_only_is_refused(first: bool) -> None:
    module, moments = Shares(), Moments()
    moments.add(module, lambda: module(torch.randn(4, 4), first))
    with pytest.raises(TraceError, match="share an input on some batches only"):
        moments.add(module, lambda: module(torch.randn(4, 4), not first))


def test_processes_that_met_other_experts_agree_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is dealt by position: orders that differ would have a matrix solved for another one."""
    seen = [{"q": 1, "up[0]": 1, "up[2]": 1}, {"q": 1, "up[1]": 1, "up[2]": 1}]
    orders = []
    for mine in seen:
        moments = Moments(in_dims=dict(mine))
        monkeypatch.setattr("secateur.llm.together.everyones", lambda value: seen if value in seen else [value])
        moments.grams()
        orders.append(list(moments.in_dims))
    assert orders[0] == orders[1]


def test_of_few_batches_one_is_kept_aside_and_of_one_none_can_be(tmp_path: Path) -> None:
    seen: list[bool] = []

    def look(weight: Tensor, gram: Any, pattern: Any, kept: int, alive: Any) -> Solved:
        seen.append(gram.held is not None)
        return sparsegpt(weight, gram, pattern, kept)

    how = Pruning(Solver("looks", look), held=0.1)
    llm_prune(make("gqa"), tokens(4, 32), how, tmp_path / "two", batch=2)
    assert seen
    assert all(seen)
    with pytest.raises(DataError, match="there is one: give smaller batches"):
        llm_prune(make("gqa"), tokens(4, 32), how, tmp_path / "one", batch=4)
