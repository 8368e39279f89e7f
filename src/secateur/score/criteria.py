"""Criteria: how much each unit matters. Each is its formula and its citation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, CoupleError, DataError
from secateur.graph.couple import Groups
from secateur.score.calibrate import Loss, Moment, contributions, default_loss, moments
from secateur.score.capture import columns, matrix
from secateur.score.obs import Consumer, removal_order
from secateur.score.weigh_gradient import first_order
from secateur.score.weigh_plain import uniform_weights
from secateur.types import Batches, Criterion, Floats, Group, Scores, Slice, Weighing


def score(model: nn.Module, groups: Groups, criterion: Criterion, stats: Any = None) -> Scores:
    """One number a unit, larger is kept.

    Raises:
        DataError: the criterion needs statistics and got none.
        CoupleError: the criterion has nothing to go by in a group.
        PlanError: a score is not finite.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> scores = score(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), magnitude)
        >>> scores.values["0:neuron"].shape
        (8,)
    """
    if not isinstance(criterion, Criterion):
        raise ArgumentError(f"criterion must be a Criterion, such as sc.taylor or sc.random(seed), got {criterion!r}")
    if criterion.score is None:
        raise ArgumentError(
            f"criterion {criterion.name} scores single weights, not units: use sc.magnitude or sc.taylor"
        )
    if criterion.stat is not None and stats is None:
        raise DataError(
            f"criterion {criterion.name} needs calibration data: stats = sc.calibrate(model, batches, criterion)"
        )
    return Scores(groups, {g.name: criterion.score(model, g, stats) for g in groups}, criterion.name, stats=stats)


def _rows(model: nn.Module, s: Slice) -> Tensor:
    """What the units own of one tensor, float64, shape (units, entries)."""
    tensor = _tensor(model, s.name).detach()
    index = torch.from_numpy(s.index.reshape(-1)).to(tensor.device)
    picked = tensor.index_select(s.dim, index).movedim(s.dim, 0)
    return picked.reshape(len(s.index), -1).double().cpu()


def _tensor(model: nn.Module, name: str) -> Tensor:
    module, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(module), leaf)
    return found


def _weights(model: nn.Module, group: Group) -> list[Slice]:
    """Slices of parameters with two dims or more; all parameters where there are none."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    mine = [s for s in group.slices if s.name in parameters]
    return [s for s in mine if parameters[s.name].dim() >= 2] or mine


def _l1(model: nn.Module, group: Group, stats: Any) -> Floats:
    total: Floats = sum(_rows(model, s).abs().sum(1) for s in _weights(model, group)).numpy()  # type: ignore[union-attr]
    return total


def _l2(model: nn.Module, group: Group, stats: Any) -> Floats:
    total = sum(_rows(model, s).square().sum(1) for s in _weights(model, group))
    out: Floats = torch.as_tensor(total).sqrt().numpy()
    return out


magnitude_l1 = Criterion("magnitude_l1", _l1)
"""Sum of absolute weights of everything that goes with the unit (filter norm, arXiv:1608.08710)."""


def _absolute(model: nn.Module, weights: Mapping[str, Tensor], stats: Any) -> dict[str, Tensor]:
    return {n: w.detach().abs() if w.dtype == torch.float64 else w.detach().abs().float() for n, w in weights.items()}


magnitude = Criterion("magnitude", _l2, weights=Weighing(_absolute))
"""Euclidean norm of all the weights that go with the unit (group norm, arXiv:2301.12900); ``|w|`` of a weight."""


def taylor_with(loss: Loss = default_loss, name: str = "taylor", power: int = 2) -> Criterion:
    """First-order Taylor term of the loss: ``E (sum_w w dL/dw)²``, sum inside, square outside (arXiv:1906.10771).

    The sum runs over the weights that produce the unit. ``power=1`` takes the absolute value instead (HALP).
    A single weight has ``E |w dL/dw|^power``, the mean over batches.

    Args:
        loss: ``(output, targets, generator) -> scalar``; the default needs no labels, see `default_loss`.
        name: as it will stand in the plan.
        power: of the sum.

    Example:
        >>> taylor_with(lambda output, targets, generator: output.square().mean(), "energy").name
        'energy'
    """

    def of(model: nn.Module, group: Group, stats: Any) -> Floats:
        producers = [s for s in group.slices if s.role == "out" and (s.name, s.dim) in stats.rows]
        producers = producers or [s for s in group.slices if (s.name, s.dim) in stats.rows]
        if not producers:
            raise CoupleError(f"group {group.name} has no gradients: calibrate with groups=None, or with these groups")
        signed = sum(stats.rows[s.name, s.dim][:, s.index].sum(2) for s in producers)
        out: Floats = np.mean(np.abs(signed) ** power, axis=0)
        return out

    def stat(model: nn.Module, batches: Batches, groups: Groups | None = None) -> Any:
        return contributions(model, batches, loss, groups)

    return Criterion(name, of, stat, first_order(loss, power))


taylor = taylor_with()
"""`taylor_with` its defaults: the weight form of arXiv:1906.10771."""

taylor_abs = taylor_with(name="taylor_abs", power=1)
"""The same with ``E |sum|``, as HALP has it (arXiv:2110.10811)."""


def _gates(model: nn.Module, group: Group) -> list[Slice]:
    """Scales and shifts of batch norms that the unit passes through."""
    found = []
    for s in group.slices:
        module, _, leaf = s.name.rpartition(".")
        if isinstance(model.get_submodule(module), nn.modules.batchnorm._NormBase) and leaf in (
            "weight",
            "bias",
        ):
            found.append(s)
    if not found:
        raise CoupleError(
            f"group {group.name} passes through no batch norm with weights: use sc.taylor or sc.magnitude, "
            "or leave the group out with ignore=[...]"
        )
    return found


