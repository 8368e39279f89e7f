"""Prune the experts of a language model, one block in memory at a time, into a folder that transformers loads."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.atomic import write_bytes
from secateur.errors import CoupleError, FormatError
from secateur.export.huggingface import configurations
from secateur.graph.couple import Groups, couple
from secateur.graph.record import trace
from secateur.graph.rules import EXPERT_RULES
from secateur.graph.sizes import Attribute, read_attribute
from secateur.graph.surgery import apply_
from secateur.llm.experts import Score, name_of, prune_banks_, reap
from secateur.llm.live import Live
from secateur.llm.merging import Merge
from secateur.llm.moments import stacks_of
from secateur.llm.prune import settings
from secateur.llm.source import Source
from secateur.llm.stream import Change, Row, Streamed, stream
from secateur.llm.walk import Progress
from secateur.types import Bools, Plan

REPORT = "llm.json"


def llm_prune_experts(
    model: str | Path | nn.Module | Source,
    tokens: Tensor | Sequence[Tensor],
    out: str | Path,
    remove: int,
    *,
    score: Score = reap,
    merge: Merge | None = None,
    batch: int | None = None,
    memory: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    force: bool = False,
) -> Streamed:
    """Take the same number of experts out of every mixture of a language model, and write it as a folder.

    Each block's experts are scored on what the blocks before it, cut as they are, make of the text. Blocks without
    experts stay as they are. Every layer keeps as many, so the configuration can say it, and plain ``from_pretrained``
    loads the folder. The same call takes up a run that was killed.

    Args:
        model: a folder, a GGUF file, or a module. tokens: int64 (samples, window), of the calibration text.
        out: a new folder. remove: experts that go, of each bank. score, merge: as in `prune_experts_`.
        batch: samples at once. memory: bytes that the process may take, see `stream`. device, dtype: to compute in.
        progress: hears ``(blocks done, blocks, words)``. force: replace what is in the folder.

    Raises:
        CoupleError: there are no experts that can be cut. FormatError: no configuration says the cut.
        ArgumentError: fewer would be left than are chosen for a token. DataError: tokens that the model does not have.

    Memory: one block, its experts' outputs for a batch, and the hidden states.

    Example:
        >>> import tempfile, transformers
        >>> shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
        >>> net = transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape, **experts, vocab_size=32))
        >>> done = llm_prune_experts(net, torch.randint(0, 32, (4, 16)), tempfile.mkdtemp() + "/small", 1)
        >>> transformers.AutoConfig.from_pretrained(done.folder).num_local_experts
        3
    """
    source = model if isinstance(model, Source) else Source.open(model)
    skeleton = source.skeleton(dtype)
    if not has_experts(skeleton):
        raise CoupleError(f"{type(skeleton).__name__} has no experts: none of its weights is stacked")
    how = name_of(score) if merge is None else f"{name_of(score)}, merged by {name_of(merge.likeness)}"
    told = {"method": "experts", "criterion": how, "remove": remove}
    if merge is not None:
        told["align"] = merge.align
    work = ExpertWork(remove, score, merge)

    def change(rows: Sequence[Row]) -> Change:
        def report(folder: Path) -> None:
            write_bytes(folder / REPORT, (json.dumps({"asked": told, "blocks": list(rows)}, indent=1) + "\n").encode())

        return Change(config_changes(skeleton, rows), extra=report)

    parts = {"score": score} if merge is None else {"score": score, "likeness": merge.likeness}
    drawn = {k: settings(part) for k, part in parts.items() if inspect.isfunction(part)}  # a seed is not in its name

    return stream(
        source, tokens, work, out, batch=batch, memory=memory, moments=0, device=device, dtype=dtype,
        signature={"llm": "experts", **told, **drawn}, rebuild=work.rebuild, change=change, progress=progress,
        force=force,
    )  # fmt: skip


@dataclass(frozen=True)
class ExpertWork:
    """What is done to a block: a work of `stream`.

    Attributes:
        remove, score, merge: as in `llm_prune_experts`. known: what goes together in blocks of a kind.
    """

    remove: int
    score: Score = reap
    merge: Merge | None = None
    known: dict[Any, Groups] = field(default_factory=dict)

    def __call__(self, live: Live) -> Row:
        """Cut the experts of a block in place; tells of each bank what was seen, and of the block what was cut."""
        if not has_experts(live.module):
            return {"banks": []}
        groups = self._groups(live)

        def drive() -> None:
            for _ in live.outputs():
                pass

        cut = prune_banks_(
            live.module, groups, drive, self.remove, score=self.score, merge=self.merge, prefix=live.path
        )
        return {"banks": list(cut.rows), "cut": _told(cut.plan)}

    def rebuild(self, module: nn.Module, row: Row) -> nn.Module:
        """The block in the shape that it was cut to, from its row."""
        return apply_(plan_of([{**row, "path": ""}]), module)

    def _groups(self, live: Live) -> Groups:
        """What goes together in a block; worked out once for all that are alike."""
        alike = tuple((n, tuple(p.shape)) for n, p in live.module.named_parameters())
        if alike not in self.known:
            with _stacked(live.module):
                example = live.calls[0].named(live.module, live.hidden[0])
                self.known[alike] = couple(trace(live.module, example), rules=EXPERT_RULES)
        return self.known[alike]


def has_experts(module: nn.Module) -> bool:
    """Whether a model or a block has weights that are stacked; those of a convolution have as many axes and are not."""
    return bool(stacks_of(module))


def plan_of(rows: Sequence[Row]) -> Plan:
    """The plan for the whole model, of what was told of its blocks."""
    axes: dict[tuple[str, int], Bools] = {}
    attributes: dict[tuple[str, str], tuple[Any, Any]] = {}
    for row in rows:
        lead = f"{row['path']}." if row["path"] else ""
        told = row.get("cut", {"axes": [], "attributes": []})
        for name, dim, size, kept in told["axes"]:
            mask = np.zeros(size, bool)
            mask[kept] = True
            axes[lead + name, dim] = mask
        for module, path, old, new in told["attributes"]:
            attributes[f"{lead}{module}".rstrip("."), path] = (old, new)
    return Plan({}, axes, attributes, {}, {}, {"criterion": "experts"})


def _told(plan: Plan) -> dict[str, Any]:
    """What `plan_of` needs of a block's plan, JSON-able."""
    axes = [[*at, len(mask), np.nonzero(mask)[0].tolist()] for at, mask in plan.axes.items() if not mask.all()]
    return {"axes": axes, "attributes": [[*at, *change] for at, change in plan.attributes.items()]}


