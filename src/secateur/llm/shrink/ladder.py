"""In which order units go, and what each number of them costs where they feed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import CoupleError
from secateur.llm.shrink.units import Family
from secateur.score.calibrate import Moment
from secateur.score.capture import matrix
from secateur.score.obs import damped, firm
from secateur.types import Criterion, Floats, Ints


@dataclass(frozen=True, eq=False)
class Ladder:
    """A family's nested choices.

    Attributes:
        order: units, the one that stays longest first; n kept are the first n.
        errors: float64 (units + 1,): squared error of what the consumers put out, over the energy of that, with n kept.
        scores: of the units.
    """

    order: Ints
    errors: Floats
    scores: Floats

    def keep(self, count: int) -> np.ndarray:
        """Bool (units,), True keeps."""
        out = np.zeros(len(self.order), bool)
        out[self.order[:count]] = True
        return out


def ladder(
    block: nn.Module,
    family: Family,
    moments: Mapping[str, Moment],
    criterion: Criterion,
    stats: object = None,
    damping: float = 1e-2,
    refit: bool = True,
) -> Ladder:
    """Rank a family's units and tell the error of every count at once.

    Args:
        block: the dense block. moments: second moments of the inputs of its weights, names as in the block.
        criterion: ranks the units: ``sc.obs``, `fluctuation`, ``sc.magnitude``...; larger scores stay.
        stats: what it needs of the whole model, by its names; None: ``moments``.
        damping: of the least squares, relative to the mean of the inputs' second moment.
        refit: whether the units that stay make up for those that go by least squares, or by their means alone.

    Raises:
        CoupleError: the family feeds no weight whose inputs were seen.
    """
    if criterion.score is None:
        raise CoupleError(f"criterion {criterion.name} does not score units: use sc.obs or sc.magnitude")
    if stats is None:
        scores = criterion.score(block, family.local, moments)
    else:
        scores = criterion.score(block, family.group, stats)  # of the whole model, by its names
    order = np.argsort(-scores, kind="stable")
    named = dict(block.named_parameters())
    lost, energy = np.zeros(family.units + 1), 0.0
    for name, (dim, index) in family.consumers().items():
        m = moments.get(name)
        if m is None or m.in_dim != dim:
            raise CoupleError(f"the inputs of {family.path}.{name} were not seen: {family.name} cannot be weighed")
        weight, second = matrix(named[name].detach().double(), dim), spread(m)
        energy += float(((weight @ (m.second / m.n)) * weight).sum())
        lost += nested_errors(weight, second, index[order], firm(second, m.n, damping) if refit else None)
    return Ladder(order, lost / energy if energy > 0 else lost, np.asarray(scores, float))


def spread(moment: Moment) -> Tensor:
    """Mean of ``x xᵀ``; the covariance where a bias makes up for means."""
    second = moment.second / moment.n
    if moment.bias is None:
        return second
    mean = moment.first / moment.n
    return second - torch.outer(mean, mean)


def nested_errors(weight: Tensor, second: Tensor, units: Ints, damping: float | None) -> Floats:
    """Squared error of ``W x`` with the first n units left, for every n, float64 (units + 1,).

    With refit it is that of least squares on what is left. Columns in the order of ``units``, ``H = L Lᵀ``:
    what least squares on the first n columns leaves is ``sum_{j >= n} || (W L)_j ||²``, so one Cholesky factor
    tells all. Without, it is ``tr W_P H_PP W_Pᵀ`` of the removed columns.

    Args:
        weight: (outputs, d) float64. second: (d, d). units: (units, k) columns, the unit that stays longest first.
        damping: relative to the mean of the diagonal; None: no refit.

    Time: d³ / 3. Memory: d².

    Example:
        >>> w, h = torch.tensor([[3.0, 1.0, 2.0]]).double(), torch.eye(3).double()
        >>> nested_errors(w, h, np.array([[0], [2], [1]]), 1e-12).round(6)
        array([14.,  5.,  1.,  0.])
    """
    columns = torch.from_numpy(units.reshape(-1)).to(weight.device)
    w, count = weight[:, columns], len(units)
    h = (second if damping is None else damped(second, damping))[columns][:, columns]
    if damping is not None:
        steps = (w @ torch.linalg.cholesky(h)).square().sum(0)
    else:
        above = torch.triu(w.T @ w * h, 1)  # pairs of columns, each counted where the one that goes later is
        steps = (w.T @ w * h).diagonal() + 2 * above.sum(1)
    of_units = steps.reshape(count, -1).sum(1).flip(0).cumsum(0).flip(0)
    out: Floats = np.concatenate([of_units.cpu().numpy(), [0.0]])
    return np.maximum(out, 0.0)


def counts(units: int, multiple: int, least: int = 1, most: int = 32) -> Ints:
    """Kept counts that are offered: multiples, at most ``most`` of them evenly, and all.

    Example:
        >>> counts(48, 8).tolist(), counts(3, 1).tolist(), counts(10, 8, least=0).tolist()
        ([8, 16, 24, 32, 40, 48], [1, 2, 3], [0, 8, 10])
    """
    step = multiple * max(1, -(-units // (multiple * most)))
    found = [n for n in range(0, units, step) if n >= least]
    return np.array([*found, units], np.int64)


def _fluctuation(model: nn.Module, group: object, stats: Mapping[str, Moment]) -> Floats:
    named, total = dict(model.named_parameters()), None
    for s in group.slices:  # type: ignore[attr-defined]
        m = stats.get(s.name)
        if s.role != "in" or m is None or m.in_dim != s.dim:
            continue
        weight = matrix(named[s.name].detach().double(), s.dim)
        variance = (m.second.diagonal() - m.first.square() / m.n) / max(m.n - 1, 1)
        each = (variance.clamp_min(0) * weight.square().sum(0)).cpu().numpy()
        mine = each[s.index].mean(1)
        total = mine if total is None else total + mine
    if total is None:
        raise CoupleError("no weight that the units feed was seen: fluctuation has nothing to go by")
    out: Floats = total
    return out


fluctuation = Criterion("flap", _fluctuation)
"""FLAP (arXiv:2312.11983): ``Var(x_j) ||W_:j||²`` of the inputs that a unit feeds, the mean over them.

What never varies costs nothing: the bias takes over its mean. Scores are comparable between families once
standardised, as `options.ranked` does.
"""