def _taylor_gate(model: nn.Module, group: Group, stats: Any) -> Floats:
    signed = sum(stats.rows[s.name, s.dim][:, s.index].sum(2) for s in _gates(model, group))
    out: Floats = np.mean(np.asarray(signed) ** 2, axis=0)
    return out


taylor_gate = Criterion("taylor_gate", _taylor_gate, taylor.stat)
"""Gate form: ``E (gamma dL/dgamma + beta dL/dbeta)²`` on the batch norms (arXiv:1906.10771)."""


def _bn_scale(model: nn.Module, group: Group, stats: Any) -> Floats:
    scales = [s for s in _gates(model, group) if s.name.endswith("weight")]
    out: Floats = np.mean([_rows(model, s).abs().mean(1).numpy() for s in scales], axis=0)
    return out


bn_scale = Criterion("bn_scale", _bn_scale)
"""Mean ``|gamma|`` of the batch norms a channel passes through (network slimming, arXiv:1708.06519)."""


def _fpgm(model: nn.Module, group: Group, stats: Any) -> Floats:
    producers = [s for s in _weights(model, group) if s.role == "out"] or _weights(model, group)
    flat = torch.cat([_rows(model, s) for s in producers], 1)
    out: Floats = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").sum(1).numpy()
    return out


fpgm = Criterion("fpgm", _fpgm)
"""Sum of distances to the group's other filters: the most replaceable go first (arXiv:1811.00250).

Time and memory grow with the square of the number of units.
"""


def random(seed: int = 0) -> Criterion:
    """Uniform random scores, of units or of single weights: the control that every criterion must beat.

    Example:
        >>> random(3).name
        'random'
    """

    def of(model: nn.Module, group: Group, stats: Any) -> Floats:
        return np.random.default_rng([seed, *group.name.encode()]).random(group.units)

    return Criterion("random", of, weights=uniform_weights(seed))


def obs_with(damping: float = 1e-2, chunk: int = 32) -> Criterion:
    """Structured OBS: the least rise of the consumers' output error when a unit goes and the rest make up for it.

    ``score(P) = tr W_P ([H⁻¹]_PP)⁻¹ W_Pᵀ`` with ``H`` the second moment of the consumers' inputs (their covariance
    where the consumer has a bias, which makes up for means), relative to the energy of their outputs; units are taken
    one after another, the rest compensating (ZipLM, arXiv:2302.04089). What never varies costs nothing.
    Refit afterwards with `sc.refit`. Time: d³ a consumer with d inputs; memory: d² doubles.

    Args:
        damping: added to H's diagonal, relative to its mean; more is where data are few (`secateur.score.obs.firm`).
        chunk: of ``n`` units left, ``n // chunk`` (at least one) go at once; larger is slower and closer to one at a
            time.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = sc.couple(sc.trace(net, torch.zeros(1, 4)))
        >>> stats = sc.calibrate(net, [torch.randn(16, 4)], obs)
        >>> sc.score(net, groups, obs_with(damping=1e-3), stats).values["0:neuron"].shape
        (8,)
    """

    def of(model: nn.Module, group: Group, stats: Mapping[str, Moment]) -> Floats:
        consumers = []
        for s in group.slices:
            m = stats.get(s.name)
            if s.role == "in" and m is not None and m.in_dim == s.dim:
                consumers.append(_consumer(_tensor(model, s.name), m, s))
        if not consumers:
            raise CoupleError(
                f"group {group.name} ({group.kind}) feeds no linear layer or ungrouped convolution, which structured "
                f"OBS needs: use sc.taylor or sc.magnitude, or leave it out with ignore=[{group.name!r}]"
            )
        return removal_order(consumers, damping, chunk)

    return Criterion("obs", of, moments)


def _consumer(weight: Tensor, m: Moment, s: Slice) -> Consumer:
    w = matrix(weight.detach().double().cpu(), m.in_dim)
    second = (m.second / m.n).cpu()
    energy = float(((w @ second) * w).sum())
    still = 0.0 * second.diagonal()  # what is left of an input's energy without its mean: rounding, if it never varies
    if m.bias is not None:
        mean = (m.first / m.n).cpu()
        still = 1e-6 * second.diagonal()
        second = second - mean[:, None] * mean  # the Schur complement of a constant input that is never removed
    gone = second.diagonal() <= still
    w[:, gone] = 0  # the bias takes it over
    return Consumer(w, second, columns(s.index, m.taps), 1.0 / energy if energy > 0 else 1.0, m.n)


obs = obs_with()
"""`obs_with` its defaults."""


def unnormalized(scores: Scores) -> Scores:
    """Scores as they are."""
    return scores


def by_mean(scores: Scores) -> Scores:
    """Each group's scores over their mean: groups of different scale become comparable."""
    return _scaled(scores, "mean", lambda v, g: float(v.mean()))


def by_max(scores: Scores) -> Scores:
    """Each group's scores over their largest."""
    return _scaled(scores, "max", lambda v, g: float(v.max()))


def by_cost(scores: Scores) -> Scores:
    """Each score over the parameters that its unit frees: what is lost for what is gained."""
    sizes = {}
    full = scores.groups.all_kept()
    dense = scores.groups.params(full)
    for g in scores.groups:
        mask = full[g.name].copy()
        mask[0] = False
        sizes[g.name] = dense - scores.groups.params({**full, g.name: mask})
    return _scaled(scores, "cost", lambda v, g: float(sizes[g]))


def _scaled(scores: Scores, how: str, size: Any) -> Scores:
    values = {}
    for name, v in scores.values.items():
        by = size(v, name)
        values[name] = v / by if by > 0 else v
    return Scores(scores.groups, values, scores.criterion, how, scores.stats)
