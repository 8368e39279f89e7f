"""Penalties that make whole units small before they go: group lasso, DepGraph's weighted decay, growing L2."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import named_tensors
from secateur.digest import digest_of
from secateur.errors import ArgumentError, PlanError
from secateur.graph.couple import Groups
from secateur.train.names import local, sharded_as
from secateur.train.sparse import Method, Sparse
from secateur.types import Bools, Floats, Group, Plan


def group_lasso(model: nn.Module, groups: Groups, strength: float, alpha: float = 0.0) -> Tensor:
    """A term of the loss: ``strength sum_u gamma_u ||w_u||``, the norm of all parameters that go with a unit.

    It pulls whole units to zero (arXiv:1608.03665). With ``alpha`` the weak ones are pulled harder:
    ``gamma_u = 2^(alpha (max ||w|| - ||w_u||) / (max ||w|| - min ||w||))`` within a group, taken as constants.

    Args:
        model: in training. groups: its units. strength: of the penalty. alpha: 0 weighs all alike.

    Returns:
        A scalar with gradient; where a norm is zero the gradient is zero.

    Raises:
        ArgumentError: a setting is negative, or there are no groups.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = sc.couple(sc.trace(net, torch.zeros(1, 4)))
        >>> group_lasso(net, groups, 1e-3).backward()
        >>> net[0].bias.grad.shape
        torch.Size([8])
    """
    return _penalty(model, groups, strength, alpha, squared=False)


def group_decay(model: nn.Module, groups: Groups, strength: float, alpha: float = 4.0) -> Tensor:
    """DepGraph's sparse learning: ``strength sum_u gamma_u ||w_u||²`` with the weights of `group_lasso`.

    Here ``gamma_u`` is of the squared norms, as the importance is (arXiv:2301.12900).

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> group_decay(net, sc.couple(sc.trace(net, torch.zeros(1, 4))), 1e-4).ndim
        0
    """
    return _penalty(model, groups, strength, alpha, squared=True)


def unit_norms(model: nn.Module, groups: Groups) -> dict[str, Floats]:
    """Euclidean norm of all parameters that go with each unit: group name -> float64 (units,).

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> unit_norms(net, sc.couple(sc.trace(net, torch.zeros(1, 4))))["0:neuron"].shape
        (8,)
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        return {g.name: _energy(parameters, g).double().sqrt().cpu().numpy() for g in groups}


