"""A copy of a model that has its very tensors, in whatever way its classes copy themselves.

A class may build its copies anew from a configuration: a cut model would come back whole. Then the objects are copied
one by one instead: an empty shell for each, made without asking its class, and filled with copies of what it holds.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import named_tensors
from secateur.errors import PlanError, brief

_KINDS = (list, dict, OrderedDict, set)
_WRITTEN_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_COMMON = frozenset((str, int, float, bool, type(None)))
_ATOMS = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, torch.Generator)


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of models that keep tensors with a history or methods that remember their results.

    Args:
        model: it is left as it is.
        memo: id -> what stands for an object in the copy, as in `copy.deepcopy`.

    A class with a ``__deepcopy__`` of its own is asked first, and its copy is taken if it holds the tensors that it
    should; ``__reduce__`` is for files, and is asked last.

    Raises:
        PlanError: no way of copying gives these tensors.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> twin = duplicate(net, {id(net.bias): net.bias})
        >>> twin.bias is net.bias, twin.weight is net.weight
        (True, False)
    """
    memo = {} if memo is None else memo
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return _unbound(_copied(model, memo))


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    kinds = {type(m) for m in model.modules()}
    explicit = any(_overrides(k, "__deepcopy__") for k in kinds)
    if not explicit and not any(_overrides(k, "__reduce__", "__reduce_ex__") for k in kinds):
        return copy.deepcopy(model, memo)
    wanted = {name: copy.deepcopy(t, memo) for name, t in tensors_by_name(model).items()}
    before = dict(memo)
    ways = (copy.deepcopy, piecewise) if explicit else (piecewise, copy.deepcopy)
    failed: Exception | None = None
    for way in ways:
        try:
            twin: nn.Module = way(model, memo := dict(before))
        except Exception as error:  # a class may do anything
            failed = failed or error
            continue
        found = tensors_by_name(twin)
        if found.keys() == wanted.keys() and all(found[n] is t for n, t in wanted.items()):
            return twin
    raise PlanError(
        f"no copy of {type(model).__name__} has its tensors{f' ({brief(failed)})' if failed else ''}: its class copies "
        "itself in a way of its own. Cut a model in place with sc.apply_, and keep the original elsewhere"
    ) from failed


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, by every name it has."""
    parameters, buffers = named_tensors(model)
    return parameters | buffers


def _unbound(twin: nn.Module) -> nn.Module:
    """Without the remembering methods that are still bound to the original."""
    for part in twin.modules():
        stale = [k for k, v in vars(part).items() if hasattr(v, "cache_clear") and hasattr(v, "__wrapped__")]
        for name in stale:
            delattr(part, name)
    return twin


def _overrides(kind: type, *names: str) -> bool:
    """Whether a class says in Python how it is copied."""
    for name in names:
        home = next((k for k in kind.__mro__ if name in vars(k)), object)
        if isinstance(vars(home).get(name), FunctionType) and not home.__module__.startswith("torch."):
            return True
    return False


def piecewise(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy made object by object.

    Raises:
        TypeError: it would still reach modules or tensors of the original, through a closure or the like.
    """
    met = dict(_reach(model))
    reaching = _reaching(met)
    memo.update({i: item for i, (item, _) in met.items() if isinstance(item, ModuleType)})  # no copy of these is wanted
    shells = {i: item for i, (item, _) in met.items() if i not in memo and _needs_shell(item, i in reaching)}
    for i, item in shells.items():
        memo[i] = _shell(item)
    functions = [f for i, (f, _) in met.items() if isinstance(f, FunctionType) and i in reaching and i not in memo]
    for f in functions:
        empty = tuple(CellType() for _ in f.__closure__ or ())
        memo[id(f)] = FunctionType(f.__code__, f.__globals__, f.__name__, None, empty)
    for i, item in shells.items():
        _fill(memo[i], item, memo)
    for f in functions:
        _bind(memo[id(f)], f, memo)
    twin: nn.Module = _copy(model, memo)
    originals = {i for i, (item, _) in met.items() if isinstance(item, (nn.Module, Tensor)) and memo.get(i) is not item}
    left = next((item for i, (item, _) in _reach(twin) if i in originals), None)
    if left is not None:
        raise TypeError(f"a copy of {type(model).__name__} would still hold a {type(left).__name__} of the original")
    return twin


