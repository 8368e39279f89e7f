"""Run a script in an address space of so many bytes: ``python _limited.py BYTES SCRIPT ARGUMENTS``."""

from __future__ import annotations

import resource
import runpy
import sys

if __name__ == "__main__":
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
