"""Input channels in another order, such that N:M keeps more: found by weight, folded into what produces them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import named_tensors
from secateur.choose.patterns import Pattern
from secateur.errors import PlanError
from secateur.graph.couple import Groups
from secateur.types import Group, Ints, Slice

ROUNDS = 8
"""How often every place of every group of m is dealt anew, at most; it ends once nothing is gained."""

CELLS = 1 << 24
"""Numbers of a gain table worked out together."""


def best_order(saliency: Tensor, n: int, m: int, rounds: int = ROUNDS) -> Ints:
    """An order of the columns under which N:M keeps more of the saliency; never less than the order they have.

    Columns are dealt to the groups of m by falling sum, back and forth; then, place by place, the columns that the
    groups have there are dealt anew by linear assignment, for which the gain of a column ``c`` in a group is
    ``sum over rows of max(0, S[row, c] - t)``, t the n-th largest of the group's others. Both starts, the deal and
    the order as it is, are refined, and the better is returned. Columns beyond the last whole group stay.

    Args:
        saliency: (rows, columns), at least 0. n, m: of the pattern. rounds: of the refinement, at most.

    Returns:
        int64 (columns,): new column i is old column ``order[i]``.

    Time: rounds x m x rows x (columns / m)².

    The heuristic of RIA, section 2.2 (OpenReview Tr0lPx9woF).

    Example:
        >>> best_order(torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.0, 0.0, 0.0, 0.0]]), 2, 4).tolist()
        [0, 2, 4, 7, 1, 3, 5, 6]
    """
    columns = saliency.shape[1]
    as_is = np.arange(columns)
    if not 0 < n < m or columns < 2 * m:
        return as_is
    s = saliency.detach().double()
    whole = columns - columns % m
    deal = as_is.copy()
    deal[:whole] = _dealt(s[:, :whole].sum(0).cpu().numpy(), m)
    found = [_refined(s, start, n, m, rounds) for start in (deal, as_is)]
    kept = [kept_saliency(s[:, torch.from_numpy(o).to(s.device)], n, m) for o in (*found, as_is)]
    if max(kept) <= kept[2]:
        return as_is
    return found[0] if kept[0] >= kept[1] else found[1]


def kept_saliency(saliency: Tensor, n: int, m: int) -> float:
    """What N:M along the columns keeps of (rows, columns), with an incomplete last group kept whole.

    Example:
        >>> kept_saliency(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 2, 4)
        7.0
    """
    whole = saliency.shape[1] // m * m
    best = saliency[:, :whole].unflatten(1, (-1, m)).topk(n, dim=2).values
    return float(best.sum(dtype=torch.float64) + saliency[:, whole:].sum(dtype=torch.float64))


def _dealt(sums: np.ndarray[tuple[int], np.dtype[np.float64]], m: int) -> Ints:
    """Columns by falling sum, one to each group in turn, the turn reversed every time."""
    ranked = np.argsort(-sums, kind="stable").reshape(m, -1)
    ranked[1::2] = ranked[1::2, ::-1]
    return np.sort(ranked.T, axis=1).reshape(-1).astype(np.int64)


def _refined(s: Tensor, start: Ints, n: int, m: int, rounds: int) -> Ints:
    from scipy.optimize import linear_sum_assignment

    whole = len(start) // m * m
    groups = start[:whole].reshape(-1, m).copy()
    kept = -np.inf
    for _ in range(rounds):
        for place in range(m):
            others = np.delete(groups, place, axis=1)
            members = s[:, torch.from_numpy(others.reshape(-1)).to(s.device)].unflatten(1, (-1, m - 1))
            bar = members.topk(n, dim=2).values[:, :, -1]  # (rows, groups)
            gain = _gains(s[:, torch.from_numpy(groups[:, place]).to(s.device)], bar)
            to, take = linear_sum_assignment(gain.T, maximize=True)
            groups[to, place] = groups[take, place]
        after = kept_saliency(s[:, torch.from_numpy(groups.reshape(-1)).to(s.device)], n, m)
        if after <= kept * (1 + 1e-9):
            break
        kept = after
    return np.concatenate([groups.reshape(-1), start[whole:]])


def _gains(columns: Tensor, bar: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """``sum over rows of max(0, column - bar)``, (columns, groups)."""
    rows, k = columns.shape
    step = max(1, CELLS // max(rows * k, 1))
    parts = [(columns[:, i : i + step, None] - bar[:, None]).clamp_min_(0).sum(0) for i in range(0, k, step)]
    out: np.ndarray[tuple[int, int], np.dtype[np.float64]] = torch.cat(parts).cpu().numpy()
    return out


def permute_for(
    model: nn.Module, groups: Groups, saliency: Mapping[str, Tensor], pattern: Pattern, rounds: int = ROUNDS
) -> dict[str, Ints]:
    """Orders of the units under which an N:M pattern keeps more of the saliency.

    Only units that are interchangeable are moved: neurons and channels, all of whose parts lie equally far apart, and
    of which no buffer of positions tells; see `permute_`. A group whose units feed several weights is ordered for all
    of them together. One whose order gains nothing, of all that it touches along the pattern's axis, is left out.

    Args:
        model: whose weights were scored. groups: from `sc.couple`. saliency: from `sc.saliency`.
        pattern: from `nm`. rounds: as in `best_order`.

    Returns:
        group name -> order; new unit i is old unit ``order[i]``. Empty where nothing is gained.

    Raises:
        PlanError: the pattern is not N:M, or the saliency does not fit the model.

    Example:
        >>> import secateur as sc
        >>> from secateur.choose.patterns import nm
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = sc.couple(sc.trace(net, torch.zeros(1, 3)))
        >>> column = torch.tensor([9.0, 8.0, 7.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        >>> permute_for(net, groups, {"2.weight": column.expand(2, 8)}, nm(2, 4))
        {'0:neuron': array([0, 2, 4, 7, 1, 3, 5, 6])}
    """
    if pattern.window is None:
        raise PlanError(f"an order of channels can only raise what an N:M pattern keeps; got {pattern.name}: use nm")
    n, m, dim = pattern.window
    tensors = _named(model)
    for name, s in saliency.items():
        if name not in tensors or tensors[name].shape != s.shape:
            raise PlanError(f"the saliency of {name} has shape {tuple(s.shape)}, which this model's weight has not")
    scores, orders = dict(saliency), {}
    for group in groups:
        if not _interchangeable(groups, group):
            continue
        touched = [s for s in group.slices if s.name in scores and s.dim == dim % scores[s.name].dim()]
        fed = [s for s in touched if _aligned(s, m)]
        if not fed:
            continue
        order = best_order(torch.cat([_rows(scores[s.name], s) for s in fed]), n, m, rounds)
        moved = _moved(scores, group, order)
        axes = {(s.name, s.dim) for s in touched}
        before, after = (sum(_kept(by[name], d, n, m) for name, d in axes) for by in (scores, moved))
        if after > before * (1 + 1e-12):
            orders[group.name] = order
            scores |= moved
    return orders


def permute_(model: nn.Module, groups: Groups, orders: Mapping[str, Ints]) -> nn.Module:
    """Put the units of groups in another order, in everything they own: the function of the model is the same.

    Parameters stay the same objects; the state of an optimizer, gradients and masks do not follow.

    Args:
        model: changed in place and returned. groups: from `sc.couple`, of this model.
        orders: group name -> order of its units, such as `permute_for` finds; new unit i is old unit ``order[i]``.

    Raises:
        PlanError: an order is no permutation of a group's units, its units cannot change places, or the model is
            not the one that was coupled; nothing is changed.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> groups = sc.couple(sc.trace(net, torch.zeros(1, 1)))
        >>> x = torch.randn(5, 1)
        >>> before = net(x)
        >>> bool(torch.allclose(permute_(net, groups, {"0:neuron": np.array([1, 0])})(x), before))
        True
    """
    tensors = _named(model)
    for name, order in orders.items():
        group = groups[name]
        if sorted(np.asarray(order).tolist()) != list(range(group.units)):
            raise PlanError(f"the order of {name} is no permutation of its {group.units} units")
        if not _interchangeable(groups, group):
            raise PlanError(f"the units of {name} cannot change places: only neurons and channels of one kind can")
        for s in group.slices:
            if s.name not in tensors or s.index.max() >= tensors[s.name].shape[s.dim]:
                raise PlanError(f"group {name} has units in {s.name}, which is not this model's: another architecture?")
    with torch.no_grad():
        for name, order in orders.items():
            done: set[tuple[int, int, bytes]] = set()
            for s in groups[name].slices:
                tensor = tensors[s.name]
                if (key := (id(tensor), s.dim, s.index.tobytes())) not in done:  # shared ones once
                    done.add(key)
                    _move_(tensor, s, np.asarray(order))
    return model


def _interchangeable(groups: Groups, group: Group) -> bool:
    """Neurons and channels whose parts lie equally far apart, and that no buffer of positions points at."""
    if group.kind not in ("neuron", "channel", "hidden") or group.units < 2:
        return False
    if any((s.index - s.index[:, :1] != s.index[:1] - s.index[:1, :1]).any() for s in group.slices):
        return False
    one = np.ones(group.units, bool)
    one[0] = False
    return not groups.renumbered({group.name: one})


def _moved(scores: Mapping[str, Tensor], group: Group, order: Ints) -> dict[str, Tensor]:
    """The scores of what a group owns, in another order."""
    moved = {s.name: scores[s.name].clone() for s in group.slices if s.name in scores}
    for s in _once(s for s in group.slices if s.name in moved):
        _move_(moved[s.name], s, order)
    return moved


def _aligned(s: Slice, m: int) -> bool:
    """The units are the axis's positions one by one, from a multiple of m on."""
    first = int(s.index[0, 0])
    return s.index.shape[1] == 1 and first % m == 0 and bool((np.diff(s.index[:, 0]) == 1).all())


def _rows(saliency: Tensor, s: Slice) -> Tensor:
    """(rows, units), float64."""
    first = int(s.index[0, 0])
    mine = saliency.detach().movedim(s.dim, -1)[..., first : first + len(s.index)]
    return mine.reshape(-1, len(s.index)).double()


def _kept(saliency: Tensor, dim: int, n: int, m: int) -> float:
    moved = saliency.movedim(dim, -1)
    return kept_saliency(moved.reshape(-1, moved.shape[-1]), n, m)


def _once(slices: Iterable[Slice]) -> list[Slice]:
    return list({(s.name, s.dim, s.index.tobytes()): s for s in slices}.values())


def _move_(tensor: Tensor, s: Slice, order: Ints) -> None:
    old = torch.from_numpy(s.index[order].reshape(-1)).to(tensor.device)
    new = torch.from_numpy(s.index.reshape(-1)).to(tensor.device)
    tensor.index_copy_(s.dim, new, tensor.detach().index_select(s.dim, old))


def _named(model: nn.Module) -> dict[str, Tensor]:
    parameters, buffers = named_tensors(model)
    return parameters | buffers
