"""OpenVINO on the CPU: ``model.xml`` and ``model.bin``, with weights and arithmetic in float32."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import TargetError
from secateur.export.onnx import to_onnx
from secateur.export.prepare import Array, batch_of, first_line, matched, need
from secateur.targets.files import file_target
from secateur.targets.micro import WARM, from_onnx, timed
from secateur.targets.peak import peak_rss
from secateur.types import Artefact, Example


@functools.cache
def core() -> Any:
    """The runtime, one a process and for good.

    Its CPU plugin gives the thread that makes it a stack for signals, and takes it away in the order in which plugins
    end: of two, the second then hands the freed stack of the first back, and the next Ctrl-C kills the process.

    Raises:
        TargetError: the ``openvino`` extra is missing.
    """
    (ov,) = need("openvino", "openvino")
    return ov.Core()


def export(model: nn.Module, example: Example, folder: Path) -> Path:
    """Write ``model.xml`` and ``model.bin`` into a folder, with the weights in float32.

    The way leads over an ONNX file, so what `secateur.export.onnx.to_onnx` exports this exports.

    Raises:
        TargetError: the ``openvino`` extra is missing, or the model cannot be exported, run or converted.
    """
    (ov,) = need("openvino", "openvino")
    file = folder / "model.xml"
    between = to_onnx(model, example, folder / "between.onnx").path
    try:
        # read_model is what convert_model calls, without its notices to the makers over the network
        ov.save_model(core().read_model(between), file, compress_to_fp16=False)
    except Exception as e:
        raise TargetError(f"openvino: {type(model).__qualname__} cannot be converted: {_why(e)}") from e
    finally:
        for left in folder.glob(f"{between.name}*"):
            left.unlink()
    return file


def load(path: Path | str, example: Example, threads: int = 1) -> Artefact:
    """Load a file that exists, for the lowest latency of one run at a time.

    Arithmetic is float32 also where the processor has something quicker, so that outputs are those of torch.

    Args:
        path: the ``.xml`` file, or any that OpenVINO reads.
        example: what it is timed on.
        threads: intra-op threads.

    Raises:
        TargetError: the file cannot be loaded, or does not run on the example.
    """
    runtime, path = core(), Path(path)
    if not path.is_file():
        raise TargetError(f"openvino: there is no file {path}")
    try:
        compiled = runtime.compile_model(path, "CPU", settings(threads))
    except Exception as e:
        raise TargetError(f"openvino: {path} cannot be loaded: {_why(e)}; is {path.with_suffix('.bin')} whole?") from e
    request = compiled.create_infer_request()
    inputs = [i.any_name for i in compiled.inputs]
    arrays = matched(inputs, example, "openvino")

    def infer(given: dict[str, Array]) -> list[Array]:
        results = request.infer(given, share_inputs=True)
        return [results[i] for i in range(len(compiled.outputs))]

    def call(other: Example) -> list[Array]:
        given = matched(inputs, other, "openvino")
        _must_fit(compiled, given)
        try:
            return infer(given)
        except Exception as e:
            raise TargetError(f"openvino: {path} does not run on the example given: {_why(e)}") from e

    call(example)
    return Artefact(
        run=lambda: infer(arrays),
        call=call,
        nbytes=sum(f.stat().st_size for f in {path, path.with_suffix(".bin")} if f.is_file()),
        path=str(path),
        target="openvino",
        threads=threads,
        batch=batch_of(example),
        peak=lambda: peak_rss(path, arrays, threads, child=_CHILD),
        again=lambda: load(path, example, threads),
    )


def settings(threads: int) -> dict[str, Any]:
    """What a model is compiled with: one stream of so many threads, float32, threads free to move between cores."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }


def kernel_seconds(path: Path, example: Example, threads: int) -> float:
    """What the kernels of a file take, without conversions of layout; never more than all of a run."""
    request = core().compile_model(path, "CPU", {**settings(threads), "PERF_COUNT": True}).create_infer_request()
    arrays = matched([i.any_name for i in request.model_inputs], example, "openvino")
    means: list[float] = []  # its counters are means over all runs so far

    def once() -> None:
        request.infer(arrays, share_inputs=True)
        means.append(sum(n.real_time.total_seconds() for n in request.profiling_info if n.node_type != "Reorder"))

    whole = timed(once)
    runs = len(means)
    return min(whole, max(runs * means[-1] - WARM * means[WARM - 1], 0.0) / (runs - WARM))


openvino = dataclasses.replace(file_target("openvino", export, load, "openvino"), layer=from_onnx(kernel_seconds))

_CHILD = f"""
import openvino as ov

def load(path, threads):
    request = ov.Core().compile_model(path, "CPU", {settings(1)!r} | {{"INFERENCE_NUM_THREADS": threads}})
    return request.create_infer_request().infer
"""


def _must_fit(compiled: Any, given: dict[str, Array]) -> None:
    """The runtime casts what it is given, and says nothing."""
    for port in compiled.inputs:
        array, dtype = given[port.any_name], port.element_type.to_dtype()
        if array.dtype != dtype or not port.partial_shape.compatible(_shape(array)):
            raise TargetError(
                f"openvino: input {port.any_name} is {array.dtype} {list(array.shape)}; the file takes {dtype} "
                f"{port.partial_shape.to_string()}"
            )


def _shape(array: Array) -> Any:
    (ov,) = need("openvino", "openvino")
    return ov.PartialShape(list(array.shape))


def _why(error: BaseException) -> str:
    """The last line: those above it are places in the runtime's own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}"[:300] if lines else first_line(error)


if __name__ == "__main__":
    import torch

    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    made = openvino.build(net, torch.randn(1, 64), 1)
    print(f"{made.target}: {made.nbytes} bytes, a batch of 7 gives {made.call(torch.randn(7, 64))[0].shape}")
