"""What layers a recorded model has, and how wide each is under a keep."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from secateur.graph.couple import Groups
from secateur.graph.extents import Extents, extents
from secateur.graph.recorded import Call, Graph, Value
from secateur.graph.rules import attention, contraction, convolution
from secateur.types import Ints

Settings = tuple[int | tuple[int, ...], ...]


@dataclass(frozen=True)
class Layer:
    """One layer at one size: what a cost table has entries of.

    Attributes:
        kind: ``conv``, ``depthwise``, ``linear``, ``matmul``, ``attention`` or ``elements``.
        settings: what does not change with a cut, by kind:
            ``conv``, ``depthwise``: batch, space, kernel, stride, padding, dilation, bias.
            ``linear``: rows, bias. ``matmul``: rows, inner, columns; the one that is 0 is the second width.
            ``attention``: batch, queries, keys. ``elements``: nothing.
        widths: inputs and outputs; channels twice for ``depthwise``; batch and inner for ``matmul``; heads and their
            dims for ``attention``; how many and 1 for ``elements``.
    """

    kind: str
    settings: Settings
    widths: tuple[int, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        s, (a, b) = self.settings, self.widths
        if self.kind in ("conv", "depthwise"):
            batch, space, kernel, stride, padding, dilation, _ = (x if isinstance(x, tuple) else (x,) for x in s)
            steps = [
                (n + 2 * p - d * (k - 1) - 1) // st + 1
                for n, p, d, k, st in zip(space, padding, dilation, kernel, stride, strict=True)
            ]
            return batch[0] * math.prod(steps) * math.prod(kernel) * (a if self.kind == "depthwise" else a * b)
        flat = [x for x in s if isinstance(x, int)]
        if self.kind == "linear":
            return flat[0] * a * b
        if self.kind == "matmul":
            return a * b * math.prod(x for x in flat if x)
        return 2 * math.prod(flat) * a * b if self.kind == "attention" else 0

    @property
    def key(self) -> str:
        """The name of its entry in a table."""
        return f"{self.kind} {json.dumps(self.settings, separators=(',', ':'))} {self.widths[0]} {self.widths[1]}"


def from_key(key: str) -> Layer:
    """The layer that an entry is of.

    Example:
        >>> from_key(Layer("linear", (128, 1), (384, 1536)).key).widths
        (384, 1536)
    """
    kind, settings, one, other = key.split(" ")
    parts = tuple(tuple(x) if isinstance(x, list) else x for x in json.loads(settings))
    return Layer(kind, parts, (int(one), int(other)))


@dataclass(frozen=True, eq=False)
class Site:
    """A layer of a model: how it is made of the sizes of its dims.

    ``slots``: of the two widths; each is the product of some sizes.
    """

    kind: str
    settings: Settings
    slots: tuple[tuple[int, ...], tuple[int, ...]]

    def at(self, sizes: list[int]) -> tuple[int, int]:
        """Its widths, given all sizes."""
        one, other = self.slots
        a, b = sizes[one[0]], sizes[other[0]]
        for i in one[1:]:
            a *= sizes[i]
        for i in other[1:]:
            b *= sizes[i]
        return a, b


Slots = dict[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a model, and the elements that all else writes.

    Attributes:
        sites: layers, in order. written: of each op that is none, the dims of what it writes, as slots.
    """

    sites: tuple[Site, ...]
    written: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def _columns(self) -> tuple[Ints, ...]:
        deepest = max(map(len, self.written), default=0)
        return tuple(np.array([w[d] if d < len(w) else -1 for w in self.written], np.int64) for d in range(deepest))

    def elements(self, sizes: Ints) -> int:
        """How many elements all ops write that are no layers, given all sizes."""
        total = np.ones(len(self.written), np.int64)
        padded = np.append(sizes, 1)  # what -1 points at
        for column in self._columns:
            total *= padded[column]
        return int(total.sum())

    def macs(self, sizes: list[int]) -> int:
        """Multiply-accumulates in the layers."""
        return sum(Layer(s.kind, s.settings, s.at(sizes)).macs for s in self.sites)


def layers_of(groups: Groups) -> tuple[Layers, Extents]:
    """Find the layers of what was recorded, and what tells their sizes under a keep.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> groups = sc.couple(sc.trace(net, torch.zeros(3, 4)))
        >>> layers, sizes_under = layers_of(groups)
        >>> sizes = sizes_under({"0:neuron": np.arange(8) < 5})
        >>> [(s.kind, s.at(sizes.tolist())) for s in layers.sites], layers.elements(sizes)
        ([('linear', (4, 5)), ('linear', (5, 2))], 15)
    """
    known = extents(groups, _values(groups.graph))
    return _found(groups.graph, known.slots), known


