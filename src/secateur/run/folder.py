"""The output folder of a run: claimed once, resumed by the same arguments, never shared."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.atomic import write_bytes
from secateur.errors import ArgumentError, FormatError

RUN, WORK = "run.json", ".work"
OURS = (
    RUN,
    WORK,
    f".{RUN}.*",
    "plan.json",
    "sparse.json",
    "*.safetensors",
    "config.json",
    "report.json",
    "report.html",
    "model.onnx*",
    "model.xml",
    "model.bin",
    "model.pte",
    "model.tflite",
    "model.engine",
    "front.json",
    "points",
    "baselines",
    ".front.json.*",
    ".report.html.*",
    "llm.json",
    "shrink.json",
    "model*.safetensors.index.json",
    "generation_config.json",
    "tokenizer*",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "README.md",
)
"""What a folder of ours may hold, beside what it says itself that it does."""

MARKS = {"plan.json", "sparse.json", "front.json", "llm.json", "shrink.json"}
"""One of which every result of ours holds."""


@dataclass(frozen=True)
class Folder:
    """A claimed output folder.

    Attributes:
        path: the folder. work: where stages keep what they resume from; goes when the result replaces the
            folder.
        resumed: an unfinished run of the same arguments was found. arguments: of the run.

    The arguments of an unfinished run stand in ``work``, those of a finished one beside its result.
    """

    path: Path
    work: Path
    resumed: bool
    arguments: Mapping[str, Any]

    def sign(self, result: Path) -> None:
        """Write into a result, before it replaces the folder, what made it and what belongs to it."""
        _write(result / RUN, {"arguments": dict(self.arguments), "files": _names(result)})

    def place(self, result: Path) -> None:
        """Move what a result holds into the folder, the configuration last; a run killed meanwhile knows its files."""
        _write(self.work / RUN, {"arguments": dict(self.arguments), "files": _names(result)})
        cleared(self)
        for path in sorted(result.iterdir(), key=lambda p: p.name == "config.json"):
            path.replace(self.path / path.name)
        finished_in_place(self)


@contextmanager
def claim(path: str | Path, arguments: Mapping[str, Any], force: bool = False) -> Iterator[Folder]:
    """Take an output folder for a run, for as long as the context lasts.

    A new or empty folder is taken; one with an unfinished run of the same arguments is resumed; any other is
    refused unless ``force``, which keeps the files there until new ones replace them.

    Raises:
        ArgumentError: another process works in it, it is not a folder, or it is not empty.

    Example:
        >>> import tempfile
        >>> with claim(tempfile.mkdtemp(), {"seed": 0}) as folder:
        ...     folder.resumed
        False
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise ArgumentError(f"output {path} is a file, expected a folder: give another --out")
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ArgumentError(f"output {path} cannot be written: {error.strerror}; give another --out") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArgumentError(
                f"output {path} is in use by another process: wait for it, or give another --out"
            ) from error
        work = path / WORK
        resumed = _may_resume(path, arguments, force)
        if not resumed:
            _away(work)
            work.mkdir()
            _write(work / RUN, {"arguments": dict(arguments)})
        try:
            yield Folder(path, work, resumed, arguments)
        except BaseException:
            _tidy(path, work, made)
            raise
    finally:
        os.close(lock)


def check_free(path: Path, force: bool) -> None:
    """Refuse at once, before long work, a folder that `claim` would refuse whatever the arguments are.

    Raises:
        ArgumentError: it is a file, or holds something, and nothing unfinished.
    """
    used = any(path.iterdir()) if path.is_dir() else path.exists()
    if used and not force and not (path / WORK).is_dir():
        raise ArgumentError(f"output {path} is not empty: give another --out, or --force to replace a result in it")


def _tidy(path: Path, work: Path, made: bool) -> None:
    """After a failure: leave no trace of a run that has nothing to go on from."""
    if [p.name for p in work.rglob("*") if p.is_file()] == [RUN]:
        shutil.rmtree(work, ignore_errors=True)
        if made and not any(path.iterdir()):
            path.rmdir()


def read_arguments(path: str | Path) -> dict[str, Any]:
    """The arguments with which a folder was made.

    Raises:
        FormatError: it holds none, or they are damaged.
    """
    file = Path(path) / RUN
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["arguments"]
    except FileNotFoundError as error:
        raise FormatError(f"{file}: no such file; expected a folder that secateur wrote") from error
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise FormatError(f"{file} is damaged: {error!r}; make it again with --force") from error
    if not isinstance(found, dict):
        raise FormatError(f"{file} is damaged: arguments is {type(found).__name__}; make it again with --force")
    return found


def _may_resume(path: Path, arguments: Mapping[str, Any], force: bool) -> bool:
    """Whether to go on with what is there; raises where it must stay as it is."""
    found = sorted(p.name for p in path.iterdir() if p.name != WORK)
    known = _files_in(path) | _files_in(path / WORK)
    strange = [n for n in found if n not in known and not any(fnmatch.fnmatch(n, glob) for glob in OURS)]
    unfinished, finished = _arguments_in(path / WORK), _arguments_in(path)
    ours = unfinished == dict(arguments)  # a killed run may have put a part of its result in place
    if strange or (found and not ours and not MARKS & set(found)):
        what = f"holds {', '.join(strange[:3])}" if strange else "is not empty"
        raise ArgumentError(f"output {path} {what}, which secateur did not write: give another --out")
    if force:
        return False
    if ours:
        return True
    if found:
        same = finished == dict(arguments)
        why = "holds the finished result of this run" if same else "holds a result of other arguments"
    elif unfinished is not None:
        why = "holds an unfinished run of other arguments"
    else:
        return False
    raise ArgumentError(f"output {path} {why}: give another --out, or --force to replace it")


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in (RUN, WORK))


def _files_in(folder: Path) -> set[str]:
    """What a folder says that it holds."""
    try:
        return {str(name) for name in json.loads((folder / RUN).read_text(encoding="utf-8")).get("files", [])}
    except (OSError, ValueError, AttributeError, TypeError):
        return set()


def _arguments_in(folder: Path) -> dict[str, Any] | None:
    try:
        return read_arguments(folder)
    except FormatError:
        return None


def finished_in_place(folder: Folder) -> None:
    """Sign a result that was written into the folder itself; nothing is left to go on from."""
    folder.sign(folder.path)
    _away(folder.work)


def cleared(folder: Folder) -> None:
    """Take away an earlier result, before a run that writes into the folder itself."""
    for path in folder.path.iterdir():
        if path.name != WORK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _away(work: Path) -> None:
    """The arguments first: without them nothing goes on from what a kill leaves of the rest."""
    (work / RUN).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _write(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
