"""ONNX files: write one, open one, and check that it computes what torch computes.

Room order: this module stands left of ``targets``, which measures the files written here, and imports
nothing from it.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.calling import as_call, run
from secateur.errors import TargetError
from secateur.export.flat import captured, line_of, line_of_op
from secateur.export.prepare import (
    Array,
    array,
    batch_of,
    first_line,
    matched,
    moved,
    named_tensors,
    need,
    output_tensors,
    rebatched,
    snapshot,
)
from secateur.export.quiet import quiet
from secateur.types import Example

log = logging.getLogger("secateur")

WEIGHTS_INSIDE = 2_000_000_000
"""Bytes of weights above which they go to a file beside the graph: protobuf ends at 2^31."""


@dataclass(frozen=True)
class OnnxFile:
    """A written ONNX file.

    Attributes:
        path: the file. nbytes: its size and that of the weights beside it.
        dynamic: it takes any batch size. reason: why not, where a dynamic batch was asked for and refused.
    """

    path: Path
    dynamic: bool
    nbytes: int
    reason: str = ""


def to_onnx(model: nn.Module, example: Example, path: Path | str, *, dynamic_batch: bool = True) -> OnnxFile:
    """Write a model as ONNX, for inference, with any batch size where the model allows it.

    The batch is axis 0 of every tensor with the leading size that most have. A model that ties itself to the
    example's batch size is written with just that size, and the record says why. The model is left untouched.

    Args:
        model: any module; its weights are copied to the CPU if they are elsewhere.
        example: a tensor, a tuple of arguments or a dict of keyword arguments.
        path: the file; the folder must exist. Replaced as a whole or not at all.
        dynamic_batch: False fixes the example's batch size.

    Raises:
        TargetError: the ``onnx`` extra is missing, or the model cannot be exported.

    Example:
        >>> import torch, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_onnx(torch.nn.Linear(3, 2), torch.ones(1, 3), folder + "/net.onnx").dynamic
        True
    """
    need("onnx", "onnx", "onnxscript")
    path = Path(path)
    if not path.parent.is_dir():
        raise TargetError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    twin, example = snapshot(model).cpu(), moved(example, "cpu")
    _must_run(twin, example)
    program, reason = None, ""
    if dynamic_batch:
        try:
            program = _exported(twin, rebatched(example, max(2, batch_of(example))), dynamic=True)
            reason = "" if _any_batch(program, example) else "the model's code fixes the batch size"
        except Exception as e:
            reason = first_line(e)
        if reason:
            program = None
            log.info("onnx: batch size fixed at %d: %s", batch_of(example), reason)
    if program is None:
        try:
            program = _exported(twin, example, dynamic=False)
        except Exception as e:
            raise _refusal(model, example, e) from e
    return OnnxFile(path, dynamic_batch and not reason, _write(program, path), reason)


def _refusal(model: nn.Module, example: Example, error: Exception) -> TargetError:
    """Why a model that runs cannot be exported: the op that ONNX has no function for, and the line of the code."""
    name, cause = type(model).__qualname__, first_line(error)
    op = re.search(r"op='([\w.]+)', overload='(\w+)'", cause)
    if op is None:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        where = line_of(root) or line_of(error)
        return TargetError(
            f"onnx: {name} runs in torch and cannot be exported: {cause}{f' (at {where})' if where else ''}; branches "
            "on tensor values and .item() in forward are the usual cause: rewrite them, or take the target eager"
        )
    target = ".".join(op.groups())
    where = line_of_op(captured("onnx", model, example), target)
    return TargetError(
        f"onnx: {name} runs in torch and cannot be exported: ONNX has no function for {target}"
        f"{f' at {where}' if where else ''}; rewrite that, or take the target eager"
    )


def _exported(model: nn.Module, example: Example, dynamic: bool) -> Any:
    args, kwargs = as_call(example)
    shapes = None
    if dynamic:
        batch, size = torch.export.Dim("batch"), batch_of(example)

        def axes(leaf: Any) -> dict[int, Any] | None:
            return {0: batch} if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == size else None

        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = pytree.tree_map(axes, dict(bound))
    if not kwargs and args and isinstance(args[-1], dict):
        args = (*args, {})  # a last positional dict would be taken for keyword arguments
    with quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            model, args, kwargs=kwargs, dynamo=True, verbose=False, dynamic_shapes=shapes, optimize=False
        )
        _tidy(program.model)
        return program


_RULES = (
    "fuse_pad_into_conv",
    "fuse_batchnorm_into_conv",
    "fuse_batchnorm_into_conv_transpose",
    "fuse_batchnorm_into_gemm",
    "materialize_reshape_shape",
)


def _tidy(model: Any) -> None:
    """Fold constants, padding and batch norms, and drop what is then unused or double.

    The exporter's own optimiser does this and more, which the runtimes do again; its basic rules take time that
    grows with the square of the number of nodes: 40 of 60 seconds for 30 decoder layers.
    """
    optimizer, rewriter, rules, passes = need(
        "onnx",
        "onnxscript.optimizer",
        "onnxscript.rewriter",
        "onnxscript.rewriter.rules.common",
        "onnx_ir.passes.common",
    )
    optimizer.fold_constants(model, onnx_shape_inference=True)
    for step in (
        *(rewriter.RewritePass([getattr(rules, f"{name}_rule")]) for name in _RULES),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        step(model)


def _any_batch(program: Any, example: Example) -> bool:
    """Whether every input that carries the batch kept a free axis: capture may fix it without complaint."""
    wanted = [t.ndim > 0 and t.shape[0] == batch_of(example) for t in named_tensors(example).values()]
    free = [bool(i.shape.rank()) and not isinstance(i.shape[0], int) for i in program.model.graph.inputs]
    return len(wanted) == len(free) and all(f or not w for w, f in zip(wanted, free, strict=True))


def _must_run(model: nn.Module, example: Example) -> None:
    try:
        with torch.inference_mode():
            run(model, example)
    except Exception as e:
        raise TargetError(
            f"onnx: {type(model).__qualname__} does not run on the example given: {first_line(e)}; "
            "check its shapes, types and names"
        ) from e


def _write(program: Any, path: Path) -> int:
    """Save in a folder beside ``path``, then move: the weights first, under a name of their own content."""
    (ir,) = need("onnx", "onnx_ir")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of the machine that made the file
    weights = [v.const_value for v in program.model.graph.initializers.values() if v.const_value is not None]
    data = None
    if sum(w.nbytes for w in weights) > WEIGHTS_INSIDE:
        digest = hashlib.blake2b(digest_size=8)
        for w in weights:
            digest.update(w.tobytes())
        data = f"{path.name}.{digest.hexdigest()}.data"
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with quiet():
            ir.save(program.model, folder / path.name, external_data=data)
        written = [f for f in (data, path.name) if f and (folder / f).is_file()]
        size = sum((folder / f).stat().st_size for f in written)
        for name in written:
            with (folder / name).open("rb") as f:
                os.fsync(f.fileno())
            (folder / name).replace(path.parent / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for old in path.parent.glob(f"{path.name}.{'[0-9a-f]' * 16}.data"):
        if old.name != data:
            old.unlink()
    return size


def nbytes_of(path: Path | str) -> int:
    """Bytes of an ONNX file together with the weights that it keeps in files beside it."""
    path = Path(path)
    (onnx,) = need("onnx", "onnx")
    graph = onnx.load(path, load_external_data=False).graph
    beside = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    return sum(f.stat().st_size for f in [path, *(path.parent / str(name) for name in beside)])


def open_session(
    path: Path | str, threads: int = 1, provider: str = "CPUExecutionProvider", profile: Path | None = None
) -> Any:
    """A session of ONNX Runtime on one provider, with every graph optimisation and so many intra-op threads.

    ``profile``: where the file begins that ``end_profiling`` of the session writes and names.

    Raises:
        TargetError: the ``onnx`` extra is missing, it has no such provider, or the file cannot be loaded.
    """
    (ort,) = need("onnx", "onnxruntime")
    if provider not in ort.get_available_providers():
        raise TargetError(
            f"onnxruntime: this build has no {provider}, only {', '.join(ort.get_available_providers())}: "
            "for CUDA, pip uninstall onnxruntime and pip install onnxruntime-gpu"
        )
    path = Path(path)
    if not path.is_file():
        raise TargetError(f"onnxruntime: there is no file {path}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    # threads that spin on after a run would take cores from whatever is measured next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as e:
        raise TargetError(f"onnxruntime: {path} cannot be loaded: {first_line(e)}; is it a whole ONNX file?") from e
    if provider not in session.get_providers():  # the runtime falls back to the CPU and says nothing
        raise TargetError(f"onnxruntime: {provider} does not start here: are the driver and the CUDA libraries there?")
    return session


def feeds(session: Any, example: Example) -> dict[str, Array]:
    """The arrays that a session takes: matched by keyword where the example has its names, else by position.

    Raises:
        TargetError: names or counts do not fit.
    """
    return matched([i.name for i in session.get_inputs()], example, "onnx")


def run_session(session: Any, arrays: dict[str, Array]) -> list[Array]:
    """Run a session.

    Raises:
        TargetError: the arrays do not fit the file's types or shapes, or the runtime failed.
    """
    try:
        outputs: list[Array] = session.run(None, arrays)
    except Exception as e:
        wanted = ", ".join(f"{i.name} {i.type} {i.shape}" for i in session.get_inputs())
        got = ", ".join(f"{n} {a.dtype} {list(a.shape)}" for n, a in arrays.items())
        raise TargetError(f"onnxruntime: {first_line(e)}; given {got}; the file takes {wanted}") from e
    return outputs


def parity(path: Path | str, model: nn.Module, examples: Iterable[Example]) -> float:
    r"""Largest relative error of an ONNX file against torch, over outputs: $\max|a - b| / \max|a|$.

    A file with a dynamic batch is also run on other batch sizes of the first example. The error is inf where
    one side is not finite and the other is.

    Args:
        path: the file.
        model: what it was exported from.
        examples: a list of examples, at least one.

    Raises:
        TargetError: no examples, or the outputs differ in number or shape.
    """
    session, twin = open_session(path), snapshot(model)
    weight = next(iter(twin.parameters()), None)
    device = weight.device if weight is not None else torch.device("cpu")
    worst, seen = 0.0, False
    for example in examples:
        batch = batch_of(example)
        again = [rebatched(example, n) for n in {1, batch + 2} - {batch}] if not seen and _takes_any(session) else []
        for e in (example, *again):
            with torch.inference_mode():
                ours = [array(t) for t in output_tensors(run(twin, moved(e, device)))]
            worst = max(worst, _relative(path, ours, run_session(session, feeds(session, e))))
        seen = True
    if not seen:
        raise TargetError(f"onnx: no examples to compare {path} with torch on: give at least one")
    return worst


def _takes_any(session: Any) -> bool:
    return any(i.shape and not isinstance(i.shape[0], int) for i in session.get_inputs())


def _relative(path: Path | str, ours: list[Array], theirs: list[Array]) -> float:
    shapes = [a.shape for a in ours], [b.shape for b in theirs]
    if shapes[0] != shapes[1]:
        raise TargetError(f"onnx: {path} gives outputs of shapes {shapes[1]}, torch gives {shapes[0]}: another model?")
    worst = 0.0
    for x, y in zip(ours, theirs, strict=True):
        a, b = x.astype(np.float64), y.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not (np.isfinite(a) | same).all() or not (np.isfinite(b) | same).all():
            return float("inf")
        a, b = a[~same], b[~same]
        if a.size:
            scale = np.abs(x[np.isfinite(x)].astype(np.float64)).max()
            worst = max(worst, float(np.abs(a - b).max() / scale) if scale else float("inf"))
    return worst


if __name__ == "__main__":
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    with tempfile.TemporaryDirectory() as demo:
        made = to_onnx(net, torch.randn(1, 3, 8, 8), Path(demo) / "net.onnx")
        error = parity(made.path, net, [torch.randn(4, 3, 8, 8)])
        print(f"{made.path.name}: {made.nbytes} bytes, any batch: {made.dynamic}, error {error:.1e}")
