"""Prune the matrices of a language model's blocks, one block in memory at a time."""

from __future__ import annotations

import fnmatch
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.choose.density import check_sparsity
from secateur.choose.patterns import Pattern, unstructured
from secateur.errors import ArgumentError, DataError, PlanError, SecateurError
from secateur.llm import together
from secateur.llm.allocate import Allocation, Densities, Task, uniform
from secateur.llm.live import Live
from secateur.llm.memory import peak_bytes
from secateur.llm.moments import Fed, experts_in
from secateur.llm.source import Source
from secateur.llm.stream import Change, Row, Streamed, stream
from secateur.llm.walk import Progress, Walk
from secateur.solve.gram import Gram
from secateur.solve.norms import Norms
from secateur.solve.solver import Solver

REPORT = "llm.json"
"""What was done, in the result's folder."""


@dataclass(frozen=True)
class Pruning:
    """How the matrices of a block are pruned.

    Attributes:
        solver: the method. pattern: the shape of the sparsity.
        sparsity: the fraction removed; None is what the pattern fixes, or a half.
        only, ignore: globs over full names of matrices, such as ``*.mlp.*``; routers of experts always stay dense.
        held: part of the calibration batches that is kept aside, for solvers that choose by them.
        cross: solvers see the dense model's inputs too, and reproduce its outputs. Then what a matrix is fed is always
            collected after those before it in the block are pruned: what they have made up for is not to be made up
            for twice.
        one_by_one: collect it so without that.
    """

    solver: Solver
    pattern: Pattern = unstructured
    sparsity: float | None = None
    only: Sequence[str] = ()
    ignore: Sequence[str] = ()
    held: float = 0.0
    cross: bool = False
    one_by_one: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.held <= 0.5:
            raise ArgumentError(f"held is the part of the batches kept aside, from 0 to 0.5; got {self.held!r}")
        fixed = self.pattern.density
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
            if fixed is not None and abs(1 - fixed - self.sparsity) > 1e-9:
                raise ArgumentError(
                    f"pattern {self.pattern.name} removes {1 - fixed:g} of the weights, not {self.sparsity:g}: leave "
                    "the sparsity out, or choose another pattern"
                )

    def told(self) -> dict[str, Any]:
        """As it stands in files."""
        return {
            "method": self.solver.name,
            "settings": settings(self.solver),
            "pattern": self.pattern.name,
            "sparsity": self.removed,
            "only": list(self.only),
            "ignore": list(self.ignore),
            "held": self.held,
            "cross": self.cross,
            "one_by_one": self.one_by_one,
        }

    @property
    def removed(self) -> float:
        """The fraction that goes: what the pattern fixes, what is asked, or a half."""
        if self.pattern.density is not None:
            return 1 - self.pattern.density
        return 0.5 if self.sparsity is None else self.sparsity

    def fed(self, live: Live, only: Sequence[str] | None = None) -> dict[str, Fed]:
        """What the solver is to know of the inputs."""
        return {**(live.norms(only) if self.solver.norms else live.grams(only, self.held, self.cross))}

    def chosen(self, live: Live, grams: Mapping[str, Fed]) -> dict[str, Tensor]:
        """The matrices to prune, by key: views."""
        routers, found = routers_of(live), {}
        for key, matrix in live.matrices().items():
            name = f"{live.path}.{key}"
            if self.only and not _matches(name, self.only):
                continue
            if key not in routers and not _matches(name, self.ignore) and key in grams:
                found[key] = matrix
        return found


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, g) or fnmatch.fnmatchcase(name.partition("[")[0], g) for g in globs)


def routers_of(live: Live) -> set[str]:
    """Matrices that choose between experts: in a block with experts, those of one output or of one for each."""
    experts = experts_in(live.module)
    if not experts:
        return set()
    return {k for k, m in live.matrices().items() if "[" not in k and m.shape[0] in experts | {1}}


@dataclass(frozen=True)
class Pruned:
    """A pruned language model.

    Attributes:
        folder: the result. rows: one a matrix: ``block``, ``name``, ``shape``, ``kept``, ``density``, ``error``
            (``‖(W - W') X‖² / ‖W X‖²`` on the calibration data) and ``seconds``.
        report: what `REPORT` holds.
    """

    folder: Path
    rows: Sequence[Row]
    report: Mapping[str, Any] = field(repr=False)

    @property
    def sparsity(self) -> float:
        """Of the matrices that were pruned, together."""
        return float(self.report["achieved"]["sparsity"])


