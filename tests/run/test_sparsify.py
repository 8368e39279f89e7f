"""Sparsify: exact zeros, exact counts, rounds by hand, and a report that says so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.choose.density import even, ranked
from secateur.choose.patterns import Pattern, unstructured
from secateur.digest import model_hash
from secateur.errors import ArgumentError, DataError, PlanError
from secateur.evidence.report import from_json, to_json, to_table, write_report
from secateur.run.sparsify import sparsify
from secateur.score.criteria import fpgm, magnitude
from secateur.score.weigh_flow import synflow
from secateur.types import Criterion, Weighing


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(15, 12), nn.LayerNorm(12), nn.Linear(12, 4))


def gradient_stat(model, batches, weights):
    """A stand-in that needs data: |w dL/dw| summed over batches, on the masked model."""
    found = {n: torch.zeros_like(w) for n, w in weights.items()}
    for x in batches:
        with torch.enable_grad():
            model.zero_grad()
            model(x).square().mean().backward()
        for n, w in weights.items():
            found[n] += (w.detach() * w.grad).abs()
    return found


gradients = Criterion("gradients", weights=Weighing(lambda model, weights, stats: dict(stats), gradient_stat))
signed = Criterion("signed", weights=Weighing(lambda m, ws, s: {n: w.detach() - 1 for n, w in ws.items()}))
half = Pattern("1:2", lambda shape, wanted: int(np.prod(shape)) // 2, lambda s, k, alive: pairs_of(s), 0.5)


def pairs_of(scores):
    flat = scores.reshape(-1, 2)
    return torch.stack([flat[:, 0] >= flat[:, 1], flat[:, 0] < flat[:, 1]], 1).reshape(scores.shape)


def test_a_copy_has_exact_zeros_where_the_smallest_were_and_the_rest_stays():
    model = net()
    before = model_hash(model)
    result = sparsify(model, sparsity=0.75)
    assert model_hash(model) == before
    assert list(result.masks) == ["2.weight", "4.weight"]
    for name, mask in result.masks.items():
        w, new = model.get_parameter(name).detach(), result.model.get_parameter(name).detach()
        removed = sorted(w.abs().flatten().tolist())[: round(0.75 * w.numel())]
        assert mask.sum() == w.numel() - len(removed)
        assert w[~mask].abs().max() <= max(removed)
        assert torch.equal(new[mask], w[mask])
        assert (new[~mask].view(torch.int32) == 0).all()  # to the bit: no -0.0
    assert result.report.ok


@settings(max_examples=20)
@given(st.floats(0, 0.999), st.integers(1, 5), st.sampled_from([even, ranked]))
def test_rounds_are_the_loop_by_hand(sparsity, rounds, density):
    model = net(1)
    data = [torch.randint(7, (3, 3), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = sparsify(model, iter(data), gradients, unstructured, sparsity, density, rounds=rounds)

    work = copy.deepcopy(model)
    ours = {n: p for n, p in work.named_parameters() if n in found.masks}
    alive = {n: [True] * p.numel() for n, p in ours.items()}
    for k in range(1, rounds + 1):
        scores = {n: s.flatten().tolist() for n, s in gradient_stat(work, data, ours).items()}
        part = 1 - (1 - sparsity) ** (k / rounds) if k < rounds else sparsity
        groups = [[n] for n in ours] if density is even else [list(ours)]
        for group in groups:
            places = [(n, i) for n in group for i in range(len(alive[n]))]
            keep = len(places) - round(part * len(places))
            living = sorted((p for p in places if alive[p[0]][p[1]]), key=lambda p: -scores[p[0]][p[1]])  # stable
            chosen = set(living[:keep])
            for n, i in places:
                alive[n][i] = (n, i) in chosen
        with torch.no_grad():
            for n, p in ours.items():
                p[~torch.tensor(alive[n]).reshape(p.shape)] = 0
    for n, mask in found.masks.items():
        assert mask.flatten().tolist() == alive[n]
        assert torch.equal(found.model.get_parameter(n), work.get_parameter(n))


def test_what_is_gone_is_not_chosen_again_where_scores_are_negative():
    result = sparsify(net(), criterion=signed, sparsity=0.9, density=ranked, rounds=7)
    total = sum(m.numel() for m in result.masks.values())
    assert sum(int(m.sum()) for m in result.masks.values()) == total - round(0.9 * total)
    assert "saliency kept" not in [r.what for r in result.report]  # a share of signed numbers says nothing


def test_an_untrained_network_keeps_a_weight_in_every_layer_to_the_last():
    torch.manual_seed(0)
    layers = [nn.Linear(20, 20, bias=False) for _ in range(7)]
    model = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))
    given = [torch.randn(4, 20)]
    total = 7 * 400
    result = sparsify(model, given, synflow, sparsity=1 - 60 / total, density=ranked, rounds=100)
    assert sum(int(m.sum()) for m in result.masks.values()) == 60
    assert min(int(m.sum()) for m in result.masks.values()) > 0
    once = sparsify(model, given, magnitude, sparsity=1 - 60 / total, density=ranked)
    assert sum(int(m.sum()) for m in once.masks.values()) == 60


def test_ignore_and_only_and_the_reasons_for_what_stayed_dense():
    result = sparsify(net(), ignore=["4"], sparsity=0.5)
    assert list(result.masks) == ["2.weight"]
    reasons = {d["name"]: d["reason"] for d in result.report.sections["stayed_dense"]}
    assert reasons == {
        "0.weight": "an embedding, a norm or a position",
        "2.bias": "a bias, a norm or another vector",
        "3.weight": "a bias, a norm or another vector",
        "3.bias": "a bias, a norm or another vector",
        "4.weight": "ignored: 4",
        "4.bias": "a bias, a norm or another vector",
    }
    only = sparsify(net(), only=["0"], sparsity=0.5)
    assert list(only.masks) == ["0.weight"]
    assert {d["name"]: d["reason"] for d in only.report.sections["stayed_dense"]}["2.weight"] == "not named by only"
    with pytest.raises(ArgumentError, match="matches no weight"):
        sparsify(net(), ignore=["nowhere"])


def test_the_report_says_asked_and_exact_and_survives_its_files(tmp_path):
    model = net()
    result = sparsify(model, sparsity=0.6, density=ranked, quality=lambda m: {"norm": m[2].weight.norm().item()})
    layers = result.report.sections["sparsity"]
    for layer in layers:
        w, mask = model.get_parameter(layer["weight"]).detach().abs().double(), result.masks[layer["weight"]]
        assert (layer["size"], layer["kept"]) == (w.numel(), int(mask.sum()))
        assert layer["saliency_kept"] == pytest.approx(float(w[mask].sum() / w.sum()))
    rows = {r.what: r for r in result.report}
    total = sum(x["size"] for x in layers)
    assert rows["sparsity"].pruned == pytest.approx(round(0.6 * total) / total)
    assert rows["sparsity"].asked == 0.6
    assert rows["norm"].dense == pytest.approx(model[2].weight.norm().item())
    assert rows["norm"].pruned < rows["norm"].dense
    again = from_json(to_json(result.report))
    assert again.rows == result.report.rows
    page = write_report(tmp_path, result.report).read_text()
    assert "Sparsity by weight" in page
    assert "What stayed dense, and why" in page
    assert "an embedding, a norm or a position" in page
    assert to_table(again).row_count == len(again.rows)


def test_a_pattern_with_a_sparsity_of_its_own():
    result = sparsify(net(), pattern=half, only=["4"])
    assert result.masks["4.weight"].reshape(-1, 2).sum(1).tolist() == [1] * 24
    assert result.report.ok
    with pytest.raises(ArgumentError, match=r"removes 0.5 .* sparsity=0.9 was asked"):
        sparsify(net(), pattern=half, sparsity=0.9)
    with pytest.raises(ArgumentError, match="reached in one round"):
        sparsify(net(), pattern=half, rounds=2)


def test_a_pattern_that_cannot_reach_what_was_asked_is_reported():
    stuck = Pattern(
        "all", lambda shape, wanted: int(np.prod(shape)), lambda s, k, a: torch.ones_like(s, dtype=torch.bool)
    )
    result = sparsify(net(), pattern=stuck, sparsity=0.5)
    assert not result.report.ok
    (row, *_) = result.report.rows
    assert (row.pruned, row.ok) == (0.0, False)
    assert {d["reason"] for d in result.report.sections["stayed_dense"]} >= {"all of it was chosen to stay"}


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), "0.5"])
def test_sparsities_out_of_range_are_refused(sparsity):
    with pytest.raises(ArgumentError, match="sparsity is the fraction removed"):
        sparsify(net(), sparsity=sparsity)


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="rounds"):
        sparsify(net(), rounds=0)
    with pytest.raises(ArgumentError, match="seed"):
        sparsify(net(), seed=-1)
    with pytest.raises(DataError, match="needs calibration data"):
        sparsify(net(), criterion=gradients)
    with pytest.raises(ArgumentError, match="does not score single weights"):
        sparsify(net(), criterion=fpgm)

    def spoils(model, weights, stats):
        model[3].bias.data += 1
        return {n: w.detach().abs() for n, w in weights.items()}

    with pytest.raises(DataError, match=r"the criterion wrote to 3\.bias"):
        sparsify(net(), criterion=Criterion("spoils", weights=Weighing(spoils)))


def test_shared_weights_stay_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    result = sparsify(Tied(), criterion=magnitude, sparsity=0.5)
    assert result.model.a.weight is result.model.b.weight
    assert list(result.masks) == ["a.weight"]
    assert int((result.model.b.weight == 0).sum()) == 8


def test_patterns_run_along_the_inputs_of_weights_that_lie_the_other_way() -> None:
    from transformers.pytorch_utils import Conv1D

    net = nn.Sequential(Conv1D(8, 16), nn.ReLU(), Conv1D(4, 8))  # weights (inputs, outputs)
    masks = sc.sparsify(net, pattern=sc.nm(2, 4)).masks
    assert all((m.T.reshape(-1, 4).sum(1) == 2).all() for m in masks.values())
    masks = sc.sparsify(net, [torch.randn(6, 16)], sc.wanda, sc.per_row, 0.5).masks
    assert all((m.sum(0) == m.shape[0] // 2).all() for m in masks.values())
    up = sc.sparsify(nn.ConvTranspose2d(8, 3, 3), pattern=sc.nm(2, 4)).masks["weight"]  # (8 inputs, 3 outputs, 3, 3)
    assert (up.unflatten(0, (2, 4)).sum(1) == 2).all()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.fc = nn.LayerNorm([5, 8]), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.norm(x + self.position + self.token))
        return out


def test_tokens_positions_and_norms_stay_dense() -> None:
    assert list(sc.prunable(Tokens())) == ["fc.weight"]
    assert list(sc.sparsify(Tokens(), pattern=sc.nm(2, 4)).masks) == ["fc.weight"]
    assert "position" in sc.prunable(Tokens(), only=["position", "fc"])
    with pytest.raises(ArgumentError, match=r"ignore is a list of globs, got the text 'fc': give \['fc'\]"):
        sc.prunable(Tokens(), ignore="fc")


def test_densities_that_ask_for_more_than_is_left_get_what_is_left() -> None:
    from secateur.choose.density import owl

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4))
    for rounds in (5, 20):
        result = sc.sparsify(net, density=owl(), sparsity=0.95, rounds=rounds)
        total = 64 * 64 + 64 * 4
        assert sum(int(m.sum()) for m in result.masks.values()) == total - round(0.95 * total)


def test_arguments_of_another_kind_are_named() -> None:
    net = nn.Linear(8, 8)
    for arguments, words in (
        ({"pattern": "2:4"}, "pattern is '2:4'; expected a Pattern"),
        ({"density": "erk"}, "density is 'erk'; expected a function"),
        ({"pattern": sc.nm(2, 4), "density": sc.erk}, "pattern 2:4 keeps 0.5 of every weight: leave density out"),
    ):
        with pytest.raises(ArgumentError, match=words):
            sc.sparsify(net, **arguments)
    with pytest.raises(PlanError, match="the densities gave None; expected a whole number for each"):
        sc.sparsify(net, density=lambda saliency, sparsity: None)  # type: ignore[arg-type,return-value]


def test_float64_weights_are_ranked_as_they_are() -> None:
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data.copy_(torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64))
    assert sc.sparsify(net, sparsity=0.5).masks["weight"].tolist() == [[False, True]]
    net.weight.data.copy_(torch.tensor([[1e-300, 1e300]], dtype=torch.float64))
    assert sc.sparsify(net, sparsity=0.5).masks["weight"].tolist() == [[False, True]]


def test_buffers_of_any_type_are_compared_by_their_bits() -> None:
    net = nn.Linear(4, 4)
    net.register_buffer("small", torch.zeros(4, dtype=torch.float8_e4m3fn))
    net.register_buffer("strange", torch.tensor([float("nan"), float("inf")]))
    assert sc.sparsify(net, sparsity=0.5).report.ok