def layers_in(graph: Graph) -> tuple[Layers, Ints]:
    """The layers of a model as it is, and all sizes."""
    values = {v.index: v for v in _values(graph)}
    sizes = sorted({n for v in values.values() for n in v.shape})
    at = {n: i for i, n in enumerate(sizes)}
    slots = {i: tuple(at[n] for n in v.shape) for i, v in values.items()}
    return _found(graph, slots), np.array(sizes, np.int64)


def _values(graph: Graph) -> Iterator[Value]:
    for call in graph.calls:
        if _reader(call) or _writes(call):
            yield from (v for v in (*call.inputs, *call.outs) if v is not None)


def _found(graph: Graph, slots: Slots) -> Layers:
    read = [(call, _reader(call)) for call in graph.calls]
    sites = tuple(s for call, reader in read if reader for s in reader(call, slots))
    return Layers(sites, tuple(slots[c.out.index] for c, reader in read if not reader and _writes(c)))


def _reader(call: Call) -> Callable[[Call, Slots], Iterator[Site]] | None:
    for table, name, read in (
        (convolution.RULES, None, _convolution),
        (contraction.RULES, "mm", _product),
        (contraction.RULES, "bmm", _batched),
        (contraction.RULES, "linear", _linear),
        (attention.RULES, "attention", _attention),
    ):
        rule = table.get(call.op)
        if rule is not None and (name is None or rule.__name__ == name):
            return read if _readable(call) else None
    return None


def _readable(call: Call) -> bool:
    if "groups" not in call.args:
        return True
    groups, channels, weight = call["groups"], call.inputs[0].shape[1], call["weight"].shape
    depthwise = groups == channels == weight[0]
    plain = groups == 1 or depthwise
    return plain and not call.args.get("transposed", False)


def _convolution(call: Call, slots: Slots) -> Iterator[Site]:
    x, w = call.inputs[0], call["weight"]
    rank = len(w.shape) - 2

    def many(name: str) -> tuple[int, ...]:
        given = call[name]
        one = [int(g) for g in given] if isinstance(given, (list, tuple)) else [int(given)]
        return tuple(one * rank if len(one) == 1 else one)

    bias = int(call["bias"] is not None)
    settings = (x.shape[0], x.shape[2:], w.shape[2:], many("stride"), many("padding"), many("dilation"), bias)
    kind = "conv" if call["groups"] == 1 else "depthwise"
    inner, out = slots[x.index][1], slots[call.out.index][1]
    yield Site(kind, settings, ((inner,), (out,)))


def _product(call: Call, slots: Slots) -> Iterator[Site]:
    added = call.op == "aten::addmm"
    x, y = call["mat1" if added else "self"], call["mat2"]
    yield Site("linear", (x.shape[0], int(added)), ((slots[x.index][1],), (slots[y.index][1],)))


def _linear(call: Call, slots: Slots) -> Iterator[Site]:
    x, w = call["input"], call["weight"]
    out, inner = slots[w.index]
    yield Site("linear", (math.prod(x.shape[:-1]), int(call["bias"] is not None)), ((inner,), (out,)))


def _batched(call: Call, slots: Slots) -> Iterator[Site]:
    x, y = (call["batch1"], call["batch2"]) if call.op == "aten::baddbmm" else (call["self"], call["mat2"])
    (b, m, k), (_, _, n) = slots[x.index], slots[y.index]
    shape = [x.shape[1], x.shape[2], y.shape[2]]
    live = 1 if shape[1] <= shape[2] else 2  # the head dim is the short one
    settings = tuple(0 if i == live else size for i, size in enumerate(shape))
    yield Site("matmul", settings, ((b,), ((m, k, n)[live],)))


def _attention(call: Call, slots: Slots) -> Iterator[Site]:
    q, k = call["query"], call["key"]
    yield Site("attention", (q.shape[0], q.shape[2], k.shape[2]), ((slots[q.index][1],), (slots[q.index][3],)))


_NOTHING = frozenset({"_unsafe_view", "empty", "scalar_tensor", "arange", "_reshape_alias", "new_empty", "detach"})


def _writes(call: Call) -> bool:
    """Whether a call makes floats of other values, rather than another view of them."""
    space, _, name = call.op.partition("::")
    if not call.inputs or not call.outs or call.outs[0] is None or name in _NOTHING:
        return False
    if call.out.weight or call.out.integral:
        return False
    packet = getattr(getattr(torch.ops, space, None), name, None)
    if packet is None:
        return True
    schema = getattr(packet, packet.overloads()[0])._schema
    return not any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
