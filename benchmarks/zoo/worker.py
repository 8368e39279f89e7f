"""One process of the zoo: reads a job a line (JSON), answers a line. Run by the keeper; dies alone."""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from case import cases, made
from judge import judge, reloads
from rival import RATIO, rival

import secateur as sc

RIVAL_LIMIT = 12
REPEATS = 3


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job: ``judge``, ``reload`` or ``rival``."""
    case, folder = cases(job["source"])[job["model"]], Path(job["folder"])
    if job["what"] == "judge":
        return judge(case, folder)
    if job["what"] == "reload":
        return {"reload_identical": reloads(case, folder)}
    return _against(case)


def _against(case: Any) -> dict[str, Any]:
    """Median CPU seconds of recording, coupling and cutting, in turns with Torch-Pruning's graph building and pruning.

    Both cut a copy in place that was made before the clock started.
    """
    model, example = made(case)
    ours: list[tuple[float, ...]] = []
    theirs: list[float] = []
    status = ""
    for _ in range(REPEATS):
        ours.append(_timed(model, example))
        if not status or theirs:
            status, spent = rival(model, example, RIVAL_LIMIT)
            theirs += [] if spent is None else [spent]
        if sum(theirs) > RIVAL_LIMIT / 2 or sum(map(sum, ours)) > RIVAL_LIMIT / 2:
            break
    medians = [round(statistics.median(s), 4) for s in zip(*ours, strict=True)]
    found = dict(zip(("trace_s", "couple_s", "apply_s"), medians, strict=True))
    spent = round(statistics.median(theirs), 4) if theirs else None
    return {**found, "torch_pruning_status": status, "torch_pruning_s": spent}


def _timed(model: Any, example: Any) -> tuple[float, ...]:
    twin = copy.deepcopy(model)
    ticks = [time.process_time()]
    graph = sc.trace(model, example)
    ticks.append(time.process_time())
    groups = sc.couple(graph)
    ticks.append(time.process_time())
    sc.apply_(sc.random_plan(groups, RATIO, seed=0), twin)
    ticks.append(time.process_time())
    return tuple(b - a for a, b in pairwise(ticks))


def main() -> None:
    """Answer until there is no more to read; what models print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        try:
            answer = work(json.loads(line))
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            answer = {"status": "failed", "reason": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
