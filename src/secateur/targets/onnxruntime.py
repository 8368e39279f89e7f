"""ONNX Runtime on the CPU: the file that is measured is the file that ships."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import torch
from torch import nn

from secateur.errors import TargetError
from secateur.export.onnx import feeds, nbytes_of, open_session, run_session, to_onnx
from secateur.export.prepare import Array, batch_of
from secateur.targets.peak import peak_rss
from secateur.types import Artefact, Example, Target


def build(model: nn.Module, example: Example, threads: int, path: Path | str | None = None) -> Artefact:
    """Export a model and load the file in ONNX Runtime.

    Args:
        model: as in `secateur.export.onnx.to_onnx`.
        example: likewise.
        threads: intra-op threads.
        path: where the file stays; without it, a temporary file that goes with the artefact.

    Raises:
        TargetError: the ``onnx`` extra is missing, or the model cannot be exported or run.

    Example:
        >>> build(nn.Linear(3, 2), torch.ones(1, 3), 1).call(torch.ones(5, 3))[0].shape
        (5, 2)
    """
    if path is not None:
        return session(to_onnx(model, example, path).path, threads, example)
    folder = _Temporary()
    return _session(to_onnx(model, example, folder.path / "model.onnx").path, threads, example, folder)


class _Temporary:
    """A folder that lives as long as the artefacts that hold this."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="secateur-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


onnxruntime = Target("onnxruntime", build, extra="onnx")


def session(path: Path | str, threads: int = 1, example: Example | None = None) -> Artefact:
    """Load an ONNX file that exists.

    Args:
        path: the file.
        threads: intra-op threads.
        example: what it is timed on; without it random values of the declared shapes, a batch of one.

    Raises:
        TargetError: the file cannot be loaded, or does not run on the example.
    """
    return _session(path, threads, example)


def _session(path: Path | str, threads: int, example: Example | None, holds: _Temporary | None = None) -> Artefact:
    opened = open_session(path, threads)
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
        target="onnxruntime",
        threads=threads,
        batch=batch_of(example),
        peak=lambda: peak_rss(path, arrays, threads),
        again=lambda: _session(path, threads, example, holds),
    )


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
    made = build(net, torch.randn(1, 64), 1)
    print(f"{made.target}: {made.nbytes} bytes, a batch of 7 gives {made.call(torch.randn(7, 64))[0].shape}")
