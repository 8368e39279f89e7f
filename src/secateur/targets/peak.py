"""Peak memory of a file that a runtime runs, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.errors import TargetError
from secateur.scratch import scratch

# The kernel carries ru_maxrss of the parent over fork and exec, so a large parent would hide a small child:
# VmHWM belongs to the new address space alone. Where there is no /proc, ru_maxrss has to do.
_BEGIN = """
import resource, sys
import numpy as np

def status(key):
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""
_END = """
path, inputs, threads, runs = sys.argv[1:]
with np.load(inputs, allow_pickle=False) as f:
    arrays = {name: f[name] for name in f.files}
try:
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
except OSError:
    pass
before = status("VmRSS")
go = load(path, int(threads))
for _ in range(int(runs)):
    go(arrays)
print(max(0, status("VmHWM") - before))
"""


ONNXRUNTIME = """
import onnxruntime as ort

def load(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, arrays)
"""
"""How a process loads a file: its imports, and ``load(path, threads)``, which returns what runs named arrays."""


def peak_rss(
    path: Path | str,
    arrays: Mapping[str, npt.NDArray[Any]],
    threads: int = 1,
    runs: int = 3,
    child: str = ONNXRUNTIME,
) -> int:
    """Peak memory of loading a file and running it, in bytes, beyond that of the imported runtime.

    A fresh process loads the file and runs it; the figure is its highest resident set less the one after the
    imports.

    Args:
        path: the file.
        arrays: what it runs on, by input name.
        threads: intra-op threads.
        runs: how often.
        child: Python text with the runtime's imports and a ``load(path, threads)`` that returns what runs the arrays.

    Raises:
        TargetError: the process failed.
    """
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        inputs = Path(folder) / "inputs.npz"
        with inputs.open("wb") as f:
            np.savez(f, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()})
        command = [sys.executable, "-P", "-c", _BEGIN + child + _END, str(path), str(inputs), str(threads), str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TargetError(f"peak memory of {path} could not be measured: {last}")
    return int(done.stdout.split()[-1])
