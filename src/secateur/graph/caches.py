"""Results that a model's code remembers from pass to pass: those of a recording hold no numbers and are forgotten."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from torch import nn


def forget(modules: Iterable[nn.Module]) -> None:
    """Empty what `functools.cache` keeps for the classes of these modules and for the files that define them."""
    homes: set[Any] = set()
    for kind in {type(m) for m in modules}:
        for part in kind.__mro__:
            if not part.__module__.startswith(("torch.", "builtins")):
                homes |= {part, sys.modules.get(part.__module__)}
    for home in homes - {None}:
        count = len(vars(home))
        known = _known.get(home)
        if known is None or known[0] != count:  # looked through once, and again when it grew
            known = _known[home] = count, [weakref.ref(c) for c in _cached(list(vars(home).values()))]
        for cached in known[1]:
            if (it := cached()) is not None:
                it.cache_clear()


_known: weakref.WeakKeyDictionary[Any, tuple[int, list[weakref.ref[Any]]]] = weakref.WeakKeyDictionary()


def _cached(values: Iterable[Any]) -> Iterator[Any]:
    """Functions that remember, and those inside of functions that wrap one."""
    for value in (v.__func__ if isinstance(v, (staticmethod, classmethod)) else v for v in values):
        cells = value.__closure__ or () if isinstance(value, FunctionType) else ()
        for found in (value, *[c.cell_contents for c in cells if _filled(c)]):
            if isinstance(found, functools._lru_cache_wrapper):
                yield found


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
