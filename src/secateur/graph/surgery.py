"""The act: cut a model as a plan says, or zero what the plan removes. The only room that changes a model's shape."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.graph.sizes import Attribute, read_attribute, write_attribute
from secateur.types import Bools, Plan

# What torch's own modules say of their sizes without using it: attribute -> (parameter, dim).
_SAID: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"in_features": ("weight", 1), "out_features": ("weight", 0)},
    nn.Embedding: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.modules.batchnorm._NormBase: {"num_features": ("weight", 0)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
}


def apply(plan: Plan, model: nn.Module) -> nn.Module:
    """A new, physically smaller model of the same class; the given one is untouched.

    Parameters keep names, dtype, device and ``requires_grad``; shared ones stay shared; buffers are cut too; int
    attributes that sizes in the code are made of are set to the new sizes. Peak memory: both models.

    Raises:
        PlanError: the plan was made for another architecture; nothing is changed.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = sc.couple(sc.trace(net, torch.zeros(1, 4)))
        >>> small = apply(sc.random_plan(groups, 0.5, seed=0), net)
        >>> small[0].out_features, small[2].weight.shape, net[0].out_features
        (4, torch.Size([2, 4]), 8)
    """
    _check(plan, model)
    memo: dict[int, Any] = {}
    for name, old in _tensors(model).items():
        if id(old) not in memo:
            memo[id(old)] = _like(old, _cut(plan, name, old.detach()).clone())
    small = copy.deepcopy(model, memo)
    _finish(plan, small)
    return small


def apply_(plan: Plan, model: nn.Module) -> nn.Module:
    """Cut the model in place and return it; its parameters stay the same objects, so an optimizer still holds them."""
    _check(plan, model)
    done: set[int] = set()
    for name, old in _tensors(model).items():
        if id(old) not in done:
            done.add(id(old))
            grad = None if old.grad is None else _cut(plan, name, old.grad)
            new = _cut(plan, name, old.detach()).clone()
            old.grad = None
            if old.requires_grad:  # only another dtype makes autograd forget the old shape while a graph is alive
                old.data = new.new_empty(0, dtype=torch.float32 if new.dtype == torch.float64 else torch.float64)
            old.data = new
            old.grad = grad
    _finish(plan, model)
    return model


def masked(plan: Plan, model: nn.Module) -> nn.Module:
    """A copy of the model at full size in which everything that the plan removes is zero: the oracle of `apply`."""
    _check(plan, model)
    zeroed = copy.deepcopy(model)
    named = _tensors(zeroed)
    with torch.no_grad():
        for (name, dim), keep in plan.axes.items():
            tensor = named[name]
            if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
                gone = torch.from_numpy(np.nonzero(~keep)[0]).to(tensor.device)
                tensor.index_fill_(dim, gone, 0)
    return zeroed


def apply_to_optimizer_(plan: Plan, optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module) -> None:
    """Carry an optimizer over to the cut model: same parameters by name, state cut along with them.

    Args:
        plan: what was cut. optimizer: over parameters of ``model``; changed in place.
        model: what it was built on. small: ``apply(plan, model)``, or ``model`` itself after ``apply_``.
    """
    old, new = dict(model.named_parameters()), dict(small.named_parameters())
    names = {id(p): n for n, p in old.items()}
    sizes = {n: _size_before(plan, n, p.shape) if model is small else tuple(p.shape) for n, p in old.items()}
    for group in optimizer.param_groups:
        group["params"] = [new[names[id(p)]] if id(p) in names else p for p in group["params"]]
    for parameter in [p for p in list(optimizer.state) if id(p) in names]:
        name = names[id(parameter)]
        state = optimizer.state.pop(parameter)
        optimizer.state[new[name]] = {
            key: _cut(plan, name, v) if isinstance(v, Tensor) and tuple(v.shape) == sizes[name] else v
            for key, v in state.items()
        }


def _size_before(plan: Plan, name: str, shape: torch.Size) -> tuple[int, ...]:
    return tuple(len(plan.axes[name, d]) if (name, d) in plan.axes else n for d, n in enumerate(shape))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


def _check(plan: Plan, model: nn.Module) -> None:
    """Everything that could fail, before anything is changed."""
    named = _tensors(model)
    for (name, dim), keep in plan.axes.items():
        if name not in named:
            raise PlanError(
                f"the plan cuts {name!r}, which {type(model).__name__} does not have: another architecture?"
            )
        shape = tuple(named[name].shape)
        if dim >= len(shape) or shape[dim] != len(keep):
            raise PlanError(
                f"the plan cuts dim {dim} of {name!r} from {len(keep)} positions, but its shape is {shape}: "
                "was the model cut already, or is it another architecture?"
            )
    for (module, path), (old, _) in plan.attributes.items():
        try:
            found = read_attribute(model, Attribute(module, path))
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise PlanError(f"the plan sets {module}.{path}, which this model does not have ({error})") from error
        if found != old:
            raise PlanError(f"the plan changes {module}.{path} from {old}, but it is {found}: another configuration?")


def _cut(plan: Plan, name: str, tensor: Tensor) -> Tensor:
    for dim in range(tensor.dim()):
        keep = plan.axes.get((name, dim))
        if keep is not None:
            tensor = tensor.index_select(dim, torch.from_numpy(np.nonzero(keep)[0]).to(tensor.device))
    if name in plan.renumber:
        where: Bools = plan.renumber[name]
        new = torch.from_numpy(np.cumsum(where) - 1).to(tensor.device)
        tensor = new[tensor]
    return tensor


def _like(old: Tensor, new: Tensor) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return new
    made = nn.Parameter(new, requires_grad=old.requires_grad)
    made.__dict__.update(old.__dict__)
    return made


def _finish(plan: Plan, model: nn.Module) -> None:
    for (module, path), (_, value) in plan.attributes.items():
        write_attribute(model, Attribute(module, path), value)
    for part in model.modules():
        for kind, said in _SAID.items():
            if isinstance(part, kind):
                for attribute, (parameter, dim) in said.items():
                    tensor = getattr(part, parameter, None)
                    if tensor is None:
                        tensor = getattr(part, "running_mean", None)
                    if isinstance(tensor, Tensor) and hasattr(part, attribute):
                        setattr(part, attribute, tensor.shape[dim])
        if isinstance(part, nn.modules.conv._ConvNd):
            inner, outer = part.weight.shape[1], part.weight.shape[0]
            if part.transposed:
                inner, outer = outer, inner
                part.in_channels, part.out_channels = inner, outer * part.groups
            else:
                part.in_channels, part.out_channels = inner * part.groups, outer
