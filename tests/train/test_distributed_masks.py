"""Two processes over gloo: `DistributedDataParallel` and `fully_shard`. The cases stand in distributed_cases.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = ["parallel", "disagreeing", "methods", "sharded", "sharded_method"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Both processes run all cases, one after another: starting them takes longer than the cases."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "distributed_cases.py"), str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [p.communicate(timeout=240)[0] for p in ranks]
    finally:
        for p in ranks:
            p.kill()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case: str, outputs: list[str]) -> None:
    for rank, said in enumerate(outputs):
        assert f"OK {case}\n" in said, f"rank {rank}:\n{said[-3000:]}"
