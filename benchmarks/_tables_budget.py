"""The tables of `benchmarks/results/budget.csv`, for docs/results.md."""

from __future__ import annotations

from _table import Table

_MODELS = {
    "resnet": "ResNet, 6 blocks",
    "minilm": "MiniLM-L6",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "smollm2_135m": "SmolLM2-135M prefill",
}
_TARGETS = {"eager": "eager", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_BOTH = {f"{m}/{t}": f"{model}, {target}" for m, model in _MODELS.items() for t, target in _TARGETS.items()}

PREDICTION = Table(
    "prediction",
    "Predicted against measured latency",
    "Forty random plans a model and runtime, one thread: predicted from tables of single layers and a few whole "
    "models, then exported and timed in turns with the dense model.",
    _BOTH,
    {"median error": ("median_relative_error", "{:.1%}"), "worst": ("worst_relative_error", "{:.1%}")},
)

MET = Table(
    "budget_met",
    "Budgets met by measurement",
    "Latency of the cut model over the budget, in a measurement of its own after the plan was made; or, where a budget "
    "is refused, the closest reachable over the budget.",
    {f"{case}/{p}%": f"{label}, {p} %" for case, label in _BOTH.items() for p in (70, 50, 35)},
    {"measured over asked": ("measured_over_asked", "{:.3f}"), "refused, closest": ("closest_over_asked", "{:.3f}")},
)

_WAYS = {"latency": "by latency", "macs": "by MACs", "uniform": "uniform"}
_SHARES = {"resnet": 35, "minilm": 50, "efficientnet_lite0": 75, "smollm2_135m": 75}
EQUAL = Table(
    "equal_latency",
    "At equal measured latency",
    "Plans solved for latency and for multiply-accumulates by `sc.measured`, from errors on data held out, and the "
    "same fraction everywhere, all at the same share of the dense latency in ONNX Runtime, before and after the same "
    "recovery, and, where training is part of that, after the least squares that come first; larger is better: test "
    "accuracy, cosine to the dense model, negated divergence from it, negated log perplexity. Where no plan stands at "
    "the share, figures are read off the line between the two nearest, or are the nearer's where the last timing finds "
    "both on one side. Leads are those after recovery, means over the seeds, with half of their 95 % intervals.",
    {
        f"{m}/onnxruntime/{_SHARES[m]}%/{way}": f"{model}, {_SHARES[m]} %, {label}"
        for m, model in _MODELS.items()
        for way, label in _WAYS.items()
    },
    {
        "latency": ("latency_ratio", "{:.3f}"),
        "before": ("before", "{:.3f}"),
        "refitted": ("refitted", "{:.3f}"),
        "after": ("after", "{:.3f}"),
        "lead over MACs": ("after_over_macs", "{:+.3f}"),
        "±": ("after_over_macs_ci95", "{:.3f}"),
        "over uniform": ("after_over_uniform", "{:+.3f}"),
        "± ": ("after_over_uniform_ci95", "{:.3f}"),
    },
)

ADVICE = Table(
    "advise",
    "Advice",
    "Seconds of `secateur advise` on ONNX Runtime and its int8 sibling, one thread; the time of its first "
    "recommendations over the dense model's, as advised and measured in full; how many of three are confirmed.",
    _MODELS,
    {
        "seconds": ("seconds", "{:.0f}"),
        "first, said": ("top_1_said", "{:.3f}"),
        "found": ("top_1_found", "{:.3f}"),
        "second, said": ("top_2_said", "{:.3f}"),
        "found ": ("top_2_found", "{:.3f}"),
        "third, said": ("top_3_said", "{:.3f}"),
        "found  ": ("top_3_found", "{:.3f}"),
        "confirmed": ("confirmed", "{:.0f}"),
    },
)

TABLES = (PREDICTION, MET, EQUAL, ADVICE)
