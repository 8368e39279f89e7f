"""Which layers can be taken out of a model whole: tried on a copy, never told by a class or a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import tensors_of
from secateur.errors import PlanError, TraceError, brief
from secateur.graph.dropping import Bypass, by_container, bypass_, drop_, drops_of, numbered, remaining
from secateur.graph.numbering import Changes, Numbers, numbers_of
from secateur.graph.sizes import Attribute, write_attribute
from secateur.graph.trial import apart, attempt, shell
from secateur.types import Example


@dataclass(frozen=True)
class Layer:
    """A child of an ``nn.ModuleList`` or ``nn.Sequential`` that a model can do without.

    Attributes:
        path: such as ``encoder.layer.3``. container: path of the list. index: position in it.
        params: entries of the parameters that would go with it; what others share stays.
        residual: it hands its input on when its parameters are zero, as ``x + f(x)`` does.
    """

    path: str
    container: str
    index: int
    params: int
    residual: bool


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass shows of the children of all containers.

    Attributes:
        dense: the output. containers: path -> paths of its children.
        fixed: path -> why a child cannot go; the others may, if the model runs without them.
    """

    dense: Any
    containers: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, str]


def layers(model: nn.Module, example: Example) -> tuple[Layer, ...]:
    """Layers that can be taken out whole: children of an ``nn.ModuleList`` or ``nn.Sequential``.

    Each is called once on the example, gives a tensor like the first one that it gets, and holds a weight of two or
    more dims; and the model without it computes what it would with the identity in its place. That is tried on a copy
    that shares the parameters, in evaluation mode: the model is left as it was.

    Args:
        model: any module.
        example: what its ``forward`` takes.

    Raises:
        TraceError: the model does not run on the example.

    Time: two passes a layer, and a few a container. Memory: what a pass needs, and the buffers once more.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> [(layer.path, layer.params) for layer in layers(net, torch.randn(3, 4))]
        [('1', 72), ('2', 72)]
    """
    return examine(model, example)[0]


def examine(model: nn.Module, example: Example) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """The layers that can go, and why each other child of a container cannot: path -> reason."""
    seen = survey(model, example)
    fixed, found = dict(seen.fixed), []
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for container, paths in seen.containers.items():
        free = [p for p in paths if p not in fixed]
        if not free:
            continue
        residual = _residual(model, example, free)
        numbers = numbers_of(model, example, container, seen.dense)
        for path in free:
            index = paths.index(path)
            problem = trouble_without(model, example, [path], numbers.without([index]))
            if problem:
                fixed[path] = problem
            else:
                params = _own(model.get_submodule(path), uses)
                found.append(Layer(path, container, index, params, path in residual))
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    return tuple(sorted(found, key=lambda layer: order[layer.path])), fixed


def survey(model: nn.Module, example: Example) -> Survey:
    """One pass: which children of which containers are called as a layer is.

    Raises:
        TraceError: the model does not run on the example.
    """
    twin = shell(model)
    calls: dict[str, list[str]] = {}
    containers: dict[str, tuple[str, ...]] = {}
    paths_of: dict[int, list[str]] = {}
    for path, module in twin.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            paths_of.setdefault(id(module), []).append(path)
            if paths_of[id(module)] == [path]:
                containers[path] = tuple(f"{path}.{key}".strip(".") for key in module._modules)
    for paths in containers.values():
        for path in paths:
            _listen(path, twin.get_submodule(path), calls)
    try:
        dense = attempt(twin, example)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run on the example: {brief(error)}. "
            "Give what its forward takes: a tensor, a tuple of arguments or a dict of keyword arguments"
        ) from error
    fixed: dict[str, str] = {}
    for path, children in containers.items():
        container = twin.get_submodule(path)
        names = paths_of[id(container)]
        for child in children:
            reason = _reason(container, twin.get_submodule(child), calls.get(child, []), names)
            if reason:
                fixed[child] = reason
    return Survey(dense, containers, fixed)


