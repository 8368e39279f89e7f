"""Work on a model block by block, in bounded memory: read, run, change, write, go on; and take up a killed run."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.digest import digest_of
from secateur.errors import ArgumentError, FormatError, SecateurError
from secateur.llm import together
from secateur.llm.live import Live
from secateur.llm.packed import by_module, write_packed
from secateur.llm.shards import Blocks, finish
from secateur.llm.source import Source
from secateur.llm.tensor_files import Made, stored_in, write
from secateur.llm.walk import Progress, Walk, batches_of
from secateur.run.folder import WORK, Folder, claim
from secateur.types import Bools

Row: TypeAlias = Mapping[str, Any]
"""What is told of a block: JSON."""
Work: TypeAlias = Callable[[Live], Row]
"""Changes ``live.module`` in place, or sets another, and tells of it."""


@dataclass(frozen=True)
class Streamed:
    """What a stream did.

    Attributes:
        folder: the result. rows: by block, what the work told, with ``index``, ``path`` and ``seconds``.
    """

    folder: Path
    rows: Sequence[Row]


@dataclass(frozen=True)
class Change:
    """What the work on all blocks means for the whole model.

    Attributes:
        config: entries of ``config.json`` that change.
        names: ``name in the module -> its new one``, for blocks that are renumbered; None leaves a tensor out.
        extra: ``(folder)``: writes more files.
        tensors: name in the module -> new values of tensors outside of the blocks.
        own_names: tensors get the module's names, not the checkpoint's, which transformers may rename and merge.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    names: Callable[[str], str | None] = lambda name: name
    extra: Callable[[Path], None] | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    own_names: bool = False


def stream(
    source: Source,
    tokens: Tensor | Sequence[Tensor],
    work: Work,
    out: str | Path,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    dense: bool = False,
    dense_inputs: bool = False,
    channels: Bools | None = None,
    signature: Mapping[str, Any] | None = None,
    rebuild: Callable[[nn.Module, Row], nn.Module] | None = None,
    change: Callable[[Sequence[Row]], Change] = lambda rows: Change(),
    progress: Progress | None = None,
    prepare: Callable[[Path], Any] | None = None,
    memory: float | None = None,
    moments: int = 1,
    packed: bool = False,
    force: bool = False,
) -> Streamed:
    """Run work over the blocks of a model and write the result as a folder.

    For each block: its weights are read, the calibration data run through it as the work asks, the work changes it,
    its tensors are written in the checkpoint's types, and what was written makes the inputs of the next block. The same
    call takes up a run that was killed, with the same result bit for bit on the same machine.

    Args:
        source: the model. tokens: int64 (samples, window), of the calibration text. work: what to do to a block.
        out: a new or empty folder, or that of the same call, unfinished.
        batch: samples at once. device, dtype: to compute in; weights keep the checkpoint's types in the result.
        dense: keep the dense model's hidden states beside: ``live.dense``.
        dense_inputs: each block gets what the dense blocks before it make, as in FLAP.
        channels: of the hidden states, bool (width,), those that the changed blocks work on; None: all.
        signature: what tells this call from another: settings of the work, as JSON.
        rebuild: ``(module, row) -> module`` of the shape that the work gave it, for taking up a run.
        change: ``rows -> Change`` of the whole model.
        prepare: finds something out before the first block, as JSON, given a folder for hidden states of its own;
            every block has it as ``live.prepared``.
        memory: bytes that the process may take: hidden states that do not fit go to disk, in the output folder.
        moments: how many second moments of an input the work holds at once, for that.
        progress: hears ``(blocks done, blocks, words)``.
        packed: write the sparse format, which `secateur.load_sparse` reads, in the place of the checkpoint's.
        force: replace what is in the folder.

    Raises:
        ArgumentError: the folder holds something else, or an unfinished run of another call.
        DataError: tokens that the model does not have. TraceError: it cannot be run block by block.
        FormatError: the disk is full: what is done is kept, and the same call goes on.

    Memory: one block in ``dtype``, what the work needs, and the hidden states, unless ``memory`` sends them to disk.
    """
    batches = batches_of(tokens, batch)
    asked = {**(signature or {}), "model": source.identity(), "tokens": digest_of(named(batches)), "dtype": str(dtype)}
    asked |= {"dense": dense, "dense_inputs": dense_inputs}
    with claimed(out, asked, force) as folder, room_on(folder.path):
        blocks = Blocks(folder.work / "blocks")
        prepared = _prepared(folder.work / "prepared.json", prepare)
        walk = Walk.begin(
            source, batches, device=device, dtype=dtype, dense=dense, dense_inputs=dense_inputs, channels=channels,
            memory=memory, moments=moments, folder=folder.work / f"states-{together.rank()}-of-{together.size()}",
        )  # fmt: skip
        done = together.first_tells(blocks.done)
        for index in range(len(walk)):
            if progress is not None:
                progress(index, len(walk), walk.paths[index])
            _step(walk, blocks, index, index < done, work, rebuild, prepared)
        if progress is not None:
            progress(len(walk), len(walk), "writing")
        rows = [blocks.row(i) for i in range(len(walk))]
        together.wait()  # all have read what goes now
        if together.rank() == 0:
            _publish(folder, walk, blocks, change(rows), packed)
        together.wait()
    return Streamed(Path(out), rows)


