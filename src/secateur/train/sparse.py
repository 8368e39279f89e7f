"""A training that makes a model sparse, in anyone's loop: the optimizer's own steps drive it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError
from secateur.score.weights import prunable, turned
from secateur.train.masks import Masks
from secateur.train.names import bare, own, skipped, unscale_


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

    Three lines in a loop of one's own: make it, train as ever, ``strip()``. Steps that a gradient scaler leaves out
    do not count, nor do the parts of an accumulated gradient. Average weights: ``sparse.masks.follow(average)``.

    Args:
        model: trained by ``optimizer``; it may be compiled, distributed or sharded.
        optimizer: any; it may be wrapped by Accelerate. method: such as `gmp`.
        weights: name -> parameter; `sc.prunable` by default. group: as in `Masks`, for a model that is wrapped later.

    Attributes:
        model: the model without wrappers. optimizer: the one that steps. step: optimizer steps done.
        masks: the masks as they are. memory: what the method remembers, name -> tensor, saved with it.
        turned: names of weights that lie (inputs, outputs), for `select`.

    Raises:
        PlanError: one of the weights is not the model's. ArgumentError: no optimizer, or no method.

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
        group: Any = None,
    ) -> None:
        if not isinstance(method, Method):
            raise ArgumentError(f"method must be a Method, such as gmp(cubic(0.9, 0, 1000)), got {method!r}")
        self.model, self.optimizer, self.method = bare(model), own(optimizer), method
        chosen = prunable(self.model) if weights is None else dict(weights)
        full = {n: torch.ones(p.shape, dtype=torch.bool, device=p.device) for n, p in chosen.items()}
        self.masks = Masks(model, full, group)
        self.turned = turned(self.model)
        self.step = 0
        self.memory: dict[str, Tensor] = {}
        self._untouched = {n: (w.detach().clone(), w._version) for n, w in self.masks.weights.items()}
        sharded = [n for n, w in self.masks.weights.items() if hasattr(w, "device_mesh")]
        if method.shadowed and sharded:
            raise ArgumentError(
                f"{method.name} keeps dense weights of its own, which cannot be sharded yet, and {sharded[:5]} are: "
                "take gmp, rigl, sparse_evolution, acdc or fixed masks, or a DistributedDataParallel model"
            )
        method.start(self)
        self.masks.apply_()
        now = self.masks.weights
        touched = {n: w for n, (w, version) in self._untouched.items() if now[n]._version != version}
        self._untouched = {n: (w, now[n]._version) for n, w in touched.items()}
        self._handles = [
            self.optimizer.register_step_pre_hook(self._begun),
            self.optimizer.register_step_post_hook(lambda *_: self._after()),
        ]

    def _begun(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """`_before` once there are gradients: a closure, such as Lightning's, makes them inside the step."""
        self._untouched = {}
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # the first argument is the optimizer
        if closure is None or self.method.before is None:
            self._before()
            return None
        asked = 0

        def closed() -> Any:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise ArgumentError(
                    f"{type(self.optimizer).__name__} calls its closure more than once in a step, which "
                    f"{self.method.name} cannot follow: take an optimizer that calls it once"
                )
            loss = closure()
            self._before()
            return loss

        return (args, {**kwargs, "closure": closed}) if "closure" in kwargs else ((args[0], closed, *args[2:]), kwargs)

    def _before(self) -> None:
        if self.method.before is None or skipped(self.optimizer):
            return
        unscale_(self.optimizer)
        if self.method.before(self):
            for w in self.masks.weights.values():
                w.grad = None

    def _after(self) -> None:
        if skipped(self.optimizer):
            return
        self.step += 1
        if self.method.after is not None:
            self.method.after(self)
        if self.method.shadowed:
            self.masks.apply_()
        else:
            self.masks.after_(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, beside the model's and the optimizer's own: plain data and tensors."""
        return {
            "step": self.step,
            "masks": self.masks.state_dict(),
            "memory": {n: t.detach().clone() for n, t in self.memory.items()},
            "method": {"name": self.method.name, "about": _plain(self.method.about)},
            "optimizer": type(self.optimizer).__name__,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; the model and the optimizer load theirs before this or after it.

        Raises:
            ArgumentError: it is of another method, schedule, optimizer class or choice of weights, or no such state.
            PlanError: its masks do not fit the model. Nothing is changed in either case.
        """
        lacking = {"step", "masks", "memory", "method", "optimizer"} - set(state)
        if lacking:
            raise ArgumentError(f"this is no state of a sparse training: it lacks {sorted(lacking)}")
        mine = self.state_dict()
        there = {"optimizer": state["optimizer"], "method": state["method"]["name"], **state["method"]["about"]}
        here = {"optimizer": mine["optimizer"], "method": mine["method"]["name"], **mine["method"]["about"]}
        differ = [k for k in sorted(there.keys() | here.keys()) if _plain(there.get(k)) != here.get(k)]
        if differ:
            told = "; ".join(f"{k}: {there.get(k)!r} there, {here.get(k)!r} here" for k in differ)
            raise ArgumentError(f"the state is of another training ({told}): make this one alike, or start anew")
        if state["masks"].keys() != mine["masks"].keys():
            other = sorted(state["masks"].keys() ^ mine["masks"].keys())
            raise ArgumentError(f"the state masks other weights, {other[:10]}: give the same weights=")
        self.masks.put(state["masks"])
        self._give_back_()
        self.step = int(state["step"])
        self.memory = {
            n: t.detach().clone().to(self.memory[n].device if n in self.memory else t.device)
            for n, t in state["memory"].items()
        }
        self.masks.apply_()

    @torch.no_grad()
    def _give_back_(self) -> None:
        """Undo what the first masks did to weights that were loaded before."""
        for name, (before, version) in self._untouched.items():
            w = self.masks.weights[name]
            if w._version == version and w.shape == before.shape:
                w.copy_(before)
        self._untouched = {}

    def strip(self) -> nn.Module:
        """Let go of the optimizer; the zeros stay in the model, which is returned as it was given."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self.masks.strip()


def _plain(value: Any) -> Any:
    """As it reads after JSON: tuples are lists, keys are text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def named(function: Any) -> str:
    """What a function goes by in what made a method."""
    return getattr(function, "__qualname__", None) or repr(function)
