"""Run a script in an address space of so many bytes: ``python _limited.py BYTES SCRIPT ARGUMENTS``.

Its largest resident set, in kB, goes to the file that the environment variable ``SECATEUR_BENCH_PEAK`` names. It is
``VmHWM``, of this process alone: the kernel carries ``ru_maxrss`` of the parent over fork and exec.
"""

from __future__ import annotations

import atexit
import os
import resource
import runpy
import sys
from pathlib import Path


def tell_peak(file: str) -> None:
    """Write down the largest resident set so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    Path(file).write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM:")), encoding="utf-8")


if __name__ == "__main__":
    if os.environ.get("SECATEUR_BENCH_PEAK"):
        atexit.register(tell_peak, os.environ["SECATEUR_BENCH_PEAK"])
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
