"""Results that a model's code remembers from pass to pass: those of a recording hold no numbers and are forgotten."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from torch import nn


def forget(modules: Iterable[nn.Module]) -> None:
    """Empty what `functools.cache` keeps for the classes of these modules and for the files that define them."""
    homes: dict[int, Any] = {}
    for kind in {type(m) for m in modules}:
        for part in kind.__mro__:
            if not part.__module__.startswith(("torch.", "builtins")):
                homes[id(part)] = vars(part)
                home = sys.modules.get(part.__module__)
                homes[id(home)] = vars(home) if home else {}
    for home in homes.values():
        for cached in _cached(list(home.values())):
            cached.cache_clear()


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