def config_changes(skeleton: nn.Module, rows: Sequence[Row]) -> dict[str, Any]:
    """Entries of a model's configuration that say how many experts are left; changes the skeleton.

    Raises:
        FormatError: none do.
    """
    plan = plan_of(rows)
    config: Any = getattr(skeleton, "config", None)
    if config is None or not plan.axes:
        return {}
    before = config.to_dict()
    small = apply_(Plan({}, plan.axes, {}, {}, {}, {}), skeleton)
    found = next((c for c in configurations(small, plan) if _says(type(small), c, plan)), None)
    if found is None:
        raise FormatError(
            f"no configuration found for {type(skeleton).__name__} says how many experts are left: cut it in memory "
            "with prune_experts_ and keep it with sc.save"
        )
    return {k: v for k, v in found.to_dict().items() if before.get(k) != v and not k.startswith("_")}


def _says(kind: Any, config: Any, plan: Plan) -> bool:
    """Whether what a configuration builds has the sizes in its code too: in how many groups experts are, for one."""
    with torch.device("meta"):
        built = kind(config)
    return all(read_attribute(built, Attribute(*at)) == new for at, (_, new) in plan.attributes.items())


@contextmanager
def _stacked(block: nn.Module) -> Iterator[None]:
    """Experts computed all at once: the way in which it can be followed who is chosen."""
    configs = {id(c): c for m in block.modules() if (c := getattr(m, "config", None)) is not None}
    held = [(c, getattr(c, "_experts_implementation", None)) for c in configs.values()]
    for config, given in held:
        if given is not None:
            config._experts_implementation = "grouped_mm"
    try:
        yield
    finally:
        for config, given in held:
            if given is not None:
                config._experts_implementation = given
