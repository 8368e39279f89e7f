"""Experts that go, added into those that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import named_tensors
from secateur.errors import ArgumentError, CoupleError
from secateur.graph.couple import Groups
from secateur.llm.routing import Bank, Routing
from secateur.types import Bools, Floats, Ints


def output_likeness(seen: Routing) -> Floats:
    """How alike experts are by what they put out: minus the distance of their mean outputs over all tokens.

    ``-||mean f_i(x) - mean f_j(x)||_2``, (experts, experts). Chen et al., 2024 (HC-SMoE), arXiv:2410.08589.
    """
    if seen.means is None:
        raise ArgumentError("output_likeness needs the experts' mean outputs: Merge(output_likeness, means=True)")
    away: Floats = np.linalg.norm(seen.means[:, None] - seen.means[None], axis=-1)
    return -away


def logit_likeness(seen: Routing) -> Floats:
    """How alike experts are to their router: the cosine of their logits over the calibration tokens.

    ``l_i . l_j / (|l_i| |l_j|)``, (experts, experts). Li et al., 2023 (M-SMoE), arXiv:2310.01334.
    """
    if seen.logits is None:
        raise ArgumentError("logit_likeness needs the router's logits: Merge(logit_likeness, logits=True)")
    size = np.sqrt(np.diag(seen.logits))
    cosines: Floats = seen.logits / np.maximum(np.outer(size, size), 1e-300)
    return cosines


@dataclass(frozen=True)
class Merge:
    """How removed experts are added into kept ones: by mean weights, each expert's weight the tokens routed to it.

    ``theta_m = sum over i in C_m of n_i theta_i / sum of n_i``, with ``C_m`` the kept expert m and those whose most
    alike kept expert it is, and ``n_i`` the tokens routed to i. The router keeps the row of m alone.

    Attributes:
        likeness: `output_likeness` or `logit_likeness`, or your own function of a `Routing`.
        align: permute the neurons of a removed expert to match those of the kept one first (the assignment of greatest
            inner product, which takes time cubic in the neurons of an expert).
        means, logits: what the likeness needs of the `Routing`.
    """

    likeness: Callable[[Routing], Floats]
    align: bool = False
    means: bool = False
    logits: bool = False

    @property
    def needs(self) -> dict[str, bool]:
        """Arguments of `routing`."""
        return {"means": self.means, "logits": self.logits}


BY_OUTPUTS = Merge(output_likeness, means=True)
"""Merge into the expert whose mean output is closest (HC-SMoE's distance). Runs every expert on every token."""

BY_LOGITS = Merge(logit_likeness, logits=True)
"""Merge into the expert that the router treats most alike (M-SMoE's)."""


@torch.no_grad()
def merge_(
    module: nn.Module, bank: Bank, groups: Groups, seen: Routing, keep: Bools, merge: Merge = BY_OUTPUTS
) -> dict[int, int]:
    """Write the merged weights over those of the kept experts, before the others are cut; returns removed -> kept.

    A kept expert to which, like to all that join it, no token was routed stays as it is.

    Raises:
        ArgumentError: the router chooses among fixed sets of experts. CoupleError: neurons cannot be aligned.
    """
    if bank.members.shape[1] != 1:
        raise ArgumentError(f"{seen.path} is chosen from in sets of {bank.members.shape[1]} experts: drop, don't merge")
    stay, go = (bank.members[mask, 0] for mask in (keep, ~keep))
    like = merge.likeness(seen)[np.ix_(go, stay)]
    into = {int(j): int(stay[best]) for j, best in zip(go, like.argmax(1), strict=True)}
    stacks = {name: t for name, t in named_tensors(module)[0].items() if name in bank.stacks}
    neurons = tuple(_neurons(bank, groups, stacks)) if merge.align else ()
    for kept in sorted(set(into.values())):
        joined = [kept, *(j for j, m in into.items() if m == kept)]
        shares = seen.count[joined]
        if not shares.sum():
            continue
        orders = {j: _matched(stacks, neurons, kept, j) for j in joined[1:]} if merge.align else {}
        for name, stack in stacks.items():
            mean = torch.zeros_like(stack[kept], dtype=torch.float32)
            for j, share in zip(joined, shares / shares.sum(), strict=True):
                mean += share * _permuted(stack[j].float(), name, neurons, orders.get(j))
            stack[kept] = mean.to(stack.dtype)
    return into


@dataclass(frozen=True, eq=False)
class _Neurons:
    """Positions that the neurons of each expert take along an axis of its own weight: (neurons, k)."""

    name: str
    dim: int
    index: Ints


def _neurons(bank: Bank, groups: Groups, stacks: dict[str, Tensor]) -> Iterator[_Neurons]:
    """The axes of a bank's weights along which its neurons lie."""
    group = next((g for g in groups if g.kind == "neuron" and {s.name for s in g.slices} & stacks.keys()), None)
    if group is None or not {s.name for s in group.slices} <= stacks.keys():
        raise CoupleError(f"the neurons of the experts in {bank.path} cannot be told apart: merge without align")
    for s in group.slices:
        yield _Neurons(s.name, s.dim - 1, s.index)


def _matched(stacks: dict[str, Tensor], neurons: tuple[_Neurons, ...], kept: int, other: int) -> Tensor:
    """The order of another expert's neurons in which they match the kept one's best."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    total = torch.zeros(())
    for n in neurons:
        a, b = (_rows(stacks[n.name][j].float(), n) for j in (kept, other))
        total = total + a @ b.T
    return torch.from_numpy(linear_sum_assignment(total.cpu().numpy(), maximize=True)[1])


def _rows(weight: Tensor, n: _Neurons) -> Tensor:
    """What belongs to each neuron: (neurons, its weights)."""
    taken = weight.movedim(n.dim, 0)[torch.from_numpy(n.index).to(weight.device)]
    return taken.reshape(len(n.index), -1)


def _permuted(weight: Tensor, name: str, neurons: tuple[_Neurons, ...], order: Tensor | None) -> Tensor:
    if order is None:
        return weight
    for n in neurons:
        if n.name == name:
            index = torch.from_numpy(n.index)
            source = torch.arange(weight.shape[n.dim])
            source[index.reshape(-1)] = index[order].reshape(-1)
            weight = weight.index_select(n.dim, source.to(weight.device))
    return weight