def _copy(item: Any, memo: dict[int, Any]) -> Any:
    """As `copy.deepcopy`, which holds functions for atoms in some versions of Python."""
    return memo[id(item)] if id(item) in memo else copy.deepcopy(item, memo)


def _inside(item: Any) -> Iterable[Any]:
    """What an object holds."""
    if isinstance(item, (Tensor, ModuleType, functools._lru_cache_wrapper)):
        return ()
    if isinstance(item, FunctionType):
        cells = [c.cell_contents for c in item.__closure__ or () if _filled(c)]
        return [*cells, *item.__dict__.values(), item.__defaults__, item.__kwdefaults__]
    if isinstance(item, MethodType):
        return (item.__self__, item.__func__)
    if isinstance(item, functools.partial):
        return (item.func, item.args, item.keywords)
    if isinstance(item, weakref.ref):
        return (item(),)
    found: list[Any] = [getattr(item, k) for k in _slots(type(item)) if hasattr(item, k)]
    if isinstance(item, dict):
        found += [x for pair in dict.items(item) for x in pair]
    elif isinstance(item, (list, tuple, set, frozenset)):
        found += list(item)
    if isinstance(getattr(item, "__dict__", None), dict):
        found += vars(item).values()
    return found


def _slots(kind: type) -> list[str]:
    return copyreg._slotnames(kind) if kind.__flags__ & _WRITTEN_IN_PYTHON else []  # type: ignore[attr-defined]


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _reach(start: Any) -> Iterator[tuple[int, tuple[Any, list[Any]]]]:
    """Every object that can be reached, by its id, with what it holds."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        item = todo.pop()
        if type(item) in _COMMON or isinstance(item, _ATOMS) or id(item) in seen:
            continue
        seen.add(id(item))
        inside = list(_inside(item))
        todo += inside
        yield id(item), (item, inside)


def _reaching(met: Mapping[int, tuple[Any, list[Any]]]) -> set[int]:
    """Ids of those from which a module or a tensor can be reached."""
    holders: dict[int, list[int]] = {}
    for i, (_, inside) in met.items():
        for x in inside:
            holders.setdefault(id(x), []).append(i)
    todo = [i for i, (item, _) in met.items() if isinstance(item, (nn.Module, Tensor))]
    found: set[int] = set()
    while todo:
        i = todo.pop()
        if i not in found:
            found.add(i)
            todo += holders.get(i, [])
    return found


def _needs_shell(item: Any, reaching: bool) -> bool:
    """Modules; what copies itself in a way of its own; and containers whose own methods would do the filling."""
    kind = type(item)
    base = _base(kind)
    if base not in (object, *_KINDS) or base is kind or any(vars(k).get("__slots__") for k in kind.__mro__):
        return False
    if isinstance(item, nn.Module):
        return True
    if _overrides(kind, "__deepcopy__"):
        return reaching
    asks = "__reduce__", "__reduce_ex__", "__getattr__", "__getattribute__"  # the latter of an empty object
    return base is not object or _overrides(kind, *asks)


def _base(kind: type) -> type:
    """The class written in C that lays out the instances."""
    return next(k for k in kind.__mro__ if not k.__flags__ & _WRITTEN_IN_PYTHON)


def _shell(item: Any) -> Any:
    made: Any = _base(type(item))
    return made.__new__(type(item))


def _bind(made: FunctionType, given: FunctionType, memo: dict[int, Any]) -> None:
    for new, old in zip(made.__closure__ or (), given.__closure__ or (), strict=True):
        if _filled(old):
            new.cell_contents = _copy(old.cell_contents, memo)
    made.__defaults__, made.__kwdefaults__ = _copy((given.__defaults__, given.__kwdefaults__), memo)
    made.__dict__.update({k: _copy(v, memo) for k, v in given.__dict__.items()})


def _fill(shell: Any, item: Any, memo: dict[int, Any]) -> None:
    """The content first, by the methods of the plain container: those of a class may look at what is not there yet."""
    vars(shell).update({k: _copy(v, memo) for k, v in vars(item).items()})
    if isinstance(item, list):
        list.extend(shell, [_copy(v, memo) for v in list.__iter__(item)])
    elif isinstance(item, dict):
        into = OrderedDict.__setitem__ if isinstance(item, OrderedDict) else dict.__setitem__
        for key, value in list(dict.items(item)):
            into(shell, _copy(key, memo), _copy(value, memo))
    elif isinstance(item, set):
        set.update(shell, [_copy(v, memo) for v in set.__iter__(item)])
