"""Calibration statistics against sums over the data, and what bad data says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, DataError
from secateur.score.calibrate import contributions, default_loss, moments
from tiny import Attention, assert_same, attention, cnn, draws, groups_of, mlp, state_of


def inputs_of(model: nn.Module, layer: nn.Module, batches: list[Any]) -> Tensor:
    """All input rows of a layer, by a hook."""
    rows: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda m, args: rows.append(args[0].detach().clone()))
    with torch.no_grad():
        for b in batches:
            model(b)
    handle.remove()
    return torch.cat([r.reshape(-1, r.shape[-1]) for r in rows])


def test_moments_are_sums_over_all_batches() -> None:
    net, batches = attention().double(), draws(3, 2, 5, 16, dtype=torch.float64)
    found = moments(net, batches)
    for name in ("q", "k", "v", "o", "up", "down"):
        x = inputs_of(net, net.get_submodule(name), batches)
        m = found[f"{name}.weight"]
        torch.testing.assert_close(m.second, x.T @ x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(m.first, x.sum(0), rtol=1e-12, atol=1e-12)
        assert (m.n, m.bias, m.in_dim, m.taps) == (len(x), f"{name}.bias", 1, 1)


def test_shared_inputs_are_summed_once_and_never_aliased() -> None:
    found = moments(attention(), draws(2, 2, 5, 16))
    q, k = found["q.weight"], found["k.weight"]
    assert torch.equal(q.second, k.second)
    assert q.second.data_ptr() != k.second.data_ptr()


def test_the_same_tensor_written_to_in_between_is_another_input() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x += self.a(x)
            return self.b(x)

    torch.manual_seed(0)
    net, (x,) = Stream().double(), draws(1, 6, 4, dtype=torch.float64)
    after = x + net.a(x)
    found = moments(net, [x])
    torch.testing.assert_close(found["a.weight"].second, x.T @ x)
    torch.testing.assert_close(found["b.weight"].second, (after.T @ after).detach())


def test_moments_of_a_convolution_are_those_of_its_patches() -> None:
    net, batches = cnn(), draws(2, 2, 3, 8, 8)
    found = moments(net, batches)
    with torch.no_grad():
        x = torch.cat([net[:3](b) for b in batches])
    rows = F.unfold(x, 3, stride=2).transpose(1, 2).reshape(-1, 72).double()
    torch.testing.assert_close(found["3.weight"].second, rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert found["3.weight"].taps == 9


def test_only_what_the_groups_need_is_kept() -> None:
    net = mlp(4, 8, 2)
    assert set(moments(net, draws(1, 3, 4), groups_of(net, torch.zeros(1, 4)))) == {"2.weight"}


@pytest.mark.parametrize("criterion", [sc.obs, sc.taylor])
def test_the_model_is_left_as_it_was(criterion: sc.Criterion) -> None:
    net = cnn().train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = state_of(net)
    sc.calibrate(net, draws(2, 2, 3, 8, 8), criterion)
    assert_same(before, state_of(net))
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(DataError):
        sc.calibrate(net, [torch.zeros(2, 5)], criterion)
    assert_same(before, state_of(net))


@pytest.mark.parametrize("criterion", [sc.obs, sc.taylor])
@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (list, "empty: give at least one batch"),
        (lambda: iter(()), "exhausted iterator"),
        (lambda: [torch.zeros(0, 4)], r"batch 0 has an empty tensor of shape \(0, 4\)"),
        (lambda: [torch.zeros(2, 4), torch.full((2, 4), float("nan"))], "batch 1 has NaN or inf"),
        (lambda: [(torch.full((2, 4), float("inf")), torch.zeros(2))], "batch 0 has NaN or inf"),
        (lambda: [torch.zeros(2, 3)], "refuses calibration batch 0.*RuntimeError"),
        (lambda: [{"nonsense": torch.zeros(2, 4)}], "refuses calibration batch 0.*TypeError"),
        (lambda: [3], "got int"),
        (lambda: torch.zeros(2, 4), r"pass \[batch\]"),
        (lambda: {"x": 1}, r"pass \[batch\]"),
        (lambda: 7, "iterable of batches, got int"),
    ],
)
def test_bad_data_is_refused(criterion: sc.Criterion, batches: Callable[[], Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        sc.calibrate(mlp(4, 8, 2), batches(), criterion)


def test_inputs_that_overflow_inside_are_refused() -> None:
    net = mlp(4, 8, 2)
    net[0].weight.data.fill_(1e30)
    with pytest.raises(DataError, match=r"inputs of 2\.weight are not finite"):
        sc.calibrate(net, [torch.full((2, 4), 1e10)], sc.obs)


def test_no_data_is_needed_without_a_statistic() -> None:
    assert sc.calibrate(mlp(4, 8, 2), None, sc.magnitude) is None
    with pytest.raises(ArgumentError, match=r"sc\.random\(seed\)"):
        sc.calibrate(mlp(4, 8, 2), None, sc.random)  # type: ignore[arg-type]


def test_contributions_are_the_gradients_of_each_batch() -> None:
    net, data = cnn(), [(x, torch.tensor([0, 3])) for x in draws(3, 2, 3, 8, 8)]
    found = contributions(net, data, default_loss)
    for i, (x, y) in enumerate(data):
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        for (name, p), g in zip(net.named_parameters(), grads, strict=True):
            for dim in range(p.dim()):
                others = [d for d in range(p.dim()) if d != dim]
                expected = (p * g).detach().double()
                expected = expected.sum(others) if others else expected
                torch.testing.assert_close(torch.from_numpy(found.rows[name, dim][i]), expected, rtol=1e-5, atol=1e-7)


def test_unused_parameters_contribute_nothing() -> None:
    net = mlp(4, 8, 2)
    net.register_parameter("spare", nn.Parameter(torch.ones(3)))
    found = contributions(net, draws(2, 3, 4), default_loss)
    assert found.rows["spare", 0].shape == (2, 3)
    assert not found.rows["spare", 0].any()


G = torch.Generator


def test_default_loss_takes_what_the_targets_mean() -> None:
    g, (rows, tokens, pixels) = G(), (torch.randn(3, 5), torch.randn(2, 3, 5), torch.randn(2, 5, 3, 3))
    labels = lambda *shape: torch.randint(0, 5, shape)  # noqa: E731
    y = labels(3)
    assert torch.equal(default_loss(rows, y, g), F.cross_entropy(rows, y))
    assert torch.equal(default_loss(rows[:1], y[:1], g), F.cross_entropy(rows[:1], y[:1]))
    y = labels(2, 3)
    assert torch.equal(default_loss({"logits": tokens}, y, g), F.cross_entropy(tokens.flatten(0, 1), y.flatten()))
    y = labels(2, 3, 3)
    assert torch.equal(default_loss(pixels, y, g), F.cross_entropy(pixels, y))
    z = torch.randn(3)
    assert torch.equal(default_loss(rows[:, :1], z, g), F.mse_loss(rows[:, 0], z))
    own = SimpleNamespace(loss=torch.tensor(4.0), logits=rows)
    assert default_loss(own, None, g) == 4.0


@pytest.mark.parametrize(
    ("output", "targets", "words"),
    [
        (torch.zeros(3, 5), torch.zeros(4, dtype=torch.long), r"\(4,\).* do not fit the output of shape \(3, 5\)"),
        (torch.zeros(3, 5), torch.zeros(3, 4), r"\(3, 4\).* do not fit"),
        (torch.zeros(3, 5), "words", "targets str do not fit"),
        (torch.zeros(3, dtype=torch.long), None, "no floating-point tensor"),
    ],
)
def test_default_loss_refuses_what_does_not_fit(output: Tensor, targets: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        default_loss(output, targets, G())


def test_without_targets_the_term_is_the_change_of_the_outputs() -> None:
    """The mean of the squared projections of J w, over draws, is its squared length over the outputs' energy."""
    net, (x,) = mlp(4, 6, 3).double(), draws(1, 5, 4, dtype=torch.float64)
    weight = net[0].weight
    out = net(x)
    rows = [torch.autograd.grad(out.flatten()[i], weight, retain_graph=True)[0] for i in range(out.numel())]
    jacobian = torch.stack([(r * weight).sum(1) for r in rows])  # change of each output with each unit's gate
    expected = jacobian.square().sum(0) / out.square().sum()
    found = contributions(net, [x] * 1500, default_loss).rows["0.weight", 0]
    torch.testing.assert_close(torch.from_numpy((found**2).mean(0)), expected.detach(), rtol=0.15, atol=1e-4)


