"""Cost tables: what a layer takes on a target, measured at a grid of widths, between which it is interpolated."""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from secateur.atomic import write_bytes
from secateur.errors import TargetError
from secateur.targets.layers import Layer, Settings, from_key
from secateur.targets.measure import measure
from secateur.targets.memory import cache_folder, machine_of, versions
from secateur.targets.micro import ENOUGH, RUNS, WARM, module_of, timed, undisturbed
from secateur.types import Target

log = logging.getLogger("secateur")

ALIGNED = (16, 8, 4, 1)
"""Widths are told apart by the largest of these that divides them: kernels work in blocks."""
FINE = 64
"""Up to this width, both sides of every eighth are measured."""
NOTHING, BASICS = Layer("elements", (), (1, 1)), frozenset({"nothing", "building"})
"""Almost nothing, and the entries that are of no layer."""
SLOW = 0.3
"""Seconds: a target on which building almost nothing takes longer is measured at quarters of the dense widths."""


@functools.cache
def grid(align: int) -> tuple[int, ...]:
    """Widths at which an alignment is measured, ascending: steps of at most a half.

    Example:
        >>> grid(16)[:8], grid(8)[:4], grid(4)[:4], grid(1)[:8]
        ((16, 32, 48, 64, 96, 128, 192, 256), (8, 24, 40, 56), (4, 12, 20, 28), (1, 7, 9, 15, 17, 23, 25, 31))
    """
    coarse = [s * 2**i for i in range(5, 22) for s in (2, 3) if s * 2**i > FINE]
    fine = range(8, FINE + 1, 8)
    if align == 16:
        found = [w for w in fine if w % 16 == 0] + coarse
    elif align == 8:
        found = [w for w in fine if w % 16] + [w - 8 for w in coarse]
    elif align == 4:
        found = [w - 4 for w in (*fine, *coarse)]
    else:
        found = [1, *(w + d for w in fine for d in (-1, 1)), *(w - 1 for w in coarse)]
    return tuple(sorted(found))


def bracket(width: int, dense: int) -> tuple[tuple[int, float], ...]:
    """Widths that are measured in place of one, with their shares: it alone if it is the dense one, else neighbours.

    Example:
        >>> bracket(80, 96), bracket(96, 96), bracket(63, 96)
        (((64, 0.5), (96, 0.5)), ((96, 1.0),), ((63, 1.0),))
    """
    if width == dense:
        return ((width, 1.0),)
    nodes = grid(next(a for a in ALIGNED if width % a == 0))
    i = bisect.bisect_left(nodes, width)
    if i < len(nodes) and nodes[i] == width:
        return ((width, 1.0),)
    if i == 0 or i == len(nodes):
        return ((width, 1.0),)
    low, high = nodes[i - 1], nodes[i]
    share = (width - low) / (high - low)
    return (low, 1 - share), (high, share)


