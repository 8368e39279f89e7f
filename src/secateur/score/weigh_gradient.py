"""Criteria of single weights that look at the loss: its gradient, its curvature, and how both change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, DataError
from secateur.score.calibrate import Loss, default_loss
from secateur.score.gradients import (
    Curvature,
    Named,
    differentiate,
    hessian_times,
    hutchinson,
    squared_gradient,
    stat_of,
)
from secateur.types import Batches, Criterion, Weighing


def _zeros(weights: Named) -> dict[str, Tensor]:
    return {n: torch.zeros_like(w, dtype=torch.float64, requires_grad=False) for n, w in weights.items()}


def _mean_of(
    model: nn.Module,
    batches: Batches,
    weights: Named,
    loss: Loss,
    of: Callable[[Tensor], Tensor],
    batch_statistics: bool = False,
) -> dict[str, Tensor]:
    """Mean over batches of a function of each weight's gradient, float64."""
    total = _zeros(weights)

    def use(parameters: Named, grads: Named) -> None:
        for n, g in grads.items():
            total[n] += of(g.double())

    count = differentiate(model, batches, loss, weights, use, batch_statistics=batch_statistics)
    return {n: t / count for n, t in total.items()}


def _times(weights: Named, stats: Named, of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    return {n: of(w.detach().double(), stat_of(stats, n)) for n, w in weights.items()}


def first_order(loss: Loss = default_loss, power: int = 2) -> Weighing:
    """``E |w dL/dw|^power`` of single weights, the mean over batches (arXiv:1906.10771)."""

    def stat(model: nn.Module, batches: Batches, weights: Named) -> dict[str, Tensor]:
        return _mean_of(model, batches, weights, loss, lambda g: g.abs() ** power)

    def of(model: nn.Module, weights: Named, stats: Any) -> dict[str, Tensor]:
        return _times(weights, stats, lambda w, g: w.abs() ** power * g)

    return Weighing(of, stat)


def snip_with(loss: Loss = default_loss, batch_statistics: bool = True) -> Criterion:
    """Connection sensitivity ``|w dL/dw|``, the gradient being the mean over batches (SNIP, arXiv:1810.02340).

    It is the derivative of the loss in a mask, at a mask of ones. The paper divides by the sum of all, which changes
    no rank, and takes one ranking of all weights of an untrained network.

    Args:
        loss: ``(output, targets, generator) -> scalar``.
        batch_statistics: batch norms use the batch's statistics, as an untrained network has no others.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
        >>> how = snip_with(lambda output, targets, generator: output.sum()).weights
        >>> how.score(net, {"weight": net.weight}, how.stat(net, [torch.tensor([[1.0, 3]])], {"weight": net.weight}))
        {'weight': tensor([[2., 3.]], dtype=torch.float64)}
    """

    def stat(model: nn.Module, batches: Batches, weights: Named) -> dict[str, Tensor]:
        return _mean_of(model, batches, weights, loss, lambda g: g, batch_statistics)

    def of(model: nn.Module, weights: Named, stats: Any) -> dict[str, Tensor]:
        return _times(weights, stats, lambda w, g: (w * g).abs())

    return Criterion("snip", weights=Weighing(of, stat))


snip = snip_with()
"""`snip_with` its defaults."""


def grasp_with(loss: Loss = default_loss, temperature: float = 200.0, batch_statistics: bool = True) -> Criterion:
    """Gradient signal preservation: keeps the largest ``w ⊙ H g`` (GraSP, arXiv:2002.07376).

    ``g`` and ``H`` are gradient and Hessian of the mean loss over all batches. Taking the fraction ``e`` off a weight
    changes ``‖g‖²`` by ``-2 e w (H g)`` to first order: what goes first raises the flow of gradients most. The paper's
    score has the other sign and its largest go. Signs matter, so no absolute values.

    Args:
        loss: ``(output, targets, generator) -> scalar``. temperature: outputs are divided by it before the loss.
        batch_statistics: batch norms use the batch's statistics, as an untrained network has no others.

    Raises:
        ArgumentError: the temperature is not positive.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
        >>> how = grasp_with(lambda output, targets, generator: output.square().sum() / 2, temperature=1.0).weights
        >>> how.score(net, {"weight": net.weight}, how.stat(net, [torch.eye(2)], {"weight": net.weight}))
        {'weight': tensor([[4., 1.]], dtype=torch.float64)}
    """
    if not 0 < temperature < float("inf"):
        raise ArgumentError(f"grasp_with takes a positive temperature, got {temperature}; the paper has 200")

    def cooled(output: Any, targets: Any, generator: torch.Generator) -> Tensor:
        return loss(_divided(output, temperature), targets, generator)

    def stat(model: nn.Module, batches: Batches, weights: Named) -> dict[str, Tensor]:
        held = list(batches) if not isinstance(batches, (Tensor, Mapping, str)) else batches  # gone through twice
        mean = _mean_of(model, held, weights, cooled, lambda g: g, batch_statistics)
        total = _zeros(weights)

        def use(parameters: Named, grads: Named) -> None:
            for n, h in hessian_times(parameters, grads, mean).items():
                total[n] += h.double()

        count = differentiate(model, held, cooled, weights, use, twice=True, batch_statistics=batch_statistics)
        return {n: t / count for n, t in total.items()}

    def of(model: nn.Module, weights: Named, stats: Any) -> dict[str, Tensor]:
        return _times(weights, stats, lambda w, hg: w * hg)

    return Criterion("grasp", weights=Weighing(of, stat))


def _divided(output: Any, by: float) -> Any:
    """Every tensor of a model's output over a number."""
    if by == 1:
        return output
    if isinstance(getattr(output, "loss", None), Tensor):
        raise DataError(
            "the model computes its loss itself, so its outputs cannot be divided by a temperature before: give pairs "
            "(example, targets) without labels in the example, or sc.grasp_with(temperature=1)"
        )
    if isinstance(output, Tensor):
        return output / by if output.dtype.is_floating_point else output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_divided(o, by) for o in output))
    if isinstance(output, (tuple, list)):
        return [_divided(o, by) for o in output]
    if isinstance(output, dict):  # transformers' outputs are dicts with attributes
        same = copy.copy(output)
        for key, o in output.items():
            same[key] = _divided(o, by)
        return same
    return output


