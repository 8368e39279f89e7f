"""What a model holds beside torch's registry: modules in plain lists, and objects that say sizes or wrap tensors.

A path names such a part as it names a module: ``layers.3.spec.axes.-1`` goes through attributes, lists and dicts.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import modules_of

_LEAVES = (str, bytes, int, float, complex, type(None), type, Tensor, torch.dtype, torch.device, Enum)
_PLAIN = frozenset((str, int, float, bool, type(None), nn.Parameter, Tensor))
_OWN = frozenset(vars(nn.Module()))  # parameters, hooks and all else that every module has


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts by path: ``modules`` that are not registered, and ``objects``, each by its module and its path in it."""

    modules: Mapping[str, nn.Module]
    objects: Mapping[tuple[str, str], Any]


def parts_of(model: nn.Module) -> Parts:
    """Modules in lists, tuples and dicts of a model's modules, and the plain objects there and in attributes.

    Example:
        >>> net = nn.Module()
        >>> net.stack = [nn.Linear(2, 3), nn.ReLU()]
        >>> list(parts_of(net).modules)
        ['stack.0', 'stack.1']
    """
    registered = modules_of(model)
    known = {id(m) for m in registered.values()}
    hidden: dict[str, nn.Module] = {}
    objects: dict[tuple[str, str], Any] = {}
    todo = list(registered.items())
    while todo:
        path, module = todo.pop(0)
        for key, item in _held(module):
            if id(item) in known or isinstance(item, _LEAVES):
                continue
            if isinstance(item, nn.Module):
                here = f"{path}.{key}".lstrip(".")
                for inner, part in item.named_modules(prefix=here):
                    if id(part) not in known:
                        known.add(id(part))
                        hidden[inner] = part
                        todo.append((inner, part))
            elif has_attributes(type(item)) and not callable(item):
                known.add(id(item))
                objects[path, key] = item
    return Parts(hidden, objects)


def has_attributes(kind: type) -> bool:
    """Whether instances hold attributes of their own; asked of the class, as an object may answer in its own way."""
    return kind.__dictoffset__ != 0


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What the attributes of a module hold, and the lists, tuples and dicts there."""
    for key, value in vars(module).items():
        kind = value.__class__
        if key in _OWN or kind in _PLAIN or isinstance(value, _LEAVES):
            continue
        if kind is tuple and _PLAIN.issuperset(map(type, value)):  # a stride, a padding
            continue
        if isinstance(value, (list, tuple)):
            yield from ((f"{key}.{i}", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            yield from ((f"{key}.{k}", item) for k, item in value.items() if "." not in str(k))
        else:
            yield key, value


def part_at(model: nn.Module, path: str) -> Any:
    """The part at a path.

    Raises:
        AttributeError: there is none.

    Example:
        >>> net = nn.Module()
        >>> net.stack = [nn.Linear(2, 3)]
        >>> part_at(net, "stack.0"), part_at(net, "stack.0.out_features")
        (Linear(in_features=2, out_features=3, bias=True), 3)
    """
    held: Any = model
    for step in path.split(".") if path else ():
        try:
            held = _step(held, step)
        except (KeyError, IndexError, ValueError) as error:
            raise AttributeError(f"{type(held).__name__} has no {step!r}, of {path!r}") from error
    return held


def _step(held: Any, step: str) -> Any:
    if isinstance(held, nn.Module) and step in held._modules:
        return held._modules[step]
    if step not in getattr(held, "__dict__", ()):
        if isinstance(held, Mapping):
            return held[_key(held, step)]
        if isinstance(held, (list, tuple)) and not hasattr(held, step):  # a named tuple has names
            return held[int(step)]
    return getattr(held, step)


def _key(held: Mapping[Any, Any], step: str) -> Any:
    """The key that a step names: numbers are keys too."""
    return step if step in held else int(step)


def put(model: nn.Module, path: str, value: Any) -> None:
    """Set the part at a path; a tuple in which something changes is replaced.

    Example:
        >>> net = nn.Module()
        >>> net.shape, net.axes = (None, 8), {-1: 8}
        >>> put(net, "shape.1", 4), put(net, "axes.-1", 4)
        (None, None)
        >>> net.shape, net.axes
        ((None, 4), {-1: 4})
    """
    way, _, last = path.rpartition(".")
    held = part_at(model, way)
    if isinstance(held, dict) and last not in getattr(held, "__dict__", ()):
        held[_key(held, last)] = value
    elif isinstance(held, (list, tuple)):
        items = list(held)
        items[int(last)] = value
        put(model, way, type(held)(items))
    else:
        vars(held)[last] = value


@dataclass(frozen=True, eq=False)
class Shape:
    """A tuple ``key`` in the object at ``path`` that says the shape of a tensor which the object holds."""

    path: str
    key: str
    tensor: Tensor


def shapes_of(parts: Parts, tensors: Container[int]) -> list[Shape]:
    """The tuples that equal the shape of the one tensor, by id among ``tensors``, that their object holds."""
    found = []
    for (module, at), item in parts.objects.items():
        own = vars(item)
        held = {id(v): v for v in own.values() if isinstance(v, Tensor) and id(v) in tensors}
        if len(held) == 1:
            (tensor,) = held.values()
            shape, path = tuple(tensor.shape), f"{module}.{at}".lstrip(".")
            keys = [k for k, v in own.items() if type(v) in (tuple, torch.Size) and shape and v == shape]
            found += [Shape(path, k, tensor) for k in keys]
    return found
