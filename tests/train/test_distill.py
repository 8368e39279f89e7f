import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import DataError
from secateur.train.distill import distill
from secateur.train.hidden import fit_projection, matched_modules
from secateur.train.losses import cosine_loss, kl_logits, relative_mse, square_head


def mlp(width=8, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 3)
    ).eval()


def data(n=8, rows=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 4, generator=generator) for _ in range(n)]


def snapshot(model):
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return {k: v.clone() for k, v in model.state_dict().items()}, flags


def same(a, b):
    return a[1] == b[1] and all(torch.equal(v, b[0][k]) for k, v in a[0].items())


def gap(small, dense, batches):
    with torch.no_grad():
        return sum(relative_mse(small(x), dense(x)).item() for x in batches) / len(batches)


def by_hand(small, dense, order, lr, temperature):
    """The same run, written out: AdamW, warm-up and cosine, clipping at 1."""
    optimizer = torch.optim.AdamW(small.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for i, x in enumerate(order):
        rise = math.ceil(0.05 * len(order))
        down = 0.5 * (1 + math.cos(math.pi * (i - rise) / (len(order) - rise)))
        optimizer.param_groups[0]["lr"] = lr * ((i + 1) / rise if i < rise else down)
        with torch.no_grad():
            t = (dense(x) / temperature).softmax(-1)
        s = (small(x) / temperature).log_softmax(-1)
        loss = (t * (t.log() - s)).sum(-1).mean() * temperature**2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()


def test_is_the_loop_written_out():
    batches, dense, small = data(), mlp(), mlp(6, 1)
    plain = copy.deepcopy(small)
    distill(lambda epoch: batches, steps=40, lr=0.01, loss=kl_logits(3.0)).run(small, dense, None)
    by_hand(plain, dense, batches * 5, 0.01, 3.0)
    for a, b in zip(small.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": True, "batch_norm": True, "ema": 0.9},
        {"hidden": ("0", "2"), "validation": data(2, seed=5)},
        {"accumulate": 3, "weight_decay": 0.1, "clip": None, "schedule": lambda step, steps: 0.5},
    ],
)
def test_gets_closer_and_leaves_the_rest_alone(options):
    dense, small = mlp(dropout=0.3), mlp(6, 1, dropout=0.3).train()
    small[1].eval()
    before, start = snapshot(dense), gap(copy.deepcopy(small).eval(), dense, data())
    flags = snapshot(small)[1]
    rng = torch.get_rng_state()
    history = distill(data(), steps=150, lr=0.02, **options).run(small, dense, None)
    assert same(before, snapshot(dense))
    assert snapshot(small)[1] == flags
    assert all(p.grad is None for m in (small, dense) for p in m.parameters())
    assert not any(m._forward_hooks for model in (small, dense) for m in model.modules())
    assert torch.equal(rng, torch.get_rng_state())
    assert gap(small.eval(), dense, data()) < 0.3 * start
    assert history.steps == (*range(7, 150, 7), 150)
    assert len(history.loss) == len(history.steps)
    assert history.seconds > 0


def test_batch_statistics_stay_unless_asked():
    for asked in (False, True):
        small = mlp(6, 1)
        mean = small[1].running_mean.clone()
        distill(data(), steps=3, batch_norm=asked).run(small, mlp(), None)
        assert torch.equal(mean, small[1].running_mean) != asked


