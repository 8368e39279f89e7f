"""Runtimes that run a file: export and load are two functions, and what is measured is the file that ships."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from secateur.scratch import scratch
from secateur.types import Artefact, Example, Target

Export = Callable[[nn.Module, Example, Path], Path]
Load = Callable[[Path, Example, int], Artefact]


def file_target(name: str, export: Export, load: Load, extra: str = "", threads: int = 1) -> Target:
    """A target whose ``build`` exports a model into a temporary folder and loads the file from there.

    The folder goes with the last artefact that runs from it. How long loading took stands in the artefact.

    Args:
        name: as in `Target`.
        export: ``(model, example, folder) -> file``.
        load: ``(file, example, threads) -> Artefact``.
        extra: the pip extra that brings the runtime.
        threads: intra-op threads.

    Example:
        >>> import torch
        >>> from secateur.targets import onnxruntime as ort
        >>> target = file_target("mine", ort.export, ort.load)
        >>> target.build(nn.Linear(3, 2), torch.ones(1, 3), 1).call(torch.ones(5, 3))[0].shape
        (5, 2)
    """

    def build(model: nn.Module, example: Example, threads: int) -> Artefact:
        folder = Folder()
        return _held(load, export(model, example, folder.path), example, threads, folder)

    return Target(name, build, extra, threads, export, load)


class Folder:
    """A temporary folder that lives as long as the artefacts that hold this."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=scratch()))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _held(load: Load, file: Path, example: Example, threads: int, folder: Folder) -> Artefact:
    begun = perf_counter()
    made = load(file, example, threads)
    seconds = perf_counter() - begun

    again = functools.partial(_held, load, file, example, threads, folder)
    peak = None if made.peak is None else functools.partial(_holding, folder, made.peak)
    run, call = functools.partial(_holding, folder, made.run), functools.partial(_holding, folder, made.call)
    return dataclasses.replace(made, run=run, call=call, peak=peak, again=again, load_seconds=seconds)


def _holding(folder: Folder, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function; as long as this is held as a partial, so is the folder."""
    return function(*args)
