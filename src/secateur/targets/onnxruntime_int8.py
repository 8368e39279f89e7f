"""ONNX Runtime on the CPU with int8 weights and activations quantised as they come."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from pathlib import Path

from torch import nn

from secateur.errors import TargetError
from secateur.export.onnx import to_onnx
from secateur.export.prepare import first_line, need
from secateur.targets import onnxruntime as floats
from secateur.targets.files import file_target
from secateur.types import Artefact, Example


def export(model: nn.Module, example: Example, folder: Path) -> Path:
    """Write ``model.onnx`` into a folder, with int8 weights in each linear layer, convolution, LSTM and embedding.

    Weights get a scale an output channel; activations are quantised to uint8 at every run, a scale a tensor. The
    arithmetic around (norms, softmax, activations) stays float32: `in_float` says what else does. Weights use 7 of
    the 8 bits: with all 8, processors without an int8 dot product saturate, and outputs depend on the device.

    Raises:
        TargetError: the ``onnx`` extra is missing, or the model cannot be exported or quantised.
    """
    onnx, quantization = need("onnx", "onnx", "onnxruntime.quantization")
    whole = to_onnx(model, example, folder / "float.onnx").path
    file = folder / "model.onnx"
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to run a preparation that the exporter has run
    try:
        floating = onnx.load(whole)
        del floating.graph.value_info[:]  # weights are transposed on the way, and their old shapes would not fit
        quantization.quantize_dynamic(
            floating, file, per_channel=True, reduce_range=True, weight_type=quantization.QuantType.QInt8
        )
    except Exception as e:
        raise TargetError(
            f"onnxruntime_int8: {type(model).__qualname__} is exported and cannot be quantised: {first_line(e)}"
        ) from e
    finally:
        logging.disable(before)
        for left in folder.glob(f"{whole.name}*"):
            left.unlink()
    return file


def load(path: Path | str, example: Example, threads: int = 1) -> Artefact:
    """Load a file that exists.

    Raises:
        TargetError: the file cannot be loaded, or does not run on the example.
    """
    again = functools.partial(load, path, example, threads)
    return dataclasses.replace(floats.load(path, example, threads), target="onnxruntime_int8", again=again)


def in_float(path: Path | str) -> dict[str, int]:
    """How many ops of each kind still multiply by float weights, in a file.

    Raises:
        TargetError: the ``onnx`` extra is missing.
    """
    (onnx,) = need("onnx", "onnx")
    graph = onnx.load(path, load_external_data=False).graph
    weights = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1}
    heavy = ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Gather", "Einsum")
    return dict(Counter(n.op_type for n in graph.node if n.op_type in heavy and weights & set(n.input)))


onnxruntime_int8 = dataclasses.replace(file_target("onnxruntime_int8", export, load, "onnx"), parity=0.1)
