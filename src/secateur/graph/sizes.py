"""Integers that remember where they came from, so that constants in the code can follow a cut.

While a model is recorded, every int attribute of every module is a `Size`: arithmetic keeps an expression over
attributes and tensor sizes, and the recorder sees which expression set each size of a ``view`` or ``split``.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from secateur.graph.parts import has_attributes, part_at, put
from secateur.types import Setting


@dataclass(frozen=True)
class Attribute:
    """An int that a module holds: ``path`` may go through an object or a tuple (``config.heads``, ``shape.0``)."""

    module: str
    path: str

    def __str__(self) -> str:
        return f"{self.module}.{self.path}".lstrip(".")


@dataclass(frozen=True)
class Extent:
    """The size of one dimension of a recorded value."""

    value: int
    dim: int


@dataclass(frozen=True)
class Arithmetic:
    """An int operator applied to two expressions."""

    op: str
    left: Expression
    right: Expression


Expression: TypeAlias = Attribute | Extent | Arithmetic | int


def plain(value: int) -> int:
    """The int itself, heard by nobody."""
    return int.__index__(value)


class Size(int):
    """An int with the expression that made it; ``escape`` hears of it when it turns into a float."""

    source: Expression
    escape: Callable[[Expression], None]

    def __new__(cls, value: int, source: Expression, escape: Callable[[Expression], None]) -> Size:
        """A plain int in every respect but its memory."""
        made = int.__new__(cls, value)
        made.source = source
        made.escape = escape
        return made

    __hash__ = int.__hash__

    def __neg__(self) -> Size:
        return Size(-plain(self), Arithmetic("__rsub__", self.source, 0), self.escape)

    def __float__(self) -> float:
        self.escape(self.source)
        return float(plain(self))

    def __int__(self) -> int:
        self.escape(self.source)  # a plain int forgets
        return plain(self)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return int, (plain(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return plain(self)

    def __copy__(self) -> int:
        return plain(self)


def expression(value: int) -> Expression:
    """The expression behind an int; a literal is itself."""
    return value.source if isinstance(value, Size) else plain(value)


def _keeps(op: str) -> Callable[[Size, Any], Any]:
    of_int = getattr(int, op)

    def apply(self: Size, other: Any) -> Any:
        result = of_int(plain(self), plain(other) if isinstance(other, int) else other)
        if type(result) is not int:
            self.escape(self.source)  # a float takes over
            return result
        return Size(result, Arithmetic(op, self.source, expression(other)), self.escape)

    return apply


def _escapes(op: str) -> Callable[..., Any]:
    of_float = getattr(float, op)

    def apply(self: Size, *others: Any) -> Any:
        self.escape(self.source)
        return of_float(float(plain(self)), *others)

    return apply


def _power(self: Size, other: Any, *modulus: Any) -> Any:
    if isinstance(other, int) and other >= 0 and not modulus:
        return _keeps("__pow__")(self, other)
    self.escape(self.source)
    return pow(plain(self), plain(other) if isinstance(other, int) else other, *modulus)


def _compares(op: str) -> Callable[[Size, Any], Any]:
    of_int = getattr(int, op)

    def apply(self: Size, other: Any) -> Any:
        if isinstance(other, int):  # what the code decided must hold after a cut too
            self.escape(Arithmetic(op, self.source, expression(other)))
            other = plain(other)
        return of_int(plain(self), other)

    return apply


for _op in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod"):
    setattr(Size, f"__{_op}__", _keeps(f"__{_op}__"))
for _op in ("truediv", "rtruediv"):
    setattr(Size, f"__{_op}__", _escapes(f"__{_op}__"))
setattr(Size, "__pow__", _power)  # noqa: B010
for _op in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Size, f"__{_op}__", _compares(f"__{_op}__"))


def leaves(source: Expression) -> Iterator[Attribute | Extent]:
    """Attributes and extents that an expression reads."""
    if isinstance(source, Arithmetic):
        yield from leaves(source.left)
        yield from leaves(source.right)
    elif not isinstance(source, int):
        yield source


def reads_extent(source: Expression) -> bool:
    """Whether an expression reads the size of a tensor."""
    return any(isinstance(leaf, Extent) for leaf in leaves(source))


def evaluate(source: Expression, read: Callable[[Attribute | Extent], int]) -> int:
    """The value of an expression when its leaves have the values that ``read`` gives.

    Raises:
        ZeroDivisionError: a size that was cut to nothing divides another.
    """
    if isinstance(source, int):
        return source
    if isinstance(source, Arithmetic):
        result: int = getattr(int, source.op)(evaluate(source.left, read), evaluate(source.right, read))
        return result
    return read(source)


_NO_SIZES = frozenset((bool, float, str, type(None), set, frozenset, bytes))
_REGISTRIES = frozenset(("_parameters", "_buffers", "_modules"))


@contextlib.contextmanager
def remembering(
    modules: Mapping[str, nn.Module], escape: Callable[[Expression], None]
) -> Iterator[dict[Attribute, int]]:
    """Turn the int attributes of modules into `Size` for the time of a recording; hands out what they are.

    Afterwards every module has the attributes, parameters, buffers and training flag that it had, whatever a forward
    pass stored.
    """
    before = _Before(escape)
    seen: set[int] = set()
    try:
        for name, module in modules.items():
            if type(module) is nn.MultiheadAttention:  # once cut it runs other code (multihead.py)
                before.held.append((module.__dict__, dict(module.__dict__)))
                continue
            for key, config in before.tag(module.__dict__, name, ""):
                if id(config) not in seen:
                    seen.add(id(config))
                    before.tag(vars(config), name, f"{key}.")
        yield before.known
    finally:
        before.restore()


class _Before:
    """What objects held before a recording: their attributes, and the dicts among these."""

    def __init__(self, escape: Callable[[Expression], None]) -> None:
        self.escape = escape
        self.known: dict[Attribute, int] = {}
        self.held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.empty: list[dict[str, Any]] = []  # most dicts of a module are, hooks above all
        self.lists: list[tuple[list[Any], list[Any]]] = []
        self.caches: list[Any] = []

    def tag(self, holder: dict[str, Any], module: str, prefix: str) -> list[tuple[str, Any]]:
        """Tag the ints and the sequences of ints; returns the objects that may hold more of them, such as a config."""
        self.held.append((holder, dict(holder)))
        configs = []
        for key, value in holder.items():
            kind = value.__class__
            if kind in _NO_SIZES:
                continue
            if kind is OrderedDict or kind is dict:
                if value:
                    self.held.append((value, dict(value)))
                    if key not in _REGISTRIES:
                        self.caches += [v for v in value.values() if hasattr(v, "cache_clear")]
                else:
                    self.empty.append(value)
            elif kind is int:
                holder[key] = self.size(value, module, prefix + key)
            elif kind is tuple or kind is list:
                if kind is list:
                    self.lists.append((value, list(value)))
                if all(type(i) is int for i in value) and any(i > 1 for i in value):
                    holder[key] = kind([self.size(i, module, f"{prefix}{key}.{j}") for j, i in enumerate(value)])
            elif callable(value):  # modules and classes are
                if hasattr(value, "cache_clear"):
                    self.caches.append(value)
            elif key[0] != "_" and has_attributes(kind):
                configs.append((key, value))
        return configs

    def size(self, value: int, module: str, path: str) -> int:
        """An int with a memory; what is no more than one cannot be cut."""
        if value <= 1:
            return value
        at = Attribute(module, path)
        self.known[at] = value
        return Size(value, at, self.escape)

    def restore(self) -> None:
        """Put everything back, and empty the `functools.cache` of methods."""
        for holder, saved in self.held:
            holder.update(saved)
            if len(holder) != len(saved):
                holder.clear()
                holder.update(saved)
        for held, items in self.lists:
            held[:] = items
        for holder in self.empty:
            if holder:
                holder.clear()
        for cache in self.caches:
            if hasattr(cache, "__wrapped__"):
                cache.cache_clear()


def read_attribute(model: nn.Module, at: Attribute) -> Setting:
    """Value of an attribute now; a tuple for a list or tuple."""
    value: Any = part_at(model, str(at))
    return tuple(value) if isinstance(value, (list, tuple)) else int(value)


def write_attribute(model: nn.Module, at: Attribute, value: Setting) -> None:
    """Set an attribute; an element of a tuple replaces the tuple, and a list stays one."""
    if isinstance(value, tuple):
        put(model, str(at), type(part_at(model, str(at)))(value))
    else:
        put(model, str(at), value)
