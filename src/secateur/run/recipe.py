"""The recipe that ``secateur tickets`` names: the arguments of `tickets`, from the user's own module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from secateur.errors import ArgumentError
from secateur.run.names import import_name, nearest
from secateur.train.rewind import layerwise
from secateur.train.tickets import tickets

_NEEDED = ("make_model", "train", "evaluate")
_GIVEN = ("rounds", "folder", "seed", "tell")


def given_recipe(spec: str, rate: float | None = None) -> dict[str, Any]:
    """The arguments of `tickets` that ``module:recipe`` holds: a dict, or a function that returns one.

    Args:
        spec: the text. rate: fraction of what is left that goes each round, in place of the recipe's ``cut``.

    Raises:
        ArgumentError: it is not a recipe, an argument is missing, or there is no such argument (says the nearest).
    """
    found = import_name(spec)
    if callable(found):
        try:
            found = found()
        except TypeError as error:
            raise ArgumentError(f"recipe {spec}() failed: {error}; it is called without arguments") from error
    if not isinstance(found, Mapping):
        raise ArgumentError(f"recipe {spec} is {type(found).__name__}, expected a dict with {', '.join(_NEEDED)}")
    known = [p for p in inspect.signature(tickets).parameters if p not in _GIVEN]
    for key in found:
        if key not in known:
            raise ArgumentError(f"recipe {spec} has an unknown key {key!r}: {nearest(str(key), known)}")
    for key in _NEEDED:
        if not callable(found.get(key)):
            raise ArgumentError(f"recipe {spec} has no function {key!r}: it needs {', '.join(_NEEDED)}")
    return {**found, **({} if rate is None else {"cut": layerwise(rate)})}