class Counting(nn.Module):
    """Counts the passes of a model."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.passes = inner, 0

    def forward(self, x):
        self.passes += 1
        return self.inner(x)


def test_answers_that_are_kept_change_nothing_but_the_passes():
    batches, validation, ends = data(), DataLoader(TensorDataset(data(1)[0]), batch_size=5), []
    for keep in (False, True):
        dense, small = Counting(mlp()), Counting(mlp(6, 1))
        distill(batches, steps=20, hidden=["inner.2"], validation=validation, keep_answers=keep).run(small, dense, None)
        ends.append((small.state_dict(), dense.passes))
    assert all(torch.equal(v, ends[1][0][k]) for k, v in ends[0][0].items())
    checks = 21 * 4  # at the start and after every step, four batches each: drawn anew, so never kept
    assert (ends[0][1], ends[1][1]) == (1 + 20 + checks, 1 + len(batches) + checks)
    with pytest.raises(DataError, match="needs a list"):
        distill(validation, steps=1, keep_answers=True).run(mlp(), mlp(), None)


def test_labels_are_ignored_or_reach_the_loss():
    x = data()
    labelled = [(b, b.argmax(1) % 3) for b in x]
    a, b, c = (mlp(6, 1) for _ in range(3))
    distill(x, steps=10).run(a, mlp(), None)
    distill(labelled, steps=10).run(b, mlp(), None)
    assert same(snapshot(a), snapshot(b))
    kl = kl_logits(2.0)

    def with_labels(student, teacher, batch):
        return 0.5 * kl(student, teacher, batch) + 0.5 * nn.functional.cross_entropy(student, batch[1])

    history = distill(labelled, steps=100, lr=0.02, loss=with_labels).run(c, mlp(), None)
    assert history.loss[-1] < history.loss[0]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, scale, flip=False):
        return {"y": self.fc(x) * scale, "ids": torch.arange(3)}


def test_shapes_of_a_batch():
    torch.manual_seed(0)
    dense, x, k = Two(), torch.randn(16, 4), torch.full((16, 1), 2.0)
    ends = []
    for batch in (
        (x, k),
        [x, k],
        {"x": x, "scale": k},
        ((x, k), torch.zeros(16)),
        ({"x": x, "scale": k}, None),
        [[x, k], 1],
    ):
        torch.manual_seed(1)
        small = Two()
        distill([batch], steps=3).run(small, dense, None)
        ends.append(small.fc.weight.detach().clone())
    assert all(torch.equal(e, ends[0]) for e in ends)


def test_loader_order_depends_on_the_seed_only():
    x = torch.cat(data())
    ends = []
    for ambient in (0, 1, 2):
        small = mlp(6, 1)
        generator = torch.Generator().manual_seed(ambient)
        loader = DataLoader(
            TensorDataset(x), batch_size=16, shuffle=True, generator=generator if ambient == 2 else None
        )
        torch.manual_seed(ambient)
        distill(loader, epochs=2, seed=3).run(small, mlp(), None)
        ends.append(snapshot(small))
    assert same(ends[0], ends[1])
    other = mlp(6, 1)
    distill(DataLoader(TensorDataset(x), batch_size=16, shuffle=True), epochs=2, seed=4).run(other, mlp(), None)
    assert not same(ends[0], snapshot(other))
    again = mlp(6, 1)
    generator = torch.Generator().manual_seed(99)
    loader = DataLoader(TensorDataset(x), batch_size=16, shuffle=True, generator=generator)
    distill(loader, epochs=2, seed=3).run(again, mlp(), None)
    assert same(ends[2], snapshot(again))


def test_epochs_and_one_shot_iterators():
    small = mlp(6, 1)
    assert distill(data(8), epochs=3).run(small, mlp(), None).steps[-1] == 24
    assert distill(data(8), epochs=3, accumulate=4).run(small, mlp(), None).steps[-1] == 6
    assert distill(data(8)).run(small, mlp(), None).steps[-1] == 8
    assert distill(lambda epoch: data(5, seed=epoch), epochs=2).run(small, mlp(), None).steps[-1] == 10
    assert distill(iter(data(8)), steps=8).run(small, mlp(), None).steps[-1] == 8
    with pytest.raises(DataError, match=r"one-shot.*after 8 batches"):
        distill(iter(data(8)), steps=9).run(small, mlp(), None)
    with pytest.raises(DataError, match="give steps="):
        distill(iter(data(8)), epochs=1).run(small, mlp(), None)


def test_keeps_the_best_and_stops_early():
    dense, small, batches = mlp(), mlp(6, 1), data()
    seen = []

    def validate(model):
        assert not any(m.training for m in model.modules())
        seen.append((gap(model, dense, batches), copy.deepcopy(model.state_dict())))
        return abs(seen[-1][0] - seen[0][0] / 2)  # best half way, then worse

    history = distill(
        batches, steps=2000, lr=0.01, validation=validate, validate_every=5, patience=3
    ).run(small, dense, None)  # fmt: skip
    assert history.steps[-1] < 2000
    assert "no better in 3 validations" in history.stopped
    values = [history.initial, *history.validation]
    best = min(range(len(values)), key=values.__getitem__)
    assert 0 < best == len(values) - 4
    assert history.best_step == 5 * best
    assert all(torch.equal(v, seen[best][1][k]) for k, v in small.state_dict().items())


def test_the_first_weights_may_be_the_best():
    dense, small = mlp(), mlp()
    before = snapshot(small)
    history = distill(
        data(), steps=20, lr=0.1,
        loss=lambda s, t, b: relative_mse(s, t + 10),
        validation=lambda model: gap(model, dense, data()),
    ).run(small, dense, None)  # fmt: skip
    assert history.best_step == 0
    assert min(history.validation) > history.initial
    assert same(before, snapshot(small))


def test_validation_is_the_objective_by_rows():
    dense, small = mlp(), mlp(6, 1)
    held_out = [torch.randn(5, 4), torch.randn(11, 4)]
    want = sum(len(x) * cosine_loss(small(x), dense(x)).item() for x in held_out) / 16
    for given in (held_out, iter(held_out), [(x, 0) for x in held_out]):
        stage = distill(data(), steps=1, lr=0.0, loss=cosine_loss, validation=given)
        assert stage.run(small, dense, None).initial == pytest.approx(want, rel=1e-5)


def test_average_of_the_weights():
    dense, small = mlp(), mlp(6, 1)
    trail = []

    def watch(student, teacher, batch):
        trail.append(small[4].weight.detach().clone())
        return relative_mse(student, teacher)

    history = distill(data(), steps=30, ema=0.5, lr=0.01, loss=watch).run(small, dense, None)
    other = mlp(6, 1)
    distill(data(), steps=30, lr=0.01).run(other, dense, None)
    trail.append(other[4].weight.detach())
    average = trail[0]
    for i, w in enumerate(trail[1:]):
        decay = min(0.5, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * w
    torch.testing.assert_close(small[4].weight.detach(), average, rtol=1e-4, atol=1e-6)
    assert "averaged" in history.stopped


def test_trainable_freezes():
    small = mlp(6, 1)
    before = snapshot(small)[0]
    distill(data(), steps=5, weight_decay=0.1, trainable=lambda name: name.startswith("4.")).run(small, mlp(), None)
    changed = {k for k, v in small.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"4.weight", "4.bias"}
    assert all(p.requires_grad for p in small.parameters())


def test_projection_where_widths_differ():
    dense, small = mlp(8), mlp(6, 1)
    start = float("nan")

    def measure(student, teacher, mask):
        nonlocal start
        value = square_head(student, teacher, mask)
        start = value.item() if start != start else start
        return value

    history = distill(
        data(), steps=200, lr=0.02, weight_output=0.0, hidden=("2",), hidden_loss=measure
    ).run(small, dense, None)  # fmt: skip
    x = torch.cat(data())
    fitted = fit_projection("2", small[:3](x).detach(), dense[:3](x).detach(), 0.0)
    torch.testing.assert_close(
        square_head(small[:3](x) @ fitted.T, dense[:3](x)).item(), history.loss[-1], rtol=0.2, atol=0
    )
    assert history.loss[-1] < 0.7 * start
    assert len(list(small.parameters())) == len(list(mlp(6).parameters()))


def test_projection_of_maps_and_errors():
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    mix = torch.randn(7, 5, dtype=torch.float64)
    y = torch.einsum("oc,bchw->bohw", mix, x)
    torch.testing.assert_close(fit_projection("conv", x, y, 0.0), mix)
    assert fit_projection("conv", x, x) is None
    with pytest.raises(DataError, match="one axis only"):
        fit_projection("conv", x, torch.randn(2, 7, 8, 4))


def test_hidden_paths():
    net = nn.ModuleDict({"layer": nn.ModuleList([nn.Sequential(nn.Linear(1, 1)) for _ in range(3)])})
    assert list(matched_modules(("layer.*",), net, net)) == ["layer.0", "layer.1", "layer.2"]
    assert matched_modules({"layer.0": "layer.1"}, net, net) == {"layer.0": "layer.1"}
    with pytest.raises(ValueError, match=r"'layers.0'; near: layer.0"):
        matched_modules(("layers.0",), net, net)
    with pytest.raises(ValueError, match="dense"):
        matched_modules({"layer.0": "layer.7"}, net, net)
    with pytest.raises(ValueError, match="pairs single modules"):
        matched_modules({"layer.*": "layer.1"}, net, net)


def test_hidden_mask_reaches_the_loss():
    dense, small = mlp(6), mlp(6, 1)
    masks = []

    def watch(student, teacher, mask):
        masks.append(mask)
        return square_head(student, teacher, mask)

    distill(
        [(x, x[:, 0] > 0) for x in data()], steps=2, hidden=("0", "2"), hidden_loss=watch,
        hidden_mask=lambda batch: batch[1],
    ).run(small, dense, None)  # fmt: skip
    assert len(masks) == 4
    assert all(m.dtype == torch.bool and m.shape == (16,) for m in masks)


@pytest.mark.parametrize(
    ("batches", "options", "match"),
    [
        ([], {}, "empty"),
        (iter([]), {}, "empty"),
        (lambda epoch: [], {}, "empty in epoch 0"),
        ([torch.full((2, 4), float("nan"))], {}, "batch 0 of epoch 0 is nan.*8 values"),
        (lambda e: [torch.ones(2, 4), torch.full((2, 4), float("inf"))], {}, "batch 1 of epoch 0"),
        ([torch.ones(2, 5)], {}, "batch 0 does not fit the dense model"),
        ([torch.ones(2, 4)], {"loss": lambda s, t, b: s.sum() / 0.0}, "the batch is finite"),
        ([torch.ones(2, 4)], {"validation": []}, "empty"),
        ([torch.ones(2, 4)], {"validation": [torch.full((2, 4), float("nan"))]}, "validation batch 0"),
        ([torch.ones(2, 4)], {"validation": lambda model: float("nan")}, "validation gave nan"),
        ([object()], {}, "a batch must be"),
        ([(np.zeros((2, 4)), torch.zeros(2))], {}, "must begin with a tensor, got ndarray"),
        (torch.ones(2, 4), {}, r"pass \[batch\]"),
        (TensorDataset(torch.ones(2, 4)), {}, "DataLoader"),
    ],
)
def test_bad_data(batches, options, match):
    small, dense = mlp(6, 1), mlp()
    before = snapshot(small)
    with pytest.raises(DataError, match=match):
        distill(batches, steps=3, **options).run(small, dense, None)
    assert before[1] == snapshot(small)[1]
    assert all(torch.isfinite(v).all() for v in small.state_dict().values())
    assert not any(m._forward_hooks for model in (small, dense) for m in model.modules())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 1, "epochs": 1}, "not both"),
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"lr": -1.0}, "lr"),
        ({"ema": 1.5}, "ema"),
        ({"warmup": 2}, "warmup"),
        ({"patience": 3}, "validation="),
        ({"weight_output": 0.0}, "nothing to learn"),
    ],
)
def test_settings_are_checked_at_once(options, match):
    with pytest.raises(ValueError, match=match):
        distill(data(), **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trainable": lambda name: False}, "no parameter to train"),
        ({"loss": lambda s, t, b: s}, "scalar"),
        ({"loss": lambda s, t, b: t.sum()}, "does not depend"),
        ({"hidden": ("nowhere",)}, "nowhere"),
    ],
)
def test_misuse(options, match):
    with pytest.raises(ValueError, match=match):
        distill(data(), steps=2, **options).run(mlp(6, 1), mlp(), None)


def test_recurrent_nets_lose_their_dropout_only_meanwhile():
    def gru(seed):
        torch.manual_seed(seed)
        return nn.GRU(3, 4, num_layers=2, dropout=0.5).eval()

    small, dense = gru(0), gru(1)
    x = [torch.randn(5, 2, 3)]
    history = distill(x, steps=60, lr=0.02).run(small, dense, None)
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert small.dropout == 0.5
    assert not small.training
