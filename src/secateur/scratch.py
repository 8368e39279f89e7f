"""A place on disk for what lies there for a while; it goes with the process, also with one that was killed."""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX, LOCK = "secateur-", "lock"


def scratch() -> Path:
    """A folder of this process among the system's temporary files (``TMPDIR``), for folders and files to be made in.

    A file in it is locked for as long as the process lives. That is how the folders of processes that were killed are
    known: they are removed before a new one is made.

    Example:
        >>> with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        ...     Path(folder).is_relative_to(scratch())
        True
    """
    return _of(tempfile.gettempdir(), os.getpid())


@functools.cache
def _of(among: str, process: int) -> Path:
    _sweep(Path(among))
    new = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}", dir=among))
    lock = (new / LOCK).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    _locks.append(lock)
    folder = new.rename(new.with_name(new.name.removeprefix("new-")))  # by now locked: nobody sweeps it
    atexit.register(_end, folder, process)
    return folder


_locks: list[IO[bytes]] = []
"""Open until the process ends."""


def _end(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not a child that was forked
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(among: Path) -> None:
    for lock in among.glob(f"{PREFIX}*/{LOCK}"):
        folder = lock.parent
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with lock.open("rb") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
