"""LiteRT on the CPU: a ``.tflite`` file, run with the XNNPACK delegate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.export.flat import attempt, captured, flat, line_in, line_of, tensors_in_order
from secateur.export.prepare import Array, array, batch_of, first_line, need
from secateur.export.quiet import quiet
from secateur.targets.files import file_target
from secateur.targets.peak import peak_rss
from secateur.types import Artefact, Example


def export(model: nn.Module, example: Example, folder: Path) -> Path:
    """Write ``model.tflite`` into a folder, for the sizes of the example.

    Raises:
        TargetError: the ``litert`` extra is missing, or the model cannot be run or converted: says the op, and the
            line of the model's code where the converter does.
    """
    with quiet():
        (converter,) = need("litert", "litert_torch")
    captured("litert", model, example)  # a model that torch.export refuses is told from an op without a lowering
    made, tensors = flat("litert", model, example), tuple(tensors_in_order(example))
    file = folder / "model.tflite"
    attempt("litert", model, lambda: converter.convert(made, tensors).export(str(file)), _place)
    return file


def _place(error: BaseException) -> str | None:
    text = str(error)
    op = re.search(r"\baten\.\w+\.\w+", text)
    line = line_in(text) or line_of(error) if op is None else line_in(text)
    if op is None:
        return line
    return f"{op[0]} at {line}" if line else op[0]


def load(path: Path | str, example: Example, threads: int = 1) -> Artefact:
    """Load a file that exists, with one signature, as `export` writes it.

    Args:
        path: the file.
        example: what it is timed on, of the sizes that it was written for.
        threads: threads of the interpreter and of XNNPACK.

    Raises:
        TargetError: the file cannot be loaded, or does not run on the example.
    """
    path = Path(path)
    if not path.is_file():
        raise TargetError(f"litert: there is no file {path}")
    runner = _Runner(path, threads)
    arrays = runner.taken(example)

    def call(other: Example) -> list[Array]:
        given = runner.taken(other)
        try:
            return runner(given)
        except Exception as e:
            raise TargetError(f"litert: {path} does not run on the example given: {first_line(e)}") from e

    call(example)
    return Artefact(
        run=lambda: runner(arrays),
        call=call,
        nbytes=path.stat().st_size,
        path=str(path),
        target="litert",
        threads=threads,
        batch=batch_of(example),
        peak=lambda: peak_rss(path, {f"{i}": a for i, a in enumerate(arrays)}, threads, child=_CHILD),
        again=lambda: load(path, example, threads),
    )


litert = file_target("litert", export, load, "litert")

_CHILD = """
from ai_edge_litert.interpreter import Interpreter

def load(path, threads):
    runtime = Interpreter(path, num_threads=threads)
    runtime.allocate_tensors()
    inputs = runtime.get_signature_runner().get_input_details()

    def go(arrays):
        for name, detail in inputs.items():
            runtime.set_tensor(detail["index"], arrays[name.rpartition("_")[2]])
        runtime.invoke()

    return go
"""


class _Runner:
    """An interpreter, with its inputs and outputs by their place in the call: ``args_0``, ``output_0``."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        (package,) = need("litert", "ai_edge_litert.interpreter")
        try:
            self.runtime: Any = package.Interpreter(str(path), num_threads=threads)
            self.runtime.allocate_tensors()
            signature = self.runtime.get_signature_runner()
            inputs, outputs = signature.get_input_details(), signature.get_output_details()
            self.inputs = {_place_of(name): detail for name, detail in inputs.items()}
            self.outputs = [detail for _, detail in sorted(outputs.items(), key=lambda named: _place_of(named[0]))]
        except Exception as e:
            raise TargetError(f"litert: {path} cannot be loaded: {first_line(e)}; is it a whole file?") from e

    def __call__(self, arrays: list[Array]) -> list[Array]:
        for place, detail in self.inputs.items():
            self.runtime.set_tensor(detail["index"], arrays[place])
        self.runtime.invoke()
        return [self.runtime.get_tensor(detail["index"]) for detail in self.outputs]

    def taken(self, example: Example) -> list[Array]:
        """The arrays of an example as the file takes them: the converter turns int64 into int32."""
        arrays = [array(t) for t in tensors_in_order(example)]
        for place, detail in self.inputs.items():
            wanted = f"{detail['dtype'].__name__} {[int(n) for n in detail['shape']]}"
            given = f"{arrays[place].dtype} {list(arrays[place].shape)}" if place < len(arrays) else "nothing"
            if given == wanted.replace("int32", "int64"):
                narrow = arrays[place].astype(np.int32)
                arrays[place] = narrow if np.array_equal(narrow, arrays[place]) else arrays[place]
                given = f"{arrays[place].dtype} {list(arrays[place].shape)}"
            if given != wanted:
                raise TargetError(
                    f"litert: argument {place} is {given}; {self.path} takes {wanted}: export it for these"
                )
        return arrays


def _place_of(name: str) -> int:
    return int(name.rpartition("_")[2])


if __name__ == "__main__":
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    made = litert.build(net, torch.randn(1, 64), 1)
    print(f"{made.target}: {made.nbytes} bytes, outputs of shape {made.run()[0].shape}")
