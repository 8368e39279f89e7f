"""Which tensors of a checkpoint make up each tensor of the module: transformers renames and merges some on loading."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import FormatError
from secateur.llm.tensor_files import Stored, read


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a tensor of the module is made.

    Attributes:
        parts: names in the checkpoint, in order. converter: of transformers, what merges or splits them; None where
            the tensor is there as it is. patterns: of the converter, which each part matches. first: the module's
            name that the converter is asked for.
        model: what converters look sizes up in.
    """

    parts: tuple[str, ...]
    converter: Any = None
    patterns: tuple[str, ...] = ()
    first: str = ""
    model: Any = None

    def make(self, name: str, stored: Mapping[str, Stored]) -> Tensor:
        """Read the parts and put them together."""
        if self.converter is None:
            return read(stored[self.parts[0]])
        converter = copy.deepcopy(self.converter)
        for part, pattern in zip(self.parts, self.patterns, strict=True):
            converter.add_tensor(self.first, part, pattern, _Reading(stored[part]))
        made = converter.convert(self.first, model=self.model, config=self.model.config)
        out = made[name]
        tensor: Tensor = out[0] if isinstance(out, list) else out
        return tensor


@dataclass(frozen=True)
class _Reading:
    stored: Stored

    def __call__(self) -> Tensor:
        return read(self.stored)


def recipes(skeleton: nn.Module, stored: Mapping[str, Stored], where: Path) -> dict[str, Recipe]:
    """How every tensor of a module is made of a checkpoint's.

    Raises:
        FormatError: one cannot be made, or has another shape; it is named.
    """
    state = skeleton.state_dict(keep_vars=True)
    found: dict[str, Recipe] = {}
    for part, name, converter, pattern in _renamed(skeleton, stored, state):
        have = found.get(name)
        if converter is None:
            if name in state:
                found[name] = Recipe((part,))
        elif have is None:
            found[name] = Recipe((part,), converter, (pattern,), name, skeleton)
        else:
            found[name] = Recipe((*have.parts, part), have.converter, (*have.patterns, pattern), name, skeleton)
    for name, recipe in list(found.items()):
        for other in _siblings(name, recipe.converter):
            found[other] = recipe
    _tied(state, found)
    _check(state, found, stored, where)
    return {name: found[name] for name in state if name in found}


def _renamed(skeleton: nn.Module, stored: Mapping[str, Stored], state: Mapping[str, Any]) -> Any:
    """(name in the checkpoint, name in the module, converter or None, its pattern), in the order of loading."""
    try:
        from transformers import core_model_loading as loading
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # before 5, names are what they are
        yield from ((name, name, None, None) for name in stored)
        return
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [m for m in mapping if isinstance(m, loading.WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, loading.WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = skeleton.base_model_prefix
    for part in sorted(stored, key=loading.dot_natural_key):
        name, pattern = loading.rename_source_key(part, renamings, converters, prefix, state)
        if name not in state and part in state:
            name, pattern = part, None
        yield part, name, by_pattern[pattern] if pattern is not None else None, pattern
    skeleton._weight_conversions = mapping


def _siblings(name: str, converter: Any) -> list[str]:
    """The other tensors that a converter makes of the same parts."""
    targets = [] if converter is None else converter.target_patterns
    if len(targets) < 2 or targets[0] not in name:
        return []
    before, _, after = name.partition(targets[0])
    return [before + other + after for other in targets[1:]]


def _tied(state: Mapping[str, Tensor], found: dict[str, Recipe]) -> None:
    """A parameter of several names stands in the file under one of them."""
    first = {id(state[name]): recipe for name, recipe in found.items() if name in state}
    for name, tensor in state.items():
        if name not in found and id(tensor) in first:
            found[name] = first[id(tensor)]


def _check(state: Mapping[str, Tensor], found: Mapping[str, Recipe], stored: Mapping[str, Stored], where: Path) -> None:
    lost = [name for name in state if name not in found]
    if lost:
        spare = [p for p in stored if p not in {part for r in found.values() for part in r.parts}]
        hint = f" ({spare[0]} in it is no tensor of the model)" if spare else ""
        raise FormatError(
            f"{where} does not hold {lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}, which the model "
            f"of its config.json has{hint}: copy the whole checkpoint"
        )
    for name, recipe in found.items():
        part = stored[recipe.parts[0]]
        if recipe.converter is None and name in state and part.shape != tuple(state[name].shape):
            raise FormatError(
                f"{part.file}: {recipe.parts[0]} has the shape {part.shape}; config.json gives {name} "
                f"{tuple(state[name].shape)}: they do not belong together"
            )
