"""A worker without a runtime: answers at once, or does what ``repeats`` asks for. Imports next to nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CRASH, EXIT, HANG, BRIEF = 1001, 1002, 1003, 1004


def note(words):
    with Path(sys.argv[1]).open("a") as f:
        f.write(words + "\n")


def answer(order):
    repeats = order["repeats"]
    if repeats == CRASH:
        os.kill(os.getpid(), signal.SIGSEGV)
    if repeats == EXIT:
        print("the runtime gave up", file=sys.stderr, flush=True)
        os._exit(7)
    if repeats == HANG:
        child = subprocess.Popen(["sleep", "600"])  # what a runtime may have started
        note(f"hangs {os.getpid()} {child.pid}")
        signal.pause()
    if repeats == BRIEF:
        note("begins")
        time.sleep(0.05)
        note("ends")
    if order["op"] == "load":
        for job in order["jobs"]:
            if Path(job["path"]).read_bytes() == b"refuse":
                return {"error": "refused by the runtime"}
        return {"ok": {"nbytes": 5, "batch": 1, "load_seconds": 0.5, "peak": False}}
    return {"ok": [[0.25] * repeats for _ in order["jobs"]]}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
