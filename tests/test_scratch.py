"""Temporary folders go with their process, also with one that was killed, and never while it lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import tempfile
from secateur.scratch import scratch
print(tempfile.mkdtemp(prefix="what-", dir=scratch()), flush=True)
input()
"""


def begun(among: Path) -> tuple[subprocess.Popen[str], Path]:
    env = {**os.environ, "TMPDIR": str(among)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_folders_go_with_their_process_and_those_of_killed_ones_with_the_next(tmp_path: Path) -> None:
    foreign = tmp_path / "secateur-of-someone"
    foreign.mkdir()  # no lock: not of ours
    alive, kept = begun(tmp_path)
    killed, left = begun(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert kept.is_dir()
    assert left.is_dir()
    third, mine = begun(tmp_path)
    assert not left.parent.exists()
    assert kept.is_dir()
    assert mine.is_dir()
    for process in (third, alive):
        process.communicate("\n")
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "lock").touch()
    among = tmp_path / "tmp"
    among.mkdir()
    (among / "secateur-link").symlink_to(other)
    process, _ = begun(among)
    process.communicate("\n")
    assert (other / "lock").exists()
