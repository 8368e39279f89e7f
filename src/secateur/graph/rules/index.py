"""Taking positions by number: embeddings, gathers, buffers of positions."""

from __future__ import annotations

from secateur.graph.axes import Axes, Axis, Renumbered
from secateur.graph.recorded import Call, Value
from secateur.graph.rules._table import table


def embedding(axes: Axes, call: Call) -> list[Axis]:
    """Rows are looked up by number, so they stay; the width is free."""
    rows, width = axes[call["weight"]]
    axes.pin("its rows are looked up by number", rows)
    axes.label(width, "embedding")
    return [*axes[call["indices"]], width]


def index(axes: Axes, call: Call) -> list[Axis]:
    """Advanced indexing: a buffer of positions permutes ids, anything else freezes the indexed axes."""
    source: Value = call["self"]
    given = list(call["indices"]) + [None] * (source.ndim - len(call["indices"]))
    return _take(axes, call, source, given)


def index_select(axes: Axes, call: Call) -> list[Axis]:
    """One dim, one vector of positions."""
    source: Value = call["self"]
    d = call["dim"] % source.ndim
    given: list[Value | None] = [None] * source.ndim
    given[d] = call["index"]
    return _take(axes, call, source, given)


def _take(axes: Axes, call: Call, source: Value, given: list[Value | None]) -> list[Axis]:
    ids = axes[source]
    used = [d for d, i in enumerate(given) if i is not None]
    if len(used) == 1:
        d = used[0]
        by = given[d]
        assert by is not None
        axis, name = ids[d], axes.names.get(by.index)
        if axis is None and by.integral:
            return [*ids[:d], *axes[by], *ids[d + 1 :]]
        if axis is not None and by.ndim == 1 and name in axes.graph.constants:
            taken = axis[axes.graph.constants[name] % len(axis)]
            axes.tie(axes[by][0], taken)
            for earlier in axes.renumbered:
                if earlier.buffer == name:  # its numbers can follow one cut only
                    axes.tie(earlier.ids, axis, "is indexed by a buffer that also indexes another axis")
            axes.renumbered.append(Renumbered(name, axis))
            return [*ids[:d], taken, *ids[d + 1 :]]
    axes.pin("is indexed by numbers that are computed", *[ids[d] for d in used])
    rest = [ids[d] for d in range(source.ndim) if d not in used]
    if used == list(range(used[0], used[-1] + 1)) and all(given[d].integral for d in used):  # type: ignore[union-attr]
        new = call.out.ndim - len(rest)
        if call.out.shape[used[0] + new :] == source.shape[used[-1] + 1 :]:
            return [*ids[: used[0]], *[None] * new, *ids[used[-1] + 1 :]]
    axes.pin("is indexed by numbers that are computed", *rest)
    return [None] * call.out.ndim


def gather(axes: Axes, call: Call) -> list[Axis]:
    """Everything it touches stays."""
    for v in call.inputs:
        axes.pin("is gathered or scattered by numbers that are computed", *axes[v])
    return [None] * call.out.ndim


RULES = table(
    ("embedding", embedding),
    ("index _unsafe_index", index),
    ("index_select", index_select),
    (
        "gather scatter scatter_ scatter_add scatter_add_ index_put index_put_ index_add index_copy take_along_dim",
        gather,
    ),
)
