"""The second pass: every block is cut by the plan, and what stays is refitted in the model that is cut so far."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from secateur.calling import tensors_of
from secateur.errors import DataError
from secateur.graph.dropping import renamed
from secateur.graph.surgery import cut_tensor
from secateur.llm.live import Live
from secateur.llm.shrink.refit import refit_
from secateur.llm.shrink.survey import kept_of, masked, moments_of
from secateur.llm.shrink.units import Family
from secateur.llm.shrink.width import Slim
from secateur.llm.source import put_
from secateur.products import fast
from secateur.solve.sums import DAMPINGS
from secateur.types import Bools, Example, Plan

MOMENTS = 8
"""Second moments that a refit holds at once of an input, in float32: dense and cut ones, aside and not, in float64."""


@dataclass(frozen=True, eq=False)
class Cutter:
    """What is done in every block of the second pass; a work of the stream, which has to keep dense states too.

    Attributes:
        families: of all blocks. keep: family -> bool (units,). plan: what that means for every tensor.
        small: the cut model without its weights. slim: a narrower residual stream, or None.
        damping: of least squares on dense inputs; None: what stays makes up for means alone.
        ridge: of the refit on the cut model's inputs, towards the former, or those that each weight chooses from; None:
            no such refit.
        residual: how much of what the residual stream has lost a block makes up for, 0 to 1.
        heal: whether blocks behind the first cut that lose nothing themselves are refitted too, and what a dropped
            block did to the stream is so made up for.
    """

    families: Sequence[Family]
    keep: Mapping[str, Bools]
    plan: Plan
    small: nn.Module
    slim: Slim | None = None
    damping: float | None = 1e-2
    ridge: float | Sequence[float] | None = DAMPINGS
    residual: float = 1.0
    heal: bool = True

    def __call__(self, live: Live) -> dict[str, Any]:
        """Cut the block; tells relative errors of the refitted weights' outputs before and after, and units kept.

        Behind a narrower stream the last block tells of the ``norms`` that follow, too.
        """
        mine = [(f, np.asarray(self.keep[f.name], bool)) for f in self.families if f.block == live.index]
        gone = live.path in self.plan.layers
        told: dict[str, Any] = {"dropped": gone, "kept": {} if gone else {f.name: int(k.sum()) for f, k in mine}}
        if not gone:
            told["errors"] = self._refitted_(live, mine if self._disturbed(live.index) else [])
        live.module = self.rebuild(live.module, {"path": live.path}, dict(live.module.state_dict()))
        if self.slim is not None and self.ridge is not None and live.path == self.slim.paths[-1]:
            told["norms"] = self.slim.norms(live)
        return told

    def rebuild(
        self, module: nn.Module, row: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """The block as it is when cut, its tensors from those of the whole block, or without values."""
        path = renamed(row["path"], self.plan.layers)
        if path is None:
            return Passing()
        rest = self.plan if self.slim is None else self.slim.rest(self.plan)
        return _built(self.small.get_submodule(path), rest, row["path"], module, state)

    def _disturbed(self, index: int) -> bool:
        """Whether a block is to be refitted: it loses something; or, to heal, one before it did."""
        if self.slim is not None:
            return True
        lost = {f.block for f in self.families if not self.keep[f.name].all()}
        if index in lost:
            return True
        lost |= {f.block for f in self.families if f.path in self.plan.layers}
        return self.heal and self.ridge is not None and any(b < index for b in lost)

    def _refitted_(self, live: Live, mine: Sequence[tuple[Family, Bools]]) -> dict[str, tuple[float, float]]:
        if not mine and self.slim is None:
            return {}
        dense = live.dense
        if self.slim is not None:
            like = self.slim.skeleton.get_submodule(live.path)
            live.module = _built(like, self.slim.plan, live.path, live.module, dict(live.module.state_dict()))
        if self.ridge is None:
            live.module = masked(live.module, mine, moments_of(dense, [f for f, _ in mine]), self.damping)
            return {}

        def pair(i: int) -> tuple[Example, Example]:
            own = live.calls[i].named(live.module, live.hidden[i])
            return own, dense.calls[i].named(dense.module, dense.hidden[i])

        kept = kept_of(mine, dense.module, self.heal)
        if self.slim is not None:
            kept = self.slim.refitted(dense.module, live.path, kept)
        with fast(live.device):
            found = refit_(live.module, dense.module, pair, len(live), kept, self.damping, self.ridge, self.residual)
        if any(not np.isfinite(e).all() for e in found.values()):
            raise DataError(f"{live.path}: the calibration data are not finite in the cut model")
        return found


def _built(like: nn.Module, plan: Plan, path: str, module: nn.Module, state: Mapping[str, Tensor] | None) -> nn.Module:
    """A block of the shape of another, its tensors those of a state as the plan leaves them."""
    made = copy.deepcopy(like)
    for name, tensor in (state or {}).items():
        put_(made, name, cut_tensor(plan, f"{path}.{name}", tensor).contiguous())
    for name, buffer in module.named_buffers():
        if state is None or name not in state:
            put_(made, name, buffer)
    return made.eval()


class Passing(nn.Module):
    """A block that is not there: hands its hidden states on."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first tensor of numbers."""
        return next(t for t in tensors_of((args, kwargs)) if t.is_floating_point())
