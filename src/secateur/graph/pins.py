"""What must stay for reasons that no single op knows of."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from secateur.graph.axes import COMPARISONS, NOTHING, Axes, Expected
from secateur.graph.recorded import Call, Graph, Place
from secateur.graph.sizes import Arithmetic, Extent, evaluate, leaves, plain

_READS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "secateur::read")

_TAKES = ("aten::index", "aten::_unsafe_index", "aten::index_select")


def pin_numbers(axes: Axes) -> None:
    """A size that became a number in arithmetic may not change; one that was compared must compare the same."""
    for source, place in axes.graph.escapes:
        axes.place = place
        if isinstance(source, Arithmetic) and source.op.strip("_") in COMPARISONS:
            _hold(axes, source, place)
            continue
        for leaf in leaves(source):
            if isinstance(leaf, Extent) and leaf.value in axes.ids:
                axes.pin("its size becomes a number in arithmetic", axes.ids[leaf.value][leaf.dim])


def _hold(axes: Axes, source: Arithmetic, place: Place) -> None:
    """``x.shape[1] == self.width`` says which size an attribute follows; any other outcome must only stay the same."""
    if not any(axes.follows(leaf) for leaf in leaves(source)):
        return
    outcome = evaluate(source, axes.read)
    if (source.op == "__eq__") == bool(outcome) and source.op in ("__eq__", "__ne__"):
        for one, other in ((source.left, source.right), (source.right, source.left)):
            ids = axes.ids_of(one)
            if ids is not None:
                axes.expected.append(Expected(other, ids, place, "a comparison"))
                return
    axes.expected.append(Expected(source, NOTHING, place, "a comparison", int(outcome)))


def pin_ignored(axes: Axes, ignore: Sequence[str]) -> None:
    """Parameters and modules that the caller named."""
    axes.place = Place("", "ignore", 0)
    for pattern in ignore:
        for name, value in axes.graph.tensors.items():
            module = name.rpartition(".")[0]
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(module, pattern):
                axes.pin(f"is ignored on request ({pattern})", *axes.ids[value.index])


def pin_unused(axes: Axes) -> None:
    """A parameter that the examples do not reach: nothing is known of what it must fit."""
    used = {v.index for call in axes.graph.calls for v in call.inputs} | {v.index for v in axes.graph.outputs}
    for name, value in axes.graph.tensors.items():
        if value.index not in used:
            axes.place = Place(name.rpartition(".")[0], "not called", 0)
            axes.pin("is not used on the example", *axes.ids[value.index])


def pin_numbered(axes: Axes) -> None:
    """A buffer of positions is renumbered after a cut, so its numbers may serve nothing else."""
    for r in axes.renumbered:
        index = axes.graph.tensors[r.buffer].index
        for call in axes.graph.calls:
            if call.op not in _TAKES and any(v.index == index for v in call.inputs):
                axes.place = call.place
                axes.pin("is indexed by a buffer whose numbers are used elsewhere too", r.ids)


def pin_branches(axes: Axes) -> None:
    """Code that looks at its data may do something else next time: what it hands on stays.

    That is every value which the ``forward`` that looks makes, uses, or passes from one of its modules to another;
    what lives inside one of them is the same whatever it decides. ``weights[number]`` decides no more than which
    position is taken: any of them may be next time.
    """
    graph = axes.graph
    if graph.fake:
        return
    picking = _picking(graph.calls)
    for picks in picking.values():
        for c in picks:
            axes.place = c.place
            axes.pin("is picked from by a number that is computed", axes[c["self"]][c["dim"] % c["self"].ndim])
    computed: set[int] = set()  # token numbers, masks and lengths are what they are, whatever is cut
    looking: dict[str, Place] = {}
    for k, c in enumerate(graph.calls):
        if any(v.weight or not v.integral or v.index in computed for v in c.inputs):
            made = c.outs[:1] if c.op == "aten::_pack_padded_sequence" else c.outs  # the second: lengths, sorted
            computed.update(out.index for out in made if out is not None)
            if k not in picking and _reads_data(c):
                looking.setdefault(c.place.module, c.place)
    for module, place in looking.items():
        axes.place = place
        for value in _passing(graph, module):
            axes.pin("passes through code that decides by looking at its data", *axes.ids.get(value, []))


def _picking(calls: Sequence[Call]) -> dict[int, list[Call]]:
    """Reads inside of ``x[number]``, by their place among the calls, with what takes a position by each."""
    found: dict[int, list[Call]] = {}
    for k, read in enumerate(calls):
        if read.op == "aten::_local_scalar_dense" and read.api == "__getitem__":
            one = [read]
            while k + len(one) < len(calls) and _same_function(calls[k + len(one)], read):
                one.append(calls[k + len(one)])
            picks = [c for c in one if c.op == "aten::select"]
            if picks and {c.op for c in one} <= {read.op, "aten::select", "aten::unsqueeze", "aten::alias"}:
                found[k] = picks
    return found


def _same_function(call: Call, other: Call) -> bool:
    """Whether two ATen calls came of one call of a torch function."""
    one, two = ((c.api, c.nth, c.place.module, c.place.number) for c in (call, other))
    return one == two


def _reads_data(call: Call) -> bool:
    checks = call.api == "one_hot" and any(plain(s) > 0 for s in call.sizes)  # the range of what it is given, no more
    return call.op in _READS and not checks and not all(v.weight for v in call.inputs)


def _passing(graph: Graph, module: str) -> set[int]:
    """Values that the code of a module itself touches or hands on."""
    prefix = f"{module}." if module else ""

    def part(path: str) -> str:
        """The child in which a call was made; "" for the module's own code, ".." outside it."""
        if path == module:
            return ""
        return path[len(prefix) :].split(".")[0] if path.startswith(prefix) else ".."

    made: dict[int, str] = {}
    passing: set[int] = set()
    for call in graph.calls:
        here = part(call.place.module)
        for v in call.inputs:
            origin = made.setdefault(v.index, here) if v.weight else made.get(v.index, "..")
            if here == "" or origin != here:
                passing.add(v.index)
        for out in call.outs:
            if out is not None:
                made[out.index] = here
    return passing
