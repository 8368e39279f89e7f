"""secateur on tokens that are given: ``python _ours.py MODEL TOKENS METHOD PATTERN OUT [MEMORY]``.

Arguments as of `_peer`; METHOD is one of `WAYS`, with ``+owl`` for OWL's densities; MEMORY is such as ``6GB``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load_file

from secateur.choose.patterns import nm
from secateur.llm.allocate import outliers, uniform
from secateur.llm.memory import bytes_in
from secateur.llm.prune import Pruning, llm_prune
from secateur.solve.admm import admm, alps
from secateur.solve.dsnot import dsnot
from secateur.solve.scores import magnitude_mask, ria_mask, wanda_mask
from secateur.solve.sparsegpt import sparsegpt

WAYS: Mapping[str, Mapping[str, Any]] = {
    "magnitude": {"solver": magnitude_mask},
    "wanda": {"solver": wanda_mask},
    "ria": {"solver": ria_mask},
    "wanda+dsnot": {"solver": dsnot},
    "sparsegpt": {"solver": sparsegpt},
    "admm": {"solver": admm},
    "alps": {"solver": alps},
    "admm+dense_targets": {"solver": admm, "cross": True},
}
"""Name in the results -> arguments of `Pruning`."""


def shape(pattern: str) -> dict[str, Any]:
    """``50%`` or ``2:4`` as arguments of `Pruning`."""
    if pattern.endswith("%"):
        return {"sparsity": float(pattern[:-1]) / 100}
    kept, group = map(int, pattern.split(":"))
    return {"pattern": nm(kept, group)}


def main(model: str, tokens: str, method: str, pattern: str, out: str, memory: str | None = None) -> None:
    """Prune and save."""
    how = Pruning(**WAYS[method.removesuffix("+owl")], **shape(pattern))
    allocation = outliers() if method.endswith("+owl") else uniform
    limit = None if memory is None else bytes_in(memory)
    llm_prune(model, load_file(tokens)["tokens"], how, out, allocation=allocation, memory=limit)


if __name__ == "__main__":
    main(*sys.argv[1:])
