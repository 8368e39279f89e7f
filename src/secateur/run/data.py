"""Data and examples from the text that names them."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import example_of
from secateur.errors import ArgumentError, DataError, SecateurError
from secateur.export.prepare import named_tensors, rebatched
from secateur.run.names import import_name, nearest
from secateur.train.batches import not_finite
from secateur.types import Batches, Example

log = logging.getLogger("secateur")

TARGETS = "targets"
"""An array of this name in a data file is what the model should answer, not an input."""

_DTYPES = {
    name: getattr(torch, name) for name in "float16 bfloat16 float32 float64 int8 uint8 int16 int32 int64 bool".split()
}
_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]\w*))?(?::(?P<below>\d+))?")


@dataclass(frozen=True)
class Again:
    """Batches from a function that returns a fresh iterator at each call, to be gone over many times."""

    make: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


@dataclass(frozen=True)
class Rest:
    """Batches without the first ones."""

    batches: Batches
    skipped: int

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.batches), self.skipped, None)


def held_out(data: Batches, most: int) -> tuple[list[Any], Batches]:
    """The first batches, so many and half of all at most, and the rest; a single one is both.

    Example:
        >>> held, rest = held_out([1, 2, 3], 2)
        >>> held, list(rest)
        ([1], [2, 3])
    """
    first = list(itertools.islice(iter(data), 2 * most))
    count = min(most, len(first) // 2)
    if not count:
        log.warning(
            "data: one batch alone, so what cuts cost is measured on what the scores were calibrated on, where it "
            "seems to cost less than it does: give more batches"
        )
        return first, data
    return first[:count], Rest(data, count)


def load_data(spec: str, batch_size: int = 32, not_in: Path | None = None) -> Batches:
    """The batches that ``spec`` names.

    Args:
        spec: ``module:callable`` (called without arguments; returns an iterable of batches, such as a list, a
            DataLoader or a generator), or a ``.npy``, ``.npz`` or ``.safetensors`` file whose arrays have the
            items along their first axis. One array is the model's only argument; several are keyword
            arguments by name; one named ``targets`` goes beside them. float64 becomes float32.
        batch_size: items in a batch, for files.
        not_in: as in `import_name`.

    Raises:
        ArgumentError: there is no such callable or file.
        DataError: the file is empty, damaged, pickled, or holds NaN or inf; what was returned cannot be
        iterated.

    Example:
        >>> import numpy as np, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.npy"
        >>> np.save(path, np.ones((5, 2)))
        >>> [tuple(b.shape) for b in load_data(str(path), batch_size=2)]
        [(2, 2), (2, 2), (1, 2)]
    """
    path = Path(spec).expanduser()
    if path.suffix in {".npy", ".npz", ".safetensors"}:
        if not path.is_file():
            raise ArgumentError(f"data {spec}: there is no such file")
        return _from_file(path, batch_size)
    if ":" not in spec:
        raise ArgumentError(f"data {spec!r}: give module:callable, or a .npy, .npz or .safetensors file")
    make = import_name(spec, not_in)
    value = _call(spec, make) if callable(make) else make
    if isinstance(value, (Tensor, Mapping, str, bytes)) or not isinstance(value, Iterable):
        raise DataError(f"data {spec} gave {type(value).__name__}, expected an iterable of batches: return [batch]")
    if isinstance(value, Iterator):
        if not callable(make):
            raise DataError(f"data {spec} is an iterator, which can be gone over once: name a function that makes it")
        return Again(make)
    return value


def load_example(
    spec: str | None, data: Batches | None, model: nn.Module | None = None, not_in: Path | None = None
) -> Example:
    """One input of the model.

    Args:
        spec: ``module:callable``; a shape such as ``"1x3x224x224"``; several, by position or by keyword:
            ``"input_ids=1x128:int64:30522,attention_mask=1x128:ones"`` (a dtype, or ``ones`` or ``zeros`` of
            int64; integers are drawn below the last number, 2 unless given). None takes the first item of the
            first batch.
        data: batches, or None.
        model: tells an example from a pair ``(example, targets)``.
        not_in: as in `import_name`.

    Raises:
        ArgumentError: it cannot be read, or neither it nor data was given.
        DataError: data is empty, or its first batch holds NaN or inf.

    Example:
        >>> load_example("2x3", None).shape
        torch.Size([2, 3])
        >>> load_example("ids=1x4:int64:9,mask=1x4:ones", None)["mask"]
        tensor([[1, 1, 1, 1]])
    """
    if spec is not None:
        return _parse(spec) if _looks_like_shapes(spec) else _example_of_callable(spec, not_in)
    if data is None:
        raise ArgumentError("no example: give --example (such as 1x3x224x224) or --data")
    first = next(iter(data), None)
    if first is None:
        raise DataError("data is empty: it must hold at least one batch")
    bad = not_finite(first)
    if bad:
        raise DataError(f"the first batch of data: {bad[0]}; clean the data")
    return rebatched(example_of(model or nn.Identity())(first)[0], 1)


def describe(example: Example) -> str:
    """Shapes and dtypes in words.

    Example:
        >>> describe({"ids": torch.zeros(1, 4, dtype=torch.int64)})
        'ids 1x4 int64'
    """

    def one(name: str, t: Tensor) -> str:
        shape = "x".join(map(str, t.shape)) or "scalar"
        return f"{'' if name.isdigit() else name} {shape} {str(t.dtype).removeprefix('torch.')}".strip()

    if isinstance(example, Tensor):
        return one("", example)
    return ", ".join(one(name, t) for name, t in named_tensors(example).items())


def with_rows(spec: str, rows: int) -> str:
    """A text of shapes with another batch size; any other text as it is.

    Example:
        >>> with_rows("ids=1x128:int64:30522,mask=1x128:ones", 8), with_rows("1x3x224x224", 2)
        ('ids=8x128:int64:30522,mask=8x128:ones', '2x3x224x224')
    """
    first = _SHAPE.match(spec.split(",")[0].strip())
    if first is None or not _looks_like_shapes(spec):
        return spec
    batch = first["shape"].split("x")[0]
    return re.sub(rf"(^|[,=]\s*){batch}(?=[x:,]|$)", rf"\g<1>{rows}", spec)


def _looks_like_shapes(spec: str) -> bool:
    return spec[:1].isdigit() or "=" in spec


def _parse(spec: str) -> Example:
    generator = torch.Generator().manual_seed(0)
    names: list[str | None] = []
    values: list[Tensor] = []
    for part in spec.split(","):
        match = _SHAPE.fullmatch(part.strip())
        if match is None:
            raise ArgumentError(
                f"example {part.strip()!r} is not a shape: write 1x3x224x224, or input_ids=1x128:int64:30522 "
                "(name, shape, dtype or ones or zeros, and for integers the smallest number not drawn)"
            )
        names.append(match["name"])
        shape = tuple(int(n) for n in match["shape"].split("x"))
        values.append(_draw(shape, match["dtype"] or "float32", match["below"], generator))
    if all(n is None for n in names):
        return values[0] if len(values) == 1 else tuple(values)
    if None in names or len(set(names)) < len(names):
        raise ArgumentError(f"example {spec!r}: name every input once, or none of them")
    return {str(n): v for n, v in zip(names, values, strict=True)}


def _draw(shape: tuple[int, ...], dtype: str, below: str | None, generator: torch.Generator) -> Tensor:
    if dtype in ("ones", "zeros"):
        return torch.full(shape, int(dtype == "ones"), dtype=torch.int64)
    if dtype not in _DTYPES:
        raise ArgumentError(f"example: no dtype is called {dtype!r}: {nearest(dtype, [*_DTYPES, 'ones', 'zeros'])}")
    kind = _DTYPES[dtype]
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator).to(kind)
    return torch.randint(0, int(below or 2), shape, generator=generator).to(kind)


def _example_of_callable(spec: str, not_in: Path | None) -> Example:
    if ":" not in spec:
        raise ArgumentError(f"example {spec!r}: give a shape such as 1x3x224x224, or module:callable")
    make = import_name(spec, not_in)
    value = make if isinstance(make, (Tensor, tuple, dict)) else _call(spec, make)
    if not isinstance(value, (Tensor, tuple, dict)):
        raise ArgumentError(
            f"example {spec} gave {type(value).__name__}, expected a tensor, a tuple of positional "
            "arguments or a "
            "dict of keyword arguments"
        )
    return value


def _from_file(path: Path, batch_size: int) -> list[Any]:
    if batch_size < 1:
        raise ArgumentError(f"batch size must be at least 1, got {batch_size}")
    tensors = _read(path)
    sizes = {k: v.shape[0] if v.ndim else 0 for k, v in tensors.items()}
    if not tensors or 0 in sizes.values():
        raise DataError(f"{path} is empty: every array needs at least one item along its first axis, got {sizes}")
    if len(set(sizes.values())) > 1:
        raise DataError(f"{path}: the arrays have different numbers of items along their first axis: {sizes}")
    for name, value in tensors.items():
        bad = not_finite(value)
        if bad:
            raise DataError(f"{path}, {name}: {bad[0].partition(' ')[2].partition(' ')[2]}; clean the data")
    targets = tensors.pop(TARGETS, None)
    if not tensors:
        raise DataError(f"{path} holds targets only; the inputs are missing")
    batches: list[Any] = []
    for start in range(0, next(iter(sizes.values())), batch_size):
        part = {k: v[start : start + batch_size] for k, v in tensors.items()}
        example = next(iter(part.values())) if len(part) == 1 else part
        batches.append(example if targets is None else (example, targets[start : start + batch_size]))
    return batches


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {k: _as_float32(v) for k, v in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not a safetensors file, or it is damaged: {error}") from error
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"data": loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
        return {k: _as_float32(torch.from_numpy(np.array(v, order="C"))) for k, v in arrays.items()}
    except (ValueError, TypeError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise DataError(f"{path} could not be read as arrays of numbers (pickled ones never are): {error}") from error


def _as_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.float64 else value


def _call(spec: str, make: Any) -> Any:
    if not callable(make):
        raise ArgumentError(f"{spec} is {type(make).__name__}, not a function")
    try:
        return make()
    except SecateurError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"{spec}() failed: {type(error).__name__}: {error}; it is called without arguments"
        ) from error
