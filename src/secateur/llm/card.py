"""A model card for a pruned language model: README.md as the Hub reads it, every figure from the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from secateur.atomic import write_bytes
from secateur.errors import FormatError
from secateur.evidence import words
from secateur.llm.evaluate import Evaluation
from secateur.types import Row

NAME, MARK = "README.md", "secateur"
_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""
_SECATEUR = """Its shapes, or its file format, are more than a transformers configuration can say:

```python
import secateur as sc
from transformers import AutoTokenizer

model = sc.load("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""


def write_card(folder: Path | str, found: Evaluation, base_model: str | None = None, overwrite: bool = False) -> Path:
    """Write README.md into a folder of a model, whole or not at all.

    Args:
        folder: where the model lies. found: what its figures come from.
        base_model: name of the dense model on the Hub; None: the name of its folder, where that is known.
        overwrite: replace a README.md that secateur did not write.

    Raises:
        FormatError: there is a README.md that secateur did not write.
    """
    file = check_card(folder, overwrite)
    write_bytes(file, card(found, base_model).encode())
    return file


def check_card(folder: Path | str, overwrite: bool = False) -> Path:
    """Where the card of a folder goes, if it may: asked before anything is evaluated for it.

    Raises:
        FormatError: there is a README.md that secateur did not write.
    """
    file = Path(folder) / NAME
    if file.exists() and not overwrite and f"- {MARK}\n" not in file.read_text(encoding="utf-8", errors="replace"):
        raise FormatError(f"{file} was not written by secateur: move it away, or give --force")
    return file


def card(found: Evaluation, base_model: str | None = None) -> str:
    """The card as text: YAML metadata, the figures with their protocol, how it was made, how to load it.

    Example:
        >>> protocol = {"words": "", "dtype": "float32", "device": "cpu", "texts": []}
        >>> made = Evaluation({"model": "small", "dense": "big", "class": "LlamaForCausalLM", "rows": [], "speed": [],
        ...     "tasks": [], "blocks": [], "made_by": {}, "made": {}, "loads_with": "transformers",
        ...     "protocol": protocol})
        >>> card(made).splitlines()[:2]
        ['---', 'base_model: big']
    """
    data = found.data
    parts = [
        f"---\n{yaml.safe_dump(_metadata(data, base_model), sort_keys=False, allow_unicode=True)}---",
        f"# {data['model']}",
        _lead(data, base_model),
        "## Figures",
        _table(found.rows),
        _protocol(data),
        *_section("## Tasks", _tasks(data["tasks"])),
        *_section("## How it was made", _made(data)),
        "## Loading",
        _loading(data),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(data: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    base = base_model or data["dense"]
    if base is not None:
        out["base_model"] = base
    out |= {"library_name": data["loads_with"], "pipeline_tag": "text-generation"}
    return out | {"tags": ["pruned", MARK]}


def _lead(data: Mapping[str, Any], base_model: str | None) -> str:
    base = base_model or data["dense"]
    of = f"{base}, pruned" if base is not None else f"A pruned {data['class']}"
    return f"{of} with secateur. All figures are of these files, loaded anew."


def _table(rows: Sequence[Row]) -> str:
    dense = any(r.dense is not None for r in rows)
    head = ["", *(["dense"] if dense else []), "this model", "95 % interval"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        text = words.cells(row)
        cells = [row.what, *([text["dense"] if row.dense is not None else ""] if dense else []), text["pruned"]]
        lines.append([*cells, text["interval"]])
    return _markdown(lines)


def _protocol(data: Mapping[str, Any]) -> str:
    p = data["protocol"]
    names = ", ".join(t["name"] for t in p["texts"])
    return (
        f"Perplexity: {p['words']}; computed in {p['dtype']} on {p['device']}, losses in float32; "
        f"text: {names or '-'}. "
        "Agreement is of the same tokens, intervals are over windows; figures of other texts do not compare."
    )


def _tasks(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [["task", "metric", "dense", "this model", "standard error"], ["---", "---", "---:", "---:", "---:"]]
    for r in rows:
        figures = [r["dense"], r["pruned"], r["standard_error"]]
        lines.append([r["task"], r["metric"], *("" if v is None else words.decimal(v) for v in figures)])
    return _markdown(lines) + "\n\nBy the LM Evaluation Harness, on local tasks."


def _made(data: Mapping[str, Any]) -> str:
    facts = data["made_by"].get("made") or {}
    lines = [f"- {k.replace('_', ' ')}: {v}" for k, v in facts.items() if isinstance(v, (str, int, float))]
    blocks = [b["density"] for b in data["blocks"]]
    if blocks:
        low, high = words.percent(min(blocks)), words.percent(max(blocks))
        lines.append(f"- entries of the blocks that are left: {low} to {high}")
    versions = data["made"].get("versions", {})
    if versions:
        lines.append("- evaluated with " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    return "\n".join(lines)


def _loading(data: Mapping[str, Any]) -> str:
    return (_TRANSFORMERS if data["loads_with"] == "transformers" else _SECATEUR).format(name=data["model"])


def _section(head: str, body: str) -> list[str]:
    return [head, body] if body else []


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)
