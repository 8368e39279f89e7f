"""Writing a table of rules."""

from collections.abc import Callable, Iterable
from typing import Any


def table(*entries: tuple[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Expand ``("view reshape", rule)`` into one ATen entry a name.

    Example:
        >>> table(("mm bmm", len))
        {'aten::mm': <built-in function len>, 'aten::bmm': <built-in function len>}
    """
    return {f"aten::{name}": rule for names, rule in entries for name in names.split()}


def dims_of(dim: Any, ndim: int) -> list[int]:
    """Non-negative dims; None or an empty list means all of them.

    Example:
        >>> dims_of(-1, 3), dims_of(None, 2)
        ([2], [0, 1])
    """
    if dim is None or (isinstance(dim, Iterable) and not list(dim)):
        return list(range(ndim))
    return [d % ndim if ndim else 0 for d in ([dim] if isinstance(dim, int) else dim)]
