"""The act: cut a model as a plan says, or zero what the plan removes. The only room that changes a model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from secateur.calling import modules_of
from secateur.errors import PlanError
from secateur.graph.copying import duplicate, tensors_by_name
from secateur.graph.dropping import by_container, bypass_, drop_, original, renamed
from secateur.graph.multihead import narrow_
from secateur.graph.parts import Shape, part_at, parts_of, shapes_of
from secateur.graph.resize import Slot, resize_
from secateur.graph.sizes import Attribute, read_attribute, write_attribute
from secateur.types import Bools, Plan

# What torch's own modules say of their sizes without using it: attribute -> (parameter, dim).
_SAID: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"in_features": ("weight", 1), "out_features": ("weight", 0)},
    nn.Embedding: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.modules.batchnorm._NormBase: {"num_features": ("weight", 0)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
    nn.RNNBase: {"input_size": ("weight_ih_l0", 1), "proj_size": ("weight_hr_l0", 0)},
    nn.RNNCellBase: {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)},
}


def apply(plan: Plan, model: nn.Module) -> nn.Module:
    """A new, physically smaller model of the same class; the given one is untouched.

    Parameters keep names, dtype, device and ``requires_grad``; shared ones stay shared; buffers are cut too; int
    attributes that sizes in the code are made of are set to the new sizes. Layers that go whole are taken out of their
    lists last, and what is behind them in the list is renumbered. Peak memory: both models.

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
    named = _check(plan, model)
    memo: dict[int, Any] = {}
    for name, old in named.items():
        if id(old) not in memo:
            whole = old.detach()
            new = cut_tensor(plan, name, whole)
            memo[id(old)] = _like(old, new.clone() if new is whole else new)
    said = _said(model, named)
    small = duplicate(model, memo)
    _check_copy(plan, model, small)
    _finish(plan, small, said)
    return small


def _check_copy(plan: Plan, model: nn.Module, small: nn.Module) -> None:
    """A model may copy itself in a way of its own, by which the cut parameters get lost."""
    made = tensors_by_name(small)
    for (name, dim), keep in plan.axes.items():
        if name not in made or made[name].shape[dim] != keep.sum():
            raise PlanError(
                f"a copy of {type(model).__name__} has {name!r} of another shape than it was given: its class copies "
                "itself in a way of its own. Cut a model in place with sc.apply_, and keep the original elsewhere"
            )


def apply_(plan: Plan, model: nn.Module) -> nn.Module:
    """Cut the model in place and return it; its parameters stay the same objects, so an optimizer still holds them."""
    named = _check(plan, model)
    said = _said(model, named)
    done: set[int] = set()
    for name, old in named.items():
        if id(old) not in done:
            done.add(id(old))
            whole = old.detach()
            new = cut_tensor(plan, name, whole)
            if new is whole:  # nothing of it goes
                continue
            grad = None if old.grad is None else cut_tensor(plan, name, old.grad)
            old.grad = None
            if old.requires_grad:  # only another dtype makes autograd forget the old shape while a graph is alive
                old.data = new.new_empty(0, dtype=torch.float32 if new.dtype == torch.float64 else torch.float64)
            old.data = new
            old.grad = grad
    _finish(plan, model, said)
    return model


def masked(plan: Plan, model: nn.Module) -> nn.Module:
    """A copy of the model at full size in which everything that the plan removes is zero: the oracle of `apply`.

    Layers that go whole hand their first tensor on, by hooks; what else they return is what they return.
    """
    _check(plan, model)
    zeroed = duplicate(model)
    named, directions = tensors_by_name(zeroed), _directions(zeroed)
    with torch.no_grad():
        for (name, dim), keep in plan.axes.items():
            tensor = named[name]
            if (name, dim) in directions:
                continue
            if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
                gone = torch.from_numpy(np.nonzero(~keep)[0]).to(tensor.device)
                tensor.index_fill_(dim, gone, 0)
    bypass_(zeroed, plan.layers)
    return zeroed


def _directions(model: nn.Module) -> set[tuple[str, int]]:
    """Rows of weight-normed weights, ``g * v / |v|``: zeroed in g alone, as zero in v has no direction."""
    found = set()
    for path, part in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(part, parametrize.ParametrizationList) and isinstance(part[0], _WeightNorm):
            found.add((f"{prefix}original1", part[0].dim))
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                found.add((f"{prefix}{hook.name}_v", hook.dim))
    return found


