"""A model as edge runtimes take it: tensors in a fixed order in, a tuple of tensors out, captured by torch.export."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.calling import as_call, run
from secateur.errors import TargetError
from secateur.export.prepare import first_line, moved, named_tensors, output_tensors, snapshot
from secateur.export.quiet import quiet
from secateur.types import Example

_NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def tensors_in_order(example: Example) -> list[Tensor]:
    """The tensors of an example on the CPU: by position, or by name where it is a dict, whatever order that has.

    A file keeps no names of arguments; this order is the same where it is written and where it is run.

    Example:
        >>> tensors_in_order({"b": torch.tensor(2), "a": torch.tensor(1)})
        [tensor(1), tensor(2)]
    """
    return [t.detach().cpu().contiguous() for _, t in _ordered(example)]


def _ordered(example: Example) -> list[tuple[str, Tensor]]:
    found = list(named_tensors(example).items())
    return sorted(found, key=lambda named: named[0]) if as_call(example)[1] else found


class _Flat(nn.Module):
    """A model over the tensors of its example; whatever else the example holds stays as it is."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model = model
        leaves, self.structure = pytree.tree_flatten(example)
        places = {id(t): i for i, (_, t) in enumerate(_ordered(example))}
        self.leaves = [(places[id(v)], None) if isinstance(v, Tensor) else (None, v) for v in leaves]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [value if place is None else tensors[place] for place, value in self.leaves]
        return tuple(output_tensors(run(self.model, pytree.tree_unflatten(leaves, self.structure))))


def flat(runtime: str, model: nn.Module, example: Example) -> nn.Module:
    """The model on the CPU, frozen, as a module of `tensors_in_order`; it must run on the example.

    Raises:
        TargetError: it does not run on the example.

    Example:
        >>> flat("clock", nn.Linear(3, 2), torch.ones(1, 3))(torch.ones(4, 3))[0].shape
        torch.Size([4, 2])
    """
    made = _Flat(snapshot(model).cpu(), example).eval()
    try:
        with torch.inference_mode():
            run(made.model, moved(example, "cpu"))
    except Exception as e:
        raise TargetError(
            f"{runtime}: {type(model).__qualname__} does not run on the example given: {first_line(e)}; "
            "check its shapes, types and names"
        ) from e
    return made


def captured(runtime: str, model: nn.Module, example: Example) -> Any:
    """The ``torch.export.ExportedProgram`` of a model on the sizes of its example.

    Raises:
        TargetError: the model does not run on the example or cannot be captured; says the line of its code.

    Example:
        >>> program = captured("clock", nn.Linear(3, 2), torch.ones(1, 3))
        >>> [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        ['aten.linear.default']
    """
    made = flat(runtime, model, example)
    return attempt(
        runtime, model, lambda: torch.export.export(made, tuple(tensors_in_order(example)), strict=False), line_of
    )


def attempt(
    runtime: str, model: nn.Module, convert: Callable[[], Any], place: Callable[[BaseException], str | None]
) -> Any:
    """Convert without a word, or say which op and which line of the model's code stood in the way.

    Args:
        runtime: what converts. model: for its name in the error. convert: does it.
        place: ``error -> what and where``, or None where the error does not tell.

    Raises:
        TargetError: the conversion failed.
    """
    try:
        with quiet(), torch.no_grad():
            return convert()
    except TargetError:
        raise
    except Exception as e:
        where = place(e)
        raise TargetError(
            f"{runtime}: {type(model).__qualname__} runs in torch and cannot be converted"
            f"{f' for {where}' if where else ''}: {first_line(e)}; rewrite that, or take another target"
        ) from e


def line_of(error: BaseException) -> str | None:
    """The innermost line of the model's code in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if not f.filename.startswith((*_NOT_THE_MODEL, "<"))]
    return f"{Path(mine[-1].filename).name}:{mine[-1].lineno}" if mine else None


def line_of_op(program: Any, op: str) -> str | None:
    """The line of the model's code whose call became an op, such as ``aten.lgamma.default``.

    Example:
        >>> line_of_op(captured("clock", nn.Linear(3, 2), torch.ones(1, 3)), "aten.svd.default") is None
        True
    """
    for stage in (lambda: program, program.run_decompositions):
        with quiet():
            nodes: Sequence[Any] = stage().graph.nodes
        for node in nodes:
            if node.op == "call_function" and str(node.target).removeprefix("torch.ops.") == op:
                return line_in(node.meta.get("stack_trace") or "")
    return None


def line_in(trace: str) -> str | None:
    r"""The last line of the model's code in the text of a stack trace.

    Example:
        >>> line_in('  File "/home/me/net.py", line 13, in forward\n    return x')
        'net.py:13'
    """
    found = None
    for text in trace.splitlines():
        if text.strip().startswith("File ") and not any(own in text for own in _NOT_THE_MODEL):
            name, line = text.split('"')[1], text.split("line ")[1].split(",")[0]
            found = f"{Path(name).name}:{line}"
    return found


if __name__ == "__main__":
    print(captured("clock", nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.ones(1, 8)).graph)
