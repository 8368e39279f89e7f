"""Whole experts: the oracles are a router that never chooses the removed ones, and loops over tokens written plainly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from mixtures import FAMILIES, mixture, parts, texts
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import secateur as sc
from secateur.llm.experts import activation_norm, frequency, kept_experts, prune_experts_, random_experts, reap
from secateur.llm.merging import BY_LOGITS, BY_OUTPUTS, Merge, output_likeness
from secateur.llm.routing import Routing, banks_of, routing

pytestmark = pytest.mark.filterwarnings("ignore")


class Never(TorchFunctionMode):
    """The routers of a whole model give some experts a logit of minus infinity."""

    def __init__(self, removed: dict[int, list[int]]) -> None:
        super().__init__()
        self.removed = removed  # id of the router's weight -> experts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear and id(args[1]) in self.removed:
            out = out.index_fill(-1, torch.tensor(self.removed[id(args[1])], dtype=torch.long), float("-inf"))
        return out


def pruned(model: Any, x: Tensor, remove: int, **options: Any) -> tuple[Any, Any]:
    small = copy.deepcopy(model)
    return small, prune_experts_(small, {"input_ids": x}, lambda: small(input_ids=x), remove, **options)


def linear(router: nn.Module) -> nn.Parameter:
    return next(p for p in router.parameters() if p.dim() == 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_computes_as_if_the_router_never_chose_the_rest(family: str) -> None:
    model, x = mixture(family), texts()
    small, cut = pruned(model, x, 2)
    never = {}
    for row, (router, _) in zip(cut.rows, parts(model), strict=True):
        assert row["before"] == 6
        assert len(row["kept"]) == 4
        never[id(linear(router))] = sorted(set(range(6)) - set(row["kept"]))
    with torch.no_grad():
        other = texts(seed=1)
        found = small(input_ids=other).logits
        with Never(never):
            expected = model(input_ids=other).logits
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))
        assert (model(input_ids=other).logits - expected).abs().max() > 1e-2  # they were chosen before
    for router, experts in parts(small):
        assert linear(router).shape[0] == 4
        assert all(p.shape[0] == 4 for p in experts.parameters())


def swiglu(experts: nn.Module, j: int, x: Tensor) -> Tensor:
    gate, up = (experts.gate_up_proj[j] @ x).chunk(2)
    return experts.down_proj[j] @ (F.silu(gate) * up)


def plainly(router: nn.Module, experts: nn.Module, rows: Tensor, normalised: bool) -> dict[str, np.ndarray]:
    """The paper's sums, token after token."""
    n = linear(router).shape[0]
    count, score, norm = np.zeros(n), np.zeros(n), np.zeros(n)
    for x in rows:
        gates = (linear(router) @ x).softmax(0)
        chosen = gates.argsort(descending=True)[:2].tolist()
        total = sum(gates[chosen]) if normalised else 1.0
        for j in chosen:
            size = swiglu(experts, j, x).norm()
            count[j] += 1
            norm[j] += float(size)
            score[j] += float(gates[j] / total * size)
    return {"reap": score / count.clip(1), "norm": norm / count.clip(1), "count": count}


@pytest.mark.parametrize(("family", "normalised"), [("Mixtral", True), ("Qwen2Moe", False), ("Qwen3Moe", True)])
def test_scores_are_the_papers_sums_over_tokens(family: str, normalised: bool) -> None:
    model, x = mixture(family), texts()
    inputs: list[Tensor] = []
    hooks = [e.register_forward_pre_hook(lambda m, args: inputs.append(args[0])) for _, e in parts(model)]
    with torch.no_grad():
        model(input_ids=x)
    for hook in hooks:
        hook.remove()
    banks = banks_of(model, sc.couple(sc.trace(model, {"input_ids": x}), sc.EXPERT_RULES))
    seen = routing(model, banks, lambda: [model(input_ids=row[None]) for row in x])
    for bank, rows, (router, experts) in zip(banks, inputs, parts(model), strict=True):
        mine = seen[bank.group.name]
        with torch.no_grad():
            plain = plainly(router, experts, rows, normalised)
        assert mine.tokens == x.numel()
        np.testing.assert_array_equal(mine.count, plain["count"])
        np.testing.assert_allclose(reap(mine), plain["reap"], rtol=1e-4)
        np.testing.assert_allclose(activation_norm(mine), plain["norm"], rtol=1e-4)
        np.testing.assert_allclose(frequency(mine), plain["count"] / x.numel())
        worst = np.argsort(plain["reap"], kind="stable")[:3]
        assert set(np.nonzero(~kept_experts(bank, mine, 3))[0]) == set(worst)