def vanished(model: nn.Module, groups: Groups, tolerance: float = 1e-3) -> dict[str, Bools]:
    """Masks of the units to keep: all whose norm is above ``tolerance`` times the largest of their group.

    What goes by it was almost zero: the function changes a little. `zero_units` takes only what changes nothing. At
    least one unit of every group stays, and no more go than its kernels and routers allow.

    Raises:
        PlanError: a group, named, has norms that are not finite.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = sc.couple(sc.trace(net, torch.zeros(1, 4)))
        >>> int(vanished(net, groups)["0:neuron"].sum())
        8
    """
    keep, found = {}, unit_norms(model, groups)
    for g in groups:
        norms = found[g.name]
        if bad := int((~np.isfinite(norms)).sum()):
            raise PlanError(f"group {g.name}: {bad} of {g.units} units have a norm of NaN or inf: check its weights")
        order = np.argsort(-norms, kind="stable")
        count = max(int((norms > tolerance * norms.max()).sum()), g.least, 1)
        count = min(g.units, -(-count // g.multiple) * g.multiple)
        keep[g.name] = np.isin(np.arange(g.units), order[:count])
    return keep


def growing_l2(plan: Plan, delta: float = 1e-4, every: int = 5, ceiling: float = 1.0) -> Method:
    """Growing regularisation: an L2 penalty on what a plan removes, stronger and stronger, until it has vanished.

    ``dL/dw + lambda(t) w`` with ``lambda(t) = min(ceiling, delta floor(t / every))`` on the weights that go, none on
    the others: the network has time to do without them (arXiv:2012.09243). Cut with ``sc.apply(plan, model)`` when
    `residue` is near zero. Meant for SGD; the learning rate times the ceiling must be well below 2.

    Args:
        plan: from `sc.make_plan` or `sc.allocate`. delta: what the strength grows by. every: steps between two
            growths. ceiling: where it stops.

    Raises:
        ArgumentError: a setting is not positive.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = sc.random_plan(sc.couple(sc.trace(net, torch.zeros(1, 4))), 0.5, seed=0)
        >>> growing_l2(plan).name
        'growing_l2'
    """
    if delta <= 0 or every < 1 or ceiling <= 0:
        raise ArgumentError(
            f"growing_l2 needs delta > 0, every >= 1 and ceiling > 0; got delta={delta}, every={every}, "
            f"ceiling={ceiling}"
        )

    def start(run: Sparse) -> None:
        for name, gone in doomed(run.model, plan).items():
            run.memory[f"gone.{name}"] = gone

    def before(run: Sparse) -> bool:
        strength = min(ceiling, delta * (run.step // every))
        parameters = dict(run.model.named_parameters())
        with torch.no_grad():
            for name, gone in ((k.removeprefix("gone."), v) for k, v in run.memory.items()):
                p = parameters[name]
                if p.grad is not None:
                    local(p.grad).add_(local(p) * sharded_as(gone, p), alpha=strength)
        return False

    axes = digest_of((f"{name} {dim}", torch.from_numpy(k)) for (name, dim), k in sorted(plan.axes.items()))
    about = {"delta": delta, "every": every, "ceiling": ceiling, "removed": plan.removed, "axes": axes}
    return Method("growing_l2", start, before, about=about)


def doomed(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Which entries of which parameters a plan removes: name -> bool tensor, True goes."""
    found: dict[str, Tensor] = {}
    parameters, buffers = named_tensors(model)
    for (name, dim), keep in plan.axes.items():
        shape = tuple(t.shape) if (t := parameters.get(name, buffers.get(name))) is not None else None
        if shape is None or dim >= len(shape) or shape[dim] != len(keep):
            raise PlanError(
                f"the plan cuts axis {dim} of {name} from {len(keep)} positions, which in {type(model).__name__} is "
                f"{'not there' if shape is None else shape}: give the model that the plan was made for, unwrapped"
            )
    for name, p in model.named_parameters():
        for (tensor, dim), keep in plan.axes.items():
            if tensor == name:
                along = [-1 if d == dim else 1 for d in range(p.dim())]
                gone = torch.from_numpy(~keep).to(p.device).reshape(along).expand(p.shape)
                found[name] = gone | found[name] if name in found else gone.clone()
    return found


def residue(model: nn.Module, plan: Plan) -> float:
    """The norm of all that a plan removes over the norm of all that it keeps of the same parameters.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = sc.random_plan(sc.couple(sc.trace(net, torch.zeros(1, 4))), 0.5, seed=0)
        >>> residue(sc.masked(plan, net), plan)
        0.0
    """
    parameters, gone, kept = dict(model.named_parameters()), 0.0, 0.0
    with torch.no_grad():
        for name, mask in doomed(model, plan).items():
            square = parameters[name].double().square()
            gone += float((square * mask).sum())
            kept += float((square * ~mask).sum())
    return math.sqrt(gone / kept) if kept else math.inf if gone else 0.0


def _energy(parameters: Mapping[str, Tensor], group: Group) -> Tensor:
    """Squared norm of each unit's parameters, with gradient."""
    total = None
    for s in group.slices:
        p = parameters.get(s.name)
        if p is None or not p.is_floating_point():
            continue
        index = torch.from_numpy(s.index.reshape(-1)).to(p.device)
        part = p.index_select(s.dim, index).movedim(s.dim, 0).reshape(group.units, -1).square().sum(1)
        total = part if total is None else total + part
    assert total is not None, group.name
    return total


def _penalty(model: nn.Module, groups: Groups, strength: float, alpha: float, squared: bool) -> Tensor:
    if strength < 0 or alpha < 0:
        raise ArgumentError(f"a penalty needs strength and alpha of at least 0, got {strength} and {alpha}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    terms = []
    for g in groups:
        energy = _energy(parameters, g)
        some = energy > 0
        size = energy if squared else torch.where(some, torch.where(some, energy, 1).sqrt(), 0)
        now = size.detach()
        spread = now.max() - now.min()
        gamma = 2 ** (alpha * (now.max() - now) / torch.where(spread > 0, spread, 1))
        terms.append((gamma * size).sum())
    if not terms:
        raise ArgumentError("a penalty needs units, and there is no group: give sc.couple(sc.trace(model, example))")
    return strength * torch.stack(terms).sum()
