"""Sizes written in the code of a forward pass that no attribute holds: replaced as the code passes them to torch.

``y.reshape(B, N, C)`` with ``B, N, C = x.shape`` cannot follow when the heads behind ``y`` are cut and ``x`` is not.
A pair of hooks on the module hands such calls the sizes that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode

Slot: TypeAlias = tuple[str, int, int]
"""(torch function, which call of it since the module's forward began, which of the ints in that call)."""

RESIZED = frozenset(
    (
        "view reshape unflatten expand split split_with_sizes unsafe_split narrow repeat __getitem__ "
        "new_zeros new_ones new_full new_empty zeros ones full empty layer_norm rms_norm group_norm "
        "scaled_dot_product_attention"
    ).split()
)
"""Names of the torch functions whose ints can be replaced."""

_ATTENTION = "scaled_dot_product_attention"

CHOICES = frozenset(("softmax", "log_softmax", "topk", "argmax"))
"""Those among `STATISTICS` that choose among the positions of an axis."""

STATISTICS = CHOICES | frozenset(
    "layer_norm rms_norm group_norm batch_norm mean var std var_mean std_mean amax amin max min".split()
)
"""Names of the torch functions that can run over the kept positions of an axis only."""


NAMES = {getattr(home, n): n for home in (Tensor, torch, functional) for n in RESIZED if hasattr(home, n)}
"""Torch function -> its name: torch.compile follows this, and not ``func.__name__``."""


class _Mode(TorchFunctionMode):
    def __init__(self, owner: Resized) -> None:
        super().__init__()
        self.owner = owner
        self.sizes = owner.sizes
        self.calls = {name: 0 for name, _, _ in owner.sizes}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = NAMES.get(func, "")
        if name in self.calls:
            nth = self.calls[name]
            self.calls[name] = nth + 1
            if name == _ATTENTION:
                kwargs = self._scaled(nth, kwargs)
            else:
                replacer = _Replacer(self.sizes, name, nth)
                args, kwargs = replacer(args), replacer(kwargs)
        return func(*args, **kwargs)

    def _scaled(self, nth: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The scale of before the cut, 1/sqrt(head dim), where the code leaves it to the kernel."""
        sizes = self.sizes.get((_ATTENTION, nth, 0))
        if sizes is None or kwargs.get("scale") is not None:
            return kwargs
        return {**kwargs, "scale": sizes[0] ** -0.5}


@dataclass
class _Replacer:
    """Walks the arguments of a call in the order in which a recording numbers their ints."""

    sizes: Mapping[Slot, tuple[int, int]]
    name: str
    nth: int
    met: int = 0

    def __call__(self, item: Any) -> Any:
        if isinstance(item, Tensor) or item is None or isinstance(item, bool):
            return item
        if isinstance(item, (int, torch.SymInt)):  # sizes have symbols while a model is compiled or exported
            self.met += 1
            old, new = self.sizes.get((self.name, self.nth, self.met - 1), (None, None))
            return new if old == item else item
        if isinstance(item, (list, tuple)):
            made = [self(x) for x in item]
            return made if isinstance(item, list) else tuple(made)
        if isinstance(item, dict):
            return {k: self(v) for k, v in item.items()}
        if isinstance(item, slice):
            return slice(self(item.start), self(item.stop), self(item.step))
        return item


@dataclass(eq=False)
class Resized:
    """Hooks of one module. ``sizes``: slot -> (what the code passes, what is passed on)."""

    sizes: dict[Slot, tuple[int, int]]

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the forward pass."""
        _Mode(self).__enter__()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, whether or not it failed; torch's stack of modes is the thread's own."""
        mode = _get_current_function_mode()
        if isinstance(mode, _Mode) and mode.owner is self:
            mode.__exit__(None, None, None)


def resize_(module: nn.Module, sizes: Mapping[Slot, tuple[int, int]]) -> None:
    """Make a module's forward pass hand on these sizes; what an earlier cut replaced is replaced further."""
    for hook in module._forward_pre_hooks.values():
        known = getattr(hook, "__self__", None)
        if isinstance(known, Resized):
            for slot, (old, new) in sizes.items():
                before = known.sizes.get(slot)
                known.sizes[slot] = (before[0] if before and before[1] == old else old, new)
            return
    hooks = Resized(dict(sizes))
    module.register_forward_pre_hook(hooks.enter)
    module.register_forward_hook(hooks.leave, always_call=True)
