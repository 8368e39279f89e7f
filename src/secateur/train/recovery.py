"""A recovery is a value: it changes a cut model's weights so that it behaves like the dense one again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import DataError, PlanError
from secateur.train.modes import kept_modes
from secateur.types import Plan

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class History:
    """What happened during a recovery.

    Attributes:
        steps: optimizer steps after which a record was taken.
        loss: mean training loss since the record before; one a record.
        validation: validation loss at each record, lower is better; empty when nothing was validated.
        seconds: wall time, over all the calls that a resumed run took.
        best_step: the step whose weights were kept (0 is the model as it came in); None without validation.
        stopped: why it ended, in words.
        initial: validation loss before the first step, or None.
    """

    steps: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    validation: tuple[float, ...] = ()
    seconds: float = 0.0
    best_step: int | None = None
    stopped: str = ""
    initial: float | None = None


@dataclass(frozen=True)
class Recovery:
    """One stage of recovery.

    Attributes:
        name: as it stands in the report: ``"distillation"``.
        run: ``(small, dense, plan) -> history``: changes ``small``'s weights in place, in the modes it came
            in (training flags, ``requires_grad``); ``dense`` stays bit-identical. ``plan`` is what was cut, or None
            where no plan made ``small``: only least squares needs one.

    Example:
        >>> def halve(small, dense, plan):
        ...     with torch.no_grad():
        ...         for p in small.parameters():
        ...             p.mul_(0.5)
        ...     return History(stopped="halved")
        >>> Recovery("halving", halve).name
        'halving'
    """

    name: str
    run: Callable[[nn.Module, nn.Module, Plan | None], History]


def finetune(train: Callable[[nn.Module], nn.Module | None], name: str = "fine-tuning") -> Recovery:
    """Recovery by the user's own training function.

    Args:
        train: ``train(model)``: trains in place and returns None or the model; if it returns another module
            with the same parameters and buffers (a compiled or a wrapped one too), its state is copied.
        name: as it stands in the report.

    Raises:
        PlanError: (when run) a parameter or buffer came, went, or changed its shape.
        DataError: (when run) training left weights that are not finite.

    Example:
        >>> def train(model):
        ...     model.weight.data.fill_(1.0)
        >>> stage = finetune(train)
        >>> net = nn.Linear(2, 2)
        >>> stage.run(net, nn.Linear(2, 2), None).stopped
        'train returned'
        >>> net.weight.sum().item()
        4.0
    """

    def run(small: nn.Module, dense: nn.Module, plan: Plan | None) -> History:
        before = {k: v.shape for k, v in small.state_dict().items()}
        start = time.perf_counter()
        with kept_modes(small):
            result = train(small)
        if result is not None and not isinstance(result, nn.Module):
            raise TypeError(f"{name}: train(model) must return a module or None, got {type(result).__name__}")
        state = _unwrapped(before, (small if result is None else result).state_dict())
        _check_same(name, before, state)
        if result is not None and result is not small:
            small.load_state_dict(state)
        bad = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
        if bad:
            raise DataError(
                f"{name}: training left {len(bad)} tensors with NaN or inf, first {bad[0]}: lower the "
                "learning rate or look for NaN in the data"
            )
        return History(seconds=time.perf_counter() - start, stopped="train returned")

    return Recovery(name, run)


def _unwrapped(before: Mapping[str, object], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefix that ``torch.compile`` or ``DataParallel`` put before every name."""
    for prefix in ("_orig_mod.", "module."):
        if state.keys() != before.keys() and all(k.startswith(prefix) for k in state):
            return {k.removeprefix(prefix): v for k, v in state.items()}
    return dict(state)


def _check_same(name: str, before: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> None:
    changed = [k for k in before if k in state and state[k].shape != before[k]]
    if changed:
        k = changed[0]
        raise PlanError(
            f"{name}: train(model) changed the shape of {k} from {tuple(before[k])} to "
            f"{tuple(state[k].shape)}; a recovery changes weights only: cut with a plan instead"
        )
    if before.keys() != state.keys():
        lost, new = sorted(before.keys() - state.keys()), sorted(state.keys() - before.keys())
        raise PlanError(
            f"{name}: train(model) returned other parameters: missing {lost[:3]}, unexpected {new[:3]}; "
            "return the model that was given (merge adapters and drop added heads first)"
        )
