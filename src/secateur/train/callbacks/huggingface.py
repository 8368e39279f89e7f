"""Sparse training in `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import TargetError
from secateur.train.ranks import everyone
from secateur.train.saved import load_training, save_training
from secateur.train.sparse import Method, Sparse

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise TargetError("transformers is needed and not installed: pip install 'secateur[huggingface]'") from error

FOLDER = "secateur"


class SparseCallback(TrainerCallback):  # type: ignore[misc]
    """Makes the model of a `Trainer` sparse while it trains, saves with its checkpoints and goes on from them.

    Args:
        method: such as `gmp`; its steps are the optimizer's. weights: name -> parameter; `sc.prunable` by default.
        resume: the checkpoint folder that ``train(resume_from_checkpoint=...)`` is given, if it does not lie in
            ``output_dir``.

    Attributes:
        sparse: the training, from its first step on; None before.

    Raises:
        FormatError: the trainer goes on from a checkpoint that holds no state of a sparse training.
        ArgumentError: it holds that of another method or optimizer.

    Example:
        >>> from secateur.train.schedule import cubic
        >>> from secateur.train.dynamic import gmp
        >>> callback = SparseCallback(gmp(cubic(0.9, start=100, end=900), every=50))
        >>> # Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    """

    def __init__(
        self, method: Method, weights: Mapping[str, nn.Parameter] | None = None, resume: Path | str | None = None
    ) -> None:
        self.method, self.weights, self.resume = method, weights, resume
        self.sparse: Sparse | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin, or go on where the trainer does."""
        if self.sparse is not None:
            self.sparse.strip()
        model = given["model"]
        self.sparse = Sparse(model, given["optimizer"], self.method, self.weights, everyone(model))
        if state.global_step:
            load_training(_of(self.resume or _checkpoint(args, state)), self.sparse)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Save beside the trainer's own files."""
        if self.sparse is not None and state.is_world_process_zero:
            save_training(_of(_checkpoint(args, state)), self.sparse)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any) -> None:
        """The sparsity, beside what the trainer logs."""
        if self.sparse is not None and logs is not None:
            logs["sparsity"] = self.sparse.masks.sparsity
            if state.log_history:
                state.log_history[-1].setdefault("sparsity", logs["sparsity"])  # a copy, made before this

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Let go of the optimizer; the zeros stay."""
        if self.sparse is not None:
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                load_training(_of(state.best_model_checkpoint), self.sparse)  # those weights are back, with their zeros
            self.sparse.strip()


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _of(checkpoint: Path | str) -> Path:
    return Path(checkpoint) / FOLDER
