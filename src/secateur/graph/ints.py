"""``int(n)`` that keeps the memory of a size, in files that ask it of every dimension of a shape.

``int`` makes a plain number of a `Size`, and the axis behind it would have to stay. For the time of a recording the
name ``int`` means another class in the globals of such files. It is an ``int`` in every respect that the file's own
functions can see: files that do more with the name than calling it or asking ``isinstance`` are left alone.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import linecache
from collections.abc import Iterable, Iterator
from typing import Any

from secateur.graph.sizes import Size

_ASKS = frozenset(("isinstance", "issubclass", "map"))


class _Kind(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Size) and not kwargs:
            return args[0]
        return builtins.int(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, builtins.int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, builtins.int)


class _Keeping(metaclass=_Kind):
    """Stands for ``int``."""


@contextlib.contextmanager
def keeping(homes: Iterable[dict[str, Any]]) -> Iterator[None]:
    """``int`` keeps sizes in these globals, where nothing else could tell the difference."""
    changed = [home for home in homes if "int" not in home and _plainly(str(home.get("__file__", "")))]
    for home in changed:
        home["int"] = _Keeping
    try:
        yield
    finally:
        for home in changed:
            del home["int"]


@functools.cache
def _plainly(file: str) -> bool:
    """Whether the functions of a file only call ``int``, or ask whether something is one."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return False
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    allowed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            allowed.add(node.func)
            if isinstance(node.func, ast.Name) and node.func.id in _ASKS:
                allowed.update(inner for a in node.args for inner in (a, *ast.iter_child_nodes(a)))
        for said in ("annotation", "returns"):
            if getattr(node, said, None) is not None:
                allowed.update(ast.walk(getattr(node, said)))
    bodies = (inner for f in functions for inner in ast.walk(f))
    named = {n for n in bodies if isinstance(n, ast.Name) and n.id == "int"}
    return bool(functions) and all(n in allowed and isinstance(n.ctx, ast.Load) for n in named)
