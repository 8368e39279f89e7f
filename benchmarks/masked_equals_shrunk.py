"""The shrunk model computes what the masked one computes: largest relative difference in float64.

Experiment ``masked_equals_shrunk``; a case a model and a share of random units (``minilm_30``, ``minilm_60``...), with
every weight perturbed, as `sc.verify` does it. ``control`` is how far the uncut model is from the shrunk one.
"""

from __future__ import annotations

import warnings

import _models
import secateur as sc
from _rows import Figure, quick, say, write

EXPERIMENT = "masked_equals_shrunk"
SPARSITIES = (0.3, 0.6)
QUICK = ("cnn",)


def main() -> None:
    """Every model; writes the rows when all are there."""
    warnings.filterwarnings("ignore")
    figures = []
    for name, load in _models.MODELS.items():
        if quick() and name not in QUICK:
            continue
        model, example = load()
        groups = sc.couple(sc.trace(model, example))
        for sparsity in SPARSITIES:
            plan = sc.random_plan(groups, sparsity, seed=0)
            report = sc.verify(model, plan, sc.apply(plan, model), example)
            case = f"{name}_{round(100 * sparsity)}"
            figures.append(Figure(case, "max_relative_error", report.max_error, "", 0))
            control = next(r.pruned for r in report if r.what.startswith("control"))
            figures.append(Figure(case, "control", control or 0.0, "", 0))
            if not report.ok:
                raise SystemExit(f"{case}: masked and shrunk differ: {[r for r in report if r.ok is False]}")
        say(EXPERIMENT, figures[-2 * len(SPARSITIES) :])
    print(write(EXPERIMENT, figures))


if __name__ == "__main__":
    main()
