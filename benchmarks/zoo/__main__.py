"""The zoo: every model cut at random, proved equal to its masked self, saved, loaded again, beside Torch-Pruning.

make zoo                              all of it, on from where it stopped; writes benchmarks/results/zoo.csv
python benchmarks/zoo timm            the models of a source, shown but not written
python benchmarks/zoo timm resnet18   one model
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from case import SOURCES
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
COLUMNS = (
    "source,model,params,status,units,prunable_share,kept_share,trace_s,couple_s,apply_s,max_error,"
    "reload_identical,reason,torch_pruning_status,torch_pruning_s,peak_mb"
).split(",")
LANES = 2
LIMIT = 400  # seconds a job
RESULTS = ROOT / "benchmarks" / "results" / "zoo.csv"


class Worker:
    """A process that does jobs; started anew when it died or was late."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job; ``status`` says if the process died or was late."""
        if self.process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(HERE / "worker.py")]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], LIMIT)
        line = self.process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        why = "its process died" if ready else f"not done in {LIMIT} s"
        self.stop()
        return {"status": "failed", "reason": f"{job['what']}: {why}"}

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _row(source: str, model: str, here: Worker, there: Worker) -> dict[str, Any]:
    """All that is found out about a model: cut in one process, loaded in another."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        job = {"source": source, "model": model, "folder": f"{folder}/cut"}
        row = {"source": source, "model": model, **here.ask({**job, "what": "judge"})}
        if row["status"] == "ok":
            again = there.ask({**job, "what": "reload"})
            row["reload_identical"] = again.get("reload_identical", False)
            if not row["reload_identical"]:
                row["reason"] = again.get("reason", "outputs differ after loading")
    beside = here.ask({**job, "what": "rival"})
    return row | {k: v for k, v in beside.items() if k in COLUMNS and k not in ("status", "reason")}


def _memory() -> Path:
    """Where rows are kept: under the digest of the library and of the zoo, so that a row is of this very code."""
    files = sorted([*(ROOT / "src").rglob("*.py"), *HERE.glob("*.py")])
    digest = hashlib.blake2b(b"".join(f.read_bytes() for f in files), digest_size=6).hexdigest()
    return ROOT / ".cache" / "zoo" / digest


def _lane(todo: queue.SimpleQueue[tuple[str, str]], done: queue.SimpleQueue[dict[str, Any]], memory: Path) -> None:
    here, there = Worker(), Worker()
    while not todo.empty():
        source, model = todo.get()
        file = memory / source / f"{model.replace('/', '_')}.json"
        if file.exists():
            done.put(json.loads(file.read_text()))
            continue
        row = _row(source, model, here, there)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(row))
        part.replace(file)
        done.put(row)
    for worker in (here, there):
        worker.stop()


def rows(wanted: list[tuple[str, str]], console: Console) -> list[dict[str, Any]]:
    """A row a model, in order; those of an earlier run of the same code are taken from memory."""
    todo: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for item in wanted:
        todo.put(item)
    for _ in range(min(LANES, len(wanted))):
        threading.Thread(target=_lane, args=(todo, done, _memory()), daemon=True).start()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("zoo", total=len(wanted))
        while len(found) < len(wanted):
            row = done.get()
            found[row["source"], row["model"]] = row
            good = row["status"] == "ok" and row.get("reload_identical")
            bar.update(task, advance=1, description=f"{row['source']} {row['model']}")
            bar.console.print(
                f"{'ok ' if good else 'NOT OK'} {row['source']:12} {row['model']:36} "
                f"{float(row.get('prunable_share') or 0):4.0%} {row.get('units', '')} {row.get('reason', '')} "
                f"| {row.get('torch_pruning_status', '')}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    return [found[item] for item in wanted]


def main(arguments: list[str]) -> None:
    """Run the zoo, or the part of it that is named."""
    from case import cases

    console = Console(stderr=False)
    source, names = (arguments[0] if arguments else None), arguments[1:]
    wanted = [(s, m) for s in SOURCES if source in (None, s) for m in cases(s) if not names or m in names]
    found = rows(wanted, console)
    if source is None:
        part = RESULTS.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows([{c: row.get(c, "") for c in COLUMNS} for row in found])
        part.replace(RESULTS)
    good = [r for r in found if r["status"] == "ok" and r.get("reload_identical")]
    wide = [r for r in good if float(r["prunable_share"]) >= 0.8]
    console.print(
        f"{len(good)} of {len(found)} models right and reloaded; {len(wide)} of them prunable to 80 % or more"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
