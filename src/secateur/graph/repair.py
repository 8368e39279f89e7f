"""Constants in the code: the values they must take after a cut, or why they cannot."""

from __future__ import annotations

from secateur.graph.axes import Axes, Expected
from secateur.graph.closure import Solution
from secateur.graph.sizes import Arithmetic, Attribute, Expression, Extent, evaluate, leaves
from secateur.types import Bools


def repair(axes: Axes, solution: Solution, removed: Bools) -> tuple[dict[Attribute, int], list[str]]:
    """Values of the attributes after a cut, and the sizes in the code that cannot be met."""
    gone = removed[solution.root]
    new: dict[Attribute, int] = {}
    old: dict[Attribute, int] = {}
    bad: list[str] = []
    wanted = [(e, int((~gone[e.ids]).sum())) for e in axes.expected]
    for e, count in wanted:
        if isinstance(e.source, Attribute):
            old[e.source] = len(e.ids)
            if new.setdefault(e.source, count) != count:
                bad.append(f"{e.source} is one number for two sizes, {new[e.source]} and {count}, {_at(e)}")
            elif count != len(e.ids) and any(e.source in leaves(s) for s, _ in axes.graph.escapes):
                bad.append(f"{e.source} is used as a number in arithmetic, {_at(e)}")

    def read(leaf: Attribute | Extent) -> int:
        if isinstance(leaf, Attribute):
            if leaf in new:
                return new[leaf]
            return axes.graph.attributes[leaf]
        return axes.kept(gone, leaf, axes.graph.shapes[leaf.value])

    for e, count in wanted:
        try:
            got = evaluate(e.source, read)
        except ZeroDivisionError:
            got = -1
        if got != count:
            bad.append(f"the size {_words(e.source)} in {e.api} would be {got} and must be {count}, {_at(e)}")
    return {a: n for a, n in new.items() if n != old[a]}, bad


def _at(e: Expected) -> str:
    return f"in {e.place.module or 'the model'} at {e.place.line}"


def _words(source: Expression) -> str:
    if isinstance(source, Arithmetic):
        sign = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}[source.op.strip("_").lstrip("r")]
        left, right = _words(source.left), _words(source.right)
        return f"({right} {sign} {left})" if source.op.startswith("__r") else f"({left} {sign} {right})"
    return f"shape[{source.dim}]" if isinstance(source, Extent) else str(source)


