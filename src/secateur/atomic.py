"""Writes that are whole or not there."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from secateur.errors import FormatError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file: temporary file in the same folder, fsync, rename."""
    with new_file(path) as f:
        f.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder that becomes ``path`` when the block ends well: fsync, rename.

    A killed run may leave the temporary file, ``.NAME.*``, beside it.
    """
    temporary = _beside(path)
    try:
        with temporary.open("xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path, overwrite: bool, carry: tuple[str, ...] = ()) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well, in one step where the system can.

    Until then the old one stays as it is, whole. A killed run may leave the temporary folder, ``.NAME.*``, beside it.

    Args:
        folder: what to make.
        overwrite: whether it may hold something.
        carry: names of entries of the old folder that the new one has too (linked, not moved).

    Raises:
        FormatError: ``folder`` is a file, or is not empty and ``overwrite`` is False.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise FormatError(f"{folder} is a file; give the path of a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FormatError(f"{folder} is in use: it is not empty. Give another folder, or overwrite=True (--force)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        for name in carry:
            if (folder / name).exists() and not (temporary / name).exists():
                _link(folder / name, temporary / name)
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        if folder.exists():
            _exchange(temporary, folder)
        else:
            temporary.replace(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name of our own in the same folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def _link(old: Path, new: Path) -> None:
    def copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    if old.is_dir():
        shutil.copytree(old, new, copy_function=copy)
    else:
        copy(str(old), str(new))


def _exchange(one: Path, other: Path) -> None:
    """Two folders change places: in one step on Linux, elsewhere the second is away for a moment."""
    with suppress(OSError, AttributeError):
        at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if ctypes.CDLL(None).renameat2(at, os.fsencode(one), at, os.fsencode(other), exchange) == 0:
            return
    away = _beside(other)
    other.replace(away)
    one.replace(other)
    away.replace(one)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on disk."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems cannot sync a folder
            os.fsync(handle)
    finally:
        os.close(handle)
