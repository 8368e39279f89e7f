"""What must go together: run the rules over the graph, solve, and gather the units into groups."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.errors import CoupleError, PlanError
from secateur.graph.axes import Axes
from secateur.graph.closure import Solution, solve
from secateur.graph.counting import Counter
from secateur.graph.coverage import Coverage, coverage_of
from secateur.graph.frozen import frozen_axes
from secateur.graph.gather import gather
from secateur.graph.limited import limited
from secateur.graph.pins import pin_branches, pin_ignored, pin_numbered, pin_numbers, pin_unused
from secateur.graph.recorded import Call, Graph
from secateur.graph.repair import Repairs, Sizes
from secateur.graph.rules import RULES, Rule
from secateur.graph.rules.experts import using
from secateur.graph.rules.pointwise import constant
from secateur.graph.rules.shape import expand
from secateur.graph.shells import no_garbage_collection
from secateur.graph.sizes import Attribute, Size
from secateur.graph.zeros import Zeros
from secateur.types import Bools, Frozen, Group, Ints, Keep


@dataclass(frozen=True, eq=False)
class Groups:
    """The units of a model, by group, and what is frozen.

    Attributes:
        groups: in the order of the model. graph: what they came from.
        unknown: ops without a rule that were met, with the place: what they touch is frozen.

    Counting costs after a cut is linear in the number of positions of the axes that can be cut.
    """

    groups: tuple[Group, ...]
    graph: Graph
    unknown: tuple[str, ...]
    _axes: Axes
    _solution: Solution
    _roots: Mapping[str, tuple[Ints, ...]]
    _repairs: Repairs
    _dropped: tuple[Frozen, ...]
    _cache: dict[str, Counter] = field(default_factory=dict)

    @functools.cached_property
    def frozen(self) -> tuple[Frozen, ...]:
        """Axes that cannot be cut, and why; worked out when it is asked for."""
        return (*frozen_axes(self._axes, self._solution), *self._dropped)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        for g in self.groups:
            if g.name == name:
                return g
        raise CoupleError(f"no group is called {name!r}; there are {[g.name for g in self.groups]}")

    def all_kept(self) -> dict[str, Bools]:
        """A mask for every group that keeps all."""
        return {g.name: np.ones(g.units, bool) for g in self.groups}

    def removed(self, keep: Keep) -> Bools:
        """Which roots go, bool (ids,)."""
        gone = np.zeros(self._axes.n, bool)
        for name, mask in keep.items():
            roots = self._roots[name]
            if len(roots) == 1 and roots[0].ndim == 1:  # one root a unit
                gone[roots[0][~mask]] = True
            else:
                for u in np.nonzero(~mask)[0]:
                    gone[roots[u]] = True
        return gone

    def axes(self, keep: Keep) -> dict[tuple[str, int], Bools]:
        """(tensor, dim) -> bool (size,), True keeps; only axes that lose something.

        Raises:
            PlanError: groups that overlap (heads and head dims, say) leave nothing of an axis together.
        """
        keys, roots, starts = self._laid
        gone, out = self.removed(keep)[roots], {}
        lost = np.add.reduceat(gone, starts, dtype=np.int64) if keys else np.zeros(0, np.int64)
        for k in np.nonzero(lost)[0].tolist():
            (name, d), at = keys[k], int(starts[k])
            size = self.graph.tensors[name].shape[d]
            if lost[k] == size:
                losing = [g.name for g in self.groups if not keep.get(g.name, np.ones(1)).all()]
                mine = [n for n in losing if any((s.name, s.dim) == (name, d) for s in self[n].slices)]
                raise PlanError(
                    f"{mine} together remove all {size} positions of dim {d} of {name}: keep more units of one of them"
                )
            out[name, d] = ~gone[at : at + size]
        return out

    @functools.cached_property
    def _laid(self) -> tuple[list[tuple[str, int]], Ints, Ints]:
        """Every tracked axis of every tensor, one after another: (tensor, dim), roots, where each begins."""
        keys: list[tuple[str, int]] = []
        vectors: list[Ints] = [np.zeros(0, np.int64)]
        for name, value in self.graph.tensors.items():
            for d, ids in enumerate(self._axes.ids[value.index]):
                if ids is not None and ids.size:
                    keys.append((name, d))
                    vectors.append(self._solution.root[ids])
        starts = np.cumsum([v.size for v in vectors])[:-1]
        return keys, np.concatenate(vectors), starts.astype(np.int64)

    def params(self, keep: Keep) -> int:
        """Number of parameters left (shared ones counted once)."""
        return int(self._count("params", keep).sum())

    def nbytes(self, keep: Keep) -> int:
        """Bytes of parameters and buffers left."""
        return int(self._count("nbytes", keep).sum())

    def macs(self, keep: Keep) -> int:
        """Multiply-accumulates left, over all recorded contractions."""
        return int(self._count("macs", keep).sum())

    def _count(self, what: str, keep: Keep) -> Ints:
        if what not in self._cache:
            if what == "macs":
                terms = self._axes.work
            else:
                terms = [
                    (
                        self.graph.itemsize[name] if what == "nbytes" else 1,
                        tuple(a for a in ids if a is not None),
                    )
                    for name, ids in self._tensor_ids(what == "params")
                ]
            self._cache[what] = Counter.of(terms, self._solution.root)
        return self._cache[what](self.removed(keep))

    def coverage(self) -> Coverage:
        """How much of the model's parameters units take, by kind, and what keeps the rest."""
        named = [(n, self.graph.shapes[i]) for i, n in self._axes.names.items() if n in self.graph.parameters]
        return coverage_of(dict(named), self.groups, self.frozen)

    def _tensor_ids(self, parameters: bool) -> Iterator[tuple[str, list[Ints | None]]]:
        for index, name in self._axes.names.items():
            if not parameters or name in self.graph.parameters:
                yield name, self._axes.ids[index]

    def repairs(self, keep: Keep) -> tuple[dict[Attribute, int], Sizes]:
        """New values of the int attributes that sizes in the code are made of, and of sizes that none holds.

        Raises:
            CoupleError: a size in the code cannot follow this cut; says which, where, and what it would have to be.
        """
        new, sizes, bad = self._repairs.check(self.removed(keep))
        if bad:
            raise CoupleError(f"this cut cannot be carried out: {'; '.join(bad[:3])}")
        return new, sizes

    def renumbered(self, keep: Keep) -> dict[str, Bools]:
        """Buffers of positions -> mask of the axis that they point into."""
        gone = self.removed(keep)
        masks = {r.buffer: ~gone[self._solution.root[r.ids]] for r in self._axes.renumbered}
        return {name: mask for name, mask in masks.items() if not mask.all()}


