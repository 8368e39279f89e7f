"""What can go inside a block: families of units that nothing outside of it shares."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from secateur.errors import CoupleError
from secateur.graph.couple import Groups
from secateur.types import Bools, Group, Ints


@dataclass(frozen=True, eq=False)
class Family:
    """Interchangeable units inside one block: its KV groups (with their query heads), its neurons.

    Attributes:
        block: which block, from 0. path: where it is in the model.
        group: as `sc.couple` found it, tensors by their names in the model.
        local: the same, tensors by their names in the block.
    """

    block: int
    path: str
    group: Group
    local: Group

    @property
    def name(self) -> str:
        """Of the group."""
        return self.group.name

    @property
    def kind(self) -> str:
        """Of the group."""
        return self.group.kind

    @property
    def units(self) -> int:
        """How many there are."""
        return self.group.units

    def consumers(self) -> dict[str, tuple[int, Ints]]:
        """Weights that the units feed, by their names in the block: (axis that is summed over, (units, k) columns)."""
        return {s.name: (s.dim, s.index) for s in self.local.slices if s.role == "in"}


def families(groups: Iterable[Group], paths: Sequence[str], kinds: Collection[str]) -> list[Family]:
    """The groups of some kinds that lie within one block each and feed a weight there, in the order of the blocks.

    Of groups that cut the same axis of a tensor (KV groups with their query heads, and query heads alone) the first
    stands: costs and errors are then sums over families.

    Example:
        >>> import torch, secateur as sc, transformers
        >>> config = transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=2)
        >>> net = transformers.LlamaForCausalLM(config)
        >>> groups = sc.couple(sc.trace(net, {"input_ids": torch.tensor([[1, 2, 3]])}))
        >>> [(f.block, f.kind, f.units) for f in families(groups, ["model.layers.0", "model.layers.1"], ["head"])]
        [(0, 'head', 2), (1, 'head', 2)]
    """
    found, taken = [], set[tuple[str, int]]()
    for group in groups:
        if group.kind not in kinds or not any(s.role == "in" for s in group.slices):
            continue
        homes = {_home(s.name, paths) for s in group.slices}
        home = next(iter(homes))
        axes = {(s.name, s.dim) for s in group.slices}
        if len(homes) == 1 and home is not None and not axes & taken:
            taken |= axes
            found.append(Family(home, paths[home], group, within(group, paths[home])))
    return sorted(found, key=lambda f: f.block)


def stream_of(groups: Groups, paths: Sequence[str]) -> Group:
    """The channels of the residual stream: of the groups of kind ``width`` the one that every block reads and writes.

    Raises:
        CoupleError: there is none.
    """
    for group in groups:
        if group.kind == "width" and all(any(s.name.startswith(f"{p}.") for s in group.slices) for p in paths):
            return group
    outside = [f for f in groups.frozen if f.size > 1 and _home(f.name, paths) is None and f.dim > 0]
    why = f": {outside[0].name} {outside[0].reason} ({outside[0].line})" if outside else ""
    raise CoupleError(
        f"the residual stream through {paths[0]} and those behind it cannot become narrower{why}; leave the width as "
        "it is"
    )


def within(group: Group, path: str) -> Group:
    """What a group has in one block, tensors by their names there."""
    lead = f"{path}."
    mine = (replace(s, name=s.name.removeprefix(lead)) for s in group.slices if s.name.startswith(lead))
    return replace(group, slices=tuple(mine))


def _home(name: str, paths: Sequence[str]) -> int | None:
    return next((i for i, path in enumerate(paths) if name.startswith(f"{path}.")), None)


def kept_columns(family: Family, keep: Bools, weight: str, size: int) -> torch.Tensor:
    """Which columns of a consumer stay, bool (size,): all but those of removed units."""
    _, index = family.consumers()[weight]
    out = torch.ones(size, dtype=torch.bool)
    out[torch.from_numpy(index[~keep].reshape(-1))] = False
    return out
