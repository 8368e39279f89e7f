"""Sparse training in frameworks' loops: the examples run, and a training that was cut off goes on bit for bit."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from secateur.choose.patterns import nm
from secateur.errors import ArgumentError, FormatError
from secateur.train.callbacks import accelerate as with_accelerate
from secateur.train.callbacks.logging import log_sparsity
from secateur.train.dynamic import gmp, rigl, static
from secateur.train.masks import Masks
from secateur.train.schedule import cubic, linear, one_shot
from secateur.train.sparse import Method, Sparse
from secateur.train.srste import srste

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import digits  # noqa: E402


@pytest.fixture(autouse=True)
def their_warnings() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # one process, one precision: whoever came before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' own
        yield


@pytest.mark.parametrize("name", ["sparse_plain", "sparse_accelerate", "sparse_trainer", "sparse_lightning"])
def test_examples_reach_their_sparsity_and_still_read_digits(name: str) -> None:
    accuracy, zeros = importlib.import_module(name).main()
    assert zeros == pytest.approx(0.9, abs=1e-3)
    assert accuracy > 88


def test_no_zero_is_refilled_in_a_thousand_steps_of_trainer(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    import sparse_trainer as example
    from secateur.train.callbacks.huggingface import SparseCallback

    held = SparseCallback(static(0.9))
    refilled = []

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert held.sparse is not None
            masks, weights = held.sparse.masks.masks, held.sparse.masks.weights
            refilled.append(sum(int(w[~masks[n]].count_nonzero()) for n, w in weights.items()))

    run = example.trainer(tmp_path, 1000, held)
    run.args.weight_decay, run.args.save_strategy = 0.1, "no"
    run.add_callback(Look())
    run.train()
    assert len(refilled) == 1000
    assert not any(refilled)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_trainer_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    import sparse_trainer as example
    from secateur.train.callbacks.huggingface import SparseCallback

    straight = example.trainer(tmp_path / "straight", 40, example.method(40))
    straight.train()
    callback = example.method(40)
    again = example.trainer(tmp_path / "again", 40, callback)
    checkpoint = tmp_path / "straight" / "checkpoint-20"
    callback.resume = checkpoint
    again.train(resume_from_checkpoint=str(checkpoint))
    assert callback.sparse is not None
    assert callback.sparse.step == 40
    assert digits.zeros(again.model) == pytest.approx(0.9, abs=1e-3)
    assert_equal(again.model, straight.model)
    assert any("sparsity" in row for row in again.state.log_history)

    other = SparseCallback(gmp(cubic(0.8, 10, 30)), resume=checkpoint)
    with pytest.raises(ArgumentError, match="of another training"):
        example.trainer(tmp_path / "other", 40, other).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(FormatError, match="holds no state"):  # not where the trainer wrote it
        example.trainer(tmp_path / "other", 40, example.method(40)).train(resume_from_checkpoint=str(checkpoint))


def test_lightning_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    import sparse_lightning as example

    def loader() -> DataLoader[Any]:
        """All batches alike: which one a checkpoint made after the last step goes on with is Lightning's affair."""
        x, y = digits.digits()[0][:64]
        return DataLoader(TensorDataset(x.repeat(21, 1), y.repeat(21)), batch_size=64)

    straight = example.Classifier()
    example.trainer(tmp_path, 63, example.method(63)).fit(straight, loader())
    half = example.Classifier()
    first = example.trainer(tmp_path, 42, example.method(63))
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    again, callback = example.Classifier(), example.method(63)
    example.trainer(tmp_path, 63, callback).fit(again, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert callback.sparse is not None
    assert callback.sparse.step == 63
    assert digits.zeros(again) == pytest.approx(0.9, abs=1e-3)
    assert_equal(again, straight)
    with pytest.raises(ArgumentError, match="of another training"):
        example.trainer(tmp_path, 63, example.method(70)).fit(
            again, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
        )


def test_trainer_ends_with_the_best_checkpoint_and_its_zeros(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import Trainer, TrainingArguments

    from secateur.train.callbacks.huggingface import SparseCallback

    class Worse(nn.Module):
        """Its loss only rises where it is judged: the first checkpoint is the best."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.judged = nn.Linear(16, 16, bias=False), 0

        def forward(self, x: Any, labels: Any = None) -> dict[str, Any]:
            y = self.linear(x)
            self.judged += not self.training
            loss = (y - labels).square().mean() if self.training else torch.tensor(float(self.judged))
            return {"loss": loss, "logits": y}

    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    data = [{"x": row, "labels": row.roll(1)} for row in rows]
    for name, method in (("rigl", rigl(0.5, end=100, every=2)), ("gmp", gmp(linear(0.9, 0, 20)))):
        each = dict(eval_strategy="steps", save_strategy="steps", eval_steps=5, save_steps=5, max_steps=15)
        quiet = dict(report_to=[], disable_tqdm=True, logging_strategy="no", use_cpu=True)
        given = TrainingArguments(
            str(tmp_path / name), load_best_model_at_end=True, learning_rate=0.05, **each, **quiet
        )
        net = Worse()
        trainer = Trainer(net, given, train_dataset=data, eval_dataset=data, callbacks=[SparseCallback(method)])
        trainer.train()
        best = Path(trainer.state.best_model_checkpoint)
        assert best.name == "checkpoint-5"
        assert torch.equal(net.linear.weight, load_file(best / "model.safetensors")["linear.weight"])


@pytest.mark.parametrize("method", [srste(nm(2, 4)), rigl(0.5, end=100, every=3)])
def test_lightning_is_the_loop_written_out(method: Method) -> None:
    import lightning.pytorch as pl

    from secateur.train.callbacks.lightning import SparseCallback

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(16, 16, bias=False)

    class Squares(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    rows = torch.randn(12, 4, 16, generator=torch.Generator().manual_seed(0))
    module, quiet = Squares(), dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    quiet["enable_model_summary"] = False
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[SparseCallback(method)], **quiet)
    trainer.fit(module, DataLoader(list(rows), batch_size=None))
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    run = Sparse(net, optimizer, method)
    for x in rows:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert run.masks.sparsity == 0.5
    assert_equal(module.net, net)


def accelerated(steps: range, load: Path | None = None, save: Path | None = None) -> tuple[nn.Module, Sparse]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = digits.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    rate = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    model, optimizer, rate, sparse = with_accelerate.prepare(
        accelerator, net, optimizer, rate, method=gmp(cubic(0.9, 2, 15))
    )
    if load is not None:
        accelerator.load_state(str(load))
    x, y = digits.digits()[0].tensors
    for step in steps:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(x[step::20]), y[step::20]))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    if save is not None:
        accelerator.save_state(str(save))
    return model, sparse


def test_accelerate_saves_and_loads_it_with_its_own_state(tmp_path: Path) -> None:
    straight, whole = accelerated(range(20))
    accelerated(range(10), save=tmp_path / "half")
    again, sparse = accelerated(range(10, 20), load=tmp_path / "half")
    assert sparse.step == whole.step == 20
    assert_equal(again, straight)
    assert digits.zeros(again) == pytest.approx(0.9, abs=1e-3)
    net = digits.network()
    with pytest.raises(ArgumentError, match=r"accelerate\.Accelerator"):
        with_accelerate.prepare(net, net, net, method=gmp(one_shot(0.5)))


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.seen.append((metrics, step))


def test_sparsity_goes_to_tensorboard_and_mlflow(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    masks = Masks(net, {"0.weight": torch.eye(4, dtype=torch.bool), "1.weight": torch.ones(2, 4, dtype=torch.bool)})
    expected = {"sparsity": 0.5, "sparsity/0.weight": 0.75, "sparsity/1.weight": 0.0}
    recorder = Recorder()
    assert log_sparsity(recorder, masks, 3) == expected
    assert recorder.seen == [(expected, 3)]
    with SummaryWriter(str(tmp_path)) as writer:
        log_sparsity(writer, masks, 5)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    read = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert read == {name: [(5, value)] for name, value in expected.items()}
    with pytest.raises(ArgumentError, match="cannot log to list"):
        log_sparsity([], masks, 1)


def test_a_framework_that_is_missing_is_named_with_its_extra() -> None:
    code = """
import importlib, sys
for module, package in (("huggingface", "transformers"), ("lightning", "lightning.pytorch")):
    sys.modules[package] = None
    try:
        importlib.import_module(f"secateur.train.callbacks.{module}")
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    one, other = done.stdout.splitlines()
    assert one.startswith("TargetError")
    assert one.endswith("pip install 'secateur[huggingface]'")
    assert other.startswith("TargetError")
    assert other.endswith("pip install 'secateur[lightning]'")
