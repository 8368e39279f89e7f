"""What the command line looks at and times: models, ONNX files, and the example that they run on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn

from secateur.errors import ArgumentError
from secateur.evidence.running_cost import Running, running_facts
from secateur.evidence.words import decimal, quantity
from secateur.run.data import load_data, load_example
from secateur.run.folder import RUN, read_arguments
from secateur.run.models import load_model
from secateur.targets.measure import compare, measure
from secateur.targets.onnxruntime import declared_inputs
from secateur.targets.onnxruntime import load as load_onnx
from secateur.types import Artefact, Example, Measurement, Target


def known_example(folder: Path, model: nn.Module | None) -> Example | None:
    """The example with which a secateur folder was made; None for anything else.

    Raises:
        SecateurError: what is recorded there cannot be loaded any more.
    """
    if not (folder / RUN).is_file():
        return None
    arguments = read_arguments(folder)
    text, data = arguments.get("example"), arguments.get("data")
    batches = load_data(data, arguments.get("batch_size", 32), folder) if data and not text else None
    return load_example(text, batches, model, folder)


def example_for(specs: Sequence[str], example: str | None, data: str | None, model: nn.Module | None) -> Example | None:
    """As asked, else what a secateur folder among ``specs`` was made with; None where nothing says.

    Raises:
        SecateurError: a text is not valid.
    """
    if example is not None or data is not None:
        return load_example(example, None if example else load_data(str(data)), model)
    found = (known_example(Path(spec), model) for spec in specs)
    return next((e for e in found if e is not None), None)


def model_and_example(spec: str, example: str | None, data: str | None) -> tuple[nn.Module, Example]:
    """The model that ``spec`` names and an example for it, its own where none is given.

    Raises:
        SecateurError: one of the texts is not valid, or there is no example.
    """
    net, _ = load_model(spec)
    found = example_for([spec], example, data, net)
    return net, load_example(None, None) if found is None else found


def timed(
    specs: Sequence[str],
    on: Target,
    example: str | None,
    data: str | None,
    repeats: int,
    running: Running | None = None,
) -> tuple[list[Measurement], list[dict[str, Any]]]:
    """Time models and ONNX files against each other in one run, all on one example; and tell what running each costs.

    Raises:
        ArgumentError: there is no such file, or nothing to run them on.
        TargetError: the target refuses one.
    """
    nets = {spec: load_model(spec)[0] for spec in specs if not spec.endswith(".onnx")}
    given = example_for(specs, example, data, next(iter(nets.values()), None))
    artefacts = []
    for spec in specs:
        if spec not in nets:
            artefacts.append(_file(spec, on, given))
        else:
            known = load_example(None, None) if given is None else given
            artefacts.append(on.build(nets[spec], known, on.threads))
    found = measure(artefacts, repeats)
    return found, running_facts(running or Running(), artefacts, found)


def _file(spec: str, on: Target, example: Example | None) -> Artefact:
    if on.runtime != "onnxruntime":
        raise ArgumentError(f"{spec} is an ONNX file: it runs on --target onnxruntime, not on {on.name}")
    if not Path(spec).is_file():
        raise ArgumentError(f"{spec}: there is no such file")
    if on.device is not None and on.load is not None:
        return on.load(Path(spec), declared_inputs(spec) if example is None else example, on.threads)
    return load_onnx(spec, example, on.threads)


def facts(specs: Sequence[str], found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The measurements as plain data; the first is what the others are compared with."""
    rows = []
    for i, (spec, m) in enumerate(zip(specs, found, strict=True)):
        told = {f.name: getattr(m, f.name) for f in dataclasses.fields(m) if f.name != "seconds"}
        times = {"median_s": m.median, "p95_s": m.p95, "spread": m.spread, "repeats": int(m.seconds.size)}
        versus = compare(found[0], m) if i else None
        against = None if versus is None else {**dataclasses.asdict(versus), "words": versus.words()}
        rows.append({"model": spec, **told, **times, "against_first": against})
    return rows


def timings(specs: Sequence[str], found: Sequence[Measurement]) -> Table:
    """The measurements for a terminal."""
    first = found[0]
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    title = f"{first.target}, {threads}, batch {first.batch}, {first.seconds.size} rounds"
    table = Table("model", title=title)
    for name in ("median", "p95", "spread", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("against the first")
    for row in facts(specs, found):
        size = "" if row["nbytes"] is None else f"{row['nbytes'] / 1e6:.2f} MB"
        times = (f"{row['median_s'] * 1e3:.3f} ms", f"{row['p95_s'] * 1e3:.3f} ms", f"{row['spread']:.1%}")
        said = row["against_first"] and row["against_first"]["words"]
        noise = row["note"].partition(":")[0]
        table.add_row(*map(Text, (row["model"], *times, size, "; ".join(filter(None, (said, noise))))))
    return table


def costs(specs: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Table:
    """What running the models costs, for a terminal; where the figures come from is the caption."""
    sources = [f.get(k, "") for k in ("energy_source", "energy_note", "co2_source") for f in found]
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "energy a run": ("energy_j", lambda v: quantity(v, "J")),
        "spread": ("energy_spread", lambda v: f"{v:.1%}"),
        "CO2 a million": ("co2_g_per_million", lambda v: quantity(v, "g")),
        "price a million": ("price_per_million", decimal),
    }
    shown = {name: (key, text) for name, (key, text) in columns.items() if key in found[0]}
    table = Table("model", caption="; ".join(filter(None, dict.fromkeys(sources))) or None)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for spec, facts_ in zip(specs, found, strict=True):
        table.add_row(*map(Text, (spec, *(text(facts_[key]) for key, text in shown.values()))))
    return table
