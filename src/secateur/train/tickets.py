"""Lottery tickets: train, prune, rewind, again; with the controls that a claim about tickets needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from secateur.choose.select import top
from secateur.digest import model_hash
from secateur.errors import ArgumentError, DataError
from secateur.export.sparse import save_sparse
from secateur.score.calibrate import quiet_eval
from secateur.score.weights import prunable
from secateur.train.masks import Masks
from secateur.train.rewind import Control, Cut, Rewind, Start, layerwise, random_init, rewind_to, shuffled_mask
from secateur.train.state import check_same_run, load_state, save_state
from secateur.train.ticket_rows import CSV, PLOT, TicketRow, write_rows

STATE = "state"
TICKET = "ticket"


class Training:
    """What a training function is told, and the hand that keeps pruned weights zero.

    Attributes:
        first_step: the step of the schedule at which to begin. seed: of the data's order, the same in every round.
        masks: the masks, True keeps. step: optimizer steps done so far, ``first_step`` at the beginning.
    """

    def __init__(self, model: nn.Module, start: Start, seed: int, watch: int | None) -> None:
        self.first_step, self.seed, self.step = start.first_step, seed, start.first_step
        self._model, self._watch = model, watch
        self._masks = Masks(model, start.masks)
        self._masks.apply_()
        self._counted: Any = None
        self.seen = _weights(model) if watch == self.step else None

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool, True keeps."""
        return self._masks.masks

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep pruned weights zero after every step of this optimizer; to be called once for each, before its steps.

        After every step of the first one torch's generator is seeded by the seed and the number of the step: what is
        drawn in a step (dropout, augmentation) is the same in every round, wherever the round begins.
        """
        self._masks.attach(optimizer)
        if self._counted is None:
            self._counted = optimizer.register_step_post_hook(lambda *_: self._stepped())

    def _stepped(self) -> None:
        self.step += 1
        if self.step == self._watch:
            self.seen = _weights(self._model)
        torch.manual_seed(_mixed(self.seed, 2, self.step))

    def end(self) -> None:
        """Let go.

        Raises:
            ArgumentError: no optimizer was attached, or none stepped.
        """
        if self._counted is None or self.step == self.first_step:
            raise ArgumentError(
                "train(model, run) took no step of an optimizer that run knows: call run.attach(optimizer) before the "
                f"first step, and train from run.first_step ({self.first_step}) on"
            )
        self._counted.remove()
        self._masks.strip()
        with torch.no_grad():
            for name, w in self._masks.weights.items():
                w.masked_fill_(~self.masks[name], 0)  # no -0.0: it would be stored


Train: TypeAlias = Callable[[nn.Module, Training], None]
"""``(model, run)``: trains in place, from ``run.first_step`` on, with ``run.attach(optimizer)``."""

Evaluate: TypeAlias = Callable[[nn.Module], float | Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Tickets:
    """What `tickets` returns: the rows, the last ticket trained, its masks, and the folder with all of them."""

    rows: tuple[TicketRow, ...]
    model: nn.Module
    masks: Mapping[str, Tensor]
    folder: Path

    def table(self) -> Table:
        """The rows for a terminal."""
        metrics = list(self.rows[0].values)
        table = Table("round", "case", "density", *metrics, title="Lottery tickets")
        for r in self.rows:
            table.add_row(str(r.round), r.case, f"{100 * r.density:.2f} %", *(f"{v:.4g}" for v in r.values.values()))
        return table


@dataclass(eq=False)
class _Progress:
    """What a run goes on from: the rows that are done, and what the next ones begin with."""

    rows: list[TicketRow]
    masks: dict[str, Tensor]
    start: dict[str, Tensor]
    trained: dict[str, Tensor]
    rewound: dict[str, Tensor]
    steps: int = 0

    def save(self, folder: Path, made: Mapping[str, Any]) -> None:
        parts = {"masks": self.masks, "start": self.start, "trained": self.trained, "rewound": self.rewound}
        tensors = {f"{part}/{n}": t.clone() for part, named in parts.items() for n, t in named.items()}
        rows = [
            {"round": r.round, "case": r.case, "kept": r.kept, "density": r.density}
            | {"values": {k: repr(v) for k, v in r.values.items()}}  # JSON has no NaN
            for r in self.rows
        ]
        meta = {"made": dict(made), "steps": self.steps, "rows": rows}
        save_state(folder / STATE, len(self.rows), tensors, meta)

    @classmethod
    def load(cls, folder: Path, made: Mapping[str, Any]) -> _Progress | None:
        found = load_state(folder / STATE)
        if found is None:
            return None
        tensors, meta = found
        check_same_run(folder / STATE, meta["made"], made)
        part = lambda p: {n.removeprefix(f"{p}/"): t for n, t in tensors.items() if n.startswith(f"{p}/")}  # noqa: E731
        rows = [
            TicketRow(r["round"], r["case"], r["kept"], r["density"], {k: float(v) for k, v in r["values"].items()})
            for r in meta["rows"]
        ]
        return cls(rows, part("masks"), part("start"), part("trained"), part("rewound"), meta["steps"])


def tickets(
    make_model: Callable[[], nn.Module],
    train: Train,
    evaluate: Evaluate,
    rounds: int,
    folder: Path | str,
    *,
    cut: Cut | None = None,
    rewind: Rewind | None = None,
    controls: Sequence[Control] = (random_init, shuffled_mask),
    controls_at: Collection[int] | None = None,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int = 0,
    tell: Callable[[int, int, str], None] = lambda done, of, words: None,
) -> Tickets:
    """Iterative magnitude pruning with rewinding: lottery tickets and their controls, resumable by training.

    Round 0 trains the dense network. Every round after it removes the smallest weights of what is left, puts the
    survivors back to an earlier step, and trains again with the same data in the same order (arXiv:1803.03635,
    1903.01611, 2003.02389).

    Args:
        make_model: builds the untrained network; called under a fixed seed.
        train: ``(model, run)``, in place, on the model's device: calls ``run.attach(optimizer)``, then trains from
            step ``run.first_step`` of the schedule to its end. The batch of a step must depend on the step alone.
        evaluate: ``model -> number`` or ``{figure: number}``, in evaluation mode; the first one is plotted.
        rounds: how often to prune; may be raised later, to go on.
        folder: gets ``tickets.csv``, ``tickets.png``, ``start`` (the weights rewound to) and ``round-NN`` (each
            trained ticket with its masks, for `load_sparse` and `load_masks`). A run that was cut off goes on with the
            training that it was in, and gives the same file to the bit.
        cut: how much goes in a round; ``layerwise(0.2)`` unless given.
        rewind: where the next training begins; ``rewind_to(0)`` unless given.
        controls: trained beside the tickets. controls_at: rounds at which they are; all unless given.
        ignore, only: globs, as in `prunable`.
        seed: of everything that is drawn.
        tell: ``(done, of, words)``: hears what is being done.

    Raises:
        ArgumentError: an argument is out of range, the folder holds something else, or ``train`` took no step.
        FormatError: the folder's state is damaged or of another run.

    Example:
        >>> import tempfile
        >>> def train(model, run):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     run.attach(optimizer)
        ...     for step in range(run.first_step, 5):
        ...         x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        ...         loss = (model(x) - x[:, :1]).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        >>> found = tickets(lambda: nn.Linear(4, 1), train, lambda m: float(m(torch.ones(1, 4))), 2, tempfile.mkdtemp(),
        ...                 cut=layerwise(0.5))
        >>> [(r.round, r.case, r.kept) for r in found.rows if r.case == "ticket"]
        [(0, 'ticket', 4), (1, 'ticket', 2), (2, 'ticket', 1)]
    """
    cut, rewind = cut or layerwise(), rewind or rewind_to()
    _check(rounds, seed, cut, rewind)
    path = Path(folder)
    _claim(path)
    model = _made(make_model, seed)
    names = list(prunable(model, ignore, only))
    made = {
        "model": model_hash(model),
        "weights": names,
        "seed": seed,
        "cut": cut.name,
        "rewind": rewind.name,
        "controls": [_called(c) for c in controls],
        "controls_at": "every round" if controls_at is None else sorted(controls_at),
    }
    one = _One(make_model, train, evaluate, rewind, seed, names)
    progress = _Progress.load(path, made) or _fresh(model, names)
    units = _units(rounds, controls, controls_at)
    for done in range(len(progress.rows), len(units)):
        number, control = units[done]
        if control is None and number > 1:
            write_rows(path, progress.rows)  # with the plot, once a round
        tell(done, len(units), f"round {number}, {TICKET if control is None else _called(control)}")
        if control is None:
            _ticket_(one, progress, number, cut, path)
        else:
            one.beside_(progress, number, control)
        write_rows(path, progress.rows, plot=False)
        progress.save(path, made)
    tell(len(units), len(units), "done")
    write_rows(path, progress.rows)
    model.load_state_dict(progress.trained)
    return Tickets(tuple(progress.rows), model.eval(), progress.masks, path)


def _check(rounds: int, seed: int, cut: Cut, rewind: Rewind) -> None:
    if not isinstance(rounds, int) or rounds < 1:
        raise ArgumentError(f"rounds is how often to prune, 1 or more; got {rounds!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ArgumentError(f"seed must be a whole number, 0 or more; got {seed!r}")
    if not isinstance(cut, Cut) or not isinstance(rewind, Rewind):
        raise ArgumentError(f"cut and rewind are such as sc.layerwise(0.2), sc.rewind_to(0); got {cut!r}, {rewind!r}")


def _units(
    rounds: int, controls: Sequence[Control], controls_at: Collection[int] | None
) -> list[tuple[int, Control | None]]:
    """The trainings of a run, in order: round and control, None for the ticket itself."""
    at = range(1, rounds + 1) if controls_at is None else controls_at
    return [(0, None), *((r, c) for r in range(1, rounds + 1) for c in (None, *(controls if r in at else ())))]


def _ticket_(one: _One, progress: _Progress, number: int, cut: Cut, path: Path) -> None:
    """Train a round's ticket and save it; after round 0 also the weights that are rewound to."""
    trained = one.ticket_(progress, number, cut)
    save_sparse(path / f"round-{number:02d}", trained, progress.masks, overwrite=True)
    if number == 0:
        trained.load_state_dict(progress.rewound)
        save_sparse(path / "start", trained, overwrite=True)