def _listen(path: str, module: nn.Module, calls: dict[str, list[str]]) -> None:
    def heard(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(path, []).append(_misfit(tensors_of((args, kwargs)), tensors_of(output)))

    module.register_forward_hook(heard, with_kwargs=True)


def _misfit(given: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    """Why what comes out cannot be replaced by what goes in; "" if it can."""
    if not given or not made:
        return f"{'gets' if not given else 'gives'} no tensor"
    x, y = given[0], made[0]
    if x.is_nested or y.is_nested:
        return "works on nested tensors"
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return f"makes {_kind(y)} of {_kind(x)}"
    return ""


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def _reason(container: nn.Module, layer: nn.Module, calls: list[str], names: list[str]) -> str:
    """Why a child cannot go, as far as one pass shows."""
    if len(container._modules) < 2:
        return "is the only one of its container"
    if not any(p.dim() > 1 for p in layer.parameters()):
        return "holds no weight of two or more dims"
    if len(calls) != 1:
        return f"is called {len(calls)} times on the example"
    if calls[0]:
        return calls[0]
    if len(names) > 1:
        return f"is in a container of several names, {', '.join(names)}"
    if not numbered(container) and any(key.isdigit() for key in container._modules):
        return "has siblings whose names are numbers but not their positions"
    return ""


def trouble_without(model: nn.Module, example: Example, gone: Sequence[str], changes: Changes) -> str:
    """Why a model cannot do without some layers at once; "" if it can.

    Without them it must compute what it does with the identity in the place of each: layers behind them must not
    depend on their position in any way that the changes do not repair.
    """
    less = shell(model)
    for (module, path), (_, value) in changes.items():
        write_attribute(less, Attribute(module, path), value)
    drop_(less, gone)
    try:
        right = attempt(less, example)
        whole = shell(model)
        bypass_(whole, gone)
        left = attempt(whole, example)
    except Exception as error:  # code that counts on a layer may raise anything
        return f"is needed: without it, {brief(error)}"
    far = apart(remaining(left, right, drops_of(model, gone)), tensors_of(right))
    return f"is needed: the model without it is not the model with the identity in its place: {far}" if far else ""


def numbers_in(model: nn.Module, example: Example, seen: Survey, gone: Iterable[str]) -> Changes:
    """What counts and numbers layers must be set to when some go."""
    changes: Changes = {}
    for container, keys in by_container(gone).items():
        numbers: Numbers = numbers_of(model, example, container, seen.dense)
        names = [path.rpartition(".")[2] for path in seen.containers[container]]
        for at, change in numbers.without([names.index(k) for k in keys]).items():
            if changes.setdefault(at, change) != change:
                raise PlanError(
                    f"{'.'.join(filter(None, at))} would have to be {changes[at][1]} for one list of layers and "
                    f"{change[1]} for {container or 'another'}: drop the same layers of both"
                )
    return changes


def _residual(model: nn.Module, example: Example, paths: Sequence[str]) -> set[str]:
    """Which layers hand their inputs on when their parameters are zero."""
    twin = shell(model)
    found: set[str] = set()
    for path in paths:
        layer = twin.get_submodule(path)
        for part in layer.modules():
            for name, p in list(part._parameters.items()):
                if p is not None:
                    setattr(part, name, nn.Parameter(p.new_zeros(()).expand(p.shape), requires_grad=False))
        _compare(path, layer, found)
    try:
        attempt(twin, example)
    except Exception:  # zeros may be refused; what was found before that holds
        return found
    return found


def _compare(path: str, layer: nn.Module, found: set[str]) -> None:
    """Hooks that note whether the first tensor comes out as it went in, and hand it on either way."""
    bypass = Bypass(layer)

    def same(module: nn.Module, args: Any, output: Any) -> None:
        if bypass.given is not None and torch.equal(bypass.given, tensors_of(output)[0]):
            found.add(path)

    layer.register_forward_hook(same, prepend=True)


def _own(layer: nn.Module, uses: Mapping[int, int]) -> int:
    mine = Counter(id(p) for _, p in layer.named_parameters(remove_duplicate=False))
    return sum(p.numel() for p in layer.parameters() if mine[id(p)] == uses[id(p)])
