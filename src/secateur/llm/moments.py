"""Moments of what every matrix of a block is fed; matrices that share an input share them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from secateur.errors import TraceError
from secateur.llm import together
from secateur.score.capture import Contraction, Enough, Watch, version
from secateur.solve.gram import Gram, GramSum
from secateur.solve.norms import Norms, NormSum

Fed: TypeAlias = Gram | Norms
"""What is known of a matrix's input."""


@dataclass(eq=False)
class Feed:
    """An input of one or more matrices.

    Attributes:
        keys: of the matrices. inputs: how many it has. cross: whether the dense block's inputs are known as well.
        sums: over the batches; held: over those that were kept aside, or None.
    """

    keys: list[str]
    inputs: int
    cross: bool
    sums: GramSum | NormSum
    held: GramSum | NormSum | None


@dataclass(eq=False)
class Moments:
    """Collects what the matrices of a block are fed, batch by batch.

    Attributes:
        wanted: keys to collect, or None for all. held: whether some batches are kept aside.
        cross: whether the dense block is run beside. norms: of the inputs alone. lead: before keys, for messages.
        device: where the sums are. in_dims: key -> the axis of the matrix that is summed over.

    A key is the name of a parameter in the block; ``NAME[i]`` is a slice of a parameter of three axes, as experts are.
    Memory: d² floats an input, and as much again each for ``held`` and ``cross``.
    """

    wanted: Collection[str] | None = None
    held: bool = False
    cross: bool = False
    norms: bool = False
    lead: str = ""
    device: torch.device | str = "cpu"
    in_dims: dict[str, int] = field(default_factory=dict)
    _feeds: dict[str, Feed] = field(default_factory=dict)
    _rows: dict[str, int] = field(default_factory=dict)
    _uses: dict[str, int] = field(default_factory=dict)
    _batches: int = 0

    def add(
        self, module: nn.Module, run: Callable[[], Any], aside: bool = False, dense: dict[str, Tensor] | None = None
    ) -> None:
        """Run the block on a batch and add what its matrices are fed.

        Args:
            module: the block. run: runs it. aside: whether this batch is kept aside. dense: `inputs_of` the dense one.
        """
        last = self.last(module)
        known: list[tuple[Tensor, int, Feed, str]] = []  # inputs seen in this run: q, k and v share theirs

        def seen(c: Contraction) -> None:
            if c.unfold or (self.wanted is not None and c.weight not in self.wanted):
                return
            self._note(c)
            own = self._feeds.get(c.weight)
            feed = next((f for x, v, f, _ in known if x is c.x and v == version(c.x)), None)
            parted = feed is None and any(f is own and key != c.weight for _, _, f, key in known)
            if parted or (feed is not None and own is not None and own is not feed):
                other = next(key for _, _, f, key in known if f is (feed or own) and key != c.weight)
                raise self._shared_in_part(other, c.weight)
            if feed is None:
                feed = own or self._new(c, dense)
                known.append((c.x, version(c.x), feed, c.weight))
                part = feed.held if aside and feed.held is not None else feed.sums
                if isinstance(part, NormSum):
                    part.add_(c.x)
                else:
                    part.add_(c.x, dense[c.weight] if dense is not None and feed.cross else None)
            if self._feeds.setdefault(c.weight, feed) is feed and c.weight not in feed.keys:
                feed.keys.append(c.weight)

        with torch.no_grad(), contextlib.suppress(Enough), Watch(module, seen, stacked=True, last=last):
            run()
        self._batches += 1

    def last(self, module: nn.Module) -> str | None:
        """The last matrix that is used: a pass need not go on behind its input. Experts may be used in any order."""
        if self.in_dims and not experts_in(module) and set(self._uses.values()) == {self._batches}:
            return list(self.in_dims)[-1]
        return None

    def _note(self, c: Contraction) -> None:
        if self.in_dims.setdefault(c.weight, c.in_dim) != c.in_dim:
            raise TraceError(f"{c.weight} is used in two ways that sum over other axes: leave it dense")
        self._uses[c.weight] = self._uses.get(c.weight, 0) + 1
        self._rows[c.weight] = self._rows.get(c.weight, 0) + c.x.numel() // max(c.x.shape[-1], 1)

    def _new(self, c: Contraction, dense: dict[str, Tensor] | None) -> Feed:
        """What only some positions reach, as an expert, cannot be told position by position from the dense block."""
        theirs = None if dense is None or "[" in c.weight else dense.get(c.weight)
        return self._zeros(c.x.shape[-1], theirs is not None and theirs.shape == c.x.shape)

    def _zeros(self, d: int, cross: bool) -> Feed:
        if self.norms:
            return Feed([], d, False, NormSum.zeros(d, device=self.device), None)
        made = [GramSum.zeros(d, device=self.device, cross=cross) for _ in range(1 + self.held)]
        return Feed([], d, cross, made[0], made[1] if self.held else None)

    def grams(self) -> dict[str, Fed]:
        """Key -> moments, summed over all processes: one object for matrices that share an input. Ends the collection.

        Raises:
            TraceError: two matrices share an input on some batches only. DataError: an input is not finite.
        """
        self._meet()
        made: dict[str, Fed] = {}
        for feed in {id(f): f for f in self._feeds.values()}.values():
            for sums in (feed.sums, feed.held):
                together.sum_([] if sums is None else sums.tensors().values())
            rows = {self._rows[key] for key in feed.keys}
            if len(rows) > 1 and together.size() == 1:
                raise self._shared_in_part(*feed.keys[:2])
            if isinstance(feed.sums, NormSum):
                feed.sums.sample = [x for part in together.everyones(feed.sums.sample) for x in part]
            name = self.lead + feed.keys[0]
            if not int(feed.sums.rows):
                continue  # an expert that only what was kept aside reached
            gram: Fed
            if isinstance(feed.held, GramSum) and isinstance(feed.sums, GramSum) and int(feed.held.rows):
                gram = feed.sums.gram(held=feed.held.gram(name=name), name=name)
            else:
                gram = feed.sums.gram(name=name)
            feed.sums = feed.held = None  # type: ignore[assignment]  # not both at once in memory
            made |= dict.fromkeys(feed.keys, gram)
        self._feeds = {}
        return made

    def _shared_in_part(self, first: str, second: str) -> TraceError:
        return TraceError(f"{self.lead}{first} and {second} share an input on some batches only: leave one dense")

    def _meet(self) -> None:
        """Every process knows of every input, in one order: experts may have been reached in some only."""
        mine = {f.keys[0]: (tuple(f.keys), f.inputs, f.cross) for f in self._feeds.values()}
        self.in_dims = {key: dim for dims in together.everyones(self.in_dims) for key, dim in dims.items()}
        told = {first: about for found in together.everyones(mine) for first, about in found.items()}
        if together.size() > 1:
            for first in sorted(told):
                keys, d, cross = told[first]
                if first not in self._feeds:
                    feed = self._zeros(d, cross)
                    feed.keys.extend(keys)
                    self._feeds |= dict.fromkeys(keys, feed)
                    self._rows |= dict.fromkeys(keys, 0)
            self._feeds = {key: self._feeds[key] for first in sorted(told) for key in told[first][0]}


