"""Numbers in a model that count layers or number them, found by what they do and not by what they are called.

- An int counts the children of a container if with one less the model calls one child less; where the forward pass
  does not use it, if the module that holds it comes out with one child less when it is built anew from its config.
- A list has an entry a child if a list that is shorter by one ends the forward pass, or the building, one child short.
- An int numbers the children if it is in each of them its position, plus a constant.

What nothing uses goes by its name, which says ``layer`` or ``depth``: what a container's owner holds beside it, and
configs that nothing can be built from.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import tensors_of
from secateur.graph.sizes import Attribute, write_attribute
from secateur.graph.trial import apart, attempt, shell
from secateur.types import Example, Setting

Changes = dict[tuple[str, str], tuple[Setting, Setting]]
"""As in `Plan.attributes`."""


@dataclass(frozen=True)
class Numbers:
    """What says how many children a container has, and which of them one is.

    Attributes:
        size: how many it has. counts: ints that say so. lists: lists with an entry a child, and what they hold.
        indices: ints that say which one, and the position of the child that holds each; with their values.
    """

    size: int
    counts: tuple[Attribute, ...]
    lists: Mapping[Attribute, tuple[Any, ...]]
    indices: Mapping[Attribute, tuple[int, int]]

    def without(self, gone: Collection[int]) -> Changes:
        """What they must be once some children are gone."""
        changes: dict[Attribute, tuple[Setting, Setting]] = {}
        for at in self.counts:
            changes[at] = self.size, self.size - len(gone)
        for at, held in self.lists.items():
            changes[at] = held, tuple(v for i, v in enumerate(held) if i not in gone)
        for at, (index, value) in self.indices.items():
            before = sum(i < index for i in gone)
            if index not in gone and before:
                changes[at] = value, value - before
        return {(at.module, at.path): change for at, change in changes.items()}


def numbers_of(model: nn.Module, example: Example, container: str, dense: Any) -> Numbers:
    """Find the numbers of one container.

    Args:
        model: left as it was. example: what its forward takes. container: path. dense: what the model makes of it.

    Time: a pass and, for what a config holds, a building without weights for every int and list of a fitting size.
    """
    size = len(model.get_submodule(container)._modules)
    trial = _Trial(model, example, container, size, tensors_of(dense))
    ints, lists = _candidates(model, container, size)
    counts = tuple(at for at in ints if trial.counts(at))
    fewer: dict[Attribute, Setting] = dict.fromkeys(counts, size - 1)
    for at, held in lists.items():
        if trial.by_entry(at, held, fewer):
            fewer[at] = held[:-1]
    entries = {at: held for at, held in lists.items() if at in fewer}
    return Numbers(size, counts, entries, dict(_indices(model, container)))


def _owners(model: nn.Module, container: str) -> Iterator[tuple[str, nn.Module]]:
    """What a container is held by, the model first."""
    parts = container.split(".") if container else []
    for i in range(len(parts)):
        path = ".".join(parts[:i])
        yield path, model.get_submodule(path)


def _candidates(
    model: nn.Module, container: str, size: int
) -> tuple[list[Attribute], dict[Attribute, tuple[Any, ...]]]:
    """Ints of a value, and lists of a length, of all owners of a container and of objects such as a config in them."""
    ints: list[Attribute] = []
    lists: dict[Attribute, tuple[Any, ...]] = {}
    seen: set[int] = set()
    for module, owner in _owners(model, container):
        objects = [(f"{k}.", v) for k, v in vars(owner).items() if k[0] != "_" and _is_record(v)]
        for prefix, holder in [("", owner), *objects]:
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            for key, value in vars(holder).items():
                at = Attribute(module, prefix + key)
                if type(value) is int and value == size:
                    ints.append(at)
                elif type(value) in (list, tuple):
                    ints += [Attribute(module, f"{at.path}.{i}") for i, v in enumerate(value) if _says(v, size)]
                    if len(value) == size and all(v is None or isinstance(v, (int, float, str)) for v in value):
                        lists[at] = tuple(value)
    return ints, lists


def _says(value: Any, size: int) -> bool:
    return type(value) is int and value == size


def _is_record(value: Any) -> bool:
    return hasattr(value, "__dict__") and not callable(value) and not isinstance(value, Tensor)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Changes one attribute at a time in a copy, and sees what becomes of the children of a container."""

    model: nn.Module
    example: Example
    container: str
    size: int
    dense: list[Tensor]

    def counts(self, at: Attribute) -> bool:
        """Whether an int is how many children there are."""
        done, same = self._called({at: self.size - 1})
        if done == self.size - 1:
            return True
        if self._built(at, {}) == self.size:
            return self._built(at, {at: self.size - 1}) == self.size - 1
        return same and self._named(at)

    def by_entry(self, at: Attribute, held: tuple[Any, ...], fewer: Mapping[Attribute, Setting]) -> bool:
        """Whether a list has an entry a child, given what else must change with their number."""
        done, same = self._called({at: held[:-1]})
        if done == self.size - 1:
            return True
        if self._built(at, {}) == self.size:
            together = self._built(at, {**fewer, at: held[:-1]})
            return together == self.size - 1 and self._built(at, {at: held[:-1]}) != self.size
        return same and self._named(at)

    def _named(self, at: Attribute) -> bool:
        beside = at.module == self.container.rpartition(".")[0] or "." in at.path
        return beside and any(word in at.path.lower() for word in ("layer", "depth"))

    def _called(self, changes: Mapping[Attribute, Setting]) -> tuple[int, bool]:
        """How many children were run to their ends, and whether the outputs stayed the same."""
        twin = shell(self.model)
        for at, value in changes.items():
            write_attribute(twin, at, value)
        done: set[str] = set()
        for key, child in twin.get_submodule(self.container).named_children():
            child.register_forward_hook(lambda *_, key=key: done.add(key))
        try:
            made = tensors_of(attempt(twin, self.example))
            return len(done), len(done) == self.size and not apart(self.dense, made)
        except Exception:  # an attribute that means something else may break anything
            return len(done), False

    def _built(self, at: Attribute, changes: Mapping[Attribute, Setting]) -> int | None:
        """How many children the container has when what holds it is built anew from its config; None if it is not."""
        key, _, inside = at.path.partition(".")
        config = vars(self.model.get_submodule(at.module))[key]
        if not inside or not _is_record(config):
            return None
        holder = nn.Module()
        vars(holder)[key] = copy.deepcopy(config)
        for other, value in changes.items():
            if (other.module, other.path.partition(".")[0]) == (at.module, key):
                write_attribute(holder, Attribute("", other.path), value)
        for path, owner in reversed([*_owners(self.model, self.container)]):
            if any(v is config for v in vars(owner).values()):
                inner = self.container.removeprefix(path).removeprefix(".")
                size = _size_when_built(type(owner), vars(holder)[key], inner)
                if size is not None:
                    return size
        return None


