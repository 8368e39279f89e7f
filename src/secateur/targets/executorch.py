"""ExecuTorch on the CPU: a ``.pte`` file whose layers XNNPACK runs, and portable kernels where it has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TargetError
from secateur.export.flat import attempt, captured, line_of_op, tensors_in_order
from secateur.export.prepare import Array, array, batch_of, first_line, need
from secateur.export.quiet import quiet
from secateur.targets.files import file_target
from secateur.targets.peak import peak_rss
from secateur.types import Artefact, Example


def export(model: nn.Module, example: Example, folder: Path) -> Path:
    """Write ``model.pte`` into a folder, for the sizes of the example.

    Raises:
        TargetError: the ``executorch`` extra is missing, or the model cannot be run or converted: says the op, and
            the line of the model's code.
    """
    with quiet():
        exir, xnnpack = need(
            "executorch", "executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        )
    program = captured("executorch", model, example)

    def convert() -> bytes:
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)

    def place(error: BaseException) -> str | None:
        found = re.search(r"\baten\.\w+\.\w+|\baten::\w+(\.\w+)?", str(error))
        if found is None:
            return None
        op = found[0].replace("::", ".")
        line = line_of_op(program, op)
        return f"{op} at {line}" if line else op

    file = folder / "model.pte"
    file.write_bytes(attempt("executorch", model, convert, place))
    return file


def load(path: Path | str, example: Example, threads: int = 1) -> Artefact:
    """Load a file that exists.

    The runtime has one pool of threads a process: an artefact that finds it with another number of threads sets it
    anew and loads its file once more, so artefacts to be timed against each other are to have the same.

    Args:
        path: the file.
        example: what it is timed on, of the sizes that it was written for.
        threads: threads of the pool.

    Raises:
        TargetError: the file cannot be loaded, or does not run on the example.
    """
    path = Path(path)
    if not path.is_file():
        raise TargetError(f"executorch: there is no file {path}")
    method = _Method(path, threads)
    tensors = tensors_in_order(example)

    def call(other: Example) -> list[Array]:
        given = tensors_in_order(other)
        method.must_fit(given)
        try:
            return [array(t) for t in method(given)]
        except Exception as e:
            raise TargetError(f"executorch: {path} does not run on the example given: {first_line(e)}") from e

    call(example)
    return Artefact(
        run=lambda: [array(t) for t in method(tensors)],
        call=call,
        nbytes=path.stat().st_size,
        path=str(path),
        target="executorch",
        threads=threads,
        batch=batch_of(example),
        peak=lambda: peak_rss(path, {f"{i}": array(t) for i, t in enumerate(tensors)}, threads, child=_CHILD),
        again=lambda: load(path, example, threads),
    )


executorch = file_target("executorch", export, load, "executorch")

_CHILD = """
import torch
from executorch.extension.pybindings import _C  # without the converter, which executorch.runtime brings along

def load(path, threads):
    _C._unsafe_reset_threadpool(threads)
    module = _C._load_for_executorch(path)
    return lambda arrays: module.run_method("forward", [torch.from_numpy(a) for a in arrays.values()])
"""

_POOLS = [0]
"""How often the pool of this process was set; a method loaded before the last time points at a pool that is gone."""


class _Method:
    """The file's method, loaded again when the pool of threads has changed since."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads, self.pool = path, threads, -1
        self.made: Any = None
        with quiet():
            self.runtime, self.lib = need(
                "executorch", "executorch.runtime", "executorch.extension.pybindings.portable_lib"
            )
        self.ready()

    def ready(self) -> None:
        if self.lib._threadpool_get_thread_count() != self.threads:
            self.lib._unsafe_reset_threadpool(self.threads)
            _POOLS[0] += 1
        if self.pool == _POOLS[0]:
            return
        try:
            self.made = self.runtime.Runtime.get().load_program(self.path).load_method("forward")
        except Exception as e:
            raise TargetError(f"executorch: {self.path} cannot be loaded: {first_line(e)}; is it a whole file?") from e
        self.pool = _POOLS[0]

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        self.ready()
        return [t for t in self.made.execute(tensors) if isinstance(t, Tensor)]

    def must_fit(self, tensors: list[Tensor]) -> None:
        """The runtime says a number where sizes or types differ."""
        self.ready()
        about = self.made.metadata
        wanted = [tuple(about.input_tensor_meta(i).sizes()) for i in range(about.num_inputs())]
        given = [tuple(t.shape) for t in tensors]
        if wanted != given:
            raise TargetError(
                f"executorch: given tensors of shapes {given}; the file takes {wanted}: export it for these"
            )


if __name__ == "__main__":
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    made = executorch.build(net, torch.randn(1, 64), 1)
    print(f"{made.target}: {made.nbytes} bytes, outputs of shape {made.run()[0].shape}")
