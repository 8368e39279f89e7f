"""A second look at a model whose sizes hide from the first: in parts beside torch's registry, or behind ``int(n)``.

The first recording says what is asked; most models are recorded once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.graph.ints import keeping
from secateur.graph.parts import Parts, part_at, parts_of, shapes_of
from secateur.graph.recorded import Place, Value
from secateur.graph.sizes import Arithmetic, Attribute, Expression, Extent, Size, reads_extent

_COMPARISONS = frozenset(("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"))


@dataclass(frozen=True, eq=False)
class Wider:
    """What to look at besides the registered modules. ``homes``: globals in which ``int`` keeps sizes."""

    parts: Parts = field(default_factory=lambda: Parts({}, {}))
    homes: Sequence[dict[str, Any]] = ()

    @contextlib.contextmanager
    def remembering(
        self,
        model: nn.Module,
        values: Mapping[int, Value],
        escape: Callable[[Expression], None],
        known: dict[Attribute, int],
    ) -> Iterator[None]:
        """Turn the ints in objects into `Size` too; ``values`` are those of the named tensors, by their ids."""
        before: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        try:
            before += [(vars(item), dict(vars(item))) for item in self.parts.objects.values()]
            for shape in shapes_of(self.parts, values):
                value, own = values[id(shape.tensor)], vars(part_at(model, shape.path))
                sizes = [Size(n, Extent(value.index, d), escape) for d, n in enumerate(value.shape)]
                own[shape.key] = type(own[shape.key])(sizes)
            saved = {id(holder) for holder, _ in before}
            for holder, key, made in _deep(self.parts, escape, known):
                if id(holder) not in saved:
                    saved.add(id(holder))
                    before.append((holder, dict(holder)))
                holder[key] = made
            with keeping(self.homes):
                yield
        finally:
            for holder, content in before:
                holder.clear()
                holder.update(content)


def wider(
    model: nn.Module,
    tensors: Container[int],
    homes: Iterable[dict[str, Any]],
    escapes: Iterable[tuple[Expression, Place]],
) -> Wider | None:
    """What a second recording should look at; None where it would see what the first one saw.

    Args:
        model: it was recorded. tensors: ids of the named ones.
        homes: globals of code that took the ``int`` of a size. escapes: as in the graph.
    """
    parts, made = parts_of(model), list(homes)
    if parts.modules or made or shapes_of(parts, tensors):
        return Wider(parts, made)
    asked, known = set(_literals(escapes)), dict[Attribute, int]()
    for _ in _deep(parts, lambda source: None, known) if asked else ():
        pass
    return Wider(parts, made) if asked & set(known.values()) else None


def _literals(escapes: Iterable[tuple[Expression, Place]]) -> Iterator[int]:
    """Ints without a memory that the size of a tensor was compared with."""
    for source, _ in escapes:
        if isinstance(source, Arithmetic) and source.op in _COMPARISONS and reads_extent(source):
            yield from (side for side in (source.left, source.right) if isinstance(side, int))


def _deep(
    parts: Parts, escape: Callable[[Expression], None], known: dict[Attribute, int]
) -> Iterator[tuple[dict[Any, Any], Any, Any]]:
    """(dict, key, what goes there) for the ints of objects: alone, in tuples, and as the values of axes."""
    for (module, at), item in parts.objects.items():
        seen = "." not in at and at[0] != "_"  # by any recording (sizes.py), as far as ints and tuples of ints go
        for key, value in list(vars(item).items()):
            path = f"{at}.{key}"
            if seen and (type(value) is int or (isinstance(value, (tuple, list)) and None not in value)):
                continue
            if type(value) is dict and value and all(type(k) is int for k in value):
                tagged = [(value, k, _tagged(v, module, f"{path}.{k}", escape, known)) for k, v in value.items()]
            else:
                tagged = [(vars(item), key, _tagged(value, module, path, escape, known))]
            yield from ((holder, k, made) for holder, k, made in tagged if made is not None)


def _tagged(
    value: Any, module: str, path: str, escape: Callable[[Expression], None], known: dict[Attribute, int]
) -> Any:
    """The same with a memory; None where it holds no int."""
    if type(value) is int and value > 1:
        at = Attribute(module, path)
        known[at] = value
        return Size(value, at, escape)
    if type(value) in (tuple, list) and value and all(type(i) is int or i is None for i in value):
        made = [_tagged(i, module, f"{path}.{j}", escape, known) for j, i in enumerate(value)]
        if any(m is not None for m in made):
            return type(value)(i if m is None else m for m, i in zip(made, value, strict=True))
    return None