def apply_to_optimizer_(plan: Plan, optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module) -> None:
    """Carry an optimizer over to the cut model: same parameters by name, state cut along with them.

    Args:
        plan: what was cut. optimizer: over parameters of ``model``; changed in place.
        model: what it was built on. small: ``apply(plan, model)``, or ``model`` itself after ``apply_``: then the
            parameters of layers that went are unknown by now and stay with the optimizer, without gradients.
    """
    old, new = (dict(m.named_parameters(remove_duplicate=False)) for m in (model, small))
    if model is small:
        old = {original(n, plan.layers): p for n, p in old.items()}
    names = {id(p): n for n, p in reversed(old.items())}
    names |= {id(p): n for n, p in reversed(old.items()) if renamed(n, plan.layers) is not None}
    carried = {i: new.get(renamed(n, plan.layers) or "") for i, n in names.items()}  # None goes
    sizes = {n: _size_before(plan, n, p.shape) if model is small else tuple(p.shape) for n, p in old.items()}
    for group in optimizer.param_groups:
        group["params"] = [q for p in group["params"] if (q := carried.get(id(p), p)) is not None]
    for parameter in [p for p in list(optimizer.state) if id(p) in names]:
        name, mine = names[id(parameter)], carried[id(parameter)]
        state = optimizer.state.pop(parameter)
        if mine is not None:
            optimizer.state[mine] = {
                key: cut_tensor(plan, name, v) if isinstance(v, Tensor) and tuple(v.shape) == sizes[name] else v
                for key, v in state.items()
            }


def _size_before(plan: Plan, name: str, shape: torch.Size) -> tuple[int, ...]:
    return tuple(len(plan.axes[name, d]) if (name, d) in plan.axes else n for d, n in enumerate(shape))


def _check(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """Everything that could fail, before anything is changed; returns the model's tensors by name."""
    named = tensors_by_name(model)
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
    for module, *_ in plan.sizes:
        try:
            part_at(model, module)
        except AttributeError as error:
            raise PlanError(f"the plan resizes {module}, which is not in this model: another architecture?") from error
    for (module, path), (old, _) in plan.attributes.items():
        try:
            found = read_attribute(model, Attribute(module, path))
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise PlanError(f"the plan sets {module}.{path}, which this model does not have ({error})") from error
        if found != old:
            raise PlanError(f"the plan changes {module}.{path} from {old}, but it is {found}: another configuration?")
    for path, gone in by_container(plan.layers).items():
        try:
            container = model.get_submodule(path)
        except AttributeError as error:
            raise PlanError(f"the plan drops layers of {path}, which is not in this model ({error})") from error
        there = container._modules.keys() if isinstance(container, (nn.ModuleList, nn.Sequential)) else set()
        if not gone < there:
            raise PlanError(
                f"the plan drops {sorted(gone)} of {path or 'the model'}, which holds {list(there)}: "
                "was the model cut already, or is it another architecture?"
            )
    return named


def cut_tensor(plan: Plan, name: str, tensor: Tensor) -> Tensor:
    """What a plan leaves of a tensor, by its name in the whole model."""
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


def _narrow(plan: Plan, model: nn.Module) -> None:
    """Attentions of torch's own that lost something run with what is left."""
    for path, part in modules_of(model).items():
        if type(part) is nn.MultiheadAttention:
            prefix = f"{path}." if path else ""
            cut = {(n.removeprefix(prefix), d): keep for (n, d), keep in plan.axes.items() if n.startswith(prefix)}
            if cut:
                narrow_(part, cut)


def _said(model: nn.Module, named: Mapping[str, Tensor]) -> list[tuple[Shape, str]]:
    """What objects in the model say of the shapes of its tensors, with the name of each tensor."""
    names = {id(t): n for n, t in named.items()}
    return [(shape, names[id(shape.tensor)]) for shape in shapes_of(parts_of(model), names)]


def _finish(plan: Plan, model: nn.Module, said: list[tuple[Shape, str]]) -> None:
    tensors = tensors_by_name(model) if said else {}
    for shape, name in said:
        own = vars(part_at(model, shape.path))
        own[shape.key] = type(own[shape.key])(tensors[name].shape)
    for (module, path), (_, value) in plan.attributes.items():
        write_attribute(model, Attribute(module, path), value)
    _narrow(plan, model)
    sizes: dict[str, dict[Slot, tuple[int, int]]] = {}
    for (module, *slot), change in plan.sizes.items():
        sizes.setdefault(module, {})[tuple(slot)] = change  # type: ignore[index]
    for module, changes in sizes.items():
        resize_(part_at(model, module), changes)
    for part in modules_of(model).values():
        for kind, fields in _SAID.items():
            if isinstance(part, kind):
                for attribute, (parameter, dim) in fields.items():
                    tensor = getattr(part, parameter, None)
                    if tensor is None:
                        tensor = getattr(part, "running_mean", None)
                    if isinstance(tensor, Tensor) and hasattr(part, attribute):
                        setattr(part, attribute, tensor.shape[dim])
        if isinstance(part, nn.RNNBase):
            rows = dict(part.named_parameters())["weight_hh_l0"].shape[0]
            part.hidden_size = rows // {"LSTM": 4, "GRU": 3}.get(part.mode, 1)
        if isinstance(part, nn.modules.conv._ConvNd):
            inner, outer = part.weight.shape[1], part.weight.shape[0]
            if part.transposed:
                inner, outer = outer, inner
                part.in_channels, part.out_channels = inner, outer * part.groups
            else:
                part.in_channels, part.out_channels = inner * part.groups, outer
    drop_(model, plan.layers)