@dataclass(frozen=True, eq=False)
class _One:
    """Trains and judges one network after another, each under the same seeds."""

    make_model: Callable[[], nn.Module]
    train: Train
    evaluate: Evaluate
    rewind: Rewind
    seed: int
    names: Sequence[str]

    def ticket_(self, p: _Progress, number: int, cut: Cut) -> nn.Module:
        """Prune and rewind (not in round 0), train, judge."""
        first = 0
        if number:
            p.masks = _pruned(p.trained, p.masks, cut)
            p.start = p.rewound if self.rewind.weights is not None else p.trained
            first = self.rewind.first(p.steps)
        model, run = self.trained(Start(p.start, p.masks, first), None if number else self.rewind.weights or 0)
        if number == 0:
            p.steps = run.step
            if run.seen is None:
                raise ArgumentError(f"rewind_to({self.rewind.weights}): the training took {run.step} steps only")
            p.rewound = run.seen
            if self.rewind.first(p.steps) >= p.steps:
                raise ArgumentError(f"rewind ({self.rewind.name}): the training took {p.steps} steps, none is left")
        p.trained = _weights(model)
        p.rows.append(self.judged(model, number, TICKET, p.masks))
        return model

    def beside_(self, p: _Progress, number: int, control: Control) -> None:
        """Train and judge a control of the round's ticket."""
        fresh = lambda: _weights(_made(self.make_model, self.seed, 1 + number))  # noqa: E731
        generator = torch.Generator().manual_seed(_mixed(self.seed, 3, number))
        start = control(Start(p.start, p.masks, self.rewind.first(p.steps)), fresh, generator)
        model, _ = self.trained(start, None)
        p.rows.append(self.judged(model, number, _called(control), start.masks))

    def trained(self, start: Start, watch: int | None) -> tuple[nn.Module, Training]:
        """A network trained from a start on."""
        model = _made(self.make_model, self.seed)
        model.load_state_dict(start.weights)
        run = Training(model.train(), start, self.seed, watch)
        _seed(_mixed(self.seed, 2, start.first_step))
        self.train(model, run)
        run.end()
        return model, run

    def judged(self, model: nn.Module, number: int, case: str, masks: Mapping[str, Tensor]) -> TicketRow:
        """The row of a trained network."""
        _seed(_mixed(self.seed, 4))
        with quiet_eval(model), torch.no_grad():
            found = self.evaluate(model)
        values = _values(found, f"round {number}, {case}")
        kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
        return TicketRow(number, case, kept, kept / total, values)