def test_processes_add_up_what_each_of_them_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that saw the same tokens: sums double, means stay."""
    model, x = mixture("Mixtral"), texts()
    banks = banks_of(model, sc.couple(sc.trace(model, {"input_ids": x}), sc.EXPERT_RULES))
    one = routing(model, banks, lambda: model(input_ids=x), means=True, logits=True)
    monkeypatch.setattr("secateur.llm.routing.everyones", lambda value: [value, value])
    two = routing(model, banks, lambda: model(input_ids=x), means=True, logits=True)
    for name, seen in one.items():
        assert two[name].tokens == 2 * seen.tokens == 2 * x.numel()
        np.testing.assert_array_equal(two[name].count, 2 * seen.count)
        np.testing.assert_array_equal(two[name].logits, 2 * seen.logits)
        np.testing.assert_allclose(two[name].means, seen.means)
        np.testing.assert_allclose(reap(two[name]), reap(seen))


def test_an_expert_that_is_never_chosen_goes_first() -> None:
    model, x = mixture("Mixtral"), texts()
    for router, experts in parts(model):
        with torch.no_grad():
            experts.down_proj[1] = 0  # adds nothing, though it is chosen
            hidden = torch.zeros(16)
            hidden[0] = 1
            linear(router)[4] = -1e4 * hidden
    for layer in model.model.layers:
        with torch.no_grad():
            layer.post_attention_layernorm.weight[0] = 0  # the first position is constant...
        layer.post_attention_layernorm.register_forward_hook(lambda m, a, out: out + torch.eye(16)[0])  # ...and one
    for score in (reap, frequency, activation_norm):
        _, cut = pruned(model, x, 1, score=score)
        for row in cut.rows:
            assert row["routed"][4] == 0
            assert sorted(set(range(6)) - set(row["kept"])) == [4]
    _, cut = pruned(model, x, 2)
    assert all(sorted(set(range(6)) - set(row["kept"])) == [1, 4] for row in cut.rows)


def test_equal_scores_let_the_later_expert_go() -> None:
    model, x = mixture("Mixtral"), texts()
    _, cut = pruned(model, x, 2, score=lambda seen: np.zeros(6) * seen.count)
    banks = banks_of(model, sc.couple(sc.trace(model, {"input_ids": x}), sc.EXPERT_RULES))
    even = Routing("mlp.experts", 6, *(np.ones(6) for _ in range(4)))
    assert kept_experts(banks[0], even, 2).tolist() == [True] * 4 + [False] * 2
    for row in cut.rows:
        gone = set(range(6)) - set(row["kept"])
        assert max(row["routed"][j] for j in gone) <= min(row["routed"][j] for j in row["kept"])


def test_draws_differ_between_layers_and_seeds_and_repeat() -> None:
    even = [np.ones(64) for _ in range(4)]
    one, two = (Routing(f"layers.{i}.mlp.experts", 6, *even) for i in (0, 1))
    first = random_experts(0)(one)
    np.testing.assert_array_equal(first, random_experts(0)(one))
    assert not np.array_equal(first, random_experts(0)(two))
    assert not np.array_equal(first, random_experts(1)(one))


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_a_cut_model_generates_saves_and_loads(family: str, tmp_path: Path) -> None:
    model, x = mixture(family), texts()
    small, cut = pruned(model, x, 3)
    small.config.use_cache = True
    made = small.generate(x[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape[1] > x.shape[1]
    sc.save_pretrained(tmp_path / "small", small, cut.plan, {"input_ids": x})
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert 3 in (getattr(loaded.config, "num_experts", 0), getattr(loaded.config, "num_local_experts", 0))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=x).logits, small(input_ids=x).logits)
    assert torch.equal(loaded.generate(x[:1], max_new_tokens=4, do_sample=False, pad_token_id=0), made)
    sc.save(tmp_path / "any", small, cut.plan)
    with torch.no_grad():
        assert torch.equal(sc.load(tmp_path / "any")(input_ids=x).logits, small(input_ids=x).logits)


def test_a_block_by_itself_is_cut_as_in_the_whole_model() -> None:
    model, x = mixture("Qwen2Moe"), texts()
    whole, cut = pruned(model, x, 2)
    block, given = model.model.layers[0], {}
    hook = block.register_forward_pre_hook(lambda m, a, k: given.update(a=a, k=k), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=x)
    hook.remove()
    call = {"hidden_states": given["a"][0], **given["k"]}
    alone = prune_experts_(block, call, lambda: block(**call), 2, prefix="model.layers.0")
    assert alone.rows[0] == cut.rows[0]
    for a, b in zip(block.parameters(), whole.model.layers[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("remove", [-1, 5, 6])
def test_as_many_stay_as_are_chosen(remove: int) -> None:
    model, x = mixture("Mixtral"), texts()
    with pytest.raises(
        sc.ArgumentError, match=r"mlp.experts has 6 experts, of which 2 are chosen .*: remove 0 to 4 of"
    ):
        pruned(model, x, remove)
    small, _ = pruned(model, x, 4)
    assert torch.isfinite(small(input_ids=x).logits).all()


def test_refusals() -> None:
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    x = texts()
    with pytest.raises(sc.CoupleError, match="LlamaForCausalLM has no experts that can be cut"):
        pruned(llama, x, 1)
    model = mixture("Mixtral")
    with pytest.raises(sc.DataError, match=r"no calibration token came to the experts in model.layers.0.mlp.experts"):
        prune_experts_(model, {"input_ids": x}, lambda: None, 1)
    bad = mixture("Mixtral")
    with torch.no_grad():
        parts(bad)[1][1].down_proj[0, 0, 0] = float("nan")
    with pytest.raises(sc.DataError, match=r"outputs of the experts in .*layers.1.*not finite"):
        pruned(bad, x, 1)


def test_a_bank_that_is_called_in_another_way_is_refused() -> None:
    model, x = mixture("Mixtral"), texts()
    banks = banks_of(model, sc.couple(sc.trace(model, {"input_ids": x}), sc.EXPERT_RULES))
    experts = parts(model)[0][1]
    old = experts.forward
    experts.forward = lambda rows, numbers=None, gates=None: rows if gates is None else old(rows, numbers, gates**2)
    with pytest.raises(sc.CoupleError, match=r"layers.0.mlp.experts does not add its experts up by their gates"):
        routing(model, banks, lambda: model(input_ids=x))
    with pytest.raises(sc.CoupleError, match=r"is called with torch.float32 \(3, 16\), not with rows"):
        routing(model, banks, lambda: experts(torch.randn(3, 16)))


# merging


def twins(family: str = "Mixtral", **sizes: Any) -> Any:
    """Experts 2 and 5 of each layer are one, and so are their rows of the router."""
    model = mixture(family, **sizes)
    with torch.no_grad():
        for router, experts in parts(model):
            linear(router)[5] = linear(router)[2]
            for p in experts.parameters():
                p[5] = p[2]
    return model


def last_goes(seen: Routing) -> np.ndarray:
    return -np.arange(len(seen.count), dtype=float)


@pytest.mark.parametrize("merge", [BY_OUTPUTS, BY_LOGITS, Merge(output_likeness, align=True, means=True)])
def test_a_twin_is_merged_into_its_twin_without_a_change_of_weights(merge: Merge) -> None:
    model, x = twins(), texts()
    small, cut = pruned(model, x, 1, score=last_goes, merge=merge)
    for row, (_, experts), (_, before) in zip(cut.rows, parts(small), parts(model), strict=True):
        assert row["merged"] == {"5": 2}
        for p, q in zip(experts.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(p, q[:5], rtol=1e-6, atol=1e-7)


def test_merged_twins_change_nothing_for_tokens_that_choose_one_of_them_at_most() -> None:
    """With gates normalised over the chosen, and twins that the router treats alike."""
    model, x = twins(num_hidden_layers=1), texts(16)
    small, cut = pruned(model, x, 1, score=last_goes, merge=BY_OUTPUTS)
    assert cut.rows[0]["merged"] == {"5": 2}
    chosen: list[Tensor] = []
    hook = parts(model)[0][1].register_forward_pre_hook(lambda m, args: chosen.append(args[1]))
    with torch.no_grad():
        before = model(input_ids=x).logits.flatten(0, 1)
        after = small(input_ids=x).logits.flatten(0, 1)
    hook.remove()
    both = torch.isin(chosen[0], torch.tensor([2, 5])).sum(-1) == 2
    one = torch.isin(chosen[0], torch.tensor([2, 5])).sum(-1) == 1
    assert one.any()
    assert both.any()
    torch.testing.assert_close(after[~both], before[~both], rtol=1e-4, atol=1e-4)
    assert (after[both] - before[both]).abs().max() > 1e-2


def test_with_one_expert_a_token_merged_twins_change_nothing() -> None:
    model, x = twins(num_experts_per_tok=1), texts(16)
    small, _ = pruned(model, x, 1, score=last_goes, merge=BY_LOGITS)
    with torch.no_grad():
        torch.testing.assert_close(small(input_ids=x).logits, model(input_ids=x).logits, rtol=1e-4, atol=1e-4)


def test_merged_weights_are_means_by_tokens() -> None:
    model, x = mixture("Mixtral"), texts()
    small, cut = pruned(model, x, 3, merge=BY_LOGITS)
    for row, (_, after), (_, before) in zip(cut.rows, parts(small), parts(model), strict=True):
        for at, kept in enumerate(row["kept"]):
            joined = [kept, *(int(j) for j, m in row["merged"].items() if m == kept)]
            n = [row["routed"][j] for j in joined]
            for p, q in zip(after.parameters(), before.parameters(), strict=True):
                mean = sum(k * q[j] for k, j in zip(n, joined, strict=True)) / sum(n)
                torch.testing.assert_close(p[at], mean, rtol=1e-5, atol=1e-6)


def test_removed_experts_join_the_most_alike() -> None:
    model, x = mixture("Qwen2Moe"), texts()
    logits: dict[int, list[Tensor]] = {0: [], 1: []}
    outputs: dict[int, list[Tensor]] = {0: [], 1: []}
    for i, (router, experts) in enumerate(parts(model)):

        def see(m: nn.Module, args: Any, out: Any, i: int = i, experts: nn.Module = experts) -> None:
            logits[i].append(out[0])
            outputs[i].append(torch.stack([torch.stack([swiglu(experts, j, r) for r in args[0]]) for j in range(6)]))

        router.register_forward_hook(see)
    with torch.no_grad():
        model(input_ids=x)
        seen = {i: (torch.cat(logits[i]), torch.cat(outputs[i], 1)) for i in (0, 1)}
        for merge, far in (
            (BY_LOGITS, lambda i, a, b: -F.cosine_similarity(seen[i][0][:, a], seen[i][0][:, b], dim=0)),
            (BY_OUTPUTS, lambda i, a, b: (seen[i][1][a].mean(0) - seen[i][1][b].mean(0)).norm()),
        ):
            _, cut = pruned(mixture("Qwen2Moe"), x, 3, merge=merge)
            for i, row in enumerate(cut.rows):
                assert len(row["merged"]) == 3
                for j, m in row["merged"].items():
                    assert m == min(row["kept"], key=lambda k: float(far(i, int(j), k)))


def test_aligned_neurons_undo_a_permutation() -> None:
    """An expert that computes the same with its neurons in another order merges as if in the same order."""
    model, x = twins(), texts()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for _, experts in parts(model):
            experts.gate_up_proj[5] = experts.gate_up_proj[2][torch.cat([order, order + 24])]
            experts.down_proj[5] = experts.down_proj[2][:, order]
    for align in (True, False):
        small, cut = pruned(model, x, 1, score=last_goes, merge=Merge(output_likeness, align=align, means=True))
        for row, (_, after), (_, before) in zip(cut.rows, parts(small), parts(model), strict=True):
            assert row["merged"] == {"5": 2}
            assert torch.allclose(after.down_proj, before.down_proj[:5], atol=1e-6) == align
            assert torch.allclose(after.gate_up_proj, before.gate_up_proj[:5], atol=1e-6) == align
