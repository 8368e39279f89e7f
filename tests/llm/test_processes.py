"""Killed runs are taken up, full disks are told of, several processes agree with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.tiny_models import load

SCRIPT = Path(__file__).with_name("process_cases.py")


def run(case: str, folder: Path) -> str:
    root = SCRIPT.parent.parent
    path = os.pathsep.join([str(root.parent / "src"), str(root)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), case, str(folder)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, Any]:
    """Bytes of all files; the report without its times."""
    found: dict[str, Any] = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
    found["llm.json"] = json.dumps(timeless(json.loads(found["llm.json"])))
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "peak_bytes")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("states", ["memory", "disk"])
def test_a_run_killed_anywhere_goes_on_to_the_same_files(states: str, tmp_path: Path) -> None:
    said = run(states, tmp_path)
    assert "unfinished run of other arguments" in said
    assert json.loads((tmp_path / "kills.json").read_text()) >= 8
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_a_full_disk_is_told_of_and_what_is_done_is_kept(tmp_path: Path) -> None:
    said = run("full", tmp_path)
    assert "no room" in said
    assert "the same call goes on" in said
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["tied", "mixtral"])
def test_two_processes_agree_with_one(kind: str, tmp_path: Path) -> None:
    """Sums are taken in another order: the same zeros, and values up to rounding."""
    run(kind, tmp_path)
    one, two = load(tmp_path / "alone"), load(tmp_path / "shared")
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a == 0, b == 0), name
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