def _values(found: Any, where: str) -> dict[str, float]:
    """What ``evaluate`` said, as figures."""
    try:
        told = found if isinstance(found, Mapping) else {"value": found}
        values = {str(k): float(v) for k, v in told.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"evaluate gave {found!r} for {where}: expected a number or {{figure: number}}") from error
    taken = {"round", "case", "kept", "density"} & set(values)
    if not values or taken:
        raise DataError(
            f"evaluate gave the figures {list(values)} for {where}: give at least one, and none called round, case, "
            "kept or density, which are columns of tickets.csv"
        )
    return values


def _pruned(weights: Mapping[str, Tensor], alive: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
    """The masks without the smallest surviving weights."""
    sizes = {n: weights[n].abs() for n in alive}
    alive = {n: m.to(sizes[n].device) for n, m in alive.items()}  # those of a resumed run were read from disk
    counts = cut.counts(sizes, alive)
    return {n: top(sizes[n], counts[n], mask) for n, mask in alive.items()}


def _fresh(model: nn.Module, names: Sequence[str]) -> _Progress:
    weights = _weights(model)
    masks = {n: torch.ones_like(weights[n], dtype=torch.bool) for n in names}
    return _Progress([], masks, weights, weights, weights)


def _made(make_model: Callable[[], nn.Module], seed: int, number: int = 0) -> nn.Module:
    _seed(_mixed(seed, 1, number))
    return make_model()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def _called(control: Control) -> str:
    return getattr(control, "__name__", None) or type(control).__name__


def _mixed(seed: int, *numbers: int) -> int:
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number % 2**32)


def _claim(path: Path) -> None:
    """Make the folder, or see that what it holds is ours; drop what a killed run left half-written."""
    if path.exists() and not path.is_dir():
        raise ArgumentError(f"folder {path} is a file: give another one")
    path.mkdir(parents=True, exist_ok=True)
    for left in path.glob(".*"):
        if left.name.startswith((".round-", ".start.", f".{CSV}.", f".{PLOT}.")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    ours = {CSV, PLOT, STATE, "start"}
    strange = sorted(p.name for p in path.iterdir() if p.name not in ours and not p.name.startswith("round-"))
    if strange:
        raise ArgumentError(f"folder {path} holds {', '.join(strange[:3])}, which is not of tickets: give another one")