def llm_prune(
    model: str | Path | nn.Module | Source,
    tokens: Tensor | Sequence[Tensor],
    how: Pruning,
    out: str | Path,
    *,
    allocation: Allocation = uniform,
    batch: int | None = None,
    memory: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    dense_inputs: bool = False,
    packed: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a language model and write a folder that ``from_pretrained`` loads.

    Blocks are pruned in order; each sees what the pruned ones before it make of the calibration text (or, with
    ``dense_inputs``, what the dense ones do). Within a block what all matrices are fed is collected in one pass, as
    the papers' code does. Embeddings, head, norms, biases and routers stay as they are. Zeros stay zeros in the file,
    in the checkpoint's type.

    Args:
        model: a folder of transformers, a ``.gguf`` file, a module or a `Source`.
        tokens: of the calibration text, int64 (samples, window).
        how: solver, pattern, sparsity, what is pruned. out: folder of the result; the same call takes up a killed run.
        allocation: how dense each block becomes: `uniform`, `outliers` (OWL), `measured`.
        batch: samples at once. memory: bytes that the process may take, see `stream`. device, dtype: to compute in.
        dense_inputs: see above. packed: write the sparse format of `secateur.load_sparse`.
        force: replace what is in the folder.
        progress: hears ``(blocks done, blocks, words)``.

    Raises:
        PlanError: a glob matches nothing.
        DataError: a token beyond the vocabulary, no text, inputs that are not finite, a singular second moment.
        FormatError: the checkpoint is damaged. BudgetError: the memory does not suffice.
        ArgumentError: the folder is in use. FormatError: the disk is full: the same call goes on.

    Memory: see `stream`; and for each matrix two more of its size, and what the solver makes of a second moment.

    Example:
        >>> import tempfile, secateur as sc, transformers
        >>> shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> config = transformers.LlamaConfig(**shape, vocab_size=32)
        >>> net = transformers.AutoModelForCausalLM.from_config(config)
        >>> tokens = torch.randint(0, 32, (4, 16))
        >>> llm_prune(net, tokens, Pruning(sc.sparsegpt, sc.nm(2, 4)), tempfile.mkdtemp() + "/small").sparsity
        0.5
    """
    source = model if isinstance(model, Source) else Source.open(model)
    if how.pattern.density is not None and allocation is not uniform:
        raise ArgumentError(
            f"pattern {how.pattern.name} makes all blocks equally dense: leave the allocation out, or choose a pattern "
            "that leaves the sparsity open"
        )
    _check_globs(source, how)
    start, moments = time.perf_counter(), 0 if how.solver.norms else 1 + (how.held > 0) + how.cross
    given = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    alone = replace(how, cross=False)  # on the dense model its inputs and the pruned one's are the same

    def prepare(place: Path) -> Densities:
        def fresh() -> Walk:
            return Walk.begin(
                source, given, batch=batch, device=device, dtype=dtype, memory=memory, moments=moments, folder=place
            )

        return allocation(Task(fresh, how.removed, how.chosen, alone.fed, how.solver, how.pattern))

    def change(rows: Sequence[Row]) -> Change:
        report = report_of(source, how, allocation, given, rows, time.perf_counter() - start)
        return Change(extra=lambda folder: write_bytes(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode()))

    signature = {"llm": "prune", **how.told(), "allocation": settings(allocation), "batch": batch, "packed": packed}
    done: Streamed = stream(
        source, given, lambda live: prune_block(live, how), out,
        batch=batch, memory=memory, moments=moments, device=device, dtype=dtype, dense=how.cross,
        dense_inputs=dense_inputs, signature=signature, prepare=prepare, change=change,
        progress=progress, packed=packed, force=force,
    )  # fmt: skip
    report = json.loads((done.folder / REPORT).read_text(encoding="utf-8"))
    return Pruned(done.folder, [m for row in done.rows for m in row["matrices"]], report)


def _check_globs(source: Source, how: Pruning) -> None:
    """Every glob means some matrix: a misspelt one would prune what is to stay, or nothing."""
    names = [name for name, p in source.skeleton().named_parameters() if p.dim() > 1]
    for glob in (*how.only, *how.ignore):
        if "[" not in glob and not any(_matches(name, [glob]) for name in names):
            raise PlanError(f"{glob!r} matches no matrix; the model has {len(names)}, such as {', '.join(names[1:4])}")


def prune_block(live: Live, how: Pruning) -> dict[str, Any]:
    """Prune the matrices of a block in place; tells of each. Of several processes each solves a part of them."""
    density = (live.prepared or {}).get(live.path, 1 - how.removed)
    in_turn = how.one_by_one or how.cross
    some = None if experts_in(live.module) else 1  # all batches, where what is used differs from one to the next
    known = live.with_unreached({**live.norms(batches=some)} if in_turn else how.fed(live))
    rows: list[Row] = []
    chosen = how.chosen(live, known)
    for part in _parts(chosen, known) if in_turn else [list(chosen)]:
        grams = live.with_unreached(how.fed(live, part), part) if in_turn else known
        rows += _solved(live, how, {k: chosen[k] for k in part}, grams, density)
    return {"matrices": rows, "peak_bytes": peak_bytes()}


def _parts(chosen: Mapping[str, Tensor], grams: Mapping[str, Fed]) -> list[list[str]]:
    """Keys by the input that they share, in the order of use."""
    found: dict[int, list[str]] = {}
    for key in chosen:
        found.setdefault(id(grams[key]), []).append(key)
    return list(found.values())


def _solved(live: Live, how: Pruning, chosen: Mapping[str, Tensor], grams: dict[str, Fed], density: float) -> list[Row]:
    """Solve each matrix in one of the processes, and have all of them know; moments go after their last matrix."""
    mine: dict[str, Row] = {}
    problem: SecateurError | None = None
    last = {id(grams[key]): key for key in chosen}
    for number, (key, matrix) in enumerate(chosen.items()):
        if number % together.size() == together.rank():
            try:
                mine[key] = _solve(live, how, key, matrix, grams[key], density)
            except SecateurError as error:
                problem = error
                break
        if last[id(grams[key])] == key:
            gone = grams[key]
            for other in [k for k, gram in grams.items() if gram is gone]:
                del grams[other]
            del gone
    if any(told := together.everyones(None if problem is None else str(problem))):  # nobody waits for the others
        raise problem or DataError(next(words for words in told if words))
    for number, matrix in enumerate(chosen.values()):
        together.sent_(matrix, number % together.size())
    found = {k: row for rows in together.everyones(mine) for k, row in rows.items()}
    return [found[key] for key in chosen]


def _solve(live: Live, how: Pruning, key: str, matrix: Tensor, gram: Fed, density: float) -> Row:
    name, start = f"{live.path}.{key}", time.perf_counter()
    weight = matrix.float().contiguous()
    try:
        kept = how.pattern.count(tuple(weight.shape), weight.numel() - round((1 - density) * weight.numel()))
        solved = how.solver(weight, cast(Gram, gram), how.pattern, kept).weight  # norms stand in where they suffice
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from error
    lost = relative_error(weight, solved, gram)  # now: `weight` may be the matrix itself
    matrix.copy_(solved)
    return {
        "block": live.index,
        "name": name,
        "shape": list(weight.shape),
        "kept": kept,
        "density": kept / max(weight.numel(), 1),
        "error": lost,
        "seconds": round(time.perf_counter() - start, 3),
    }


def relative_error(before: Tensor, after: Tensor, gram: Fed) -> float:
    """``‖(W - W') X‖² / ‖W X‖²``, of all inputs by their second moment or of a sample; 0 where the layer makes nothing.

    Example:
        >>> relative_error(torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0, 0.0]]), Gram.of(torch.eye(2)))
        0.2
    """

    def energy(w: Tensor) -> float:
        made = gram.sample.to(w.dtype) @ w.T if isinstance(gram, Norms) else w @ gram.second.to(w.dtype)
        return float((made.square() if isinstance(gram, Norms) else made * w).sum(dtype=torch.float64))

    whole = energy(before)
    return max(energy(before - after), 0.0) / whole if whole > 0 else 0.0


def settings(value: Any) -> Any:
    """What tells a method from another of its name, as JSON: numbers and names that a function was made with.

    Example:
        >>> from secateur.solve.sparsegpt import sparsegpt_with
        >>> settings(sparsegpt_with(block=64))["block"]
        64
    """
    if isinstance(value, Solver):
        return {"name": value.name, **settings(value.solve)}
    if isinstance(value, (tuple, list)):
        return [settings(v) for v in value]
    if not inspect.isfunction(value):
        return value if isinstance(value, (int, float, str, type(None))) else repr(value)
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    inner = {k: c.cell_contents for k, c in cells}
    told = {
        k: settings(v)
        for k, v in sorted(inner.items())
        if isinstance(v, (int, float, str, tuple, list, Solver)) or inspect.isfunction(v)
    }
    return {"function": value.__qualname__, **told}


def report_of(
    source: Source, how: Pruning, allocation: Any, tokens: Sequence[Tensor], rows: Sequence[Row], seconds: float
) -> dict[str, Any]:
    """What was asked and what was done."""
    matrices = [m for row in rows for m in row["matrices"]]
    total = sum(m["shape"][0] * m["shape"][1] for m in matrices)
    kept = sum(m["kept"] for m in matrices)
    whole = source.parameters()
    return {
        "format": "secateur-llm-prune",
        "version": 1,
        "asked": {**how.told(), "allocation": settings(allocation)},
        "achieved": {
            "sparsity": (total - kept) / max(total, 1),
            "removed": total - kept,
            "of_matrices": total,
            "of_model": whole,
            "sparsity_of_model": (total - kept) / max(whole, 1),
            "scope": "matrices of the blocks; embeddings, head, norms, biases and routers stay dense",
        },
        "calibration": {"windows": [list(t.shape) for t in tokens], "tokens": sum(t.numel() for t in tokens)},
        "seconds": round(seconds, 3),
        "peak_bytes": max((row["peak_bytes"] for row in rows), default=0),
        "blocks": list(rows),
    }