@no_garbage_collection()
def couple(graph: Graph, rules: Mapping[str, Rule] = RULES, ignore: Sequence[str] = (), every: bool = False) -> Groups:
    """Find the units: the smallest sets of positions that can be removed together.

    Args:
        graph: from `trace`. rules: op -> rule; ``sc.RESIDUAL_RULES`` also cuts residual width, ``sc.EXPERT_RULES``
            whole experts.
        ignore: globs over parameter names, module paths or group names that must stay whole.
        every: also groups that need sizes in the code replaced although others cut the same weights without, such
            as the dims inside of heads that can go as wholes.

    Raises:
        CoupleError: nothing can be cut; says what froze it.

    Linear in the number of positions of all parameter axes, up to sorting; memory some tens of bytes a position.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> for group in sc.couple(sc.trace(net, torch.zeros(1, 4))):
        ...     print(group.name, group.units, [(s.name, s.dim, s.role) for s in group.slices])
        0:neuron 8 [('0.weight', 0, 'out'), ('0.bias', 0, 'out'), ('2.weight', 1, 'in')]
    """
    axes = Axes(graph)
    unknown = _run_rules(axes, rules)
    for value in graph.outputs:
        axes.pin("is an output of the model", *axes[value], axes.points.get(value.index))
    pin_numbers(axes)
    pin_unused(axes)
    pin_numbered(axes)
    pin_branches(axes)
    pin_ignored(axes, ignore)
    solution = solve(axes)
    repairs = Repairs.of(axes, solution.root)
    found = [(limited(axes, solution, g, roots), roots) for g, roots in gather(axes, solution)]
    groups, dropped = _possible(repairs, axes.n, found, ignore, every)
    kept = {g.name for g in groups}
    roots = {g.name: its for g, its in found if g.name in kept}
    made = Groups(tuple(groups), graph, tuple(dict.fromkeys(unknown)), axes, solution, roots, repairs, tuple(dropped))
    if not groups:
        why = sorted({f"{f.name}: {f.reason} ({f.line})" for f in made.frozen if f.size > 1})[:6]
        raise CoupleError(
            f"nothing in this model can be cut. {'; '.join(why)}. "
            "Give rules for unknown ops, shorten `ignore`, or ask for residual width with rules=sc.RESIDUAL_RULES"
        )
    return made


def macs_of(graph: Graph, rules: Mapping[str, Rule] = RULES) -> int:
    """Multiply-accumulates of the recorded contractions, whether or not anything can be cut."""
    axes = Axes(graph)
    _run_rules(axes, rules)
    return int(Counter.of(axes.work, np.arange(axes.n))(np.zeros(axes.n, bool)).sum())


def _run_rules(axes: Axes, rules: Mapping[str, Rule]) -> list[str]:
    """Ids of every value; returns the ops that froze something because no rule covers them."""
    unknown: list[str] = []
    zeros = Zeros(axes)
    axes.asked = frozenset(rules)
    calls = axes.graph.calls
    for call, following in zip(calls, [*calls[1:], None], strict=True):
        axes.place = call.place
        if _run_rule(axes, call, rules, unknown):
            zeros.follow(call)
        if following is None or following.sizes is not call.sizes:  # the last ATen call of a torch function
            for size in call.sizes:
                if size.__class__ is Size:
                    axes.stay(size, call)
            axes.followed.clear()
    return unknown