grasp = grasp_with()
"""`grasp_with` its defaults."""


_eight_probes = hutchinson(8)


def _curved(
    model: nn.Module, batches: Batches, weights: Named, loss: Loss, curvature: Curvature, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means over batches of the gradient and of the Hessian's diagonal."""
    slope, bend = _zeros(weights), _zeros(weights)
    generator = torch.Generator().manual_seed(seed)

    def use(parameters: Named, grads: Named) -> None:
        for n, h in curvature.of(parameters, grads, generator).items():
            bend[n] += h
            slope[n] += grads[n].detach().double()

    count = differentiate(model, batches, loss, weights, use, twice=curvature.twice)
    return {n: s / count for n, s in slope.items()}, {n: b / count for n, b in bend.items()}


def obd_with(
    loss: Loss = default_loss, curvature: Curvature = _eight_probes, name: str = "obd", seed: int = 0
) -> Criterion:
    """Optimal brain damage: ``w² h / 2``, ``h`` the Hessian's diagonal, the mean over batches (LeCun et al. 1989).

    Away from a minimum ``h`` may be negative; such weights go first.

    Args:
        loss: ``(output, targets, generator) -> scalar``.
        curvature: how the diagonal is found: `hutchinson` (random signs through Hessian-vector products, unbiased),
            `exact_diagonal` (double backward, one pass a weight) or `squared_gradient` (the empirical Fisher's).
        name: as it will stand in the plan. seed: of the random signs.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
        >>> how = obd_with(lambda output, targets, generator: output.square().sum()).weights
        >>> how.score(net, {"weight": net.weight}, how.stat(net, [torch.eye(2)], {"weight": net.weight}))
        {'weight': tensor([[4., 1.]], dtype=torch.float64)}
    """

    def stat(model: nn.Module, batches: Batches, weights: Named) -> dict[str, Tensor]:
        return _curved(model, batches, weights, loss, curvature, seed)[1]

    def of(model: nn.Module, weights: Named, stats: Any) -> dict[str, Tensor]:
        return _times(weights, stats, lambda w, h: w.square() * h / 2)

    return Criterion(name, weights=Weighing(of, stat))


obd = obd_with()
"""`obd_with` its defaults: the diagonal by Hutchinson's estimate, eight probes a batch."""


def fisher_with(loss: Loss = default_loss) -> Criterion:
    """``w² E[g²] / 2``: `obd_with` the diagonal of the empirical Fisher matrix (arXiv:1801.05787).

    One gradient a batch: give batches of one example for the Fisher matrix of examples.

    Example:
        >>> fisher_with().name
        'fisher'
    """
    return obd_with(loss, squared_gradient, "fisher")


fisher = fisher_with()
"""`fisher_with` its defaults."""


def taylor_second_with(loss: Loss = default_loss, curvature: Curvature = _eight_probes, seed: int = 0) -> Criterion:
    """``|w² h / 2 - w g|``: how far the loss moves when a weight goes, to second order (arXiv:1906.10771).

    Of one weight alone, so with the Hessian's diagonal; with `squared_gradient` it is the element score of
    LLM-Pruner (arXiv:2305.11627). Exact for a loss that is quadratic in the weight.

    Args:
        loss: ``(output, targets, generator) -> scalar``. curvature, seed: as in `obd_with`.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
        >>> how = taylor_second_with(lambda output, targets, generator: output.square().sum()).weights
        >>> how.score(net, {"weight": net.weight}, how.stat(net, [torch.eye(2)], {"weight": net.weight}))
        {'weight': tensor([[4., 1.]], dtype=torch.float64)}
    """

    def stat(model: nn.Module, batches: Batches, weights: Named) -> dict[str, tuple[Tensor, Tensor]]:
        slope, bend = _curved(model, batches, weights, loss, curvature, seed)
        return {n: (slope[n], bend[n]) for n in weights}

    def of(model: nn.Module, weights: Named, stats: Any) -> dict[str, Tensor]:
        scores = {}
        for n, w in weights.items():
            slope, bend = stat_of(stats, n)
            at = w.detach().double()
            scores[n] = (at.square() * bend / 2 - at * slope).abs()
        return scores

    return Criterion("taylor_second", weights=Weighing(of, stat))


taylor_second = taylor_second_with()
"""`taylor_second_with` its defaults."""


def movement(scores: Named, weights: Named, grads: Named, rate: float = 1.0) -> dict[str, Tensor]:
    """``S - rate w dL/dw``: one step of movement scores; what moves away from zero gains (arXiv:2005.07683).

    Args:
        scores, weights, grads: by name, of one shape each; gradients at the masked weights, dense. rate: of learning.

    Returns:
        New scores, by name.

    Example:
        >>> one = torch.ones(1)
        >>> movement({"w": one}, {"w": 2 * one}, {"w": -one}, rate=0.5)
        {'w': tensor([2.])}
    """
    return {n: s - rate * weights[n].detach() * grads[n] for n, s in scores.items()}
