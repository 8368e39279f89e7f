"""Whole or not there: files and folders."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from secateur import atomic
from secateur.atomic import new_folder, write_bytes
from secateur.errors import FormatError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"one", b"two", b""):
        write_bytes(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == ["a"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fails(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(atomic.os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not here")
        real(handle)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    atomic.write_bytes(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    with atomic.new_folder(tmp_path / "new", overwrite=False) as folder:
        atomic.write_bytes(folder / "b", b"2")
    assert (tmp_path / "new" / "b").read_bytes() == b"2"


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
        with new_folder(tmp_path / "b", overwrite=False) as made:
            write_bytes(made / "c", b"x")
    finally:
        os.umask(old)
    mode = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert mode == {"a": 0o640, "b": 0o750, "c": 0o640}


@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_appears_when_it_is_done(tmp_path: Path, empty: bool) -> None:
    folder = tmp_path / "deep" / "out"
    if empty:
        folder.mkdir(parents=True)
    with new_folder(folder, overwrite=False) as made:
        (made / "a").write_text("x")
        assert not folder.exists() or names(folder) == []
    assert names(folder) == ["a"]
    assert names(folder.parent) == ["out"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FormatError, match=r"is in use: it is not empty.*overwrite=True \(--force\)"):
        new_folder(tmp_path, overwrite=False).__enter__()
    with pytest.raises(FormatError, match="is a file; give the path of a folder"):
        new_folder(tmp_path / "a", overwrite=True).__enter__()
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("atomically", [True, False])
def test_overwriting_keeps_the_old_one_until_the_end(
    tmp_path: Path, atomically: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not atomically:  # a system without an exchange of names
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda name: object())
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("old")
    with new_folder(folder, overwrite=True) as made:
        (made / "new").write_text("new")
        assert names(folder) == ["old"]
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_failure_leaves_the_old_one_and_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail() -> None:
        with new_folder(folder, overwrite=True, carry=("old",)) as made:
            (made / "new").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("linked", [True, False])
def test_what_is_carried_comes_along_and_what_is_new_wins(
    tmp_path: Path, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linked:

        def refuse(source: str, target: str) -> None:
            raise OSError("no links on this file system")

        monkeypatch.setattr(atomic.os, "link", refuse)
    folder = tmp_path / "out"
    (folder / "work" / "deep").mkdir(parents=True)
    (folder / "work" / "deep" / "state").write_text("state")
    (folder / "log").write_text("old log")
    (folder / "gone").write_text("gone")
    with new_folder(folder, overwrite=True, carry=("work", "log", "absent")) as made:
        (made / "log").write_text("new log")
    assert names(folder) == ["log", "work"]
    assert (folder / "log").read_text() == "new log"
    assert (folder / "work" / "deep" / "state").read_text() == "state"


def test_relative_paths_and_links_to_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("link"), overwrite=True) as made:
        (made / "a").write_text("x")
    assert names(tmp_path / "real") == ["a"]
    assert (tmp_path / "link").is_symlink()
    with new_folder(Path("sub/../other/"), overwrite=False) as made:
        (made / "b").write_text("x")
    assert names(tmp_path / "other") == ["b"]
