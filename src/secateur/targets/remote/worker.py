"""The process that loads and runs files on a device: it may crash, hang or be killed, and the service lives.

It reads one order a line from standard input and answers with one line, both JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import safetensors.numpy

from secateur.errors import SecateurError, TargetError
from secateur.export.prepare import first_line
from secateur.targets.measure import timings
from secateur.targets.remote.protocol import unpack
from secateur.types import Artefact, Target


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one order: ``{"ok": value}``, or ``{"error": line}``.

    Args:
        order: ``op``, ``folder``, ``jobs`` (each ``target`` as module:name, ``path``, ``example``, ``threads``), and
            what the op takes.
    """
    ops = {"load": _load, "measure": _measure, "peak": _peak, "call": _call}
    try:
        return {"ok": ops[order["op"]](order)}
    except SecateurError as e:
        words = (str(e).splitlines() or [""])[0]
    except Exception as e:
        words = first_line(e)
    return {"error": words.replace(f"{order['folder']}{os.sep}", "")}


def _loaded(job: Mapping[str, Any]) -> Artefact:
    module, _, name = job["target"].partition(":")
    target = getattr(importlib.import_module(module), name)
    if not isinstance(target, Target) or target.load is None:
        raise TargetError(f"{job['target']} is no target that loads files")
    return target.load(Path(job["path"]), unpack(Path(job["example"])), job["threads"])


def _load(order: Mapping[str, Any]) -> dict[str, Any]:
    (job,) = order["jobs"]
    _loaded(job)  # imports the runtime: the second time is what loading takes
    begun = perf_counter()
    made = _loaded(job)
    seconds = perf_counter() - begun
    return {"nbytes": made.nbytes, "batch": made.batch, "load_seconds": seconds, "peak": made.peak is not None}


def _measure(order: Mapping[str, Any]) -> list[list[float]]:
    artefacts = [_loaded(job) for job in order["jobs"]]
    return timings(artefacts, order["repeats"], order["warmup"], order["min_seconds"])


def _peak(order: Mapping[str, Any]) -> int | None:
    (job,) = order["jobs"]
    made = _loaded(job)
    return None if made.peak is None else made.peak()


def _call(order: Mapping[str, Any]) -> int:
    (job,) = order["jobs"]
    outputs: Sequence[Any] = _loaded(job).call(unpack(Path(job["example"])))
    arrays = {str(i): np.asarray(a, order="C") for i, a in enumerate(outputs)}
    Path(order["out"]).write_bytes(safetensors.numpy.save(arrays))
    return len(arrays)


def _listen(orders: queue.SimpleQueue[str]) -> None:
    """Pass orders on; when the service is gone, so is this process, whatever the runtime is doing."""
    for line in sys.stdin:
        orders.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def main() -> None:
    """Answer orders until standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints is no answer
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # out of memory, this goes first
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    while True:
        out.write(json.dumps(answer(json.loads(orders.get()))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
