"""Saving a distillation and going on with it; Ctrl-C between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import FormatError
from secateur.train.batches import Source, batch_digest, stream
from secateur.train.modes import Rng
from secateur.train.run import At, Run, copy_, look_, make_optimizer_
from secateur.train.state import save_state


def save(r: Run, folder: Path, made: Mapping[str, Any], last: Any, finished: bool = False) -> None:
    """Write the state; that of a finished run holds its weights only."""
    look_(r)
    tensors = {f"weights/{k}": v for k, v in r.weights().items()}
    adam: dict[str, list[str]] = {}
    if not finished:
        assert r.optimizer is not None
        for k, p in r.learned.items():
            tensors[k] = p.data
            adam[k] = sorted(r.optimizer.state.get(p, {}))
            tensors |= {f"adam/{key}/{k}": r.optimizer.state[p][key] for key in adam[k]}
        tensors |= {f"ema/{k}": v for k, v in r.ema.items()} | {f"best/{k}": v for k, v in r.best.items()}
        if r.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(r.device)
    meta = {
        "at": asdict(r.at),
        "made": dict(made),
        "adam": adam,
        "batch": batch_digest(last),
        "rng": Rng.now().to_json(),
        "torch": torch.__version__,
    }
    save_state(folder, r.at.step, tensors, meta)


def resume_(
    r: Run, source: Source, folder: Path | None, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> Iterator[tuple[int, int, Any]]:
    """Put everything back and return the batches that come next."""
    prefix = "projection/"
    make_optimizer_(r, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    copy_(r.weights(), tensors)
    for k, p in r.learned.items():
        state = {key: tensors[f"adam/{key}/{k}"].to(r.device).clone() for key in meta["adam"].get(k, ())}
        if state:
            assert r.optimizer is not None
            r.optimizer.state[p] = state
    for k, v in r.ema.items():
        v.copy_(tensors[f"ema/{k}"])
    r.best = {k.removeprefix("best/"): v.to(r.device) for k, v in tensors.items() if k.startswith("best/")}
    at = r.at = At(**meta["at"])
    batches = stream(source, r.settings.seed, at.epoch, at.position - 1)
    epoch, position, last = next(batches)
    if (epoch, position) != (at.epoch, at.position - 1) or batch_digest(last) != meta["batch"]:
        raise FormatError(
            f"the training state in {folder} cannot be continued: batch {at.position - 1} of epoch "
            f"{at.epoch} is another one now; give the same data in an order that depends on the epoch alone "
            "(a list, a DataLoader, batches(epoch)), or delete the folder to start again"
        )
    Rng.from_json(meta["rng"]).set()
    if "rng/cuda" in tensors and r.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng/cuda"], r.device)
    return batches


@contextmanager
def deferred_interrupt(active: bool) -> Iterator[list[int]]:
    """Ctrl-C as a mark that is looked at between steps; the second one interrupts at once."""
    marks: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    if not active or not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield marks
        return

    def handler(signum: int, frame: Any) -> None:
        if marks:
            raise KeyboardInterrupt
        marks.append(signum)

    old = signal.signal(signal.SIGINT, handler)
    try:
        yield marks
    finally:
        signal.signal(signal.SIGINT, old)
