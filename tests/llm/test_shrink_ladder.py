"""Orders and nested errors of units against least squares and the papers' loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shrinking import gpt2, llama, texts

import secateur as sc
from secateur.llm.shrink.ladder import counts, fluctuation, ladder, nested_errors
from secateur.llm.shrink.units import families, kept_columns
from secateur.score.calibrate import moments
from secateur.score.obs import damped


def weight_and_inputs(
    outputs: int = 5, d: int = 12, rows: int = 40, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g).double()
    return torch.randn(outputs, d, generator=g).double(), torch.randn(rows, d, generator=g).double() @ mix


@pytest.mark.parametrize("width", [1, 3])
def test_nested_errors_are_those_of_least_squares(width: int) -> None:
    w, x = weight_and_inputs()
    second = damped(x.T @ x / len(x), 1e-2)
    units = np.random.default_rng(0).permutation(12).reshape(-1, width)
    found = nested_errors(w, x.T @ x / len(x), units, 1e-2)
    for n in range(len(units) + 1):
        kept = torch.from_numpy(units[:n].reshape(-1))
        fitted = torch.zeros_like(w)
        if n:
            fitted[:, kept] = torch.linalg.solve(second[kept][:, kept], (w @ second[:, kept]).T).T
        change = w - fitted
        assert found[n] == pytest.approx(float(((change @ second) * change).sum()), rel=1e-9, abs=1e-9)


def test_errors_without_refit_are_those_of_the_removed_columns() -> None:
    w, x = weight_and_inputs()
    second = x.T @ x / len(x)
    units = np.random.default_rng(1).permutation(12)[:, None]
    found = nested_errors(w, second, units, None)
    for n in range(13):
        gone = torch.from_numpy(units[n:].reshape(-1))
        assert found[n] == pytest.approx(float((x[:, gone] @ w[:, gone].T).square().sum()) / len(x), rel=1e-9, abs=1e-9)


def test_the_obs_score_is_the_rise_of_the_least_squares_loss() -> None:
    w, x = weight_and_inputs(d=8)
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(8, 5, bias=False)).double()
    net[1].weight.data.copy_(w)
    second = x.T @ x / len(x)
    energy = float(((w @ second) * w).sum())
    from secateur.score.obs import Consumer, removal_order

    scores = removal_order([Consumer(w, second, torch.arange(8)[:, None], 1 / energy)], damping=1e-2, chunk=100)
    order = np.argsort(-scores, kind="stable")
    errors = nested_errors(w, second, order[:, None], 1e-2) / energy
    rises = errors[:-1] - errors[1:]  # of the unit that is n-th in the order
    assert np.maximum.accumulate(rises[::-1]) == pytest.approx(scores[order][::-1], rel=1e-6)


def block_of(model: torch.nn.Module, path: str, kinds: tuple[str, ...]) -> tuple[torch.nn.Module, list, dict]:
    groups = sc.couple(sc.trace(model, {"input_ids": texts(2)}))
    found = families(groups, [path], kinds)
    block = model.get_submodule(path)
    given: list[dict] = []
    handle = block.register_forward_pre_hook(
        lambda m, args, kwargs: given.append({"hidden_states": args[0], **kwargs}), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=texts(), use_cache=False)
    handle.remove()
    given = [{k: v for k, v in g.items() if k != "past_key_values"} for g in given]
    return block, found, moments(block, given, [f.local for f in found])  # type: ignore[arg-type]


def test_a_kv_group_goes_with_its_query_heads() -> None:
    _, found, _ = block_of(llama(), "model.layers.0", ("head",))
    (family,) = found
    assert family.units == 2
    keep = np.array([True, False])
    columns = kept_columns(family, keep, "self_attn.o_proj.weight", 32)
    assert columns.tolist() == [True] * 16 + [False] * 16


def test_flap_scores_are_variance_times_the_squared_norm_and_constants_cost_nothing() -> None:
    block, found, seen = block_of(gpt2(), "transformer.h.1", ("neuron",))
    (family,) = found
    scores = fluctuation.score(block, family.local, seen)  # type: ignore[misc]
    m, w = seen["mlp.c_proj.weight"], block.mlp.c_proj.weight.double()  # type: ignore[union-attr, operator]
    variance = (m.second.diagonal() / m.n - (m.first / m.n) ** 2) * m.n / (m.n - 1)
    assert scores == pytest.approx((variance * w.square().sum(1)).detach().numpy(), rel=1e-6)
    m.second[3] = m.second[:, 3] = m.first * m.first[3] / m.n  # an input that never varies
    m.second[3, 3] = m.first[3] ** 2 / m.n
    assert fluctuation.score(block, family.local, seen)[3] == pytest.approx(0, abs=1e-9)  # type: ignore[misc]


def test_ladders_start_at_nothing_lost_and_never_fall() -> None:
    block, found, seen = block_of(llama(), "model.layers.1", ("head", "neuron"))
    for family in found:
        made = ladder(block, family, seen, sc.obs)
        assert made.errors[-1] == 0
        assert made.errors[0] <= 1.1  # the damping adds to it
        assert (np.diff(made.errors) <= 1e-12).all()
        assert made.keep(1).sum() == 1
        assert made.keep(1)[made.order[0]]


def test_offered_counts_are_multiples_and_all() -> None:
    assert counts(1536, 8).tolist()[:2] == [48, 96]
    assert counts(1536, 8)[-1] == 1536
    assert counts(9, 1).tolist() == list(range(1, 10))
