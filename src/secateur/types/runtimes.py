"""Where models run, and what was timed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from secateur.types.units import Example, Floats

if TYPE_CHECKING:
    from secateur.targets.layers import Layer


@dataclass(frozen=True, eq=False)
class Measurement:
    """Timings of one model on one target.

    Attributes:
        target: name of the runtime. seconds: float64 (repeats,), in the order they were taken.
        threads: intra-op threads. batch: leading size of the example. nbytes: size of the artefact on disk.
        peak_bytes: peak memory of a run if the target tells it, else None.
        note: what disturbed the timings, or "". load_seconds: what loading the artefact took, or None.
    """

    target: str
    seconds: Floats
    threads: int
    batch: int
    nbytes: int | None = None
    peak_bytes: int | None = None
    note: str = ""
    load_seconds: float | None = None

    @property
    def throughput(self) -> float:
        """Items of a batch a second, at the median."""
        return self.batch / self.median

    @property
    def median(self) -> float:
        """Median, seconds."""
        return float(np.median(self.seconds))

    @property
    def p95(self) -> float:
        """95th percentile, seconds."""
        return float(np.percentile(self.seconds, 95))

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median: the relative noise of one timing."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float((high - low) / 2 / self.median)


@dataclass(frozen=True)
class Device:
    """Another machine on which a target runs.

    Attributes:
        machine: its processor, and how many cores it gives.
        versions: (package, version) of what runs there.
    """

    machine: str
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Target:
    """A runtime on which a model is measured.

    Attributes:
        name: as it stands in reports and on the command line.
        build: ``(model, example, threads) -> Artefact``: exports the model and returns something that runs.
        extra: the pip extra that brings the runtime, or "".
        threads: intra-op threads.
        export: ``(model, example, folder) -> file``: writes the file that ships into a folder, and all that goes
            with it; None where nothing is written.
        load: ``(file, example, threads) -> Artefact``: runs such a file, on this machine or on another; None likewise.
        device: the machine that it runs on, or None where that is this one.
        parity: largest difference from torch's outputs, over the largest of these, that its precision explains.
        layer: ``(layer, threads) -> seconds`` that its kernels take, without what a model of one layer pays at its
            edges; None: a model of one is built and timed.
    """

    name: str
    build: Callable[[nn.Module, Example, int], Artefact]
    extra: str = ""
    threads: int = 1
    export: Callable[[nn.Module, Example, Path], Path] | None = None
    load: Callable[[Path, Example, int], Artefact] | None = None
    device: Device | None = None
    parity: float = 1e-4
    layer: Callable[[Layer, int], float] | None = None

    @property
    def runtime(self) -> str:
        """The name without the machine: ``onnxruntime`` of ``onnxruntime@10.0.0.7:8765``."""
        return self.name.partition("@")[0]


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """How an artefact is timed where it runs, if that is not in this process.

    Attributes:
        place: equal for artefacts that can take turns in one run.
        job: what the place knows it by.
        timings: ``(jobs, repeats, warmup, min_seconds) -> seconds of each, round by round``, by the clock there.
    """

    place: Any
    job: Any
    timings: Callable[[list[Any], int, int, float], list[list[float]]]


@dataclass(frozen=True, eq=False)
class Artefact:
    """A model made ready on a target.

    Attributes:
        run: runs it once on the example it was built with and returns its outputs as numpy arrays.
        nbytes: bytes on disk, or None. path: the exported file, or None.
        call: runs it on another example of the same structure.
        target, threads, batch: where it runs, on how many intra-op threads, and the leading size of its example.
        peak: peak memory of one run in bytes, or None where the runtime cannot tell.
        again: loads the exported file once more, or None where there is no file: a fresh place in memory for a
            timing that is to be independent, without another export.
        load_seconds: what loading the file (compiling it, where that is part of it) took, or None.
        elsewhere: how it is timed on another machine, or None where it runs on this one.
    """

    run: Callable[[], Any]
    call: Callable[[Example], list[npt.NDArray[Any]]]
    nbytes: int | None = None
    path: str | None = None
    target: str = ""
    threads: int = 1
    batch: int = 1
    peak: Callable[[], int | None] | None = None
    again: Callable[[], Artefact] | None = None
    load_seconds: float | None = None
    elsewhere: Elsewhere | None = None
