"""A narrower residual stream: the same channels go in all blocks, in the embedding and in the head, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from secateur.graph.surgery import apply, cut_tensor
from secateur.llm.live import Live
from secateur.llm.shrink.head import scaled_norms
from secateur.llm.shrink.prices import Anatomy
from secateur.llm.shrink.refit import Kept
from secateur.llm.shrink.units import within
from secateur.llm.source import Source
from secateur.score.calibrate import Moment
from secateur.score.capture import matrix
from secateur.types import Bools, Floats, Group, Plan


def channel_scores(block: nn.Module, stream: Group, moments: Mapping[str, Moment]) -> Floats:
    """What each channel of the residual stream carries into the weights of a block that read it, float64 (units,).

    ``sum over weights of E[x_j²] ||W_:,j||² / sum_k E[x_k²] ||W_:,k||²``: activation importance as of Minitron
    (arXiv:2407.14679), of normalised inputs, weighed by what each weight makes of them. Comparable between blocks.

    Args:
        block: dense. stream: the channels, tensors by their names in the block. moments: of the weights' inputs.
    """
    named, total = dict(block.named_parameters()), np.zeros(stream.units)
    for s in stream.slices:
        m = moments.get(s.name)
        if s.role != "in" or m is None or m.in_dim != s.dim:
            continue
        weight = matrix(named[s.name].detach().double(), s.dim)
        each = (m.second.diagonal() / m.n * weight.square().sum(0)).cpu().numpy()
        total += each[s.index].sum(1) / max(each.sum(), 1e-300)
    return total


def strongest(scores: Floats, count: int) -> Bools:
    """The channels with the largest scores, bool (units,).

    Example:
        >>> strongest(np.array([1.0, 3.0, 2.0]), 2).tolist()
        [False, True, True]
    """
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep


@dataclass(frozen=True, eq=False)
class Slim:
    """What a narrower stream means for every tensor.

    Attributes:
        source, paths, dense: the weights, the paths of the blocks, and the model without its weights.
        stream: its channels. plan: takes those that go out of all tensors, and nothing else.
        skeleton: the model so cut, without its weights.
    """

    source: Source
    paths: Sequence[str]
    dense: nn.Module
    stream: Group
    plan: Plan
    skeleton: nn.Module

    @classmethod
    def of(cls, anatomy: Anatomy) -> Slim | None:
        """None where the anatomy keeps all channels."""
        if anatomy.stream is None or anatomy.channels is None:
            return None
        plan, dense = anatomy.cut({}), anatomy.skeleton
        return cls(anatomy.source, anatomy.paths, dense, anatomy.stream, plan, apply(plan, dense))

    @property
    def channels(self) -> Bools:
        """Which stay, bool (units,)."""
        return self.plan.keep[self.stream.name]

    def rest(self, plan: Plan) -> Plan:
        """What a plan takes away beside the channels."""
        mine = self.plan
        axes = {k: v for k, v in plan.axes.items() if k not in mine.axes}
        return replace(plan, axes=axes, renumber={k: v for k, v in plan.renumber.items() if k not in mine.renumber})

    def refitted(self, block: nn.Module, path: str, kept: Mapping[str, Kept]) -> dict[str, Kept]:
        """The weights of a block that are refitted: of these those that write to the stream, and all that read it.

        Args:
            block: dense. path: of it. kept: weights that lose other inputs, or are healed.
        """
        found, named = dict(kept), dict(block.named_parameters())
        for s in within(self.stream, path).slices:
            if s.role == "in" and named[s.name].dim() == 2:
                found[s.name] = Kept(s.dim, self._stay(path, s.name, s.dim), cut=True)
        for name, k in found.items():
            if (f"{path}.{name}", 1 - k.in_dim) in self.plan.axes:
                found[name] = replace(k, rows=self._stay(path, name, 1 - k.in_dim))
        return found

    def _stay(self, path: str, name: str, dim: int) -> Tensor:
        return torch.from_numpy(self.plan.axes[f"{path}.{name}", dim])

    def norms(self, live: Live) -> dict[str, list[float]]:
        """Behind the last block, what scales the stream for the head, fitted to what it is now: see `scaled_norms`."""
        lines = sorted(n for n in self._outside if self.skeleton.get_parameter(n).dim() == 1)
        found = scaled_norms(self.source, self.paths, self.plan, lines, self.channels, live)
        return {name: value.tolist() for name, value in found.items()}

    def outside(self, norms: Mapping[str, Sequence[float]]) -> tuple[dict[str, Tensor], set[str]]:
        """What changes outside of the blocks: tensors by name, and other names of the same ones, which go.

        Args:
            norms: new values of some.

        Memory: these tensors.
        """
        alike: dict[int, list[str]] = {}
        for name, tensor in self.dense.state_dict(keep_vars=True).items():
            alike.setdefault(id(tensor), []).append(name)
        tensors, gone = {}, set[str]()
        for same in alike.values():
            mine = self._outside.intersection(same)
            if mine:
                held = next(n for n in same if n in self.source.recipes or n in self.source.state)
                tensors[held] = cut_tensor(self.plan, min(mine), self.source.tensor(held)).contiguous()
                gone |= {*same} - {held}
        for name, values in norms.items():
            tensors[name] = torch.tensor(values).to(tensors[name].dtype)
        return tensors, gone

    @property
    def _outside(self) -> set[str]:
        inside = tuple(f"{p}." for p in self.paths)
        return {n for n, _ in self.plan.axes if not n.startswith(inside)}