def _run_rule(axes: Axes, call: Call, rules: Mapping[str, Rule], unknown: list[str]) -> bool:
    """Run one rule; returns whether the call has anything to do with ids."""
    inputs, live = call.inputs, False
    for v in inputs:
        for a in axes.ids.get(v.index, ()):
            if a is not None:
                live = True
                break
    picks = using(axes, call) if axes.points else None
    rule = picks or rules.get(call.op) or (rules["aten::where"] if call.pointwise else None)
    if rule is None and not inputs:
        return False
    if not live and not picks and inputs and rule is not constant and rule is not expand:
        return False  # these may make an axis that follows another
    if call.op not in ("aten::_local_scalar_dense", "secateur::default_scale") and all(v is None for v in call.outs):
        return live  # no tensor comes out: nothing to follow
    try:
        if rule is None:
            raise KeyError(call.op)
        _store(axes, call, rule(axes, call))
    except MemoryError:
        raise
    except Exception as error:  # rules may be anybody's
        what = "has no rule" if rule is None else f"is not covered by its rule ({error})"
        for v in inputs:
            axes.pin(f"meets {call.op}, which {what}", *axes[v], axes.points.get(v.index))
        for out in call.outs:
            if out is not None:
                axes.ids[out.index] = [None] * out.ndim
        unknown.append(f"{call.op} {what} at {call.place.line} in {call.place.module or 'the model'}")
    return True


def _store(axes: Axes, call: Call, result: list[object]) -> None:
    many = result if (result and isinstance(result[0], list)) or len(call.outs) > 1 else [result]
    for v, ids in zip(call.outs, many, strict=False):
        if v is None:
            continue
        assert isinstance(ids, list)
        fits = len(ids) == len(v.shape)
        for a, n in zip(ids, v.shape, strict=False):
            fits = fits and (a is None or len(a) == n)
        if not fits:
            raise ValueError(f"ids {[None if a is None else len(a) for a in ids]} for shape {v.shape}")
        axes.ids[v.index], axes.made_by[v.index] = ids, call.op


def _possible(
    repairs: Repairs,
    n: int,
    found: Sequence[tuple[Group, tuple[Ints, ...]]],
    ignore: Sequence[str],
    every: bool,
) -> tuple[list[Group], list[Frozen]]:
    """The groups that can be cut after all, and why the others cannot."""
    reasons, forced = {}, []
    for group, roots in found:
        reason, resizes = _impossible(repairs, n, group, roots, ignore)
        if reason is not None:
            reasons[group.name] = reason
        elif resizes and not every:
            forced.append(group)
    taken: dict[tuple[str, int], set[int]] = {}
    for group in [g for g, _ in found if forced and g.name not in reasons and g not in forced]:
        _take(group, taken)
    for group in sorted(forced, key=lambda g: g.kind == "head_dim"):
        if not _take(group, taken):
            why = "takes weights that other groups take, and sizes in the code would have to be replaced: every=True"
            reasons[group.name] = why, group.module, ""
    groups = [g for g, _ in found if g.name not in reasons]
    dropped = []
    for group, _ in found:
        if group.name in reasons:
            first = next((s for s in group.slices if s.role == "out"), None)
            dropped += [] if first is None else [Frozen(first.name, first.dim, first.index.size, *reasons[group.name])]
    return groups, dropped


def _take(group: Group, taken: dict[tuple[str, int], set[int]]) -> bool:
    """Note the positions that a group takes; whether any of them is new."""
    new = False
    for s in group.slices:
        known, mine = taken.setdefault((s.name, s.dim), set()), set(s.index.ravel().tolist())
        new |= not mine <= known
        known |= mine
    return new


def _impossible(
    repairs: Repairs, n: int, group: Group, roots: tuple[Ints, ...], ignore: Sequence[str]
) -> tuple[tuple[str, str, str] | None, bool]:
    """Why a group cannot be cut after all, (reason, module, line), and whether it needs sizes in the code replaced."""
    if any(fnmatch.fnmatch(group.name, p) for p in ignore):
        return ("is ignored on request", group.module, ""), False
    if group.least >= group.units > 1:
        return (f"is chosen from, {group.least} at a time: none can go", group.module, ""), False
    if group.units < 2:
        return ("is a single unit: cutting it would cut everything", group.module, ""), False
    plain = len(roots) == 1 and roots[0].ndim == 1  # one root a unit
    if not repairs.touched_by(roots[0] if plain else np.concatenate(roots)):
        return None, False
    resizes = False
    for gone in ([0], [group.units - 1], list(range(group.least, group.units))):
        removed = np.zeros(n, bool)
        removed[roots[0][gone] if plain else np.concatenate([roots[u] for u in gone])] = True
        _, sizes, bad = repairs.check(removed)
        resizes |= bool(sizes)
        if bad:
            return (bad[0], group.module, bad[0].rpartition(" at ")[2]), False
    return None, resizes