def quarters(width: int, dense: int) -> tuple[tuple[int, float], ...]:
    """As `bracket`, between quarters of the dense width, whatever their alignment.

    Example:
        >>> quarters(80, 96), quarters(72, 96), quarters(10, 96)
        (((72, 0.666...), (96, 0.333...)), ((72, 1.0),), ((1, 0.60...), (24, 0.39...)))
    """
    nodes = sorted({1, dense // 4, dense // 2, 3 * dense // 4, dense} - {0})
    i = bisect.bisect_left(nodes, width)
    if i == len(nodes) or nodes[i] == width:
        return ((width, 1.0),)
    low, high = nodes[i - 1], nodes[i]
    share = (width - low) / (high - low)
    return (low, 1 - share), (high, share)


@dataclass(eq=False)
class Table:
    """Seconds of single layers on one target, measured when they are first asked for.

    Attributes:
        target: where. entries: seconds by `Layer.key`, without what running nothing takes.
    """

    target: Target
    entries: dict[str, float] = field(default_factory=dict)
    _memo: dict[tuple[str, Settings, int, int, int, int], float] = field(default_factory=dict)
    _new: int = 0

    def at(self, kind: str, settings: Settings, widths: tuple[int, int], dense: tuple[int, int]) -> float:
        """Seconds of a layer: bilinear between the widths that are measured, alignments apart."""
        key = (kind, settings, *widths, *dense)
        known = self._memo.get(key)
        if known is None:
            known = self._memo[key] = self._interpolated(kind, settings, widths, dense)
        return known

    def _interpolated(self, kind: str, settings: Settings, widths: tuple[int, int], dense: tuple[int, int]) -> float:
        near = self._near
        if kind == "depthwise":
            pairs = [(w, w, s) for w, s in near(widths[0], dense[0])]
        else:
            ones, others = near(widths[0], dense[0]), near(widths[1], dense[1])
            pairs = [(a, b, s * t) for a, s in ones for b, t in others]
        return sum(share * self.measured(Layer(kind, settings, (a, b))) for a, b, share in pairs)

    def measured(self, layer: Layer) -> float:
        """The entry of a layer, which is measured if there is none."""
        known = self.entries.get(layer.key)
        if known is None:
            known = self.entries[layer.key] = max(self._time(layer) - self.nothing, 1e-9)
            self._new += 1
            if self._new >= 500:
                self.keep()
        return known

    @property
    def nothing(self) -> float:
        """What running almost nothing takes."""
        if "nothing" not in self.entries:
            self.entries["nothing"] = min(self._time(NOTHING) for _ in range(3))
        return self.entries["nothing"]

    @functools.cached_property
    def _near(self) -> Callable[[int, int], tuple[tuple[int, float], ...]]:
        """What stands for a width: neighbours of its alignment, or quarters where an entry takes long to build."""
        if self.target.layer is not None:
            return bracket
        if "building" not in self.entries:
            begun = perf_counter()
            self.entries["nothing"] = self._time(NOTHING)
            self.entries["building"] = perf_counter() - begun
        return bracket if self.entries["building"] < SLOW else quarters

    def _time(self, layer: Layer) -> float:
        if self.target.layer is not None:
            return self.target.layer(layer, self.target.threads)
        model, example = module_of(layer)
        made = self.target.build(model, example, self.target.threads)
        if made.elsewhere is None:
            return timed(made.run)
        return undisturbed(measure([made], RUNS, WARM, ENOUGH)[0].seconds.tolist())  # by that device's own clock

    def keep(self) -> None:
        """Write the entries to the cache, if there are new ones."""
        if self._new:
            path = cached(self.target)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, _text(self.target, {**_known(path), **self.entries}))
                self._new = 0
            except OSError as e:
                log.warning("the cost table could not be kept in %s: %s", path, e)


def where(target: Target) -> dict[str, Any]:
    """What a table belongs to: target, threads, the machine that it runs on, and versions."""
    return {
        "target": target.name,
        "threads": target.threads,
        "machine": machine_of(target),
        "versions": versions(target),
    }


def cached(target: Target) -> Path:
    """The file in which the table of a target on this machine is kept."""
    name = hashlib.sha256(json.dumps(where(target), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "tables" / f"{name}.json"


def table_of(target: Target) -> Table:
    """The table of a target, with what is known of it on this machine; a damaged file counts as none."""
    return Table(target, _known(cached(target)))


def _known(path: Path) -> dict[str, float]:
    try:
        return _entries(path, _header(path))
    except TargetError:
        return {}


def _text(target: Target, entries: Mapping[str, float]) -> bytes:
    held = {"format": "secateur cost table", "version": 2, **where(target), "unit": "s", "entries": dict(entries)}
    return json.dumps(held, indent=0, sort_keys=True).encode()


def _header(path: Path | str) -> dict[str, Any]:
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        if held["format"] == "secateur cost table" and held["version"] == 2:
            return dict(held)
    except OSError as e:
        raise TargetError(f"{path} cannot be read ({e.strerror}): give a file written by save_table") from e
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise TargetError(f"{path} is no cost table that can be read here: give a file written by save_table")


def _entries(path: Path | str, held: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        for key, value in held["entries"].items():
            if key not in BASICS:
                from_key(key)
            if isinstance(value, bool) or not math.isfinite(value) or value < 0:
                raise ValueError(key)
            found[key] = float(value)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise TargetError(f"{path}: an entry of the cost table makes no sense ({e}); measure it anew") from e
    return found


def save_table(target: Target, path: Path | str) -> int:
    """Write what is known of single layers on a target, to be shared; returns how many entries there are.

    JSON: target, threads, machine, versions and, by layer, seconds.

    Raises:
        TargetError: nothing is known of this target on this machine yet.

    Example:
        >>> import secateur as sc
        >>> save_table(sc.eager, "table.json")  # doctest: +SKIP
        412
    """
    entries = table_of(target).entries
    if not entries:
        raise TargetError(f"{target.name}: no layer was measured here yet; predict a plan's latency first")
    write_bytes(Path(path), _text(target, entries))
    return len(entries)


def load_table(target: Target, path: Path | str, *, force: bool = False) -> int:
    """Take over a table that `save_table` wrote; returns how many entries are new.

    Args:
        target: whose table it becomes. path: the file.
        force: take it although machine, versions, threads or target differ.

    Raises:
        TargetError: it is of another machine, runtime, version or number of threads, no table, or cannot be read.

    Example:
        >>> import secateur as sc
        >>> load_table(sc.eager, "table.json")  # doctest: +SKIP
        412
    """
    held, here = _header(path), where(target)
    other = [f"{what} is {held.get(what)!r}, here {here[what]!r}" for what in here if held.get(what) != here[what]]
    if other and not force:
        raise TargetError(f"{path} was measured elsewhere: {'; '.join(other)}. Measure it here, or pass force=True")
    table, entries = table_of(target), _entries(path, held)
    new = {k: v for k, v in entries.items() if k not in table.entries}
    table.entries.update(new)
    table._new = len(new)
    table.keep()
    return len(new)