def _size_when_built(kind: type[nn.Module], config: Any, inner: str) -> int | None:
    try:
        with _quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            return len(kind(config).get_submodule(inner)._modules)
    except Exception:  # a constructor that wants something else may raise anything
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """What a trial has to say is no news."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _indices(model: nn.Module, container: str) -> Iterator[tuple[Attribute, tuple[int, int]]]:
    """Ints in the children that follow their positions; (position, value) of each."""
    found: dict[tuple[str, str], dict[int, int]] = {}
    keys = list(model.get_submodule(container)._modules)
    for i, key in enumerate(keys):
        child = model.get_submodule(_join(container, key))
        for inner, part in child.named_modules():
            for name, value in vars(part).items():
                if type(value) is int and name[0] != "_":
                    found.setdefault((inner, name), {})[i] = value
    sure: set[tuple[str, int]] = set()
    for _ in range(2):  # second time: what a single child has under a name that numbers others
        for (inner, name), values in list(found.items()):
            (offset, *others) = {value - i for i, value in values.items()}
            plain = len(values) > 1 and (len(values) > 2 or offset in (0, 1))
            if not others and (plain or (name, offset) in sure):
                sure.add((name, offset))
                del found[inner, name]
                for i, value in values.items():
                    yield Attribute(_join(_join(container, keys[i]), inner), name), (i, value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")
