"""A run that is killed and called again ends with the weights of one that was not, bit for bit."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur.errors import FormatError
from secateur.train.distill import distill
from secateur.train.losses import relative_mse
from secateur.train.state import load_state, save_state, states_in

SCRIPT = """
import sys, torch
sys.path.insert(0, {here!r})
from test_resume import job
job(sys.argv[1])
"""


def net(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(0.2), nn.Linear(width, 3))


class Noisy(torch.utils.data.Dataset):
    """Random augmentation from the global generator."""

    def __len__(self):
        return 70

    def __getitem__(self, i):
        return torch.arange(4.0) * i / 70 + 0.1 * torch.randn(4)


def stage(folder, steps=160, every=0.0, **options):
    loader = torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True)
    options = {"hidden": ("2",), "ema": 0.9, "weight_decay": 0.01} | options
    return distill(
        loader, steps=steps, lr=0.02, dropout=True, batch_norm=True, accumulate=2, checkpoint=folder,
        checkpoint_every=every, validation=[torch.ones(4, 4), torch.randn(5, 4, generator=torch.Generator())],
        validate_every=7, **options,
    )  # fmt: skip


def job(folder):
    """One run on one thread, as the child process does it too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small, dense = net(6, 1), net(8, 0)
    history = stage(folder).run(small, dense, None)
    torch.set_num_threads(threads)
    return small.state_dict(), history


def start(folder):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(secateur.__file__).parents[1])}
    command = [sys.executable, "-c", SCRIPT.format(here=str(Path(__file__).parent)), str(folder)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_killed_twice_at_random_and_the_bits_are_the_same(tmp_path):
    draw, want = random.Random(), job(None)
    for goal in (1, draw.randrange(10, 60)):
        child = start(tmp_path)
        reached = 0
        while child.poll() is None and reached < goal:
            found = states_in(tmp_path)
            reached = int(found[0].stem.removeprefix("state-")) if found else 0
            time.sleep(0.0005)
        time.sleep(draw.random() * 0.01)
        child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, f"the child ended before it was killed: {errors}"
        assert load_state(tmp_path) is not None
    got = job(tmp_path)
    assert equal(want[0], got[0])
    assert dataclasses.replace(want[1], seconds=0) == dataclasses.replace(got[1], seconds=0)


def interrupted(folder, at, **options):
    """Ctrl-C while step ``at`` computes its loss."""
    calls = 0

    def loss(student, teacher, batch):
        nonlocal calls
        calls += 1
        if calls == at:
            signal.raise_signal(signal.SIGINT)
        return relative_mse(student, teacher)

    loss.__qualname__ = "loss"
    small = net(6, 1)
    history = stage(folder, loss=loss, **options).run(small, net(8, 0), None)
    return small.state_dict(), history


def equal(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_ctrl_c_saves_between_steps_and_a_finished_run_returns_at_once(tmp_path):
    want, _ = interrupted(None, 0, steps=30)
    # every validation calls the loss twice: the mark comes in the middle of a step
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, 23, steps=30, every=1e9)
    assert len(states_in(tmp_path)) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    got, history = interrupted(tmp_path, 0, steps=30, every=1e9)
    assert equal(want, got)
    assert history.steps[-1] == 30
    again, same = interrupted(tmp_path, 1, steps=30)
    assert equal(want, again)
    assert same == history


def stopped_at(folder, step, **options):
    def loss(student, teacher, batch):
        if any(folder.glob(f"state-*{step}.safetensors")):
            raise RuntimeError("stop")
        return relative_mse(student, teacher)

    loss.__qualname__ = "loss"
    with pytest.raises(RuntimeError, match="stop"):
        stage(folder, loss=loss, **options).run(net(6, 1), net(8, 0), None)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "header", "foreign"])
def test_a_damaged_state_is_passed_over(tmp_path, damage, caplog):
    want, _ = interrupted(None, 0, steps=20)
    stopped_at(tmp_path, 11, steps=20)
    newest, older = states_in(tmp_path)
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[-100] ^= 1
    elif damage == "empty":
        content = bytearray()
    elif damage == "header":
        content[:8] = b"\xff" * 8
    if damage == "foreign":
        save_file({"weights/0.weight": torch.ones(1)}, newest)
    else:
        newest.write_bytes(content)
    (tmp_path / ".state-x.tmp").write_bytes(b"half")
    got, _ = interrupted(tmp_path, 0, steps=20)
    assert equal(want, got)
    assert newest.name in caplog.text
    assert not list(tmp_path.glob("*.tmp"))
    for path in states_in(tmp_path):
        path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="delete the folder"):
        interrupted(tmp_path, 0, steps=20)
    assert older.name


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"steps": 21}, "steps: 20 there, 21 now"),
        ({"ema": None}, "ema: 0.9 there, None now"),
        ({"loss": relative_mse}, "loss"),
    ],
)
def test_another_run_is_refused(tmp_path, options, match):
    stopped_at(tmp_path, 3, steps=20)
    with pytest.raises(FormatError, match=match):
        stage(tmp_path, **({"steps": 20} | options)).run(net(6, 1), net(8, 0), None)


@pytest.mark.parametrize("which", [0, 1])
def test_other_weights_are_refused(tmp_path, which):
    stopped_at(tmp_path, 3, steps=20)
    models = [net(6, 1), net(8, 0)]
    models[which][0].bias.data[0] += 1e-6
    with pytest.raises(FormatError, match=("small", "dense")[which]):
        interrupted_with(tmp_path, *models)


def interrupted_with(folder, small, dense):
    def loss(student, teacher, batch):
        return relative_mse(student, teacher)

    loss.__qualname__ = "loss"
    stage(folder, steps=20, loss=loss).run(small, dense, None)


def test_other_data_are_refused(tmp_path):
    def run(batches):
        distill(batches, steps=9, checkpoint=tmp_path, checkpoint_every=0).run(net(6, 1), net(8, 0), None)

    def broken():
        yield from [torch.ones(2, 4) * i for i in range(5)]
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        run(broken())
    with pytest.raises(FormatError, match="batch 4 of epoch 0 is another"):
        run([torch.zeros(2, 4)] * 9)
    run(torch.ones(2, 4) * i for i in range(9))


def test_state_files(tmp_path):
    tensors = {"a": torch.arange(3), "b": torch.zeros(2, 0), "c": torch.ones((), dtype=torch.bfloat16)}
    for step in (1, 2, 10):
        save_state(tmp_path, step, tensors, {"x": [0.1, None], "step": step})
    assert [p.name for p in states_in(tmp_path)] == [
        "state-000000010.safetensors",
        "state-000000002.safetensors",
    ]
    got, meta = load_state(tmp_path)
    assert meta == {"x": [0.1, None], "step": 10}
    assert all(torch.equal(v, got[k]) and v.dtype == got[k].dtype for k, v in tensors.items())
    assert load_state(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_state(tmp_path, 11, tensors, {"x": float("nan")})
    assert len(list(tmp_path.iterdir())) == 2
