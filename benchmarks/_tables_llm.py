"""The tables of `benchmarks/results/llm.csv`, for docs/results.md."""

from __future__ import annotations

from _table import Table

_METHODS = {
    "plain/magnitude": "magnitude, plain loop",
    "secateur/magnitude": "magnitude",
    "plain/wanda": "Wanda, plain loop",
    "llmcompressor/wanda": "Wanda, llm-compressor 0.14",
    "secateur/wanda": "Wanda",
    "secateur/ria": "RIA",
    "secateur/wanda+dsnot": "DSnoT from Wanda",
    "plain/sparsegpt": "SparseGPT, plain loop",
    "llmcompressor/sparsegpt": "SparseGPT, llm-compressor 0.14",
    "secateur/sparsegpt": "SparseGPT",
    "secateur/sparsegpt+owl": "SparseGPT, OWL",
    "secateur/admm": "ADMM",
    "secateur/alps": "ALPS",
    "secateur/alps+owl": "ALPS, OWL",
    "secateur/admm+dense_targets": "ADMM towards the dense model's outputs",
}
PATTERNS = ("50%", "60%", "70%", "2:4")

ONE_SHOT = Table(
    "one_shot",
    "Language models, one shot",
    "SmolLM2-135M-Instruct (its weights dequantised from 4 bits), 64 windows of 512 tokens of BBC news to calibrate "
    "on. Perplexity of what was saved, loaded in a clean process, on 60 windows of 512 tokens of other articles, each "
    "window on its own. Only the linear layers of the decoder blocks are pruned; nothing is trained.",
    {
        "dense": "dense",
        **{f"{m}/{p}": f"{p.replace('%', ' %')}, {label}" for p in PATTERNS for m, label in _METHODS.items()},
    },
    {"perplexity": ("perplexity", "{:.2f}"), "zeros": ("sparsity", "{:.2f} %")},
)

ORDERS = Table(
    "orders",
    "Language models, what rounding changes",
    "The same model, text and judge at 2:4, the same calibration windows in three other orders: their sums differ by "
    "rounding alone. Means, and what is above and below them.",
    {
        "secateur/sparsegpt/2:4": "SparseGPT, secateur",
        "llmcompressor/sparsegpt/2:4": "SparseGPT, llm-compressor 0.14",
        "secateur/wanda/2:4": "Wanda, secateur",
        "llmcompressor/wanda/2:4": "Wanda, llm-compressor 0.14",
    },
    {"perplexity": ("perplexity", "{:.2f}"), "least": ("least", "{:.2f}"), "most": ("most", "{:.2f}")},
)

_SHRUNK = {
    "obs": "neurons and key-value groups by structured OBS, refitted",
    "flap": "neurons and key-value groups by FLAP",
    "depth": "blocks",
    "mixed": "blocks, neurons and groups by structured OBS, refitted",
    "mixed+distilled": "the same, distilled",
}

STRUCTURED = Table(
    "structured",
    "Language models, smaller",
    "The same model and text; neurons, key-value groups, blocks or channels removed; share of all parameters left. "
    "Torch-Pruning 1.6.1 does not trace it.",
    {
        "neurons_25%/obs": "a quarter of the neurons of each block, structured OBS, refitted",
        "neurons_25%/mixed": "a quarter of the neurons, the same, blocks by measured effect",
        "neurons_25%/flap": "a quarter of the neurons, FLAP",
        "neurons_25%/magnitude": "a quarter of the neurons of each block, magnitude",
        "depth_3": "3 of 30 blocks",
        "width_504": "72 of 576 channels of the residual stream",
        **{f"{p}%/{way}": f"{p} % removed, {label}" for p in (10, 20, 30) for way, label in _SHRUNK.items()},
    },
    {"parameters": ("params_ratio", "{:.3f}"), "perplexity": ("perplexity", "{:.2f}")},
)

_COMMANDS = {f"{m.lower()}/{p}": f"{m}, {p.replace('%', ' %')}" for m in ("SparseGPT", "Wanda") for p in ("50%", "2:4")}

TIME = Table(
    "time",
    "Language models, seconds",
    "Whole commands on one thread, from the start of the process to the folder on disk, in turns with llm-compressor "
    "0.14; medians. Scoring alone is Wanda's scores and cuts of all layers; beside it the share that the bytes it "
    "cannot do without have of what a copy moves in that time.",
    {
        **{
            f"{library}/{c}": f"{label}, {library}"
            for c, label in _COMMANDS.items()
            for library in ("secateur", "llmcompressor")
        },
        "secateur/wanda/scoring": "Wanda, scoring alone",
    },
    {
        "seconds": ("seconds", "{:.1f}"),
        "over llm-compressor's": ("ratio_to_llmcompressor", "{:.2f}"),
        "of the bandwidth": ("bandwidth_fraction", "{:.2f}"),
    },
)

MEMORY = Table(
    "memory",
    "Language models, memory",
    "A Llama of 1.5 billion random bf16 parameters, made locally, pruned with its address space limited by the "
    "operating system; peak resident set, also of a run that was killed in the middle and resumed.",
    {"secateur/sparsegpt/1.5B": "SparseGPT, 50 %"},
    {
        "checkpoint, GB": ("checkpoint_gb", "{:.2f}"),
        "limit, GB": ("limit_gb", "{:.2f}"),
        "peak, GB": ("peak_gb", "{:.2f}"),
        "resumed, GB": ("resumed_peak_gb", "{:.2f}"),
        "identical files": ("identical_files", "{:.0f}"),
    },
)

PRODUCTS = Table(
    "products",
    "Products of float32 on a CPU",
    "Layers of SmolLM2-135M on 4096 tokens, and adding these tokens to a second moment of 1536 inputs; billions of "
    "operations a second on one thread by torch's own library and within `secateur.products.fast`, in turns, and the "
    "ratio of seconds.",
    {
        "4096x576x576": "576 inputs, 576 outputs",
        "4096x576x1536": "576 inputs, 1536 outputs",
        "4096x1536x576": "1536 inputs, 576 outputs",
        "second_moment": "second moment",
    },
    {
        "torch's own": ("own_gflops", "{:.0f}"),
        "within fast": ("gflops", "{:.0f}"),
        "ratio of seconds": ("ratio", "{:.2f}"),
    },
)

TABLES = (ONE_SHOT, ORDERS, STRUCTURED, TIME, PRODUCTS, MEMORY)
