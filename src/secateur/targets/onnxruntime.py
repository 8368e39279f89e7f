"""ONNX Runtime, on the CPU or on CUDA: the file that is measured is the file that ships."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import TargetError
from secateur.export.onnx import feeds, nbytes_of, open_session, run_session, to_onnx
from secateur.export.prepare import Array, batch_of
from secateur.targets.files import file_target
from secateur.targets.micro import from_onnx, repeated, undisturbed
from secateur.targets.peak import peak_rss
from secateur.types import Artefact, Example


def export(model: nn.Module, example: Example, folder: Path) -> Path:
    """Write ``model.onnx`` into a folder.

    Raises:
        TargetError: the ``onnx`` extra is missing, or the model cannot be exported or run.
    """
    return to_onnx(model, example, folder / "model.onnx").path


def load(path: Path | str, example: Example | None = None, threads: int = 1) -> Artefact:
    """Load an ONNX file that exists.

    Args:
        path: the file.
        example: what it is timed on; without it random values of the declared shapes, a batch of one.
        threads: intra-op threads.

    Raises:
        TargetError: the file cannot be loaded, or does not run on the example.
    """
    return _loaded(path, example, threads, "onnxruntime", "CPUExecutionProvider")


def load_cuda(path: Path | str, example: Example | None = None, threads: int = 1) -> Artefact:
    """Load an ONNX file on the first CUDA device; what its kernels lack runs on the CPU.

    Raises:
        TargetError: the runtime has no CUDA or finds no device, or as `load`.
    """
    return _loaded(path, example, threads, "onnxruntime_cuda", "CUDAExecutionProvider")


def _loaded(path: Path | str, example: Example | None, threads: int, target: str, provider: str) -> Artefact:
    opened = open_session(path, threads, provider)
    example = declared_inputs(path) if example is None else example
    arrays = feeds(opened, example)

    def call(other: Example) -> list[Array]:
        return run_session(opened, feeds(opened, other))

    run_session(opened, arrays)
    return Artefact(
        run=lambda: opened.run(None, arrays),
        call=call,
        nbytes=nbytes_of(path),
        path=str(path),
        target=target,
        threads=threads,
        batch=batch_of(example),
        peak=(lambda: peak_rss(path, arrays, threads)) if provider.startswith("CPU") else None,
        again=lambda: _loaded(path, example, threads, target, provider),
    )


def kernel_seconds(path: Path, example: Example, threads: int) -> float:
    """What the kernels of a file take, without conversions of layout."""
    session = open_session(path, threads, profile=path.with_suffix(""))
    arrays = feeds(session, example)
    runs = repeated(lambda: session.run(None, arrays))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return undisturbed(seconds_by_run(events)[-runs:])


def seconds_by_run(events: Iterable[Mapping[str, Any]]) -> list[float]:
    """What the kernels of each run took, conversions of layout left out, of the events of a profile.

    Events stand in the order in which they ended, a run behind its kernels. Their times are whole microseconds, and do
    not tell in which run a kernel was that began as its run did.

    Example:
        >>> kernel = {"name": "mul_kernel_time", "ts": 7, "dur": 3, "args": {"op_name": "Mul"}}
        >>> seconds_by_run([kernel, {"name": "model_run", "ts": 7, "dur": 4}])
        [3e-06]
    """
    spent, run = [], 0.0
    for event in events:
        if event["name"] == "model_run":
            spent.append(run)
            run = 0.0
        elif event["name"].endswith("_kernel_time") and not event["args"]["op_name"].startswith("Reorder"):
            run += 1e-6 * event["dur"]
    return spent


onnxruntime = dataclasses.replace(file_target("onnxruntime", export, load, "onnx"), layer=from_onnx(kernel_seconds))
onnxruntime_cuda = file_target("onnxruntime_cuda", export, load_cuda, "onnx")


_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def declared_inputs(path: Path | str, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """An example for a file, from the shapes that it declares: standard normal floats, and ones for the rest.

    Raises:
        TargetError: an axis other than the first has no fixed size, or a type is not known.
    """
    generator = torch.Generator().manual_seed(seed)
    example = {}
    for i in open_session(path).get_inputs():
        shape = [batch if axis == 0 and not isinstance(n, int) else n for axis, n in enumerate(i.shape)]
        if i.type not in _DTYPES or not all(isinstance(n, int) for n in shape):
            raise TargetError(f"onnx: input {i.name} of {path} is {i.type} {i.shape}: give an example to run it on")
        dtype = _DTYPES[i.type]
        draw = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.ones(shape)
        example[i.name] = draw.to(dtype)
    return example


if __name__ == "__main__":
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    made = onnxruntime.build(net, torch.randn(1, 64), 1)
    print(f"{made.target}: {made.nbytes} bytes, a batch of 7 gives {made.call(torch.randn(7, 64))[0].shape}")
