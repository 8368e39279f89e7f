"""The alignment staircase: the heaviest layer, alone, at multiples of eight and between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calling import run
from secateur.errors import TargetError
from secateur.evidence.advice import Staircase, Step
from secateur.export.prepare import snapshot
from secateur.graph.couple import Groups
from secateur.targets.measure import compare, measure
from secateur.types import Artefact, Example, Group, Measurement, Target

ALIGNED, BETWEEN = (0, 8, -8, 16, -16), (1, 4, -4, -7, 9, 12, -12, -15)
"""Widths around half of the layer that are timed: multiples of eight, and others."""
FEWEST_UNITS = 24


def staircase(
    model: nn.Module,
    groups: Groups,
    example: Example,
    target: Target,
    in_time: Callable[[], bool],
    repeats: int = 30,
) -> Staircase | None:
    """Latency of the heaviest layer that can be timed alone, with the layer behind it, against its width.

    The layer is one of the family of groups that weighs most in multiply-accumulates. It is built anew at 13 widths
    around half of its own, with the input that it gets in the model; all are timed in one interleaved run.

    Args:
        model, groups, example, target: as everywhere. in_time: asked before each export. repeats: rounds.

    Returns:
        None where no layer can be timed alone, or there is no time for three widths.
    """
    found = _heaviest(model, groups)
    if found is None:
        return None
    group, layers = found
    given = _input_of(model, example, layers[0])
    if given is None:
        return None
    middle = max(16, 8 * round(group.units / 16))
    wanted = [middle + i for pair in (ALIGNED[:2], BETWEEN, ALIGNED[2:]) for i in pair]
    built: dict[int, Artefact] = {}
    for width in wanted:
        if not 1 <= width <= group.units:
            continue
        if not in_time():
            break
        try:
            built[width] = target.build(resized(model, layers, width), given, target.threads)
        except TargetError:
            return None
    if len(built) < 3:
        return None
    timed = dict(zip(built, measure(list(built.values()), repeats), strict=True))
    points = tuple(Step(w, timed[w].median, w % 8 == 0) for w in sorted(timed))
    return Staircase(group.name, f"{' and '.join(layers)}, alone", points, _sentence(timed, middle))


def _sentence(timed: dict[int, Measurement], middle: int) -> str:
    """What one unit more than a multiple of eight costs."""
    odd, said = timed[middle + 1], []
    if middle in timed:
        said.append(f"{middle + 1} units against {middle}: {compare(timed[middle], odd).words()}")
    if middle + 8 in timed:
        said.append(f"{middle + 1} units against {middle + 8}: {compare(timed[middle + 8], odd).words()}")
    return "; ".join(said)


def _heaviest(model: nn.Module, groups: Groups) -> tuple[Group, tuple[str, ...]] | None:
    """A group of the family whose halving saves most, with the paths of a layer that makes it and one that takes it."""
    full = groups.all_kept()
    dense, alike = groups.macs(full), dict[tuple[str, int], list[Group]]()
    for g in groups:
        alike.setdefault((re.sub(r"\d+", "*", g.name), g.units), []).append(g)

    def saved(family: Sequence[Group]) -> int:
        half = {g.name: np.arange(g.units) < max(g.units // 2, g.least) for g in family}
        return int(dense - groups.macs({**full, **half}))

    for family in sorted(alike.values(), key=saved, reverse=True):
        for group in family:
            layers = _layers(model, group)
            if layers and group.units >= FEWEST_UNITS:
                return group, layers
    return None


def _layers(model: nn.Module, group: Group) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    ends: dict[tuple[str, int], list[str]] = {("out", 0): [], ("in", 1): []}
    for s in group.slices:
        path, _, tensor = s.name.rpartition(".")
        if (s.role, s.dim) in ends and s.index.shape[1:] == (1,) and tensor == "weight" and _plain(modules.get(path)):
            ends[s.role, s.dim].append(path)
    if not ends["out", 0]:
        return ()
    first = ends["out", 0][0]
    behind = [p for p in ends["in", 1] if type(modules[p]) is type(modules[first])]
    return (first, *behind[:1])


def _plain(module: nn.Module | None) -> bool:
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return type(module) in (nn.Conv1d, nn.Conv2d) and module.groups == 1
    return type(module) is nn.Linear


def resized(model: nn.Module, layers: Sequence[str], width: int) -> nn.Module:
    """New layers like these, the first of which gives so many units and the second of which takes them.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> resized(net, ("0", "2"), 5)
        Sequential(
          (0): Linear(in_features=4, out_features=5, bias=True)
          (1): ReLU()
          (2): Linear(in_features=5, out_features=2, bias=True)
        )
    """
    old = [model.get_submodule(path) for path in layers]
    like = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [_like(old[0], None, width), nn.ReLU()]
        if len(old) > 1:
            parts.append(_like(old[1], width, None))
    return nn.Sequential(*parts).to(like.device, like.dtype).eval()


def _like(old: nn.Module, inside: int | None, out: int | None) -> nn.Module:
    if isinstance(old, nn.Linear):
        return nn.Linear(inside or old.in_features, out or old.out_features, old.bias is not None)
    assert isinstance(old, (nn.Conv1d, nn.Conv2d))
    return type(old)(
        inside or old.in_channels,
        out or old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )


def _input_of(model: nn.Module, example: Example, path: str) -> Tensor | None:
    """What a layer gets when the model runs on the example."""
    twin = snapshot(model)
    held: list[Tensor] = []

    def hear(module: nn.Module, args: tuple[object, ...]) -> None:
        held.extend(a.detach().clone() for a in args[:1] if isinstance(a, Tensor))

    twin.get_submodule(path).register_forward_pre_hook(hear)
    with torch.no_grad():
        run(twin, example)
    return held[0] if held else None
