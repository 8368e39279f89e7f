"""A training that makes a model sparse, in anyone's loop: the optimizer's own steps drive it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.score.weights import prunable
from secateur.train.masks import Masks


@dataclass(frozen=True)
class Method:
    """How masks change while a model trains.

    Attributes:
        name: as it stands in reports and checkpoints.
        start: ``(run)``: sets the first masks.
        before: ``(run) -> skip``: before the optimizer's step ``run.step``, with the gradients at hand; True leaves
            out the step of the masked weights (their gradients are set to None).
        after: ``(run)``: after the step and before the masks are applied again.
        about: what made it, as plain data: two runs go on from each other only if these are equal.
        shadowed: weights go on learning while they are masked (shadow.py): what the optimizer remembers of them stays.
    """

    name: str
    start: Callable[[Sparse], None]
    before: Callable[[Sparse], bool] | None = None
    after: Callable[[Sparse], None] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    shadowed: bool = False


class Sparse:
    """Keeps a model sparse, and more so as a method says, while its optimizer steps.

    Three lines in a loop of one's own: make it, train as ever, ``strip()``.

    Args:
        model: trained by ``optimizer``. method: such as `gmp`. weights: name -> parameter; `sc.prunable` by default.

    Attributes:
        step: optimizer steps done. masks: the masks as they are. memory: what the method remembers, saved with it.

    Example:
        >>> from secateur.train.dynamic import gmp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> sparse = Sparse(net, optimizer, gmp(lambda step: min(0.5, step / 10)))
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(3, 4)).square().sum().backward()
        ...     optimizer.step()
        >>> round(sparse.masks.sparsity, 2)
        0.5
        >>> net = sparse.strip()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method,
        weights: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self.model, self.optimizer, self.method = model, optimizer, method
        chosen = prunable(model) if weights is None else dict(weights)
        self.masks = Masks(model, {n: torch.ones_like(p, dtype=torch.bool) for n, p in chosen.items()})
        self.step = 0
        self.memory: dict[str, Tensor] = {}
        method.start(self)
        self.masks.apply_()
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._before()),
            optimizer.register_step_post_hook(lambda *_: self._after()),
        ]

    def _before(self) -> None:
        if self.method.before is not None and self.method.before(self):
            for w in self.masks.weights.values():
                w.grad = None

    def _after(self) -> None:
        self.step += 1
        if self.method.after is not None:
            self.method.after(self)
        self.masks.apply_()
        if not self.method.shadowed:
            self.masks.quiet_(self.optimizer)

    def strip(self) -> nn.Module:
        """Let go of the optimizer; the zeros stay in the model, which is returned."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self.masks.strip()
