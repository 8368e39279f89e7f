"""The pass over the dense blocks, kept on disk as it goes on: a row a block, and what cuts cost the predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.atomic import write_bytes
from secateur.digest import digest_of, tensors_in
from secateur.llm.prune import settings
from secateur.llm.shrink.asked import Shrinking
from secateur.llm.shrink.effect import Effects, on_disk
from secateur.llm.shrink.prices import Anatomy
from secateur.llm.shrink.survey import Surveyor, probes
from secateur.llm.shrink.tail import Tail
from secateur.llm.shrink.units import Family
from secateur.llm.walk import Progress, Walk

MOMENTS = 4
"""Second moments that are held at once of an input, in float32: dense and cut ones in float64."""


def surveyed(
    anatomy: Anatomy,
    mine: Sequence[Family],
    how: Shrinking,
    batches: Sequence[Tensor],
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: float | None = None,
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The dense pass: a row a block, and the divergence by ``block/family`` and ``block/drop``.

    What is done lies in ``folder``. Where a limit on memory sends the streams of the effects there too, a killed run
    goes on from it; else its survey begins again.
    """
    if not (mine or how.weighs or anatomy.stream is not None):
        return [], {}  # there is nothing to find out
    batches = probe_first(batches, how.probes)
    count = 1 + sum(len(probes(f.units, how.levels)) for f in mine) + how.layers * len(anatomy.paths)
    large = on_disk(memory, count, batches[0].numel(), anatomy.skeleton, dtype)
    key = {
        "model": anatomy.source.identity(), "tokens": digest_of((str(i), b) for i, b in enumerate(batches)),
        "score": settings(how.criterion.score), "stats": digest_of(tensors_in(how.stats)), **how.survey(),
        "dtype": str(dtype), "on_disk": large,
    }  # fmt: skip
    _claim(folder, key)
    effects = Effects(1, folder / "effects" if large else None) if how.weighs else None
    found = folder / "effects.json"
    if found.exists():
        return [_row(folder, i) for i in range(len(anatomy.paths))], json.loads(found.read_text(encoding="utf-8"))
    if not large:  # streams in memory are gone with the run that was killed
        shutil.rmtree(folder, ignore_errors=True)
        _claim(folder, key)
    surveyor = Surveyor(
        mine, how.criterion, how.stats, how.damping or 0.0, how.damping is not None, effects, how.levels,
        how.layers, anatomy.stream,
    )  # fmt: skip
    walk = Walk.begin(
        anatomy.source, batches, device=device, dtype=dtype, memory=memory, moments=MOMENTS, folder=folder / "states"
    )
    rows = []
    for index in range(len(walk)):
        file = folder / f"{index:05}.json"
        if progress is not None:
            progress(index, len(walk), f"survey of {walk.paths[index]}")
        if index >= walk.hidden.block:
            live = walk.live(index)
            if not file.exists():
                write_bytes(file, json.dumps(surveyor(live)).encode())
            if index < len(walk) - 1:
                walk.pass_on(live, live.module.state_dict().items())
        rows.append(_row(folder, index))
    measured = {} if effects is None else _divergences(anatomy, effects, batches[0], dtype, device)
    write_bytes(found, json.dumps(measured).encode())
    for name in ("states", "effects"):  # large, and of no use any more
        shutil.rmtree(folder / name, ignore_errors=True)
    return rows, measured


def _divergences(
    anatomy: Anatomy, effects: Effects, probe: Tensor, dtype: torch.dtype, device: torch.device | str
) -> dict[str, float]:
    tail = Tail(anatomy.source, anatomy.paths, dtype, device)
    return effects.divergences(
        len(anatomy.paths), lambda i, hidden: tail(probe[:, : hidden.shape[1]].to(device), hidden)
    )


def _row(folder: Path, block: int) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / f"{block:05}.json").read_text(encoding="utf-8"))
    return row


def probe_first(batches: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """The batches, the first no larger than the probe, but of one window at least."""
    tokens = min(tokens, max(512, sum(b.numel() for b in batches) // 16))
    rows = max(1, tokens // batches[0].shape[1])
    return [b for b in (batches[0][:rows], batches[0][rows:], *batches[1:]) if len(b)]


def _claim(folder: Path, key: Mapping[str, Any]) -> None:
    """An empty folder, or what the same survey left in it."""
    header, told = folder / "survey.json", json.dumps(key, sort_keys=True)
    if not header.is_file() or header.read_text(encoding="utf-8") != told:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_bytes(header, told.encode())
