"""Models of one layer: quick to make and to time, so that a table can be measured at many widths."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.export.prepare import need
from secateur.scratch import scratch
from secateur.targets.layers import Layer
from secateur.types import Example

ENOUGH, RUNS, WARM = 0.006, 30, 2
"""Seconds spent on one entry of a table, most runs, and runs before the first that counts."""
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Product(nn.Module):
    """A batched product."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The product."""
        return x @ y


class Attend(nn.Module):
    """Scaled dot-product attention."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the queries find."""
        return F.scaled_dot_product_attention(q, k, v)


class Square(nn.Module):
    """An elementwise operation."""

    def forward(self, x: Tensor) -> Tensor:
        """Each squared."""
        return x * x


def inputs_of(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """Shapes of what a layer runs on.

    Example:
        >>> inputs_of(Layer("matmul", (128, 0, 128), (12, 32)))
        ((12, 128, 32), (12, 32, 128))
    """
    (a, b), s = layer.widths, layer.settings
    if layer.kind in ("conv", "depthwise"):
        batch, space = s[:2]
        assert isinstance(batch, int)
        assert isinstance(space, tuple)
        return ((batch, a, *space),)
    sizes = [n for n in s if isinstance(n, int)]
    if layer.kind == "linear":
        return ((sizes[0], a),)
    if layer.kind == "matmul":
        m, k, n = (n or b for n in sizes)
        return (a, m, k), (a, k, n)
    if layer.kind == "attention":
        batch, queries, keys = sizes
        return (batch, a, queries, b), (batch, a, keys, b), (batch, a, keys, b)
    return ((a,),)


def module_of(layer: Layer) -> tuple[nn.Module, Example]:
    """A layer as a model, with what it runs on: for targets that build nothing smaller.

    Example:
        >>> module_of(Layer("linear", (3, 1), (4, 8)))[0]
        Linear(in_features=4, out_features=8, bias=True)
    """
    s, (a, b) = layer.settings, layer.widths
    example = tuple(torch.ones(shape).mul_(0.5) for shape in inputs_of(layer))
    with torch.random.fork_rng(devices=[]):
        if layer.kind in ("conv", "depthwise"):
            kernel, stride, padding, dilation, bias = s[2:]
            assert isinstance(kernel, tuple)
            groups = a if layer.kind == "depthwise" else 1
            conv: Any = _CONVS[len(kernel) - 1]
            return conv(a, b, kernel, stride, padding, dilation, groups, bool(bias)).eval(), example
        if layer.kind == "linear":
            return nn.Linear(a, b, bool(s[1])).eval(), example
    return {"matmul": Product, "attention": Attend, "elements": Square}[layer.kind]().eval(), example


def onnx_bytes(layer: Layer) -> bytes:
    """A layer as an ONNX model, written without tracing anything.

    Raises:
        TargetError: the ``onnx`` extra is missing.
    """
    helper, numpy_helper = need("onnx", "onnx.helper", "onnx.numpy_helper")
    nodes, weights = _nodes(layer, helper.make_node)
    names = ["x", "y", "z"]
    inputs = [helper.make_tensor_value_info(n, 1, s) for n, s in zip(names, inputs_of(layer), strict=False)]
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    out = helper.make_tensor_value_info("out", 1, None)
    graph = helper.make_graph(nodes, layer.kind, inputs, [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def _nodes(layer: Layer, make: Callable[..., Any]) -> tuple[list[Any], dict[str, Any]]:
    s, (a, b) = layer.settings, layer.widths
    rng = np.random.default_rng(0)
    if layer.kind in ("conv", "depthwise"):
        kernel, stride, padding, dilation, _ = s[2:]
        assert isinstance(kernel, tuple)
        assert isinstance(padding, tuple)
        groups = a if layer.kind == "depthwise" else 1
        weights = {"w": rng.standard_normal((b, a // groups, *kernel))}
        weights["b"] = np.zeros(b)  # a norm behind it becomes its bias
        settings = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": padding * 2}
        return [make("Conv", ["x", *weights], ["out"], group=groups, **settings)], weights
    if layer.kind == "linear":
        weights = {"w": rng.standard_normal((a, b))}
        if not s[1]:
            return [make("MatMul", ["x", "w"], ["out"])], weights
        weights["b"] = np.zeros(b)
        return [make("Gemm", ["x", "w", "b"], ["out"])], weights
    if layer.kind == "matmul":
        return [make("MatMul", ["x", "y"], ["out"])], {}
    if layer.kind == "attention":
        nodes = [
            make("Transpose", ["y"], ["t"], perm=[0, 1, 3, 2]),
            make("MatMul", ["x", "t"], ["s"]),
            make("Mul", ["s", "c"], ["u"]),
            make("Softmax", ["u"], ["p"], axis=-1),
            make("MatMul", ["p", "z"], ["out"]),
        ]
        return nodes, {"c": np.array(b**-0.5)}
    return [make("Mul", ["x", "x"], ["out"])], {}


def from_onnx(kernels: Callable[[Path, Example, int], float]) -> Callable[[Layer, int], float]:
    """How a runtime that reads ONNX times one layer, given how it tells the seconds that the kernels of a file take.

    A model of one layer also turns its input into the layout that the kernel wants, and its output back. Within a
    model, layers hand on a layout of their own: ``kernels`` leaves these conversions out.

    Example:
        >>> from_onnx(lambda file, example, threads: 1e-6 * threads)(Layer("linear", (3, 1), (4, 8)), 2)
        2e-06
    """

    def seconds(layer: Layer, threads: int) -> float:
        generator = torch.Generator().manual_seed(0)
        example = {n: torch.randn(s, generator=generator) for n, s in zip("xyz", inputs_of(layer), strict=False)}
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            file = Path(folder) / "layer.onnx"
            file.write_bytes(onnx_bytes(layer))
            return kernels(file, example, threads)

    return seconds


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    taken: list[float] = []

    def once() -> None:
        begun = perf_counter()
        run()
        taken.append(perf_counter() - begun)

    return undisturbed(taken[-repeated(once) :])


def repeated(run: Callable[[], object]) -> int:
    """Run something as often as an entry of a table is worth; returns how often, after the first runs."""
    for _ in range(WARM):
        run()
    runs, begun = 0, perf_counter()
    while runs < 5 or (perf_counter() - begun < ENOUGH and runs < RUNS):
        run()
        runs += 1
    return runs


def undisturbed(seconds: Sequence[float]) -> float:
    """The lower quartile: whatever else the machine does only adds."""
    return float(np.percentile(seconds, 25))