def test_losses_that_say_nothing_are_refused() -> None:
    net, data = mlp(4, 8, 2), draws(1, 3, 4)
    bad = sc.taylor_with(lambda output, targets, generator: output.sum() * float("nan"))
    with pytest.raises(DataError, match="loss on calibration batch 0 is nan"):
        sc.calibrate(net, data, bad)
    cut_off = sc.taylor_with(lambda output, targets, generator: output.detach().sum())
    with pytest.raises(DataError, match="no gradient"):
        sc.calibrate(net, data, cut_off)


def test_nested_and_keyword_examples_run() -> None:
    class Takes(Attention):
        def forward(self, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(x + pair[0] * pair[1])

    net, (x,) = Takes(), draws(1, 2, 5, 16)
    one = torch.ones(())
    by_name = sc.calibrate(net, [{"x": x, "pair": (x, one)}], sc.obs)
    by_place = sc.calibrate(net, [(x, (x, one))], sc.obs)
    assert torch.equal(by_name["q.weight"].second, by_place["q.weight"].second)


def test_too_few_rows_for_the_inputs_are_told(caplog: pytest.LogCaptureFixture) -> None:
    net = mlp(4, 16, 2)
    groups = groups_of(net, torch.zeros(1, 4))
    sc.calibrate(net, [torch.randn(64, 4)], sc.obs, groups)
    assert not caplog.records
    sc.calibrate(net, [torch.randn(5, 4)], sc.obs, groups)
    assert "1 of 1 weights have fewer rows" in caplog.text
    assert "2.weight: 5 rows, 16 inputs" in caplog.text
