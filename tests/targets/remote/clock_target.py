"""A target whose k-th run of all takes k times a thousand seconds, by a clock that only it moves."""

import itertools
import time
from pathlib import Path

import numpy as np

from secateur.targets import measure
from secateur.targets.files import file_target
from secateur.types import Artefact

ahead = [0.0]
count = itertools.count(1)
measure.perf_counter = lambda: time.perf_counter() + ahead[0]


def export(model, example, folder):
    (folder / "clock").write_text("tick")
    return folder / "clock"


def load(path, example, threads):
    assert Path(path).read_text() == "tick"

    def run():
        ahead[0] += 1000.0 * next(count)

    return Artefact(run=run, call=lambda other: [np.array(True)], target="clock", threads=threads)


clock = file_target("clock", export, load)
