"""What cuts cost the model's outputs, measured group by group: to compare scores, and to say how much goes where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import run, tensors_of
from secateur.choose.knapsack import dp
from secateur.choose.plan import make_plan
from secateur.choose.rank import Allocation
from secateur.choose.together import Counts
from secateur.errors import ArgumentError, DataError
from secateur.graph.surgery import apply
from secateur.products import fast_for
from secateur.score.calibrate import Moment, checked, quiet_eval
from secateur.score.capture import columns, from_matrix, matrix
from secateur.score.obs import damped
from secateur.types import Batches, Bools, Budget, Group, Ints, Plan, Scores

Distance: TypeAlias = Callable[[Any, Any, Any], Tensor]
"""``(cut model's output, dense model's output, batch) -> scalar``; zero where they are equal."""


def by_effect(
    model: nn.Module,
    batches: Batches,
    distance: Distance | None = None,
    fraction: float = 0.5,
    damping: float = 1e-2,
) -> Callable[[Scores], Scores]:
    """Scale each group's scores so that what is lost at half of the group is what the outputs were measured to lose.

    For every group, the lowest-scored half is cut, the weights it fed make up for it by least squares (if the scores
    come from ``sc.obs``, whose statistics that takes), and the model is run beside the dense one. Errors in one layer
    are worth what they cost at the output: the measured sensitivity that SPDY and OBC allocate by (arXiv:2208.11580),
    one point a group.

    Args:
        model: the dense model.
        batches: a few examples; labels are ignored.
        distance: what losing means; by default the squared error of all outputs over their energy.
        fraction: how much of each group is cut to see.
        damping: of the least squares, relative to the mean of the inputs' second moment.

    Raises:
        DataError: no batches, or outputs that are not finite.

    Time: one forward pass over the batches a group, and one solve. Memory: one more model.

    Example:
        >>> import secateur as sc
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(16, 4)]
        >>> scores = sc.score(net, sc.couple(sc.trace(net, data[0])), sc.magnitude)
        >>> by_effect(net, data)(scores).normalization
        'effect'
    """
    data = [(example, batch) for (_, example, _), batch in _with_batches(model, batches)]

    def normalize(scores: Scores) -> Scores:
        far = distance or relative_error
        with quiet_eval(model), torch.no_grad(), fast_for(model):
            dense = [run(model, example) for example, _ in data]
            values = {}
            for g in scores.groups:
                lost, plan = _part(scores, g, fraction)
                found = _effect(model, scores, g, plan, damping, lambda small: _far(far, small, data, dense))
                values[g.name] = scores.values[g.name] * (found / lost if lost > 0 else 1.0)
        return Scores(scores.groups, values, scores.criterion, "effect", scores.stats)

    return normalize


def error_table(
    model: nn.Module,
    scores: Scores,
    batches: Batches,
    fractions: Sequence[float] = (0.25, 0.5, 0.75),
    distance: Distance | None = None,
    damping: float = 1e-2,
) -> dict[str, dict[int, float]]:
    """What the outputs lose with parts of one group cut and all others whole: what `dp` allocates by.

    ``error[g][n] = mean distance(cut model's output, dense model's output)``, the lowest-scored units of the group
    gone and the weights it fed refitted where the scores come from ``sc.obs``, as `by_effect` measures one point.

    Args:
        model: the dense model. scores: rank the units. batches: a few examples; labels are ignored.
        fractions: of each group's units that are cut, in (0, 1); each is measured.
        distance: by default the squared error of all outputs over their energy.
        damping: of the least squares, relative to the mean of the inputs' second moment.

    Returns:
        group -> units kept -> error; the whole group has 0.

    Raises:
        ArgumentError: a fraction is not in (0, 1). DataError: no batches, or outputs that are not finite.

    Time: one forward pass over the batches a group and count.

    Example:
        >>> import secateur as sc
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(16, 4)]
        >>> scores = sc.score(net, sc.couple(sc.trace(net, data[0])), sc.magnitude)
        >>> list(error_table(net, scores, data)["0:neuron"])
        [8, 6, 4, 2]
    """
    _check_fractions(fractions)
    data = [(example, batch) for (_, example, _), batch in _with_batches(model, batches)]
    far, table = distance or relative_error, {}
    with quiet_eval(model), torch.no_grad(), fast_for(model):
        dense = [run(model, example) for example, _ in data]
        for g in scores.groups:
            table[g.name] = {g.units: 0.0}
            for fraction in sorted(fractions):
                _, plan = _part(scores, g, fraction)
                if (left := int(plan.keep[g.name].sum())) in table[g.name]:
                    continue  # of few units several fractions cut as many
                found = _effect(model, scores, g, plan, damping, lambda small: _far(far, small, data, dense))
                table[g.name][left] = found
    return table


def measured(
    model: nn.Module,
    batches: Batches,
    distance: Distance | None = None,
    fractions: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    damping: float = 1e-2,
) -> Allocation:
    """How much goes where by `dp` over an `error_table`, which is measured when the allocation is first asked.

    Args:
        model: the dense model. batches: a few examples; labels are ignored.
        distance, fractions, damping: as for `error_table`.

    Raises:
        ArgumentError: a fraction is not in (0, 1). DataError, on use: no batches, or outputs that are not finite.

    Time: as `error_table`, once for the same scores. Memory: one more model.

    Example:
        >>> import secateur as sc
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(16, 4)]
        >>> scores = sc.score(net, sc.couple(sc.trace(net, data[0])), sc.magnitude)
        >>> half = sc.Budget.of_dense(sc.params(net), 0.5)
        >>> sc.allocate(scores, half, measured(net, data)).removed
        5
    """
    _check_fractions(fractions)
    data = _all_of(batches)  # other scores look at them again
    known: list[tuple[Scores, Mapping[str, Mapping[int, float]]]] = []

    def measured(scores: Scores, budget: Budget, options: Mapping[str, Ints]) -> Counts:
        errors = next((table for seen, table in known if _alike(seen, scores)), None)
        if errors is None:
            errors = error_table(model, scores, data, fractions, distance, damping)
            known.append((scores, errors))
        return dp(errors)(scores, budget, options)

    return measured


def _check_fractions(fractions: Sequence[float]) -> None:
    if wrong := [f for f in fractions if not 0 < f < 1]:
        raise ArgumentError(f"fractions of a group that are cut are in (0, 1), got {wrong[0]}")


def _alike(one: Scores, other: Scores) -> bool:
    same = one.values.keys() == other.values.keys()
    return same and all(np.array_equal(v, other.values[n]) for n, v in one.values.items())


def _effect(
    model: nn.Module,
    scores: Scores,
    group: Group,
    plan: Plan,
    damping: float,
    error: Callable[[nn.Module], float],
) -> float:
    """What the outputs lose by a plan that cuts one group."""
    small = apply(plan, model).eval()
    _make_up_(small, model, group, plan.keep[group.name], scores.stats, damping)
    found = error(small)
    if not np.isfinite(found):
        raise DataError(f"outputs are not finite with a part of {group.name} cut: check the calibration data")
    return max(found, 0.0)


def _far(far: Distance, small: nn.Module, data: Sequence[tuple[Any, Any]], dense: Sequence[Any]) -> float:
    return float(np.mean([float(far(run(small, e), d, b)) for (e, b), d in zip(data, dense, strict=True)]))


def relative_error(output: Any, dense: Any, batch: Any = None) -> Tensor:
    """Squared error of all floating outputs over their energy.

    Example:
        >>> relative_error(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor(0.2000)
    """
    pairs = [
        (a, b)
        for a, b in zip(tensors_of(output), tensors_of(dense), strict=True)
        if b.dtype.is_floating_point and a.shape == b.shape
    ]
    error = torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs]).sum()
    return error / torch.stack([b.float().square().sum() for _, b in pairs]).sum().clamp_min(1e-30)


def _with_batches(model: nn.Module, batches: Batches) -> Any:
    data = _all_of(batches)
    return zip(checked(model, data), data, strict=True)


def _all_of(batches: Batches) -> Batches:
    """Batches that can be looked at again; what is a single one stays, to be refused as such."""
    return batches if isinstance(batches, (Tensor, Mapping, str)) else list(batches)


def _part(scores: Scores, group: Group, fraction: float) -> tuple[float, Plan]:
    """The score lost, and the plan that cuts the lowest-scored part of one group."""
    values = scores.values[group.name]
    gone = np.argsort(values, kind="stable")[: min(max(round(fraction * group.units), 1), group.units - 1)]
    keep = np.ones(group.units, bool)
    keep[gone] = False
    return float(values[gone].sum()), make_plan(scores.groups, {group.name: keep})


def _make_up_(small: nn.Module, model: nn.Module, group: Group, keep: Bools, stats: Any, damping: float) -> None:
    """Least squares of the group's consumers on what is left, from the dense model's moments."""
    dense, cut = dict(model.named_parameters()), dict(small.named_parameters())
    for s in group.slices:
        m = stats.get(s.name) if isinstance(stats, Mapping) else None
        if s.role != "in" or not isinstance(m, Moment) or m.in_dim != s.dim:
            continue
        w = matrix(dense[s.name].detach().double(), m.in_dim)
        mean = m.first / m.n if m.bias is not None else torch.zeros_like(m.first)
        spread = damped(m.second / m.n - torch.outer(mean, mean), damping, m.n)
        rest = torch.ones(w.shape[1], dtype=torch.bool, device=w.device)
        rest[columns(s.index[~keep], m.taps).reshape(-1)] = False
        fitted = torch.linalg.solve(spread[rest][:, rest], (w @ spread[:, rest]).T).T
        if cut[s.name].shape[1 - s.dim] != w.shape[0]:
            continue  # the group also cuts the outputs: the cut weight stays
        cut[s.name].copy_(from_matrix(fitted, cut[s.name], m.in_dim).to(cut[s.name].dtype))
        if m.bias is not None:
            shift = w @ mean - fitted @ mean[rest]
            cut[m.bias].copy_((dense[m.bias].double() + shift).to(cut[m.bias].dtype))
