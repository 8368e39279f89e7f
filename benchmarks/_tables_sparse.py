"""The tables of `benchmarks/results/sparse.csv`, for docs/results.md."""

from __future__ import annotations

from _table import Table

ALLOCATION = Table(
    "allocation",
    "Where nine in ten weights go, one shot",
    "Magnitude pruning of a CNN with batch norm (70,000 weights, eight epochs of Fashion-MNIST) at 90 %, nothing "
    "trained afterwards, batch statistics taken anew; and at 70 % as it is.",
    {
        "dense": "dense",
        **{
            f"{case}_{p}": f"{label}, {p} %"
            for p in (90, 70)
            for case, label in {
                "lamp": "LAMP",
                "global": "one ranking",
                "erk": "ERK",
                "uniform": "the same everywhere",
            }.items()
        },
    },
    {"accuracy, new statistics": ("accuracy", "{:.1f} %"), "accuracy as it is": ("accuracy_as_is", "{:.1f} %")},
)

DYNAMIC = Table(
    "gmp_rigl",
    "Training sparse",
    "Three convolutions (93,728 weights) on 30,000 images of Fashion-MNIST, six epochs, the same data order and "
    "learning rates for all, Erdős–Rényi densities. At 98 % RigL fell behind fixed masks here (units lost all "
    "their weights); its sparsity and how often it moves were chosen on held-out training images after that.",
    {
        "dense": "dense",
        "gmp_98": "GMP, 98 %",
        "static_98": "fixed random masks, 98 %",
        "rigl_95": "RigL, 95 %",
        "set_95": "SET, 95 %",
        "static_95": "fixed random masks, 95 %",
    },
    {"sparsity": ("sparsity", "{:.2f} %"), "accuracy": ("accuracy", "{:.2f} %")},
)

TICKETS = Table(
    "imp",
    "Lottery tickets of LeNet-300-100",
    "Fashion-MNIST, 1,500 steps a round; each layer loses 20 % of what is left a round, the output layer 10 %; weights "
    "go back to the start. The controls are trained in the last round.",
    {
        **{f"ticket_round_{r}": f"ticket, round {r}" if r else "dense" for r in (0, 3, 7, 11, 15)},
        "random_init_round_15": "its masks over newly drawn weights",
        "shuffled_mask_round_15": "its masks shuffled within layers",
    },
    {"weights kept": ("density", "{:.1f} %"), "accuracy": ("accuracy", "{:.2f} %")},
)

_CASES = {"synflow": "SynFlow", "snip": "SNIP", "grasp": "GraSP", "magnitude": "magnitude"}

AT_START = Table(
    "pai_collapse",
    "Pruning at initialisation",
    "A VGG-like network (1.17 M weights), pruned untrained; connected says in what share of the runs a path leads "
    "from an input to an output. Accuracy after 60 steps on Fashion-MNIST, beside it with the masks shuffled within "
    "layers.",
    {"dense": "dense", **{f"{c}_10^{p}": f"{n}, 10^{p}" for p in ("1", "2", "3", "4.5") for c, n in _CASES.items()}},
    {
        "connected": ("connected", "{:.2f}"),
        "layers with weights": ("layers", "{:.2f}"),
        "accuracy": ("accuracy", "{:.1f} %"),
        "shuffled": ("shuffled", "{:.1f} %"),
    },
)

OVERHEAD = Table(
    "mask_overhead",
    "What masks cost a training step",
    "ResNet-18 for 32 x 32 images, batch 32, 90 % of every kernel masked; steps of the three take turns.",
    {"secateur": "secateur", "torch.nn.utils.prune": "torch.nn.utils.prune"},
    {"step over a dense one": ("step_ratio", "{:.3f}")},
)

SELECTION = Table(
    "select_1e8",
    "Choosing a tenth of a hundred million weights",
    "Twenty tensors, two threads; extra peak memory over the bytes of the weights.",
    {
        "secateur": "secateur",
        "numpy.partition threshold": "`numpy.partition`, threshold",
        "torch.kthvalue threshold": "`torch.kthvalue`, threshold",
        "stable sort": "stable sort",
    },
    {
        "seconds": ("seconds", "{:.2f}"),
        "memory": ("peak_ratio", "{:.2f}"),
        "kept over asked": ("kept_over_asked", "{:.4f}"),
    },
)

TABLES = (ALLOCATION, DYNAMIC, TICKETS, AT_START, OVERHEAD, SELECTION)