def stacks_of(block: nn.Module) -> list[nn.Parameter]:
    """Parameters of three axes that are stacks of matrices, as experts are; kernels of convolutions are not.

    Example:
        >>> stacks_of(nn.Conv1d(4, 4, 3))
        []
    """
    parts = [m for m in block.modules() if not isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    return [p for m in parts for p in m.parameters(recurse=False) if p.dim() == 3]


def experts_in(block: nn.Module) -> set[int]:
    """How many experts a block's stacks and lists of modules may hold; none in a block without."""
    stacks = {p.shape[0] for p in stacks_of(block)}
    lists = [m for m in block.modules() if isinstance(m, nn.ModuleList)]
    return stacks | {len(m) for m in lists if len(m) > 1 and all(any(True for _ in c.parameters()) for c in m)}


def alike(key: str) -> str:
    """What the key of an expert's matrix has in common with those of other experts; of other matrices the key itself.

    Example:
        >>> alike("mlp.experts.3.up.weight"), alike("mlp.experts.up[3]"), alike("mlp.up.weight")
        ('mlp.experts.*.up.weight', 'mlp.experts.up[*]', 'mlp.up.weight')
    """
    return re.sub(r"(?<=\[)\d+(?=\])|(?<![^.])\d+(?![^.])", "*", key)


def unreached(block: nn.Module, in_dims: Mapping[str, int]) -> dict[str, int]:
    """Matrices of experts, in stacks or lists, that were not seen while others like them were: key -> axis summed over.

    Example:
        >>> block = nn.ModuleDict({"up": nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)]), "out": nn.Linear(3, 3)})
        >>> unreached(block, {"up.0.weight": 1})
        {'up.1.weight': 1}
    """
    kinds = {(alike(k), matrix_of(block, k, 1).shape): dim for k, dim in in_dims.items() if alike(k) != k}
    named = list(block.named_parameters())
    every = [(n, p.shape) for n, p in named if p.dim() == 2]
    every += [(f"{n}[{i}]", p.shape[1:]) for n, p in named if p.dim() == 3 for i in range(len(p))]
    return {
        key: kinds[alike(key), shape] for key, shape in every if key not in in_dims and (alike(key), shape) in kinds
    }


def inputs_of(module: nn.Module, run: Callable[[], Any], last: str | None = None) -> dict[str, Tensor]:
    """Key -> what each matrix is fed in one run, which ends at the input of ``last``."""
    found: dict[str, Tensor] = {}

    def seen(c: Contraction) -> None:
        if not c.unfold:
            found[c.weight] = c.x

    with torch.no_grad(), contextlib.suppress(Enough), Watch(module, seen, stacked=True, last=last):
        run()
    return found


def matrix_of(module: nn.Module, key: str, in_dim: int) -> Tensor:
    """A matrix of a block as (outputs, inputs): a view, what is written there is written to the parameter.

    Example:
        >>> matrix_of(nn.Linear(3, 2), "weight", 1).shape, matrix_of(nn.Linear(3, 2), "weight", 0).shape
        (torch.Size([2, 3]), torch.Size([3, 2]))
    """
    name, _, index = key.partition("[")
    tensor = module.get_parameter(name).detach()
    tensor = tensor[int(index.rstrip("]"))] if index else tensor
    return tensor if in_dim == 1 else tensor.T
