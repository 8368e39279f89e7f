"""Criteria by gradient and curvature, against loops, finite differences and losses that are quadratic."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, DataError
from secateur.score.gradients import exact_diagonal, hutchinson, squared_gradient
from secateur.score.weigh_gradient import (
    fisher_with,
    grasp,
    grasp_with,
    movement,
    obd_with,
    snip,
    snip_with,
    taylor_second_with,
)
from secateur.score.weights import prunable
from weighing import close, cross_entropy, flat, labelled, smooth, weighed

DATA = labelled(0, 3, 5, 4, 3)


def gradients(net: nn.Module, data: Any) -> list[dict[str, Tensor]]:
    """Of the cross-entropy of each batch, in prunable weights, by name."""
    chosen = prunable(net)
    found = [torch.autograd.grad(F.cross_entropy(net(x), y), list(chosen.values())) for x, y in data]
    return [dict(zip(chosen, g, strict=True)) for g in found]


def mean_loss(net: nn.Module, values: dict[str, Tensor], by: float = 1.0) -> Tensor:
    losses = [F.cross_entropy(functional_call(net, values, (x,)) / by, y) for x, y in DATA]
    return torch.stack(losses).mean()


def hessian(net: nn.Module) -> Tensor:
    """Of the mean cross-entropy in all prunable weights, dense, by torch's own."""
    chosen = prunable(net)
    sizes, shapes = [w.numel() for w in chosen.values()], [w.shape for w in chosen.values()]

    def of(vector: Tensor) -> Tensor:
        parts = zip(chosen, vector.split(sizes), shapes, strict=True)
        return mean_loss(net, {n: v.reshape(s) for n, v, s in parts})

    return torch.autograd.functional.hessian(of, flat(chosen))


def test_first_order_is_the_loop_over_batches() -> None:
    net = smooth(4, 6, 3)
    grads = gradients(net, DATA)
    w = prunable(net)
    for criterion, power in ((sc.taylor_with(cross_entropy), 2), (sc.taylor_with(cross_entropy, power=1), 1)):
        found = weighed(net, criterion, DATA)
        for n in w:
            close(found[n], sum((w[n] * g[n]).abs() ** power for g in grads) / 3)
    assert set(weighed(net, sc.taylor, [x for x, _ in DATA])) == set(w)  # no labels needed


def test_snip_is_the_derivative_in_a_mask() -> None:
    net = smooth(4, 6, 3)
    w = {n: p.detach() for n, p in prunable(net).items()}
    masks = {n: torch.ones_like(p, requires_grad=True) for n, p in w.items()}
    loss = mean_loss(net, {n: w[n] * m for n, m in masks.items()})
    expected = dict(zip(w, torch.autograd.grad(loss, list(masks.values())), strict=True))
    grads = gradients(net, DATA)
    found = weighed(net, snip_with(cross_entropy), DATA)
    for n in w:
        close(found[n], expected[n].abs())
        close(found[n], (w[n] * sum(g[n] for g in grads) / 3).abs())


def test_snip_takes_the_batchs_statistics_where_asked_for() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    before = copy.deepcopy(net.state_dict())
    for flag in (True, False):
        found = weighed(net, snip_with(cross_entropy, flag), DATA)
        assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
        twin = copy.deepcopy(net).eval()
        twin[1].train(flag)
        grads = gradients(twin, DATA)
        for n, w in prunable(net).items():
            close(found[n], (w * sum(g[n] for g in grads) / 3).abs())


def norm_of_gradient(net: nn.Module, values: dict[str, Tensor], by: float) -> Tensor:
    leaves = {n: v.detach().requires_grad_(True) for n, v in values.items()}
    grads = torch.autograd.grad(mean_loss(net, leaves, by), list(leaves.values()))
    return torch.stack([g.square().sum() for g in grads]).sum()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_grasp_keeps_what_the_flow_of_gradients_needs(temperature: float) -> None:
    """Shrinking a weight by the fraction e changes the squared norm of the gradient by -2 e times its saliency."""
    net, step = smooth(4, 6, 3), 1e-5
    w = {n: p.detach() for n, p in prunable(net).items()}
    found = weighed(net, grasp_with(cross_entropy, temperature), DATA)
    for n, p in w.items():
        for i in range(p.numel()):
            ends = []
            for fraction in (step, -step):
                shrunk = p.clone()
                shrunk.view(-1)[i] *= 1 - fraction
                ends.append(norm_of_gradient(net, {**w, n: shrunk}, temperature))
            change = float(ends[0] - ends[1]) / (2 * step)
            assert change == pytest.approx(-2 * float(found[n].view(-1)[i]), rel=1e-5, abs=1e-9)
    assert float(flat(found).min()) < 0 < float(flat(found).max())