@contextmanager
def room_on(folder: Path) -> Iterator[None]:
    """Say what to do where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise FormatError(
            f"no room to write {folder} ({error.strerror}): the blocks that are done are kept there; make room, and "
            "the same call goes on"
        ) from error


def named(batches: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Batches by their numbers."""
    return [(str(i), b) for i, b in enumerate(batches)]


def _step(
    walk: Walk,
    blocks: Blocks,
    index: int,
    done: bool,
    work: Work,
    rebuild: Callable[[nn.Module, Row], nn.Module] | None,
    prepared: Any,
) -> None:
    """One block: worked on and written; or, if a killed run got so far, read again. What is written is passed on."""
    if done:
        if index < walk.hidden.block or index == len(walk) - 1:
            return
        module = walk.block(index)
        live = walk.again(index, module if rebuild is None else rebuild(module, blocks.row(index)))
    else:
        live = walk.live(index)
        live.prepared = prepared
        known, start = set(live.module.state_dict()), time.perf_counter()
        told = work(live)
        row = {"index": index, "path": live.path, "seconds": round(time.perf_counter() - start, 3), **told}
        if together.rank() == 0:
            kinds = {n: walk.source.dtype_of(f"{live.path}.{n}") for n in known}
            blocks.save(index, live.module.state_dict(), kinds, row)
        together.wait()
    if index < len(walk) - 1:
        walk.pass_on(live, blocks.tensors(index))


def _prepared(file: Path, prepare: Callable[[Path], Any] | None) -> Any:
    """What was found out before, or what is found out now."""
    if prepare is None:
        return None
    if together.first_tells(file.exists()):
        return together.first_tells(json.loads(file.read_text(encoding="utf-8")) if file.exists() else None)
    place = file.with_name(f"prepare-{together.rank()}")
    shutil.rmtree(place, ignore_errors=True)  # it begins anew
    found = prepare(place)
    shutil.rmtree(place, ignore_errors=True)
    if together.rank() == 0:
        write_bytes(file, (json.dumps(found) + "\n").encode())
    together.wait()
    return together.first_tells(found)


def _publish(folder: Folder, walk: Walk, blocks: Blocks, change: Change, packed: bool) -> None:
    """Put the result together in the work folder, and then in its place."""
    result = folder.work / "result"
    result.mkdir(exist_ok=True)
    for path in result.glob(".*"):  # what a killed run was writing
        path.unlink()
    if packed:
        write_packed(result, walk.source, walk.skeleton, _in_module(walk, blocks, change))
        finish(result, walk.source, [], change.config, change.extra)
    else:
        named = _in_module if change.own_names else _result
        finish(result, walk.source, named(walk, blocks, change), change.config, change.extra)
    folder.place(result)


def _in_module(walk: Walk, blocks: Blocks, change: Change) -> list[Made]:
    """Every tensor of the result once, by its name in the module."""
    done = {n: Made.of(n, t.detach().cpu()) for n, t in change.tensors.items()}
    for i, path in enumerate(walk.paths):
        done |= {f"{path}.{n}": Made.copied(f"{path}.{n}", s) for n, s in stored_in(blocks.file(i)).items()}
    named = ((change.names(t.name), t) for t in by_module(walk.source, walk.skeleton, done))
    return [replace(t, name=name) for name, t in named if name is not None]


def _result(walk: Walk, blocks: Blocks, change: Change) -> list[Made]:
    """Every tensor of the result, by its name in the checkpoint."""
    source, made = walk.source, []
    inside = {n for i in range(len(walk)) for n in walk.names(i)}
    replaced = source.stored_as(walk.skeleton, change.tensors)
    for tensor in source.untouched(source.parts_of(inside) | set(replaced)):
        name = change.names(tensor.name)
        made += [] if name is None else [replace(tensor, name=name)]
    made += [Made.of(name, t.detach().cpu()) for name, t in replaced.items()]
    for i in range(len(walk)):
        file = blocks.file(i)
        names = {n: change.names(f"{walk.paths[i]}.{n}") for n in stored_in(file)}
        if source.merged(n for n in names.values() if n is not None):
            whole = {new: t for n, t in blocks.tensors(i) if (new := names[n]) is not None}
            file = file.with_suffix(".split")
            write(file, [Made.of(n, t) for n, t in source.stored_as(walk.skeleton, whole).items()])
            made += [Made.copied(n, s) for n, s in stored_in(file).items()]
        else:
            renamed = [(names[n], s) for n, s in stored_in(file).items()]
            made += [Made.copied(source.name_of(n), s) for n, s in renamed if n is not None]
    return made


@contextmanager
def claimed(out: str | Path, asked: Mapping[str, Any], force: bool) -> Iterator[Folder]:
    """The output folder, taken by the first process for all; if it cannot be, all know."""
    if together.rank():
        if problem := together.first_tells(None):
            raise ArgumentError(problem)
        path = Path(out).expanduser()
        yield Folder(path, path / WORK, False, asked)
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(claim(out, asked, force))
        except SecateurError as error:
            together.first_tells(str(error))
            raise
        together.first_tells(None)
        yield folder
