"""Names given as text: public names, ``module:name``, and the nearest one when there is no such name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secateur.errors import ArgumentError


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the closest known name, else all of them.

    Example:
        >>> nearest("magnitud", ["magnitude", "taylor"])
        "did you mean 'magnitude'?"
        >>> nearest("x", ["magnitude", "taylor"])
        'there is: magnitude, taylor'
    """
    known = sorted(k for k in known if not k.startswith("_"))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there is: {', '.join(known)}" if known else "there is none"


def resolve(name: str, allowed: Mapping[str, Any], what: str = "name") -> Any:
    """What a text stands for: a key of ``allowed``, or ``module:name`` from the user's own code.

    A public name that ends in ``_`` because the plain one is taken in Python may be given without it.

    Raises:
        ArgumentError: there is no such name; says the nearest one.

    Example:
        >>> resolve("global", {"global_": 1, "uniform": 2})
        1
        >>> resolve("math:pi", {})
        3.14...
        >>> resolve("unifrom", {"uniform": 2}, "allocation")
        Traceback (most recent call last):
        ...
        secateur.errors.ArgumentError: no allocation is called 'unifrom': did you mean 'uniform'? ...
    """
    for key in (name, name + "_"):
        if key in allowed:
            return allowed[key]
    if ":" in name:
        return import_name(name)
    shown = {k.removesuffix("_") for k in allowed}
    raise ArgumentError(
        f"no {what} is called {name!r}: {nearest(name, shown)} (one of your own is written module:name)"
    )


def import_name(spec: str, not_in: Path | None = None) -> Any:
    """Import ``module:name`` (dots in the name go deeper), looking in the working directory too.

    Args:
        spec: the text.
        not_in: a folder whose own files name the spec: code that lies in it is not run.

    Raises:
        ArgumentError: the module cannot be imported, or it has no such name; says the nearest one.

    Example:
        >>> import_name("collections:OrderedDict.fromkeys")([1])
        OrderedDict([(1, None)])
    """
    path, _, name = spec.partition(":")
    if not path or not name or not all(p.isidentifier() for p in [*path.split("."), *name.split(".")]):
        hint = "; write the module without .py and with dots" if ".py" in path or "/" in path else ""
        raise ArgumentError(f"{spec!r} is not module:name, such as mypackage.nets:make{hint}")
    value: Any = _import(path, spec, not_in)
    for part in name.split("."):
        if not hasattr(value, part):
            owner = getattr(value, "__name__", type(value).__name__)
            raise ArgumentError(f"{spec}: {owner} has no {part!r}: {_nearest_in(value, part)}")
        value = getattr(value, part)
    return value


def _import(path: str, spec: str, not_in: Path | None) -> Any:
    here = os.getcwd()  # noqa: PTH109 (sys.path holds strings)
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    if not_in is not None:
        _refuse_code_in(not_in, path, spec)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
            raise ArgumentError(f"{spec}: importing {path} failed: {error}") from error
        raise ArgumentError(
            f"{spec}: there is no module {error.name!r} in {here} or among the installed packages; run "
            "secateur "
            "from the folder that holds it, or set PYTHONPATH"
        ) from error
    except Exception as error:
        raise ArgumentError(f"{spec}: importing {path} failed: {type(error).__name__}: {error}") from error


def _refuse_code_in(folder: Path, path: str, spec: str) -> None:
    try:
        found = importlib.util.find_spec(path.partition(".")[0])
    except (ImportError, ValueError):
        return
    places = [] if found is None else [found.origin, *(found.submodule_search_locations or ())]
    if any(p and Path(p).resolve().is_relative_to(folder.resolve()) for p in places):
        raise ArgumentError(
            f"{spec}: its code lies in {folder}, which names it itself; code in such a folder is not run. "
            "Name the "
            "model yourself, from another folder"
        )


def _nearest_in(value: Any, name: str) -> str:
    """The closest of all public names, else those that the module itself defines."""
    names = [n for n in dir(value) if not n.startswith("_")]
    if difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return nearest(name, names)
    module = getattr(value, "__name__", None)
    own = [n for n in names if getattr(getattr(value, n, None), "__module__", None) == module]
    return nearest(name, (own or names)[:12])
