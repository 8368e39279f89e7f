"""The arguments of ``secateur sparsify``, as text: a run file, a pattern, a density; and the run itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from secateur.choose import density as densities
from secateur.choose import patterns
from secateur.choose.density import Densities, check_sparsity
from secateur.choose.patterns import Pattern
from secateur.errors import ArgumentError, PlanError
from secateur.evidence.report import write_report
from secateur.export.sparse import save_sparse
from secateur.run import assemble
from secateur.run.data import load_data, load_example
from secateur.run.folder import Folder
from secateur.run.models import load_model
from secateur.run.names import resolve
from secateur.run.runfile import Positive, checked
from secateur.run.sparsify import sparsify, with_command
from secateur.types import Report

DENSITIES = ("even", "ranked", "erk", "uniform_plus", "lamp", "owl")
PATTERNS = ("unstructured", "per_row")
_WRITTEN = "unstructured, per_row, N:M such as 2:4, block:RxC such as block:4x1, or module:name"


class SparseFile(BaseModel):
    """The arguments of ``secateur sparsify``; names are secateur's public names, or ``module:name``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="secateur sparsify run file")

    model: str = Field(description="module:factory, a Hugging Face model folder, or a folder that secateur wrote")
    criterion: str = Field("magnitude", description="how important each weight is")
    pattern: str = Field("unstructured", description=_WRITTEN)
    sparsity: float | None = Field(None, description="the fraction removed, in [0, 1); 0.5, or the pattern's own")
    density: str = Field("even", description="how much goes where")
    rounds: Positive = Field(1, description="how often to score and remove")
    data: str | None = Field(None, description="module:callable, or a .npy, .npz or .safetensors file")
    batch_size: Positive = Field(32, description="items in a batch, where data is a file")
    example: str | None = Field(None, description="a shape such as 1x3x224x224, in place of data")
    ignore: list[str] = Field([], description="globs over parameters and modules that stay dense")
    only: list[str] = Field([], description="globs over parameters and modules; nothing else becomes sparse")
    quality: str | None = Field(None, description="module:callable, (model) -> a number or {figure: number}")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of everything that is drawn")
    out: str | None = Field(None, description="folder for the result")

    def arguments(self) -> dict[str, Any]:
        """As plain data: what a run file with the same meaning holds."""
        return self.model_dump(mode="json")


def check_sparse(arguments: Mapping[str, Any], where: str = "arguments") -> SparseFile:
    """The checked arguments.

    Raises:
        ArgumentError: a key is unknown (says the nearest) or missing, or a value is not valid.

    Example:
        >>> check_sparse({"model": "nets:cnn", "sparsity": 0.9}).density
        'even'
    """
    found = checked(SparseFile, arguments, where)
    if found.sparsity is not None:
        check_sparsity(found.sparsity)
    return found


def pattern(text: str) -> Pattern:
    """The pattern that a text means: ``unstructured``, ``per_row``, ``2:4``, ``block:4x1``, or ``module:name``.

    Raises:
        ArgumentError: it is none of these.

    Example:
        >>> pattern("unstructured").name
        'unstructured'
        >>> pattern("2:four")
        Traceback (most recent call last):
        ...
        secateur.errors.ArgumentError: pattern '2:four' is not one: write unstructured, ...
    """
    groups = re.fullmatch(r"(\d+):(\d+)", text)
    block = re.fullmatch(r"block:(\d+)x(\d+)", text)
    if groups or block:
        name, match = ("nm", groups) if groups else ("block", block)
        assert match is not None
        make: Callable[[int, int], Pattern] = resolve(name, _of(patterns, (name,)), "pattern")
        try:
            return make(int(match[1]), int(match[2]))
        except PlanError as error:
            raise ArgumentError(f"pattern {text!r}: {error}") from error
    if ":" in text and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        raise ArgumentError(f"pattern {text!r} is not one: write {_WRITTEN}")
    found = resolve(text, _of(patterns, PATTERNS), "pattern")
    if not isinstance(found, Pattern):
        raise ArgumentError(f"pattern {text} is {type(found).__name__}, expected a secateur Pattern: write {_WRITTEN}")
    return found


def density(text: str) -> Densities:
    """The allocation of that name; a function that makes one is called.

    Raises:
        ArgumentError: there is no such name.

    Example:
        >>> density("ranked").__name__
        'ranked'
    """
    found: Any = resolve(text, _of(densities, DENSITIES), "density")
    if not callable(found):
        raise ArgumentError(f"density {text} is {type(found).__name__}, expected a function")
    if getattr(found, "__annotations__", {}).get("return") in ("Densities", Densities):
        found = found()
    chosen: Densities = found
    return chosen


def _of(module: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the names that are there: public ones, and the module's own."""
    import secateur

    public = {n: getattr(secateur, n) for n in names if hasattr(secateur, n)}
    return {**public, **{n: getattr(module, n) for n in names if hasattr(module, n)}}


def execute_sparse(
    arguments: SparseFile, folder: Folder, command: str, tell: Callable[[str], None] = lambda words: None
) -> Report:
    """Carry out a run in its folder and return the report that was written there.

    Raises:
        SecateurError: a text names nothing, or the data or the model is refused.
    """
    # Everything that only names things is looked at before anything slow begins.
    criterion = assemble.criterion(arguments.criterion, arguments.seed)
    chosen, where = pattern(arguments.pattern), density(arguments.density)
    data = None if arguments.data is None else load_data(arguments.data, arguments.batch_size)
    if criterion.weights is None:
        raise ArgumentError(
            f"criterion {arguments.criterion} does not score single weights: take one such as magnitude"
        )
    if criterion.weights.stat is not None and data is None and arguments.example is None:
        raise ArgumentError(f"criterion {arguments.criterion} needs data: add --data")
    quality = None if arguments.quality is None else assemble.quality(arguments.quality)
    tell("loading the model")
    torch.manual_seed(arguments.seed)
    model, source = load_model(arguments.model)
    if data is None and arguments.example is not None:
        data = [load_example(arguments.example, None, model)]
    result = sparsify(
        model,
        data,
        criterion,
        chosen,
        arguments.sparsity,
        where,
        ignore=arguments.ignore,
        only=arguments.only,
        rounds=arguments.rounds,
        quality=quality,
        seed=arguments.seed,
        tell=tell,
    )
    report = with_command(result.report, command)

    def extra(temporary: Path) -> None:
        write_report(temporary, report)
        folder.sign(temporary)

    factory = source if isinstance(source, str) else None
    tell("writing")
    save_sparse(folder.path, result.model, result.masks, factory=factory, overwrite=True, extra=extra)
    return report
