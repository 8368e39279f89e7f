"""TensorRT on an NVIDIA GPU: an ONNX file built into an engine for this device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TargetError
from secateur.export.onnx import to_onnx
from secateur.export.prepare import Array, array, batch_of, named_tensors, need
from secateur.targets.device import cuda_device
from secateur.targets.files import file_target
from secateur.types import Artefact, Example


def export(model: nn.Module, example: Example, folder: Path) -> Path:
    """Write ``model.engine`` into a folder: an engine for the sizes of the example, and for the device that is here.

    Weights that are 2:4 may get sparse kernels; arithmetic is float32 without TF32, so that outputs are torch's.

    Raises:
        TargetError: the ``tensorrt`` extra, the device or its driver is missing; or the model cannot be exported, or
            has an op that TensorRT's parser refuses: says the op.
    """
    cuda_device("tensorrt")
    (trt,) = need("tensorrt", "tensorrt")
    between = to_onnx(model, example, folder / "between.onnx", dynamic_batch=False).path
    try:
        engine = _engine(trt, between, type(model).__qualname__)
    finally:
        for left in folder.glob(f"{between.name}*"):
            left.unlink()
    file = folder / "model.engine"
    file.write_bytes(engine)
    return file


def _engine(trt: Any, onnx_file: Path, name: str) -> bytes:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "; ".join(f"{e.node_operator()}: {e.desc()}" for e in errors[:3])
        raise TargetError(f"tensorrt: {name} cannot be converted for {said}; rewrite that, or take another target")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.clear_flag(trt.BuilderFlag.TF32)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise TargetError(f"tensorrt: no engine can be built of {name}: see TensorRT's messages above")
    return bytes(built)


def load(path: Path | str, example: Example, threads: int = 1) -> Artefact:
    """Load an engine that exists; it runs on the kind of device, and with the version, that it was built with.

    Raises:
        TargetError: no device or package, the file cannot be loaded, or it does not run on the example.
    """
    device = cuda_device("tensorrt")
    (trt,) = need("tensorrt", "tensorrt")
    path = Path(path)
    if not path.is_file():
        raise TargetError(f"tensorrt: there is no file {path}")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise TargetError(f"tensorrt: {path} cannot be loaded: is it of this device and of TensorRT {trt.__version__}?")
    runner = _Runner(trt, runtime, engine, device)
    tensors = runner.taken(example)

    def call(other: Example) -> list[Array]:
        return [array(t) for t in runner(runner.taken(other))]

    call(example)
    return Artefact(
        run=lambda: runner(tensors),
        call=call,
        nbytes=path.stat().st_size,
        path=str(path),
        target="tensorrt",
        threads=threads,
        batch=batch_of(example),
        peak=lambda: int(engine.device_memory_size_v2) + path.stat().st_size,
        again=lambda: load(path, example, threads),
    )


tensorrt = file_target("tensorrt", export, load, "tensorrt")


class _Runner:
    """An engine with its outputs allocated; a run ends when the device has finished."""

    def __init__(self, trt: Any, runtime: Any, engine: Any, device: torch.device) -> None:
        self.runtime, self.engine, self.device = runtime, engine, device  # the engine lives on the runtime
        self.context, self.stream = engine.create_execution_context(), torch.cuda.Stream(device)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = {n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
        self.inputs = {n: self._empty(trt, n) for n in names if n in inputs}
        self.outputs = {n: self._empty(trt, n) for n in names if n not in inputs}

    def _empty(self, trt: Any, name: str) -> Tensor:
        dtype = torch.from_numpy(_zero(trt.nptype(self.engine.get_tensor_dtype(name)))).dtype
        return torch.empty(tuple(self.engine.get_tensor_shape(name)), dtype=dtype, device=self.device)

    def taken(self, example: Example) -> dict[str, Tensor]:
        """The tensors of an example on the device: by name where the names are the file's, else by position."""
        given = named_tensors(example)
        by_name = set(self.inputs) <= set(given)
        pairs = given.items() if by_name else zip(self.inputs, given.values(), strict=False)
        found = {n: t.to(self.device).contiguous() for n, t in pairs if n in self.inputs}
        if not by_name and len(given) != len(self.inputs):
            raise TargetError(f"tensorrt: the example has tensors {list(given)}, the file takes {list(self.inputs)}")
        for name, wanted in self.inputs.items():
            t = found[name]
            if (t.shape, t.dtype) != (wanted.shape, wanted.dtype):
                raise TargetError(
                    f"tensorrt: {name} is {t.dtype} {list(t.shape)}; the file takes {wanted.dtype} "
                    f"{list(wanted.shape)}: export it for these"
                )
        return found

    def __call__(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        for name, tensor in {**tensors, **self.outputs}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise TargetError("tensorrt: the engine failed to run: see TensorRT's messages above")
        self.stream.synchronize()
        return list(self.outputs.values())


def _zero(dtype: Any) -> Array:
    import numpy as np

    return np.zeros(1, dtype)


if __name__ == "__main__":
    try:
        made = tensorrt.build(nn.Linear(64, 8), torch.randn(1, 64), 1)
        print(f"{made.target}: {made.nbytes} bytes, outputs of shape {made.run()[0].shape}")
    except TargetError as error:
        print(error)
