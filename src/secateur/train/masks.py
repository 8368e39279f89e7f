"""Masks beside a model: weights stay plain parameters, and what is masked stays zero while anyone trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError


class Masks:
    """Which weights of a model are kept, and the hand that keeps the others zero.

    The model is not changed otherwise: no wrappers, the same ``state_dict``. Gradients stay dense. After every step
    of an attached optimizer masked weights are zero again, and so is what the optimizer remembers of them.

    Args:
        model: whose parameters are masked. masks: parameter name -> bool tensor of its shape, True keeps.

    Raises:
        PlanError: a mask does not fit the model.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> masks = Masks(net, {"weight": torch.eye(2, dtype=torch.bool)})
        >>> masks.apply_()
        >>> masks.sparsity, net.weight[0, 1].item()
        (0.5, 0.0)
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.model = model
        self.masks: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self.put(masks)

    def put(self, masks: Mapping[str, Tensor]) -> None:
        """Take other masks; the weights change with the next `apply_`.

        Raises:
            PlanError: a mask does not fit the model.
        """
        named = dict(self.model.named_parameters())
        for name, mask in masks.items():
            if name not in named:
                raise PlanError(f"there is a mask for {name!r}, which {type(self.model).__name__} does not have")
            if mask.shape != named[name].shape or mask.dtype != torch.bool:
                raise PlanError(
                    f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}; expected bool {tuple(named[name].shape)}"
                )
        self.masks = {name: mask.to(named[name].device) for name, mask in masks.items()}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The masked parameters, by name."""
        named = dict(self.model.named_parameters())
        return {name: named[name] for name in self.masks}

    @property
    def sparsity(self) -> float:
        """The fraction of all masked parameters' entries that is removed."""
        total = sum(m.numel() for m in self.masks.values())
        return 1 - sum(int(m.sum()) for m in self.masks.values()) / total

    def apply_(self) -> None:
        """Zero what is masked."""
        with torch.no_grad():
            for name, w in self.weights.items():
                w.mul_(self.masks[name])

    def attach(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Apply the masks after every step of an optimizer; returns what undoes this."""
        handle = optimizer.register_step_post_hook(lambda *_: self._after(optimizer))
        self._handles.append(handle)
        return handle.remove

    def _after(self, optimizer: torch.optim.Optimizer) -> None:
        self.apply_()
        self.quiet_(optimizer)

    def quiet_(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what an optimizer remembers of masked entries: momentum would fill them again once they are let go."""
        with torch.no_grad():
            for name, w in self.weights.items():
                for value in optimizer.state.get(w, {}).values():
                    if isinstance(value, Tensor) and value.shape == w.shape:
                        value.mul_(self.masks[name])

    def strip(self) -> nn.Module:
        """Let go of the optimizers; the zeros stay in the model, which is returned."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.apply_()
        return self.model
