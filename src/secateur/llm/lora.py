"""Low-rank updates through peft, for the time of a training: masked weights stay masked in every step and after it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ArgumentError, brief
from secateur.export.prepare import need

ADAPTER = "default"
"""The name that peft gives to a single adapter."""


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of a model's matrices, ``W + (alpha / rank) B A`` with B = 0 at first.

    Attributes:
        rank: rows of A, columns of B. alpha: twice the rank unless given.
        targets: names as peft matches them (``("q_proj", "v_proj")``), or None: every linear layer but the head.

    Hu et al., 2021, arXiv:2106.09685.
    """

    rank: int = 16
    alpha: float | None = None
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ArgumentError(f"the rank of LoRA is {self.rank}; give at least 1, such as 16")


@contextmanager
def adapted(model: nn.Module, lora: Lora, masks: Mapping[str, Tensor], seed: int = 0) -> Iterator[nn.Module]:
    """The model with adapters, which alone are trained; merged into its weights at the end, dropped after an error.

    Where a weight is masked, so is its update, ``(W + s B A) * M``, while it is trained and when it is merged: what was
    trained is what is left, to the last zero. (A plain adapter would be trained dense, and cut at the end.)

    Args:
        model: changed in place; the same object, with the modules that it had, when the block ends.
        lora: which updates. masks: parameter name -> bool, True keeps. seed: of A.

    Raises:
        TargetError: peft is missing. ArgumentError: peft finds nothing to adapt.

    Memory: 2 * rank * (inputs + outputs) * 4 floats a matrix with AdamW; a masked one also its update while it is
    computed.
    """
    peft, _ = need("peft", "peft", "transformers")
    flags = [(p, p.requires_grad) for p in model.parameters()]
    targets = "all-linear" if lora.targets is None else list(lora.targets)
    alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
    config = peft.LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in its old words
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # and sees by itself how Conv1D lies
        torch.manual_seed(seed)
        try:
            wrapped = peft.get_peft_model(model, config)
        except ValueError as error:
            raise ArgumentError(f"peft finds nothing to adapt in {type(model).__name__}: {brief(error)}") from error
    try:
        _mask_updates(model, masks)
        yield model
    except BaseException:
        wrapped.unload()
        raise
    else:
        wrapped.merge_and_unload()
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def _mask_updates(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Have the adapters of masked weights make masked updates."""
    layers: dict[str, Any] = {name: m for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    for name, mask in masks.items():
        path = name.rpartition(".")[0]
        if path in layers and not bool(mask.all()):
            layers[path].lora_variant[ADAPTER] = _Masked(mask)


class _Masked:
    """An update that is zero where its weight is: what peft calls a variant."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def delta(self, module: Any) -> Tensor:
        """The update, in the layout of the weight."""
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        update = b @ a
        update = update.T if module.fan_in_fan_out else update
        masked: Tensor = update * module.scaling[ADAPTER] * self.mask
        return masked

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """The layer's output with the update in it."""
        delta = self.delta(module)
        return result + F.linear(x, delta.T if module.fan_in_fan_out else delta)

    def merge_unsafe(self, module: Any, active_adapter: str, weight: Tensor) -> None:
        """Add the update to the weight."""
        weight.data += self.delta(module).to(weight.dtype)

    def supports_lora_conversion(self) -> bool:
        """It is a low-rank update no more."""
        return False
