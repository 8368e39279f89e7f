"""Tasks of the LM Evaluation Harness (EleutherAI), from a folder of one's own, through its Python API, offline.

Gao et al., The Language Model Evaluation Harness, 2024, https://doi.org/10.5281/zenodo.12608602.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import ArgumentError, DataError, SecateurError, TargetError, brief

Figures = dict[str, dict[str, tuple[float, float | None]]]
"""task -> metric -> (value, its standard error or None)."""
_READ_ONCE = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)


def harness(
    model: nn.Module, tokenizer: Any, tasks: Path | str, *, limit: int | None = None, batch: int = 1, seed: int = 0
) -> Figures:
    """Run every task of a folder on a model that is loaded.

    A task is a YAML file as lm-eval reads them; its data has to be local: ``dataset_path: json`` and
    ``dataset_kwargs: {data_files: items.jsonl}``, with paths relative to the folder.

    Args:
        model: a causal language model of transformers. tokenizer: its own.
        tasks: the folder. limit: items of each task, at most. batch: items at once. seed: of few-shot examples.

    Returns:
        Figures by task and metric, such as ``{"arithmetic": {"acc": (0.5, 0.1)}}``.

    Raises:
        TargetError: lm-eval is missing. ArgumentError: no such folder, or no task in it. DataError: a task failed.
    """
    folder = Path(tasks).resolve()
    evaluator, wrapper, manager_of = check_tasks(tasks)
    try:
        with _offline(folder):
            manager = manager_of(include_path=str(folder), include_defaults=False)
            names = sorted(manager.all_tasks)
            if not names:
                raise ArgumentError(f"tasks {folder}: lm-eval finds no task in its YAML files")
            wrapped = wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch)
            found = evaluator(
                model=wrapped,
                tasks=names,
                task_manager=manager,
                limit=limit,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                log_samples=False,
                bootstrap_iters=1000,
            )
    except SecateurError:
        raise
    except Exception as error:  # a task's own file says what goes wrong, in the words of whatever it calls
        raise DataError(f"tasks {folder}: lm-eval failed: {brief(error)}; tasks need local data") from error
    return {task: _figures(values) for task, values in found["results"].items()}


def check_tasks(tasks: Path | str) -> tuple[Any, Any, Any]:
    """What is used of lm-eval, where tasks can be run at all: asked before a model is loaded for them.

    Raises:
        TargetError: lm-eval is missing. ArgumentError: no such folder, or no YAML file in it.
    """
    folder = Path(tasks)
    if not folder.is_dir() or not any(folder.rglob("*.y*ml")):
        raise ArgumentError(f"tasks {folder}: give a folder of lm-eval tasks (YAML files)")
    try:
        with _quiet():
            evaluator = importlib.import_module("lm_eval").simple_evaluate
            wrapper = importlib.import_module("lm_eval.models.huggingface").HFLM
            manager = importlib.import_module("lm_eval.tasks").TaskManager
    except ImportError as error:
        raise TargetError(f"tasks need lm-eval ({error}): pip install 'secateur[lm-eval]'") from error
    return evaluator, wrapper, manager


def _figures(values: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Its keys are ``metric,filter`` and ``metric_stderr,filter``; the filter is named where it is one."""
    out: dict[str, tuple[float, float | None]] = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        name = metric if chosen == "none" else f"{metric} ({chosen})"
        out[name] = (float(value), float(error) if isinstance(error, (int, float)) else None)
    return out


@contextlib.contextmanager
def _offline(folder: Path) -> Iterator[None]:
    """Inside the folder, so that relative paths of its data hold; nothing is fetched.

    The Hub's libraries read the environment once, when they are imported: what they made of it is set as well.
    """
    before, settings = Path.cwd(), dict(os.environ)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    read = [(sys.modules[m], name) for m, name in _READ_ONCE if hasattr(sys.modules.get(m), name)]
    known = [getattr(module, name) for module, name in read]
    for module, name in read:
        setattr(module, name, True)
    os.chdir(folder)
    try:
        with _quiet():
            yield
    finally:
        os.chdir(before)
        for (module, name), value in zip(read, known, strict=True):
            setattr(module, name, value)
        os.environ.clear()
        os.environ.update(settings)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its logs, bars and complaints are for its own command line."""
    before, kept = logging.root.manager.disable, os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.WARNING)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        logging.disable(before)
