"""Runs that are killed, run out of disk, or share a model: children of a process that has loaded everything already.

One thread, so that it may fork. Called with the case and a folder; tells by its exit code and by what is left in the folder.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from llm.tiny_models import make, tokens, write
from secateur.choose.patterns import unstructured
from secateur.errors import SecateurError
from secateur.llm import memory
from secateur.llm.allocate import outliers
from secateur.llm.prune import Pruning, llm_prune
from secateur.solve.sparsegpt import sparsegpt


def child(do: Callable[[], None]) -> int:
    """The status of a child process that does something."""
    pid = os.fork()
    if not pid:
        torch.set_num_threads(1)
        try:
            do()
            os._exit(0)
        except SecateurError as error:
            print(error, flush=True)
            os._exit(3)
        except BaseException as error:
            print(type(error), error, flush=True)
            os._exit(4)
    return os.waitpid(pid, 0)[1]


def prune(folder: Path, out: str, sparsity: float = 0.5) -> None:
    how = Pruning(sparsegpt, unstructured, sparsity)
    llm_prune(folder / "dense", tokens(8, 16), how, folder / out, batch=2, allocation=outliers())


def killed_at(sync: int, do: Callable[[], None]) -> Callable[[], None]:
    """Kill this process for good when it is about to have something on disk for the nth time."""

    def run() -> None:
        real, left = os.fsync, [sync]

        def fsync(handle: int) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)

        os.fsync = fsync
        do()

    return run


def kills(folder: Path, disk: bool) -> None:
    if disk:
        memory.Needs.on_disk = lambda self, limit: True  # type: ignore[method-assign]
    write(make("tied", torch.bfloat16), folder / "dense")
    prune(folder, "whole")
    count = 0
    for at in (1, 2, 3, 5, 4, 6, 2, 3, 5, 7, 9, 11, 1000):
        status = child(killed_at(at, lambda: prune(folder, "killed")))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        count += 1
        if count == 4:  # half done: another command is refused
            assert os.WEXITSTATUS(child(lambda: prune(folder, "killed", 0.75))) == 3
    assert status == 0
    (folder / "kills.json").write_text(json.dumps(count))


def full(folder: Path) -> None:
    """No file may be larger than this: as a disk that is full."""
    write(make("tied"), folder / "dense")
    prune(folder, "whole")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        prune(folder, "out")

    assert os.WEXITSTATUS(child(small)) == 3
    prune(folder, "out")


def shared(folder: Path, kind: str) -> None:
    """Two processes on one model."""
    write(make(kind), folder / "dense")
    prune(folder, "alone")

    def rank(number: int) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
        prune(folder, "shared")
        torch.distributed.destroy_process_group()

    assert child(lambda: run_both(rank)) == 0


def run_both(rank: Callable[[int], None]) -> None:
    other = os.fork()
    rank(0 if other else 1)
    if not other:
        os._exit(0)
    assert os.waitpid(other, 0)[1] == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    case, where = sys.argv[1], Path(sys.argv[2])
    if case in ("memory", "disk"):
        kills(where, case == "disk")
    elif case == "full":
        full(where)
    else:
        shared(where, case)
