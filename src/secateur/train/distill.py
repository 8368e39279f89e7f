"""Distillation: a cut model learns to answer as the dense one does, on any data, with labels or without."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calling import example_of, run
from secateur.digest import model_hash
from secateur.errors import DataError
from secateur.progress import progress
from secateur.train.batches import Source, source_of, stream, to_device
from secateur.train.hidden import captured, fit_projection, matched_modules, paired
from secateur.train.loop import take_best_, train_, validate_
from secateur.train.losses import Loss, relative_mse, square_head
from secateur.train.modes import kept_modes, own_rng
from secateur.train.recovery import History, Recovery
from secateur.train.resume import deferred_interrupt, resume_, save
from secateur.train.run import At, Run, Validation, copy_, make_optimizer_
from secateur.train.settings import Settings
from secateur.train.state import check_same_run, load_state
from secateur.types import Batches, Plan


def distill(
    batches: Batches | Callable[[int], Batches],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    loss: Loss = relative_mse,
    weight_output: float = 1.0,
    hidden: Sequence[str] | Mapping[str, str] = (),
    weight_hidden: float = 1.0,
    hidden_loss: Callable[[Tensor, Tensor, Tensor | None], Tensor] = square_head,
    hidden_mask: Callable[[Any], Tensor] | None = None,
    lr: float = 5e-4,
    warmup: float = 0.05,
    schedule: Callable[[int, int], float] | None = None,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    accumulate: int = 1,
    keep_answers: bool = False,
    ema: float | None = None,
    trainable: Callable[[str], bool] | None = None,
    dropout: bool = False,
    batch_norm: bool = False,
    validation: Batches | Callable[[nn.Module], float] | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    seed: int = 0,
    name: str = "distillation",
) -> Recovery:
    """Recovery by distillation from the dense model, with AdamW, warm-up and a cosine to zero.

    Minimises ``weight_output * loss(student, teacher, batch) + weight_hidden * mean over pairs of
    hidden_loss(student state, teacher state, mask)``. The teacher is in eval mode and sees no gradient. The
    student
    has no dropout and frozen batch statistics unless asked: the teacher's answer is the target, noise only
    blurs it.

    Args:
        batches: a list (shuffled anew each epoch), a DataLoader, any iterable, or a function
            ``batches(epoch)`` that returns one. A batch is an example or a pair ``(example, targets)``. A
            one-shot iterator will do where one pass is enough.
        steps: optimizer steps; or ``epochs``: passes over the data, where its length is known (one if neither
            is given).
        epochs: see ``steps``.
        loss: ``(student output, teacher output, batch) -> scalar``. The default compares every tensor of the
            output and suits any kind of it; ``kl_logits(2.0)`` is the usual choice for a classifier,
            ``cosine_loss`` for embeddings. Write your own to add labels, pooling or ``pair_similarity_loss``.
        weight_output: weight of ``loss``.
        hidden: module paths whose outputs are matched too, patterns part by part (``"encoder.layer.*"``), or
            a mapping from the small model's paths to the dense one's. Where widths differ, a linear
            projection, fitted on the first batch and trained along, bridges them and is dropped at the end.
        weight_hidden: weight of the mean over these.
        hidden_loss: ``(student state, teacher state, mask) -> scalar``.
        hidden_mask: ``hidden_mask(batch)``: bool over the leading axes of the states, True counts:
            ``lambda b: b["attention_mask"].bool()``.
        lr: peak learning rate.
        warmup: fraction of the steps in which it rises; it then falls as half a cosine.
        schedule: ``(step, steps) -> factor`` on ``lr``, instead of warm-up and cosine.
        betas: of AdamW.
        weight_decay: of AdamW, on tensors of two dimensions or more.
        clip: largest norm of the gradient, or None.
        accumulate: batches that make one step (their losses averaged).
        keep_answers: keep what the dense model answers to each batch (output and matched hidden states) on its device
            for the next epochs, which then cost no pass of it; ``batches`` must be a list. The result is the same.
        ema: decay of an exponential moving average of the weights (0.999), which is then what is validated
            and kept.
        trainable: ``trainable(parameter name)``; False freezes. None trains all that require gradients.
        dropout: keep dropout on.
        batch_norm: update batch statistics and normalise by them.
        validation: batches on which the same objective is measured, or ``validation(model) -> float``, lower
            better. With it the best weights are kept, those it came in with among them.
        validate_every: steps between records (and validations); a twentieth of the run unless given.
        patience: stop after so many validations in a row without a new best.
        checkpoint: folder for the state of the run. After a crash, a kill or Ctrl-C the same call goes on
            where the last state was saved; on the CPU with the same thread count the result is bit-identical.
            A finished run returns its result at once. Callables are compared by name, data by the last batch.
        checkpoint_every: seconds between saves; 0 saves after each step.
        seed: of the order of a list's batches, of the DataLoader's draws, and of dropout.
        name: as it stands in the report.

    Raises:
        ValueError: a setting makes no sense.
        DataError: (when run) batches are empty, not finite, too few, or do not fit the model; the loss is
            not finite.
        FormatError: (when run) the checkpoint is damaged or another run's.

    Hinton et al., 2015 (arXiv:1503.02531); hidden states as in Kurtic et al., 2023 (arXiv:2310.06927).

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> dense, small = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> stage = distill([torch.randn(8, 4) for _ in range(4)], steps=100, lr=0.1)
        >>> stage.run(small, dense, None).loss[-1] < 0.01
        True
    """
    settings = Settings(
        steps=steps, epochs=epochs, loss=loss, weight_output=weight_output, hidden=hidden,
        weight_hidden=weight_hidden, hidden_loss=hidden_loss, hidden_mask=hidden_mask, lr=lr, warmup=warmup,
        schedule=schedule, betas=betas, weight_decay=weight_decay, clip=clip, accumulate=accumulate,
        keep_answers=keep_answers, ema=ema, trainable=trainable, dropout=dropout, batch_norm=batch_norm,
        validate_every=validate_every, patience=patience, checkpoint_every=checkpoint_every, seed=seed,
    )  # fmt: skip
    if patience is not None and validation is None:
        raise ValueError("patience stops on the validation loss: give validation= too")
    folder = None if checkpoint is None else Path(checkpoint)

    def recover(small: nn.Module, dense: nn.Module, plan: Plan | None) -> History:
        return distill_(small, dense, batches, validation, settings, folder)

    return Recovery(name, recover)


def distill_(
    small: nn.Module,
    dense: nn.Module,
    batches: Batches | Callable[[int], Batches],
    validation: Batches | Callable[[nn.Module], float] | None,
    settings: Settings,
    folder: Path | None,
) -> History:
    """Run it, or go on with it; see ``distill``."""
    source = source_of(batches, settings.seed)
    total = _total(source, batches, settings)
    if settings.keep_answers and not source.pure:
        raise DataError(f"keep_answers needs a list of batches, got {type(batches).__name__}: others may change")
    saved, made = None, {}
    if folder is not None:
        made = settings.fingerprint() | {"steps": total, "small": model_hash(small), "dense": model_hash(dense)}
        saved = load_state(folder)
        if saved is not None:
            check_same_run(folder, saved[1]["made"], made)
    with ExitStack() as stack:
        for model in (small, dense):
            stack.enter_context(kept_modes(model))
        stack.enter_context(own_rng(settings.seed))
        pairs = matched_modules(settings.hidden, small, dense)
        seen = (
            stack.enter_context(captured(small, list(pairs))),
            stack.enter_context(captured(dense, list(pairs.values()))),
        )
        _freeze_(small, settings.trainable)
        dense.eval()
        device = next(small.parameters()).device
        r = Run(small, dense, settings, total, example_of(small), pairs, seen, _validation(validation), device)
        try:
            return _distill_(r, source, folder, saved, made)
        finally:
            for p in small.parameters():
                p.grad = None


def _distill_(
    r: Run,
    source: Source,
    folder: Path | None,
    saved: tuple[dict[str, Tensor], dict[str, Any]] | None,
    made: Mapping[str, Any],
) -> History:
    seed = r.settings.seed
    if saved is not None and saved[1]["at"]["stopped"]:
        r.at = At(**saved[1]["at"])
        copy_(r.weights(), saved[0])
        return r.at.history()
    if saved is not None:
        batches = resume_(r, source, folder, *saved)
    else:
        batches = stream(source, seed)
        first = next(batches)
        batches = itertools.chain([first], batches)
        _start_(r, to_device(first[2], r.device))
    with (
        deferred_interrupt(folder is not None) as interrupted,
        progress("distilling", r.total, r.at.step) as tell,
    ):
        last = train_(r, batches, folder, made, interrupted, tell)
    if interrupted:
        raise KeyboardInterrupt
    _finish_(r)
    if folder is not None:
        save(r, folder, made, last, finished=True)
    return r.at.history()


def _start_(r: Run, batch: Any) -> None:
    """Try both models on the first batch, fit projections, make the optimizer, and validate once."""
    r.small.eval()
    example, _ = r.split(batch)
    for which, model in (("dense", r.dense), ("small", r.small)):
        try:
            with torch.no_grad():
                run(model, example)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise DataError(f"batch 0 does not fit the {which} model: {type(error).__name__}: {error}") from error
    fitted = {}
    for path, ours, theirs in paired(r.pairs, *r.seen) if r.settings.weight_hidden else ():
        weight = fit_projection(path, ours, theirs)
        if weight is not None and path not in fitted:
            fitted[path] = weight
    make_optimizer_(r, fitted)
    if r.validation is not None:
        r.at.initial = validate_(r)
        take_best_(r, r.at.initial)


def _finish_(r: Run) -> None:
    """Put the weights that are kept into the model, and say why."""
    at = r.at
    early = at.step < r.total
    told = f"no better in {at.stale} validations, step {at.step} of {r.total}" if early else f"all {r.total} steps done"
    kept = "averaged" if r.ema else "last"
    if r.validation is not None:
        copy_(r.weights(), {f"weights/{k}": v for k, v in r.best.items()})
        at.stopped = f"{told}; kept the best of step {at.best_step}"
    else:
        copy_(r.weights(), {f"weights/{k}": v for k, v in r.ema.items()})
        at.stopped = f"{told}; no validation set, kept the {kept} weights"


def _freeze_(small: nn.Module, trainable: Callable[[str], bool] | None) -> None:
    for k, p in small.named_parameters():
        p.requires_grad_(p.requires_grad and p.numel() > 0 and (trainable is None or bool(trainable(k))))
    if not any(p.requires_grad for p in small.parameters()):
        raise ValueError("no parameter to train: trainable refuses them all, or none has requires_grad")


def _total(source: Source, batches: Any, settings: Settings) -> int:
    if settings.steps is not None:
        return settings.steps
    length = source.length
    if length is None and not source.once and callable(batches):
        length = getattr(batches(0), "__len__", lambda: None)()
    if length is None:
        raise DataError("the number of batches in an epoch is not known: give steps=")
    return max(1, (settings.epochs or 1) * length // settings.accumulate)


def _validation(validation: Any) -> Validation:
    if validation is None or (callable(validation) and not hasattr(validation, "__iter__")):
        return validation  # type: ignore[no-any-return]
    if iter(validation) is validation:
        validation = list(validation)
    return source_of(validation, 0, shuffle=False)
