"""Layers that go: how those that stay are called then, what stands in for one, and what is left of outputs.

Layers are named by their paths in the whole model. Children of a container that are named by their positions are
renumbered when one goes, so the names of their tensors shift; other names stay.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from secateur.calling import tensors_of

Drops: TypeAlias = Sequence[tuple[int, frozenset[int]]]
"""For every container that loses layers: how many it has, and which of them go."""


def by_container(layers: Iterable[str]) -> dict[str, set[str]]:
    """Container -> names of the children that go.

    Example:
        >>> by_container(["h.2", "h.5"]) == {"h": {"2", "5"}}
        True
    """
    found: dict[str, set[str]] = {}
    for path in layers:
        container, _, key = path.rpartition(".")
        found.setdefault(container, set()).add(key)
    return found


def renamed(name: str, layers: Iterable[str]) -> str | None:
    """What a module or tensor of the whole model is called without some layers; None if it goes with one.

    Example:
        >>> renamed("h.3.fc.weight", ["h.1"]), renamed("h.1.fc.weight", ["h.1"]), renamed("h.0", ["h.1"])
        ('h.2.fc.weight', None, 'h.0')
    """
    gone, parts = by_container(layers), name.split(".")
    made = []
    for i, part in enumerate(parts):
        here = gone.get(".".join(parts[:i]), ())
        if part in here:
            return None
        made.append(str(int(part) - sum(int(k) < int(part) for k in here)) if here and part.isdigit() else part)
    return ".".join(made)


def original(name: str, layers: Iterable[str]) -> str:
    """What a module or tensor was called before some layers went: the inverse of `renamed`.

    Example:
        >>> original("h.2.fc.weight", ["h.1"])
        'h.3.fc.weight'
    """
    gone = by_container(layers)
    made: list[str] = []
    for part in name.split("."):
        here = gone.get(".".join(made), ())
        if here and part.isdigit():
            left = (k for k in itertools.count() if str(k) not in here)
            part = str(next(itertools.islice(left, int(part), None)))
        made.append(part)
    return ".".join(made)


def numbered(container: nn.Module) -> bool:
    """Whether the children are named by their positions."""
    return list(container._modules) == [str(i) for i in range(len(container._modules))]


def drops_of(model: nn.Module, layers: Iterable[str]) -> Drops:
    """What the containers of a whole model lose."""
    found = []
    for path, gone in by_container(layers).items():
        keys = list(model.get_submodule(path)._modules)
        found.append((len(keys), frozenset(keys.index(k) for k in gone)))
    return found


def drop_(model: nn.Module, layers: Iterable[str]) -> None:
    """Take layers out of their containers, which stay the same objects; for `surgery` and trials on copies."""
    containers = [(model.get_submodule(path), gone) for path, gone in by_container(layers).items()]
    for container, gone in containers:  # all found before the first goes: names shift
        shift = numbered(container)
        left = [(k, m) for k, m in container._modules.items() if k not in gone]
        container._modules.clear()
        container._modules.update((str(i) if shift else k, m) for i, (k, m) in enumerate(left))


class Bypass:
    """Hooks of one module that make it hand its first tensor on, whatever else it computes."""

    def __init__(self, module: nn.Module) -> None:
        self.given: Tensor | None = None
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Before the forward pass, which gets a copy: it may write into its input."""
        self.given = tensors_of((args, kwargs))[0]
        return with_first((args, kwargs), self.given.clone())

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After it."""
        given, self.given = self.given, None
        assert given is not None
        return with_first(output, given)


def bypass_(model: nn.Module, layers: Iterable[str]) -> None:
    """Make layers the identity on their first tensor; what else they return (caches, weights) stays."""
    for path in layers:
        Bypass(model.get_submodule(path))


def with_first(output: Any, tensor: Tensor) -> Any:
    """The same with another first tensor."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        key = next(k for k, v in output.items() if tensors_of(v))
        made: Any = copy.copy(output)
        made[key] = with_first(output[key], tensor)
        return made
    at = next(i for i, v in enumerate(output) if tensors_of(v))
    items = [*output[:at], with_first(output[at], tensor), *output[at + 1 :]]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def remaining(output: Any, other: Any, drops: Drops) -> list[Tensor]:
    """Tensors of a whole model's output that correspond to those of a model without some layers.

    Lists with an entry a layer (caches, attention weights), or with one more (hidden states), have fewer there.

    Example:
        >>> import torch
        >>> h = [torch.tensor(i) for i in range(4)]
        >>> remaining((h[0], tuple(h)), (h[0], tuple(h[:3])), [(4, frozenset({1}))])
        [tensor(0), tensor(0), tensor(2), tensor(3)]
    """
    if isinstance(output, Mapping) and isinstance(other, Mapping) and output.keys() == other.keys():
        return [t for k in output for t in remaining(output[k], other[k], drops)]
    if isinstance(output, (tuple, list)) and isinstance(other, (tuple, list)):
        for size, gone in drops:
            if len(output) in (size, size + 1) and len(other) == len(output) - len(gone):
                output = [v for i, v in enumerate(output) if i not in gone]
                break
        if len(output) == len(other):
            return [t for a, b in zip(output, other, strict=True) for t in remaining(a, b, drops)]
    return tensors_of(output)
