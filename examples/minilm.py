"""The main job on a real model: MiniLM at half its measured latency, proved, brought back, saved, shown.

Unlabelled news text is all the data it sees. Quality is fidelity to the dense model, judged on texts and word pairs
that nothing is fitted on (the recipe was chosen with them in view). Beside it stand uniform magnitude, random units and
dropping whole layers.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import secateur as sc
from materials import minilm
from secateur.evidence.quality import Figure
from sentences import Batch, Fidelity, Texts, batch_of, crops, embedding_loss

TARGET = sc.with_threads(sc.onnxruntime, 1)
LIMITS = sc.Limits(by_kind={"neuron": 32})
KEPT_LAYERS = (0, 3, 5)
STEPS = 440
HELD = 1000
"""What is added to a seed for crops that nothing is fitted on."""
HIDDEN = ("encoder.layer.*",)


def example_of(texts: Texts) -> Batch:
    """What latency is measured on: batch 1, 128 tokens."""
    return batch_of([texts.framed(texts.ids("the quick brown fox jumps over the lazy dog " * 20))])


def calibration_texts(texts: Texts, seed: int) -> list[Batch]:
    """What scores and least squares are taken from: 12,288 tokens."""
    return crops(texts, 12_288, seed=seed, size=1024)


def recoveries(texts: Texts, calibration: list[Batch], seed: int, steps: int, work: Path | None) -> list[sc.Recovery]:
    """Least squares, then distillation of the embedding and of every layer's output."""
    pool = crops(texts, 160_000, seed=seed, size=768)
    return [sc.refit(calibration), distillation(pool, seed, steps, work=work)]


def distillation(
    pool: list[Batch],
    seed: int,
    steps: int,
    hidden: Mapping[str, str] | Sequence[str] = HIDDEN,
    work: Path | None = None,
    lr: float = 1e-3,
) -> sc.Recovery:
    """What every case of the benchmark is recovered with."""
    return sc.distill(
        pool,
        steps=steps,
        lr=lr,
        loss=embedding_loss,
        hidden=hidden,
        trainable=not_word_embeddings,
        keep_answers=True,  # 1.5 GB, for a quarter of the time
        checkpoint=work,
        seed=seed,
    )


def not_word_embeddings(name: str) -> bool:
    """The table of words is half of the model and hardly moves."""
    return "word_embeddings" not in name


def half(model: nn.Module, texts: Texts) -> sc.Budget:
    """Half of the latency that the dense model has in ONNX Runtime on one thread."""
    return sc.Budget.of_dense(sc.latency(model, example_of(texts), TARGET), 0.5)


def secateur_case(
    model: nn.Module,
    texts: Texts,
    budget: sc.Budget,
    seed: int,
    steps: int = STEPS,
    quality: Any = None,
    tell: Callable[[str], None] = lambda words: None,
    work: Path | None = None,
) -> sc.Result:
    """Heads and neurons by structured OBS, allocated by their measured effect on other text, refitted, distilled."""
    calibration, held = calibration_texts(texts, seed), crops(texts, 3072, seed=HELD + seed)
    return sc.prune(
        model,
        example_of(texts),
        budget=budget,
        criterion=sc.obs,
        normalize=sc.by_effect(model, held, embedding_loss),
        allocation=sc.knapsack,
        batches=calibration,
        recover=recoveries(texts, calibration, seed, steps, work),
        limits=LIMITS,
        quality=quality,
        seed=seed,
        tell=tell,
    )


def uniform_case(
    model: nn.Module,
    texts: Texts,
    budget: sc.Budget,
    criterion: sc.Criterion,
    recover: Sequence[sc.Recovery] = (),
    seed: int = 0,
) -> sc.Result:
    """The same latency by the same fraction everywhere."""
    return sc.prune(
        model,
        example_of(texts),
        budget=budget,
        criterion=criterion,
        allocation=sc.uniform,
        recover=recover,
        limits=LIMITS,
        seed=seed,
    )


def drop_layers(model: nn.Module) -> nn.Module:
    """Three whole layers of six, a strong baseline."""
    small = copy.deepcopy(model)
    layers: Any = small.get_submodule("encoder")
    layers.layer = nn.ModuleList([layers.layer[i] for i in KEPT_LAYERS])
    small.config.num_hidden_layers = len(KEPT_LAYERS)
    return small


