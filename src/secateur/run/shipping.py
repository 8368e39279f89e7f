"""The file that goes with a result: what its target runs, and how that agrees with torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur.calling import example_of
from secateur.evidence.gather import difference
from secateur.export.prepare import batch_of, rebatched
from secateur.types import Batches, Example, Target

FILES = ("model.onnx", "model.xml", "model.pte", "model.tflite", "model.engine")
"""What targets call the file that ships; weights may lie beside it under the same stem."""


def ship(
    small: nn.Module, example: Example, data: Batches | None, target: Target, folder: Path
) -> list[dict[str, Any]]:
    """Export a model into a folder, and tell how the file agrees with torch on the example and on two batches of data.

    Raises:
        TargetError: the runtime is missing or refuses the model.
    """
    assert target.export is not None
    folder.mkdir(exist_ok=True)
    file = target.export(small, example, folder)
    inputs = {"the example": [example]}
    if data is not None:
        split = example_of(small)
        first = [split(batch)[0] for batch in itertools.islice(data, 2)]
        inputs["data"] = [rebatched(e, batch_of(example)) for e in first]
    return [agreement(file, small, examples, target, what) for what, examples in inputs.items()]


def agreement(file: Path, model: nn.Module, examples: Sequence[Example], target: Target, what: str) -> dict[str, Any]:
    """How a file agrees with torch: its largest relative error, and whether the target's precision explains it.

    An ONNX file that takes any batch size is run on other sizes too.
    """
    if target.runtime == "onnxruntime":
        from secateur.export.onnx import parity

        error = parity(file, model, examples)
    else:
        assert target.load is not None
        artefact = target.load(file, examples[0], target.threads)
        error = max(difference(model, artefact, e) for e in examples)
    about = {"what": f"{file.name} against torch on {what}", "max_error": error, "limit": target.parity}
    return {**about, "ok": error <= target.parity}


def shipped(folder: Path) -> Path | None:
    """The exported file of a result folder; None where there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)
