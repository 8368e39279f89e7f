"""What a mixture of experts does with calibration tokens: who is chosen, with which gate, and what it adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import named_tensors, tensors_of
from secateur.errors import CoupleError, DataError
from secateur.graph.couple import Groups
from secateur.llm.together import everyones
from secateur.score.calibrate import quiet_eval, real
from secateur.score.capture import Contraction, Watch
from secateur.types import Floats, Group, Ints

CLOSE = 0.05
"""How far, relative to their size, outputs may be from the sum of gates times experts: low precision is within."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Experts among which one router chooses.

    Attributes:
        group: what is cut of them together.
        path: the module that holds their stacked weights and is called with ``(rows, numbers, gates)``.
        stacks: those weights: parameter name -> int64 (units, k), the experts of each unit; k is 1 except where a
            router chooses among fixed sets of experts.
        router: the weight that makes the router's logits, or None where it is not known.
    """

    group: Group
    path: str
    stacks: Mapping[str, Ints]
    router: str | None

    @property
    def members(self) -> Ints:
        """The experts of each unit, (units, k)."""
        return next(iter(self.stacks.values()))

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.members.size


def banks_of(module: nn.Module, groups: Groups) -> tuple[Bank, ...]:
    """The banks of experts in a model or a block, from what was coupled under `sc.EXPERT_RULES`: no class is looked at.

    Raises:
        CoupleError: there is none, and why.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> banks_of(net, sc.couple(sc.trace(net, torch.zeros(1, 4)), sc.EXPERT_RULES))
        Traceback (most recent call last):
        secateur.errors.CoupleError: Sequential has no experts that can be cut: ...
    """
    parameters, _ = named_tensors(module)
    found = []
    for group in groups:
        stacked = [s.name for s in group.slices if s.name in parameters and parameters[s.name].dim() == 3]
        if group.kind != "expert" or not stacked:
            continue
        path = _common(stacked)
        inside = {s.name: s.index for s in group.slices if s.name in parameters and _within(s.name, path)}
        routers = [s.name for s in group.slices if s.name not in inside and s.name in parameters and s.dim == 0]
        router = next((name for name in routers if parameters[name].dim() == 2), None)
        found.append(Bank(group, path, inside, router))
    if not found:
        raise CoupleError(_none(module, groups, parameters))
    return tuple(found)


def _common(names: Sequence[str]) -> str:
    """The innermost module that holds all of these."""
    split = [name.split(".")[:-1] for name in names]
    shared = [parts[0] for parts in zip(*split, strict=False) if len(set(parts)) == 1]
    return ".".join(shared)


def _within(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _none(module: nn.Module, groups: Groups, parameters: Mapping[str, Tensor]) -> str:
    frozen = [f for f in groups.frozen if f.name in parameters and parameters[f.name].dim() == 3 and f.dim == 0]
    why = f" ({frozen[0].name} {frozen[0].reason}, {frozen[0].line})" if frozen else ""
    return (
        f"{type(module).__name__} has no experts that can be cut{why}: they are followed where a router picks them by "
        "number from weights that are stacked in one tensor, as in transformers 5"
    )


@dataclass(frozen=True, eq=False)
class Routing:
    """Sums over the calibration tokens of one bank; float64 throughout.

    Attributes:
        path: of the bank. tokens: how many came by.
        count: (experts,): tokens that were routed to each. gates: sums of their gates.
        norms: sums of ``||f_j(x)||_2``. gated: sums of ``g_j(x) ||f_j(x)||_2``.
        means: (experts, width): each expert's output, averaged over *all* tokens, or None where that was not asked for.
        logits: (experts, experts): sums of products of the router's logits, or None.
    """

    path: str
    tokens: int
    count: Floats
    gates: Floats
    norms: Floats
    gated: Floats
    means: Floats | None = None
    logits: Floats | None = None


def routing(
    module: nn.Module,
    banks: Sequence[Bank],
    drive: Callable[[], object],
    *,
    means: bool = False,
    logits: bool = False,
    prefix: str = "",
) -> dict[str, Routing]:
    """Watch the experts of a model, or of one block, while calibration data runs through it.

    Every token counts, padding too: give texts of one length. What an expert adds is what the bank returns when it is
    called with that expert alone and a gate of one, so whatever is in an expert (biases, norms, clamps) is in the norm.

    Args:
        module: left as it was. banks: of it, from `banks_of`.
        drive: runs the module over the data, once.
        means: also each expert's mean output over all tokens, which runs every expert on every token.
        logits: also products of the router's logits.
        prefix: of the module in the whole model, for the paths that are told.

    Returns:
        Name of the bank's group -> `Routing`.

    Raises:
        DataError: no token came by, or outputs are not finite.
        CoupleError: a bank is called in another way than with rows, numbers and gates.

    Time: about two more passes of the chosen experts; of all of them with ``means``. Memory: the outputs of the
    chosen experts for one batch (tokens x chosen x width).
    """
    tallies = {bank.group.name: _Tally(module, bank, means, logits) for bank in banks}
    routers = {bank.router: tallies[bank.group.name] for bank in banks if logits and bank.router is not None}

    def seen(c: Contraction) -> None:
        if c.weight in routers:
            routers[c.weight].see(c.outputs())

    with quiet_eval(module), torch.no_grad(), _hooked(module, banks, tallies), Watch(module, seen):
        drive()
    return {name: tally.routing(f"{prefix}.{tally.bank.path}".strip(".")) for name, tally in tallies.items()}


@contextmanager
def _hooked(module: nn.Module, banks: Sequence[Bank], tallies: Mapping[str, _Tally]) -> Iterator[None]:
    handles = [
        module.get_submodule(bank.path).register_forward_hook(tallies[bank.group.name].add, with_kwargs=True)
        for bank in banks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Tally:
    """The sums behind a `Routing`, as they grow."""

    def __init__(self, module: nn.Module, bank: Bank, means: bool, logits: bool) -> None:
        n = bank.experts
        self.bank, self.tokens = bank, 0
        self.count, self.gates, self.norms, self.gated = (np.zeros(n) for _ in range(4))
        self.sums = np.zeros((n, 1)) if means else None
        self.logits = np.zeros((n, n)) if logits else None
        self.logged = 0

    def see(self, rows: Tensor) -> None:
        """Logits of the router, (tokens, experts)."""
        assert self.logits is not None
        rows = rows.double()
        self.logits += (rows.T @ rows).cpu().numpy()
        self.logged += len(rows)

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """One call of the bank."""
        rows, numbers, gates = _called(self.bank, args, kwargs)
        chosen = numbers.shape[1]

        def alone(x: Tensor, which: Tensor) -> Tensor:
            """Each row through one expert, with a gate of one."""
            given = {id(rows): x, id(numbers): which[:, None], id(gates): gates.new_ones(len(x), 1)}
            made = module.forward(
                *(given.get(id(a), a) for a in args), **{k: given.get(id(a), a) for k, a in kwargs.items()}
            )
            return real(tensors_of(made)[0].reshape(len(x), -1))

        each = alone(rows.repeat_interleave(chosen, 0), numbers.reshape(-1))
        self._check(each, real(gates), real(tensors_of(out)[0].reshape(len(rows), -1)))
        norm, gate = each.norm(dim=-1).double(), real(gates).double().reshape(-1)
        for total, values in ((self.count, None), (self.gates, gate), (self.norms, norm), (self.gated, gate * norm)):
            total += _by_expert(numbers, values, self.bank.experts)
        self.tokens += len(rows)
        if self.sums is not None:
            ones = torch.ones(len(rows), dtype=numbers.dtype, device=numbers.device)
            every = [alone(rows, ones * e).double().sum(0) for e in range(self.bank.experts)]
            self.sums = self.sums + torch.stack(every).cpu().numpy()

    def _check(self, each: Tensor, gates: Tensor, out: Tensor) -> None:
        total = (each.reshape(*gates.shape, -1) * gates[..., None]).sum(1)
        size = out.norm()
        if not bool(torch.isfinite(size)) or not bool(torch.isfinite(each).all()):
            raise DataError(
                f"outputs of the experts in {self.bank.path} are not finite on the calibration data: look at the "
                "weights of this block and of those before it, or calibrate in float32"
            )
        if (total - out).norm() > CLOSE * size:
            raise CoupleError(
                f"{self.bank.path} does not add its experts up by their gates (relative difference "
                f"{float((total - out).norm() / size):.2g}): the scores here are made for those that do"
            )

    def _gather_(self) -> None:
        """Sums over all processes, each of which saw a part of the data."""
        self.tokens, self.logged = (sum(everyones(n)) for n in (self.tokens, self.logged))
        self.count, self.gates, self.norms, self.gated = map(_total, (self.count, self.gates, self.norms, self.gated))
        self.sums = None if self.sums is None else _total(self.sums)
        self.logits = None if self.logits is None else _total(self.logits)

    def routing(self, path: str) -> Routing:
        """What was seen."""
        self._gather_()
        if not self.tokens:
            raise DataError(f"no calibration token came to the experts in {path}: give text, or leave this layer out")
        if self.logits is not None and self.logged != self.tokens:
            raise DataError(
                f"the router before {path} was seen on {self.logged} of {self.tokens} tokens: it makes its logits in a "
                "way that is not followed; compare experts by their outputs instead"
            )
        means = None if self.sums is None else self.sums / self.tokens
        return Routing(path, self.tokens, self.count, self.gates, self.norms, self.gated, means, self.logits)


def _total(mine: Floats) -> Floats:
    first, *others = everyones(mine)
    return sum(others, start=first)  # type: ignore[no-any-return]


def _called(bank: Bank, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, the numbers of the experts chosen for each, and their gates, told apart by their shapes and types."""
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    numbers = [t for t in given if t.dim() == 2 and not t.is_floating_point() and t.dtype != torch.bool]
    if len(numbers) == 1:
        floats = [t for t in given if t.is_floating_point()]
        gates = [t for t in floats if t.shape == numbers[0].shape]
        rows = [t for t in floats if t.dim() == 2 and len(t) == len(numbers[0]) and all(t is not g for g in gates[-1:])]
        if gates and len(rows) == 1:
            return rows[0], numbers[0], gates[-1]
    told = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in given)
    raise CoupleError(
        f"{bank.path} is called with {told}, not with rows (tokens, width), numbers (tokens, chosen) and gates "
        "(tokens, chosen): what each of its experts adds cannot be told; choose them with sc.score, cut with "
        "sc.make_plan"
    )


def _by_expert(numbers: Tensor, values: Tensor | None, experts: int) -> Floats:
    weights = None if values is None else values.cpu().numpy()
    return np.bincount(numbers.reshape(-1).cpu().numpy(), weights, minlength=experts)[:experts].astype(np.float64)
