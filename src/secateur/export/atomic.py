"""Writes that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import FormatError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file: temporary file in the same folder, fsync, rename."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path, overwrite: bool, carry: tuple[str, ...] = ()) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well; ``carry`` moves over from the old one.

    Raises:
        FormatError: ``folder`` exists, is not empty, and ``overwrite`` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise FormatError(f"{folder} is a file; give the path of a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FormatError(f"{folder} is in use: it is not empty. Give another folder, or overwrite=True (--force)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        _sync(temporary)
        old = None
        if folder.exists() and any(folder.iterdir()):
            for name in carry:
                if (folder / name).exists():
                    (folder / name).replace(temporary / name)
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.replace(old)
        temporary.replace(folder)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())
