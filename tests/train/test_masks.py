"""Masks hold: no step of any optimizer refills a zero, whatever is wrapped around the model or the step."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from secateur.errors import FormatError, PlanError
from secateur.export.masks import pack, read_masks, save_masks, unpack
from secateur.train.masks import Masks, from_torch_prune, to_torch_prune

STEPS = 1000
Optimizing = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizing] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, foreach=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def some_masks(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.shape, generator=draw) > 0.6 for n, p in model.named_parameters() if p.dim() > 1}


def data(seed: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=draw), torch.randint(0, 3, (16,), generator=draw)


def assert_zero(model: nn.Module, masks: Masks) -> None:
    named = dict(model.named_parameters())
    for name, mask in masks.masks.items():
        gone = named[name].detach()[~mask]
        assert gone.numel()
        assert bool((gone == 0).all()), name
        assert not bool(torch.signbit(gone).any()), "zeros without a sign: their bits are zero"
        assert bool((named[name].detach()[mask] != 0).any()), name


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_thousand_steps_refill_no_zero(make: Optimizing) -> None:
    net, (x, y) = small_net(), data()
    masks = Masks(net, some_masks(net))
    masks.apply_()
    optimizer = make(net.parameters())
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    masks.attach(optimizer)
    keys = list(net.state_dict())
    steps = STEPS if make in (OPTIMIZERS["sgd"], OPTIMIZERS["adamw"]) else STEPS // 5
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        plan.step()
        if step % 100 == 0 or step == steps - 1:
            assert_zero(net, masks)
    dense = [net.get_parameter(n).grad[~m] for n, m in masks.masks.items()]
    assert all(bool((g != 0).any()) for g in dense), "gradients stay dense"
    for name, w in masks.weights.items():
        for value in optimizer.state[w].values():
            if isinstance(value, Tensor) and value.shape == w.shape:
                assert not bool(value[~masks.masks[name]].any()), "momentum is quiet"
    assert list(net.state_dict()) == keys
    assert {type(p) for p in net.parameters()} == {nn.Parameter}


def test_the_survivors_train_as_in_a_loop_that_masks_by_hand() -> None:
    """Oracle: SGD with momentum and weight decay in plain arithmetic, masks on gradient, weight and momentum."""
    net, (x, y) = small_net().double(), data()
    x = x.double()
    masks = Masks(net, some_masks(net))
    masks.apply_()
    by_hand = copy.deepcopy(net)
    moments = {n: torch.zeros_like(p) for n, p in by_hand.named_parameters()}
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    masks.attach(optimizer)
    for _ in range(50):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        by_hand.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        for n, p in by_hand.named_parameters():
            kept = masks.masks.get(n, torch.ones_like(p)).to(p.dtype)
            moments[n] = 0.9 * moments[n] + (p.grad + 1e-2 * p.data) * kept
            p.data -= 0.05 * moments[n]
    for a, b in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adamw_fused"])
def test_mixed_precision_with_accumulation_and_skipped_steps(kind: str) -> None:
    net, (x, y) = small_net(), data()
    masks = Masks(net, some_masks(net))
    masks.apply_()
    optimizer = OPTIMIZERS[kind](net.parameters())
    masks.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=50)
    skipped = 0
    for step in range(STEPS if kind == "adamw" else STEPS // 5):
        for part in (slice(0, 8), slice(8, 16)):
            with torch.amp.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(net(x[part]).float(), y[part]) / 2
            scaler.scale(loss).backward()
        if step % 100 == 7:
            net[0].weight.grad[0, 0] = float("inf")
        if kind != "adamw_fused":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        before, scale = net[0].weight.detach().clone(), scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() < scale:
            skipped += 1
            assert torch.equal(net[0].weight, before)
        if step % 100 in (0, 7):
            assert_zero(net, masks)
    assert skipped >= 2
    assert_zero(net, masks)


@pytest.mark.parametrize("ema", [True, False], ids=["ema", "swa"])
def test_an_average_has_the_zeros_too(ema: bool) -> None:
    net, (x, y) = small_net(), data()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    how = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9) if ema else None
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=how)
    masks = Masks(net, {n: torch.ones_like(m) for n, m in some_masks(net).items()})
    masks.attach(optimizer)
    undo = masks.follow(average)
    for step in range(40):
        if step == 20:
            masks.put(some_masks(net))  # cut in the middle: what was averaged before is not zero
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        average.update_parameters(net)
        if step >= 20:
            assert_zero(average.module, masks)
    undo()
    with torch.no_grad():
        average.module[0].weight.fill_(1.0)
    masks.apply_()
    assert bool((average.module[0].weight == 1).all())
    masks.apply_([average])
    assert_zero(average.module, masks)


def test_compiled_and_wrapped_models_are_known_by_their_bare_names() -> None:
    net, (x, y) = small_net(), data()
    compiled = torch.compile(net, backend="eager")
    wrapped = nn.DataParallel(compiled)
    given = {f"module._orig_mod.{n}": m for n, m in some_masks(net).items()}
    for model, masks in ((net, given), (compiled, some_masks(net)), (wrapped, given)):
        held = Masks(model, masks)
        assert list(held.masks) == ["0.weight", "2.weight", "4.weight"]
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        undo = held.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        undo()
        assert_zero(net, held)


def test_names_of_a_model_whose_own_part_is_called_module() -> None:
    net = nn.Module()
    net.module = nn.Linear(3, 2)
    masks = Masks(net, {"module.weight": torch.zeros(2, 3, dtype=torch.bool)})
    masks.apply_()
    assert not bool(net.module.weight.any())


def test_a_part_compiled_or_replaced_later_is_found() -> None:
    net = small_net()
    masks = Masks(net, some_masks(net))
    net[0] = torch.compile(net[0], backend="eager")
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}, assign=True)
    masks.apply_()
    assert not bool(net[0]._orig_mod.weight[~masks.masks["0.weight"]].any())
    net[2] = nn.Linear(8, 8)
    masks.apply_()
    assert not bool(net[2].weight[~masks.masks["2.weight"]].any())
    net[2] = nn.Linear(4, 4)
    with pytest.raises(PlanError, match=r"2\.weight, which is masked, is \(4, 4\).*expected \(8, 8\)"):
        masks.apply_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_zeros_are_exact_in_every_type_even_of_nan(dtype: torch.dtype) -> None:
    net = small_net().to(dtype)
    masks = Masks(net, some_masks(net))
    kept = {n: w.detach().clone() for n, w in masks.weights.items()}
    with torch.no_grad():
        for n, w in masks.weights.items():
            w[~masks.masks[n]] = float("nan")
    masks.apply_()
    assert_zero(net, masks)
    for n, w in masks.weights.items():
        assert torch.equal(w[masks.masks[n]], kept[n][masks.masks[n]])


def test_masks_changed_in_place_are_seen() -> None:
    net = small_net()
    masks = Masks(net, some_masks(net))
    masks.apply_()
    before = masks.sparsity
    masks.masks["0.weight"].fill_(False)
    masks.apply_()
    assert not bool(net[0].weight.any())
    assert masks.sparsity > before
    assert masks.sparsities["0.weight"] == 1.0


def test_gradients_can_be_masked_before_clipping() -> None:
    net, (x, y) = small_net(), data()
    masks = Masks(net, some_masks(net))
    F.cross_entropy(net(x), y).backward()
    expected = sum(
        float(p.grad[masks.masks[n]].square().sum() if n in masks.masks else p.grad.square().sum())
        for n, p in net.named_parameters()
    )
    masks.gradients_()
    assert float(nn.utils.clip_grad_norm_(net.parameters(), 1e9)) ** 2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: {**m, "9.weight": m["0.weight"]}, "9.weight"),
        (lambda m: {**m, "0.weight": m["2.weight"]}, r"bool \(8, 8\); expected bool \(8, 6\)"),
        (lambda m: {**m, "0.weight": m["0.weight"].float()}, "float32"),
        (lambda m: {**m, "0.weight": "all"}, "is str"),
        (lambda m: {**m, "module.0.weight": m["0.weight"]}, "two masks"),
    ],
)
def test_a_mask_that_does_not_fit_changes_nothing(change: Callable[[Any], Any], says: str) -> None:
    net = small_net()
    masks = Masks(net, some_masks(net))
    masks.apply_()
    weights, before = copy.deepcopy(net.state_dict()), masks.state_dict()
    for take in (masks.put, masks.load_state_dict):
        with pytest.raises(PlanError, match=says):
            take(change(some_masks(net, seed=5)))
        assert all(torch.equal(a, b) for a, b in zip(masks.masks.values(), before.values(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), weights.values(), strict=True))


def test_state_dict_comes_back() -> None:
    net = small_net()
    masks = Masks(net, some_masks(net))
    other = small_net()
    again = Masks(other, {})
    assert again.sparsity == 0
    again.load_state_dict(masks.state_dict())
    assert_zero(other, masks)
    assert again.sparsity == masks.sparsity


@given(shape=st.lists(st.integers(0, 7), min_size=0, max_size=3), seed=st.integers(0, 99))
def test_packed_bits_are_numpys(shape: list[int], seed: int) -> None:
    import numpy as np

    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    bits = pack(mask)
    assert bits.tolist() == np.packbits(mask.numpy().reshape(-1), bitorder="big").tolist()
    assert torch.equal(unpack(bits, tuple(shape)), mask)


def test_a_file_of_masks(tmp_path: Path) -> None:
    net = small_net()
    masks = Masks(net, some_masks(net))
    file = save_masks(tmp_path / "masks.safetensors", masks)
    raw = file.read_bytes()
    assert save_masks(tmp_path / "again.safetensors", dict(reversed(masks.masks.items()))).read_bytes() == raw
    back = read_masks(file)
    assert back.keys() == masks.masks.keys()
    assert all(torch.equal(back[n], m) for n, m in masks.masks.items())
    weights = sum(m.numel() for m in masks.masks.values())
    assert len(raw) < weights // 8 + 1000
    for broken in (raw[:-3], raw[:-1] + bytes([raw[-1] ^ 1]), b"", raw[:40], b"x" * 100):
        file.write_bytes(broken)
        with pytest.raises(FormatError, match="masks.safetensors"):
            read_masks(file)
    with pytest.raises(FormatError, match="expected a bool tensor"):
        save_masks(file, {"w": torch.ones(2)})


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = save_masks(tmp_path / "masks.safetensors", {"w": torch.tensor([True, False, True])})
    code = (
        "import os, signal, sys, torch; from secateur.export.masks import save_masks\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_masks(sys.argv[1], {'w': torch.zeros(10000, dtype=torch.bool)})"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([sys.executable, "-c", code, str(file)], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    assert read_masks(file)["w"].tolist() == [True, False, True]


def test_from_torch_prune_and_back() -> None:
    net, (x, _) = small_net(), data()
    plain = dict(net.named_parameters())
    order = list(net.state_dict())
    for layer in (net[0], net[4]):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    prune.random_unstructured(net[2], "bias", amount=2)
    prune.random_unstructured(net[0], "weight", amount=3)  # twice: masks combine
    expected, values = net(x).detach(), {n: b.bool() for n, b in net.named_buffers()}
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    masks = from_torch_prune(net)
    assert list(net.state_dict()) == order
    assert not net[0]._forward_pre_hooks
    assert all(net.get_parameter(n) is p for n, p in plain.items()), "the optimizer's parameters"
    assert {f"{n}_mask": m.tolist() for n, m in masks.masks.items()} == {n: m.tolist() for n, m in values.items()}
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    masks.attach(optimizer)
    net(x).square().sum().backward()
    optimizer.step()
    assert_zero(net, masks)
    after = net(x).detach()
    assert to_torch_prune(masks) is net
    assert {n: b.bool().tolist() for n, b in net.named_buffers()} == {n: m.tolist() for n, m in values.items()}
    torch.testing.assert_close(net(x), after, rtol=0, atol=0)
    with pytest.raises(PlanError, match="nothing that torch.nn.utils.prune pruned"):
        from_torch_prune(small_net())


def test_strip_lets_go() -> None:
    net = small_net()
    masks = Masks(net, some_masks(net))
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    masks.attach(optimizer)
    assert masks.strip() is net
    net(data()[0]).square().sum().backward()
    optimizer.step()
    assert bool(net[0].weight[~masks.masks["0.weight"]].any())


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam])
def test_held_gradients_keep_zeros_under_an_optimizer_that_comes_later(make: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    masks = Masks(net, {"0.weight": torch.rand(8, 6) > 0.5})
    masks.apply_()
    undo = masks.hold()
    optimizer = make(net.parameters(), lr=0.1, weight_decay=0.1)
    before = net[0].weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        for _ in range(2):  # gradients that add up
            net(torch.randn(4, 6)).square().sum().backward()
        gone = net[0].weight.grad[~masks.masks["0.weight"]]
        assert not gone.any()
        optimizer.step()
    assert torch.equal(net[0].weight == 0, ~masks.masks["0.weight"])
    assert not torch.equal(net[0].weight, before)
    undo()
    net(torch.randn(4, 6)).square().sum().backward()
    assert net[0].weight.grad[~masks.masks["0.weight"]].any()
