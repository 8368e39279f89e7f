"""Criteria of single weights by the empirical Fisher matrix in blocks, and how the others make up for what goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ArgumentError, DataError, PlanError
from secateur.score.calibrate import Loss, default_loss
from secateur.score.gradients import Named, differentiate, stat_of
from secateur.types import Batches, Criterion, Weighing


@dataclass(frozen=True, eq=False)
class BlockFisher:
    """The empirical Fisher matrix of a weight, ``damping I + outer / n``, in blocks of neighbours along its diagonal.

    Attributes:
        outer: ``sum g gᵀ``, (blocks, block, block) float64, the last block filled up with zeros.
        n: how many gradients. damping: added to the diagonal.
    """

    outer: Tensor
    n: int
    damping: float

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Some blocks at a time, 256 MiB of them at most: which, and their damped matrices."""
        block = self.outer.shape[1]
        step = max(1, 2**25 // block**2)
        for at in range(0, len(self.outer), step):
            some = self.outer[at : at + step] / self.n
            some.diagonal(dim1=1, dim2=2).add_(self.damping)
            yield slice(at, at + step), some


def _blocks(flat: Tensor, block: int) -> Tensor:
    """A vector as (blocks, block), filled up with zeros."""
    return F.pad(flat.reshape(-1), (0, -flat.numel() % block)).view(-1, block)


def block_fisher(
    model: nn.Module, batches: Batches, weights: Named, loss: Loss, damping: float, block: int, samples: int | None
) -> dict[str, BlockFisher]:
    """Blocks of the empirical Fisher matrix of weights, by name: one gradient a batch, ``8 block`` bytes a weight."""
    sizes = {n: min(block, w.numel()) for n, w in weights.items()}
    outer = {
        n: torch.zeros(-(-w.numel() // sizes[n]), sizes[n], sizes[n], dtype=torch.float64, device=w.device)
        for n, w in weights.items()
    }

    def use(parameters: Named, grads: Named) -> None:
        for n, g in grads.items():
            rows = _blocks(g.double(), sizes[n])
            outer[n].baddbmm_(rows[:, :, None], rows[:, None, :])

    some = batches if samples is None or isinstance(batches, (Tensor, Mapping, str)) else islice(batches, samples)
    count = differentiate(model, some, loss, weights, use)
    return {n: BlockFisher(o, count, damping) for n, o in outer.items()}


def woodfisher_with(
    damping: float = 1e-5,
    block: int = 100,
    samples: int | None = None,
    loss: Loss = default_loss,
    name: str = "woodfisher",
) -> Criterion:
    """Optimal brain surgeon by the empirical Fisher matrix: ``w_q² / (2 [F⁻¹]_qq)`` (WoodFisher, arXiv:2004.14340).

    ``F = damping I + mean g gᵀ`` in blocks of neighbouring weights of each tensor, as they lie in memory. Each batch
    gives one gradient. `woodfisher_update` has the others make up for what goes.

    Args:
        damping: of the diagonal, in the unit of squared gradients: the knob that matters most.
        block: weights a block; memory is ``8 block`` bytes a weight. samples: batches used at most; None takes all.
        loss: ``(output, targets, generator) -> scalar``. name: as it will stand in the plan.

    Raises:
        ArgumentError: damping is not positive, or block or samples are less than one.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
        >>> how = woodfisher_with(0.5, loss=lambda output, targets, generator: output.sum()).weights
        >>> data = [torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 3]])]
        >>> how.score(net, {"weight": net.weight}, how.stat(net, data, {"weight": net.weight}))["weight"]
        tensor([[2.0000, 2.5000]], dtype=torch.float64)
    """
    if not 0 < damping < float("inf"):
        raise ArgumentError(f"woodfisher_with takes a positive damping, got {damping}; 1e-7 to 1e-4 are usual")
    if block < 1 or (samples is not None and samples < 1):
        raise ArgumentError(f"woodfisher_with takes a block and samples of at least 1, got {block} and {samples}")

    def stat(model: nn.Module, batches: Batches, weights: Named) -> dict[str, BlockFisher]:
        return block_fisher(model, batches, weights, loss, damping, block, samples)

    def of(model: nn.Module, weights: Named, stats: Any) -> dict[str, Tensor]:
        scores = {}
        for n, w in weights.items():
            fisher: BlockFisher = stat_of(stats, n)
            diagonal = torch.cat([_inverse(f, n).diagonal(dim1=1, dim2=2) for _, f in fisher.parts()])
            scores[n] = w.detach().double().square() / (2 * diagonal.reshape(-1)[: w.numel()].view(w.shape))
        return scores

    return Criterion(name, weights=Weighing(of, stat))


def _inverse(matrices: Tensor, name: str) -> Tensor:
    inverse: Tensor = torch.cholesky_inverse(_factor(matrices, name))
    return inverse


def _factor(matrices: Tensor, name: str) -> Tensor:
    found: tuple[Tensor, Tensor] = torch.linalg.cholesky_ex(matrices)
    factor, failed = found
    if bool(failed.any()):
        raise DataError(f"the Fisher matrix of {name} is singular to working precision: give a larger damping")
    return factor


def woodfisher_update(weights: Named, masks: Named, stats: Mapping[str, BlockFisher]) -> dict[str, Tensor]:
    """What is left of weights once the others make up for those that go: the surgeon's update, all of a block at once.

    Minimizes ``½ δᵀ F δ`` where ``w + δ`` is zero off the mask: ``δ = -F⁻¹_{:,P} ([F⁻¹]_PP)⁻¹ w_P`` in every block.

    Args:
        weights: name -> tensor. masks: name -> bool of its shape, True keeps.
        stats: of `woodfisher_with`, at these weights.

    Returns:
        name -> new weight, of the old one's type; exactly zero off the mask.

    Raises:
        PlanError: a weight has no mask, or one of another shape.

    Example:
        >>> w, keep = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
        >>> fisher = BlockFisher(torch.tensor([[[3.0, 2.0], [2.0, 3.0]]]).double(), 1, 1.0)
        >>> woodfisher_update({"w": w}, {"w": keep}, {"w": fisher})
        {'w': tensor([1.5000, 0.0000])}
    """
    new = {}
    for n, w in weights.items():
        if n not in masks or masks[n].shape != w.shape:
            raise PlanError(f"{n} of shape {tuple(w.shape)} has no mask of its shape: give one, True where it is kept")
        fisher: BlockFisher = stat_of(stats, n)
        block = fisher.outer.shape[1]
        at = _blocks(w.detach().double(), block)
        kept = _blocks(masks[n].to(w.device).double(), block)
        parts = [_make_up(at[s], kept[s], f, n) for s, f in fisher.parts()]
        new[n] = torch.cat(parts).reshape(-1)[: w.numel()].view(w.shape).to(w.dtype)
    return new


def _make_up(w: Tensor, kept: Tensor, fisher: Tensor, name: str) -> Tensor:
    """Survivors of each block: ``w_S + F_SS⁻¹ F_SP w_P``, which is the update by the inverse, with no inverse taken."""
    gone = 1 - kept
    wanted = kept * (fisher @ (gone * w)[:, :, None])[:, :, 0]
    reduced = kept[:, :, None] * fisher * kept[:, None, :] + torch.diag_embed(gone)
    return kept * (w + torch.cholesky_solve(wanted[:, :, None], _factor(reduced, name))[:, :, 0])


woodfisher = woodfisher_with()
"""`woodfisher_with` its defaults."""

obert = woodfisher_with(1e-7, 50, 1024, name="obert")
"""`woodfisher_with` the settings of oBERT: blocks of 50, 1024 gradients, damping 1e-7 (arXiv:2203.07259)."""
