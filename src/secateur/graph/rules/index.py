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


def embedding_bag(axes: Axes, call: Call) -> list[list[Axis]]:
    """Rows are looked up by number and summed up bag by bag."""
    rows, width = axes[call["weight"]]
    axes.pin("its rows are looked up by number", rows)
    axes.label(width, "embedding")
    rest: list[list[Axis]] = [[None] * v.ndim if v is not None else [] for v in call.outs[1:]]
    return [[None, width], *rest]


def index_add(axes: Axes, call: Call) -> list[Axis]:
    """Rows are added where numbers say; the other dims are tied."""
    target, source = call["self"], call["source"]
    d = call["dim"] % target.ndim
    ids, others = axes[target], axes[source]
    axes.pin("is added to by numbers that are computed", ids[d], others[d])
    for e in range(target.ndim):
        if e != d and target.shape[e] > 1:
            axes.tie(ids[e], others[e])
    return [None if e == d else a for e, a in enumerate(ids)]


def scatter_add(axes: Axes, call: Call) -> list[Axis]:
    """The same with numbers for every entry."""
    target, source, index = call["self"], call["src"], call["index"]
    d = call["dim"] % target.ndim
    ids, others, by = axes[target], axes[source], axes[index]
    axes.pin("is added to by numbers that are computed", ids[d], others[d], by[d])
    for e in range(target.ndim):
        if e != d and target.shape[e] > 1:
            axes.tie(ids[e], others[e])
            axes.tie(ids[e], by[e])
    return [None if e == d else a for e, a in enumerate(ids)]


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
        if axis is not None and by.index in axes.graph.literals and by.ndim == 1:
            numbers = axes.graph.literals[by.index]
            stays = axis[numbers.min() :] if (numbers < 0).all() else axis[: int((numbers % len(axis)).max()) + 1]
            axes.pin("some of its positions are taken by number", stays)
            return [*ids[:d], axis[numbers % len(axis)], *ids[d + 1 :]]
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
    """Along one dim positions are taken by numbers that are computed; the others stay what they are."""
    source, index = call["self"], call["index"]
    d = call["dim"] % source.ndim if source.ndim else 0
    ids, by = axes[source], axes[index]
    axes.pin("is gathered by numbers that are computed", ids[d], by[d])
    out: list[Axis] = []
    for e in range(source.ndim):
        if e == d or index.shape[e] != source.shape[e]:
            axes.pin("is gathered by numbers that are computed", ids[e], by[e])
            out.append(None)
        else:
            axes.tie(ids[e], by[e])
            out.append(ids[e])
    return out


def scatter(axes: Axes, call: Call) -> list[Axis]:
    """Everything it touches stays."""
    for v in call.inputs:
        axes.pin("is gathered or scattered by numbers that are computed", *axes[v])
    return [None] * call.out.ndim


RULES = table(
    ("embedding", embedding),
    ("index _unsafe_index", index),
    ("index_select", index_select),
    ("gather", gather),
    ("_embedding_bag _embedding_bag_forward_only", embedding_bag),
    ("index_add index_add_", index_add),
    ("scatter_add scatter_add_", scatter_add),
    (
        "scatter scatter_ index_put index_put_ index_copy take_along_dim",
        scatter,
    ),
)