def dropped_hidden() -> dict[str, str]:
    """Which dense layer each of the three is held to."""
    return {f"encoder.layer.{i}": f"encoder.layer.{j}" for i, j in enumerate((1, 3, 5))}


def latency_ratio(report: sc.Report) -> float:
    """Median over median, timed in one interleaved run."""
    return next(r.ratio or 1.0 for r in report if r.what.startswith("latency median"))


def baselines(
    model: nn.Module, texts: Texts, budget: sc.Budget, quality: Any, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One-shot rivals at the same latency: by prediction, then timed beside the dense model in one run."""
    assert budget.cost.build is not None
    tell("baselines: uniform magnitude, random units, three whole layers")
    groups = sc.couple(sc.trace(model, example_of(texts)))
    uniform = {
        name: sc.apply(sc.allocate(sc.score(model, groups, criterion), budget, sc.uniform, LIMITS), model)
        for name, criterion in (("uniform magnitude", sc.magnitude), ("random units", sc.random()))
    }
    layers = drop_layers(model)
    artefacts = [budget.cost.build(m) for m in (model, uniform["uniform magnitude"], layers)]
    dense, widths, depth = (m.median for m in sc.measure(artefacts))
    note = "one-shot, not recovered"
    same = note + ", timed at these widths"  # uniform cuts have the same shapes, whichever units they take
    return [
        rival("uniform magnitude", widths / dense, quality(uniform["uniform magnitude"]), note),
        rival("random units", widths / dense, quality(uniform["random units"]), same),
        rival("3 of 6 layers dropped", depth / dense, quality(layers), note),
    ]


def rival(name: str, ratio: float, quality: Mapping[str, Figure], note: str) -> dict[str, Any]:
    """A row of the table of rivals."""
    return {"name": name, "latency_ratio": ratio, "quality": {k: f.value for k, f in quality.items()}, "note": note}


def with_baselines(report: sc.Report, rivals: list[dict[str, Any]]) -> sc.Report:
    """The report with the rivals and a title."""
    sections = {**report.sections, "baselines": rivals, "title": "MiniLM-L6 sentence encoder at half its latency"}
    return dataclasses.replace(report, sections=sections)


def rivals_table(rivals: list[dict[str, Any]], ours: dict[str, Figure], ratio: float) -> Table:
    """This model beside its rivals."""
    table = Table(title="At the same latency")
    for column in ("", "latency", *ours):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("secateur", f"{ratio:.3f}", *(f"{f.value:.3f}" for f in ours.values()), style="bold")
    for r in rivals:
        name = f"{r['name']} ({r['note']})"
        table.add_row(name, f"{r['latency_ratio']:.3f}", *(f"{r['quality'][k]:.3f}" for k in ours))
    return table


def main() -> None:
    """Run the demo and say where the report is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/minilm"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    console, start = Console(), time.perf_counter()

    def tell(words: str) -> None:
        console.print(f"[dim]{time.perf_counter() - start:5.0f} s[/dim]  {words}")

    tell("loading MiniLM and the texts")
    model, texts = minilm(), Texts()
    quality = Fidelity(texts, model)
    work = options.out.parent / f".{options.out.name}.work"
    tell("timing the dense model")
    budget = half(model, texts)
    result = secateur_case(model, texts, budget, options.seed, options.steps, quality, tell, work)
    rivals = baselines(model, texts, budget, quality, tell)
    report = with_baselines(result.report, rivals)
    folder = sc.save(options.out, result.model, result.plan, report, overwrite=True)
    shutil.rmtree(work, ignore_errors=True)  # what a run that was cut off would have gone on from
    reloaded = sc.load(folder)
    same = torch.equal(reloaded(**example_of(texts))[0], result.model.eval()(**example_of(texts))[0])
    console.print(sc.to_table(report))
    console.print(rivals_table(rivals, dict(result.stages[-1].quality), latency_ratio(report)))
    console.print(f"Loaded again from {folder}: outputs bit-identical: {same}")
    console.print(f"[bold]Report: {(folder / 'report.html').resolve()}[/bold]  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