def test_grasp_is_the_hessian_times_the_gradient() -> None:
    net = smooth(4, 6, 3)
    w = prunable(net)
    grads = gradients(net, DATA)
    g = sum(flat(g) for g in grads) / 3
    close(flat(weighed(net, grasp_with(cross_entropy, 1.0), iter(DATA))), flat(w) * (hessian(net) @ g))
    assert float(flat(weighed(net, grasp, DATA)).abs().max()) > 0


def test_grasp_and_models_that_hold_their_loss() -> None:
    from types import SimpleNamespace

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(loss=super().forward(x).square().mean())

    with pytest.raises(DataError, match="computes its loss itself"):
        weighed(Own(3, 2), grasp, [torch.ones(1, 3)])
    found = weighed(Own(3, 2), grasp_with(temperature=1), [torch.ones(1, 3)])
    assert float(flat(found).abs().max()) > 0

    class Parts(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x), "more": (x, torch.arange(3), None)}

    def first(output: Any, targets: Any, generator: Any) -> Tensor:
        assert output["more"][1].tolist() == [0, 1, 2]
        return output["logits"].square().sum()

    net = Parts(3, 2, bias=False)
    hot, cold = (flat(weighed(net, grasp_with(first, t), [torch.ones(1, 3)])) for t in (1.0, 2.0))
    close(cold, hot / 16, 1e-6)  # g and H each by four


def test_obd_is_the_diagonal_of_the_hessian() -> None:
    net = smooth(4, 5, 3)
    w, h = flat(prunable(net)), hessian(net).diagonal()
    close(flat(weighed(net, obd_with(cross_entropy, exact_diagonal), DATA)), w**2 * h / 2)


def test_hutchinson_errs_by_the_rest_of_the_row_and_no_more() -> None:
    net, one = smooth(4, 5, 3), [(torch.cat([x for x, _ in DATA]), torch.cat([y for _, y in DATA]))]
    w, h = flat(prunable(net)), hessian(net)  # batches of one size: their mean loss is that of all
    found = flat(weighed(net, obd_with(cross_entropy, hutchinson(400)), one)) * 2 / w**2
    expected = ((h.square().sum(1) - h.diagonal().square()) / 400).sqrt()  # v_i v_j H_ij, over all others
    surprise = float(((found - h.diagonal()) / expected).square().mean().sqrt())
    assert 0.6 < surprise < 1.5


def test_hutchinson_is_exact_where_the_hessian_is_diagonal() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    found = weighed(layer, obd_with(lambda o, t, g: o.square().sum(), hutchinson(1)), [2 * torch.eye(3).double()])
    close(found["weight"], layer.weight.detach() ** 2 * 4)


def test_fisher_is_the_mean_square() -> None:
    net = smooth(4, 6, 3)
    found = weighed(net, fisher_with(cross_entropy), DATA)
    for n, w in prunable(net).items():
        close(found[n], w**2 * sum(g[n] ** 2 for g in gradients(net, DATA)) / 3 / 2)


def test_a_loss_linear_in_the_weights_has_no_curvature() -> None:
    for curvature in (exact_diagonal, hutchinson(2)):
        criterion = obd_with(lambda o, t, g: o.sum(), curvature)
        assert float(weighed(nn.Linear(3, 2), criterion, [torch.ones(2, 3)])["weight"].abs().max()) == 0


