"""The page of results, docs/results.md, made from the rows of ``main.csv`` and of the other files beside it.

``python benchmarks/_tables.py`` writes it anew, as ``make bench-NAME`` does at its end.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import _tables_budget
import _tables_llm
import _tables_sparse
from _rows import ROOT, read
from _table import Table
from secateur.atomic import write_bytes

PAGE = ROOT / "docs" / "results.md"


MINILM = Table(
    "minilm",
    "MiniLM-L6 sentence encoder at half its latency",
    "ONNX Runtime, batch 1, 128 tokens, one thread. Every case is recovered by the same 440 steps of distillation "
    "on unlabelled news text. Fidelity to the dense model on texts and word pairs that nothing is fitted on; the "
    "recipe was chosen with such figures in view, so they are no blind test. Torch-Pruning is brought to "
    "secateur's number of parameters; three layers come to half the latency by themselves; the others are held to it.",
    {
        "secateur": "secateur",
        "layer_drop": "3 of 6 layers dropped",
        "magnitude_uniform": "uniform magnitude, refitted",
        "random": "random units, refitted",
        "torch_pruning": "Torch-Pruning 1.6.1, magnitude",
    },
    {
        "latency": ("latency_ratio", "{:.3f}"),
        "cosine to dense": ("cosine", "{:.3f}"),
        "pair correlation": ("pair_correlation", "{:.3f}"),
        "WordSim-353 of dense": ("wordsim_ratio", "{:.3f}"),
        "BBC probe, points": ("bbc_delta_points", "{:+.1f}"),
    },
)

FASHION = Table(
    "fashion_mnist",
    "A CNN on Fashion-MNIST at half and at a quarter of its latency",
    "ONNX Runtime, batch 32, one thread. Torch-Pruning is brought to secateur's number of parameters; every cut "
    "model gets its batch statistics anew and the same two epochs of distillation with labels.",
    {
        "dense": "dense",
        "secateur": "secateur, half",
        "torch_pruning": "Torch-Pruning 1.6.1, magnitude",
        "torch_pruning_taylor": "Torch-Pruning 1.6.1, Taylor",
        "secateur_25": "secateur, a quarter",
        "torch_pruning_25": "Torch-Pruning 1.6.1, magnitude",
        "torch_pruning_taylor_25": "Torch-Pruning 1.6.1, Taylor",
    },
    {
        "latency": ("latency_ratio", "{:.3f}"),
        "parameters": ("params_ratio", "{:.3f}"),
        "accuracy": ("accuracy", "{:.2f} %"),
        "points": ("accuracy_delta_points", "{:+.2f}"),
    },
)

EFFICIENTNET = Table(
    "efficientnet_lite0",
    "EfficientNet-Lite0 at 80 % and 65 % of its latency, nothing trained",
    "ONNX Runtime, batch 1, one thread; its ImageNet weights, no labels. secateur refits by least squares, the "
    "others get their batch statistics anew. Uniform magnitude meets the same latency, Torch-Pruning has "
    "secateur's number of parameters. Agreement with the dense model's top class and divergence from its class "
    "distribution, on crops of photographs that nothing was calibrated on.",
    {
        "secateur": "secateur, 80 %",
        "magnitude_uniform": "uniform magnitude",
        "torch_pruning": "Torch-Pruning 1.6.1, magnitude",
        "secateur_65": "secateur, 65 %",
        "magnitude_uniform_65": "uniform magnitude",
        "torch_pruning_65": "Torch-Pruning 1.6.1, magnitude",
    },
    {
        "latency": ("latency_ratio", "{:.3f}"),
        "parameters": ("params_ratio", "{:.3f}"),
        "agreement": ("agreement", "{:.1f} %"),
        "KL, nats": ("logit_kl", "{:.2f}"),
    },
)

MODELS = {
    "cnn": "CNN, 5 convolutions",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "minilm": "MiniLM-L6",
    "smollm2_135m": "SmolLM2-135M",
}

RECORDING = Table(
    "trace_seconds",
    "Recording and coupling",
    "Seconds of `sc.couple(sc.trace(model, example))`, median of nine, and their ratio to Torch-Pruning's "
    "dependency graph with all of its groups, the two taken in turns; beside it the first time in a fresh "
    "process, with what torch itself loads then.",
    {f"{case}_secateur": label for case, label in MODELS.items()},
    {
        "seconds": ("seconds", "{:.4f}"),
        "ratio": ("ratio", "{:.2f}"),
        "first time": ("first_seconds", "{:.2f}"),
    },
)

EXACT = Table(
    "masked_equals_shrunk",
    "Masked equals shrunk",
    "Largest difference in float64 over the largest output, random units cut; beside it the same between the cut "
    "and the uncut model, which must not be small.",
    {f"{case}_{p}": f"{label}, {p} % cut" for case, label in MODELS.items() for p in (30, 60)},
    {"difference": ("max_relative_error", "{:.1e}"), "control": ("control", "{:.2f}")},
)

LARGE_MODELS = {"vit_h14": "ViT-H/14", "convnext_l": "ConvNeXt-L", "llama_1b": "Llama, 1.1 billion parameters"}

LARGE = Table(
    "large_models",
    "Large models",
    "Seconds of `sc.couple(sc.trace(model, example))`, once, in a process that recorded a tiny model before; beside "
    "them how far memory grows meanwhile, as a share of the bytes of the weights. On meta there are no weights.",
    {
        f"{case}{where}": f"{label}{', on meta' * bool(where)}"
        for case, label in LARGE_MODELS.items()
        for where in ("", "_meta")
    },
    {
        "parameters": ("parameters", "{:,.0f}"),
        "groups": ("groups", "{:.0f}"),
        "seconds": ("seconds", "{:.2f}"),
        "of it recording": ("trace_seconds", "{:.2f}"),
        "memory": ("growth", "{:.3f}"),
    },
)

ABOUT = (
    "Made from the rows of `benchmarks/results/main.csv`, `sparse.csv`, `budget.csv` and `llm.csv`, where the machine, "
    "the versions and the seeds stand; `make bench` makes them anew. Latencies are ratios to the dense model's, timed "
    "in one interleaved run; figures are means over runs."
)

TABLES = (MINILM, FASHION, EFFICIENTNET, RECORDING, LARGE, EXACT)


def page() -> str:
    """The whole page."""
    out = ["# Results", "", textwrap.fill(ABOUT, 120)]
    files = {
        "main": TABLES,
        "sparse": _tables_sparse.TABLES,
        "budget": _tables_budget.TABLES,
        "llm": _tables_llm.TABLES,
    }
    for file, tables in files.items():
        rows = read(ROOT / "benchmarks" / "results" / f"{file}.csv")
        for table in tables:
            lines = table.lines(rows)
            if len(lines) > 2:
                target = table.experiment.removesuffix("_lite0") if file == "main" else file
                text = textwrap.fill(f"{table.text} `make bench-{target}`", 120)
                out += ["", f"## {table.title}", "", text, "", *lines]
    return "\n".join(out) + "\n"


def write_page(path: Path = PAGE) -> None:
    """Write the page anew."""
    write_bytes(path, page().encode())


if __name__ == "__main__":
    write_page()
