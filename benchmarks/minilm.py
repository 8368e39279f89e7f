"""MiniLM at half its measured latency: secateur beside dropping layers, uniform magnitude, random units, Torch-Pruning.

Experiment ``minilm`` of `benchmarks/results/main.csv`. Every case is recovered by the same distillation, 440 steps on
the same unlabelled news texts. ``secateur``, ``magnitude_uniform`` and ``random`` are held to half of the dense model's
latency in ONNX Runtime (batch 1, 128 tokens, one thread) and refitted by least squares first, ``layer_drop`` keeps
three of six layers, ``torch_pruning`` cuts heads and neurons by its GroupMagnitudeImportance to secateur's number of
parameters. The figures are fidelity to the dense model on texts and word pairs that nothing is fitted on; the recipe
was chosen with them in view, so they are no blind test.

A part (one case, one seed) that is done is kept in ``.cache``, so an interrupted run goes on where it was. ``--part``
makes one part and no rows; without it all missing parts are made, then every case is timed against the dense model in
one interleaved run and the rows are written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import _peer
import _rows

sys.path.insert(0, str(_rows.ROOT / "examples"))

from torch import nn

import minilm as demo
import secateur as sc
from materials import minilm
from secateur.atomic import write_bytes
from sentences import Fidelity, Texts, crops

CASES = ("secateur", "layer_drop", "magnitude_uniform", "random", "torch_pruning")
SEEDS = (0, 1, 2)
FOLDER = _rows.CACHE / "minilm"
STEPS = 6 if _rows.quick() else demo.STEPS


def make(case: str, seed: int, model: nn.Module, texts: Texts) -> tuple[nn.Module, sc.Plan | None]:
    """One case, recovered."""
    if case == "secateur":
        result = demo.secateur_case(model, texts, demo.half(model, texts), seed, STEPS)
        return result.model, result.plan
    pool = crops(texts, 160_000, seed=seed, size=768)
    if case in ("layer_drop", "torch_pruning"):
        small = cut_otherwise(case, seed, model, texts)
        hidden = demo.dropped_hidden() if case == "layer_drop" else demo.HIDDEN
        demo.distillation(pool, seed, STEPS, hidden).run(small, model, None)
        return small, None
    criterion = sc.magnitude if case == "magnitude_uniform" else sc.random(seed)
    recover = demo.recoveries(texts, demo.calibration_texts(texts, seed), seed, STEPS, None)
    result = demo.uniform_case(model, texts, demo.half(model, texts), criterion, recover, seed)
    return result.model, result.plan


def cut_otherwise(case: str, seed: int, model: nn.Module, texts: Texts) -> nn.Module:
    """The cases that no plan of ours makes, before recovery; the same each time."""
    if case == "layer_drop":
        return demo.drop_layers(model)
    part("secateur", seed)
    ours = sc.apply(sc.load_plan(file_of("secateur", seed).with_suffix(".plan")), model)
    return _peer.cut_to(
        model,
        demo.example_of(texts),
        sum(p.numel() for p in ours.parameters()),
        _peer.importance("GroupMagnitudeImportance"),
        options=heads_and_neurons,
        finish=set_heads,
    )


def heads_and_neurons(model: Any, ratio: float) -> dict[str, Any]:
    """What Torch-Pruning has to be told of BERT: how many heads a projection has, and what must keep its width."""
    layers = model.encoder.layer
    attentions = [layer.attention.self for layer in layers]
    return {
        "num_heads": {p: a.num_attention_heads for a in attentions for p in (a.query, a.key, a.value)},
        "prune_num_heads": True,
        "prune_head_dims": False,
        "head_pruning_ratio": ratio,
        "ignored_layers": [model.embeddings, *(part for x in layers for part in (x.attention.output, x.output))],
    }


def set_heads(model: Any, pruner: Any) -> None:
    """The numbers of heads in the code, which it leaves to its user."""
    for layer in model.encoder.layer:
        attention = layer.attention.self
        attention.num_attention_heads = pruner.num_heads[attention.query]
        attention.all_head_size = attention.query.out_features


def file_of(case: str, seed: int) -> Path:
    """Where a part is kept: under a name that changes with the recipe."""
    recipe = _rows.digest_of(__file__, *sorted((_rows.ROOT / "examples").glob("*.py")))
    return FOLDER / f"{case}-{seed}-{STEPS}-{recipe}.json"


def part(case: str, seed: int) -> dict[str, Any]:
    """Figures of one case and seed, made once."""
    file = file_of(case, seed)
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    model, texts = minilm(), Texts()
    start = time.perf_counter()
    small, plan = make(case, seed, model, texts)
    seconds = time.perf_counter() - start
    quality = Fidelity(texts, model)
    dense, ours = quality(model), quality(small)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if plan is not None:
        sc.save_plan(file.with_suffix(".plan"), plan)
    figures = {
        "cosine": ours["cosine"].value,
        "pair_correlation": ours["pair correlation"].value,
        "wordsim_ratio": ours["WordSim-353"].value / dense["WordSim-353"].value,
        "bbc_delta_points": 100 * (ours["BBC accuracy"].value - dense["BBC accuracy"].value),
        "seconds": seconds,
    }
    write_bytes(file, json.dumps(figures).encode())
    return figures


def timed(parts: dict[tuple[str, int], dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Latency ratios, a seed at a time, the dense model and all its cases interleaved in one run."""
    model, texts = minilm(), Texts()
    example, ratios = demo.example_of(texts), {}
    for seed in SEEDS:
        cases = [c for c, s in parts if s == seed]
        if not cases:
            continue
        models = [model]
        for case in cases:
            plan = file_of(case, seed).with_suffix(".plan")
            cut = sc.apply(sc.load_plan(plan), model) if plan.is_dir() else cut_otherwise(case, seed, model, texts)
            models.append(cut)
        dense, *others = sc.measure_models(demo.TARGET, models, example, 60)
        ratios.update({(c, seed): m.median / dense.median for c, m in zip(cases, others, strict=True)})
    return ratios


def main() -> None:
    """Make what is missing, time everything, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs=2, metavar=("CASE", "SEED"), help="make one part only")
    parser.add_argument("--done", action="store_true", help="make nothing more: write what is there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.part:
        print(*options.part, part(options.part[0], int(options.part[1])))
        return
    wanted = [(c, s) for s in SEEDS for c in CASES if not options.done or file_of(c, s).is_file()]
    parts = {(case, seed): part(case, seed) for case, seed in wanted}
    units = {"seconds": "s", "bbc_delta_points": "points"}
    figures = []
    for (case, seed), ratio in timed(parts).items():
        figures.append(_rows.Figure(case, "latency_ratio", ratio, "", seed))
        for metric, value in parts[case, seed].items():
            figures.append(_rows.Figure(case, metric, value, units.get(metric, ""), seed))
    print(Path(_rows.write("minilm", figures, also=("transformers", _peer.DISTRIBUTION))))


if __name__ == "__main__":
    main()