def test_second_order_is_the_change_of_a_quadratic_loss() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    data = [(x, torch.randn(5, 3).double()) for x, _ in DATA]

    def loss(output: Tensor, targets: Tensor, generator: Any = None) -> Tensor:
        return (output - targets).square().sum()

    def total() -> float:
        with torch.no_grad():
            return float(sum(loss(net(x), y) for x, y in data)) / 3

    found, before = weighed(net, taylor_second_with(loss, exact_diagonal), data)["weight"], total()
    for i in range(12):
        kept = float(net.weight.data.view(-1)[i])
        net.weight.data.view(-1)[i] = 0
        assert float(found.view(-1)[i]) == pytest.approx(abs(total() - before), rel=1e-9)
        net.weight.data.view(-1)[i] = kept


def test_second_order_with_squared_gradients_is_that_of_llm_pruner() -> None:
    net = smooth(4, 6, 3)
    found = weighed(net, taylor_second_with(cross_entropy, squared_gradient), DATA)
    grads = gradients(net, DATA)
    for n, w in prunable(net).items():
        first, square = sum(g[n] for g in grads) / 3, sum(g[n] ** 2 for g in grads) / 3
        close(found[n], (first * w - 0.5 * w**2 * square).abs())


def test_movement_is_the_straight_through_gradient() -> None:
    torch.manual_seed(0)
    w, scores = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    mask = torch.ones(3, 4).double().requires_grad_(True)
    x = torch.randn(5, 4).double()
    (w * mask @ x.T).square().sum().backward()
    used = w.clone().requires_grad_(True)
    (used @ x.T).square().sum().backward()
    stepped = movement({"w": scores}, {"w": w}, {"w": used.grad}, 0.1)["w"]
    close(stepped, scores - 0.1 * mask.grad)


def test_a_weight_that_the_loss_does_not_reach_has_no_saliency() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
    net.forward = lambda x: net["a"](x)
    for criterion in (snip, grasp, sc.taylor, obd_with(curvature=exact_diagonal), obd_with()):
        found = weighed(net, criterion, [torch.ones(2, 3)])
        assert float(found["b.weight"].abs().max()) == 0


def test_bad_losses_and_arguments_say_so() -> None:
    net = nn.Linear(3, 2)
    x = [torch.ones(2, 3)]
    with pytest.raises(DataError, match=r"loss on calibration batch 0 is of shape \(2, 2\)"):
        weighed(net, snip_with(lambda o, t, g: o), x)
    with pytest.raises(DataError, match="loss on calibration batch 0 is float; expected one number"):
        weighed(net, snip_with(lambda o, t, g: 1.0), x)
    with pytest.raises(DataError, match="no gradient"):
        weighed(net, snip_with(lambda o, t, g: o.detach().sum()), x)
    with pytest.raises(DataError, match="loss on calibration batch 1 is inf"):
        weighed(net, snip_with(lambda o, t, g: o.exp().sum()), [*x, 1000 * torch.ones(1, 3) * net.weight[0].sign()])
    with pytest.raises(DataError, match=r"the gradient of weight has 6 of 6 entries NaN or inf .* batch 0"):
        weighed(net, snip_with(lambda o, t, g: (o * 0).sqrt().sum()), x)
    with pytest.raises(DataError, match="Linear has no parameter 'other'"):
        weighed(net, snip, x, {"other": torch.ones(1)})
    with pytest.raises(DataError, match="no statistics were gathered for weight"):
        snip.weights.score(net, {"weight": net.weight}, {})
    with pytest.raises(ArgumentError, match="positive temperature"):
        grasp_with(temperature=0)
    with pytest.raises(ArgumentError, match="one probe or more"):
        hutchinson(0)


class Told(dict):  # type: ignore[type-arg]
    """An output with attributes, as transformers have."""

    @property
    def logits(self) -> Tensor:
        logits: Tensor = self["logits"]
        return logits


class Tells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Told:
        return Told(logits=self.fc(x))


def test_grasp_leaves_outputs_the_class_they_have() -> None:
    net = Tells()
    how = sc.grasp_with(lambda output, targets, generator: output.logits.square().sum())
    found = sc.sparsify(net, [torch.randn(4, 3)], how, sparsity=0.5)
    assert int(found.masks["fc.weight"].sum()) == 3
