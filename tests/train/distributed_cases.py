"""What two processes do with one model: run by test_distributed_masks.py as ``RANK FOLDER``; says OK for each case."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from secateur.choose.density import ranked
from secateur.errors import PlanError
from secateur.train.dynamic import gmp
from secateur.train.masks import Masks
from secateur.train.names import whole
from secateur.train.ranks import everyone
from secateur.train.saved import load_training, save_training
from secateur.train.schedule import cubic
from secateur.train.sparse import Method, Sparse

STEPS = 1000


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))  # uneven shards


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2 * step + rank)
    return torch.randn(8, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw)


def train_(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, ranks: list[int]) -> None:
    for step in steps:
        optimizer.zero_grad()
        for rank in ranks:
            x, y = batch(step, rank)
            (F.cross_entropy(model(x), y) / len(ranks)).backward()
        optimizer.step()


def some_masks(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.shape, generator=draw) > 0.6 for n, p in net().named_parameters() if p.dim() > 1}


def assert_zero(model: nn.Module, masks: Masks) -> None:
    for name, w in masks.weights.items():
        full = whole(w.detach())
        assert not bool(full[~masks.masks[name]].any()), name
        assert bool(full[masks.masks[name]].any()), name


def parallel(rank: int, folder: Path) -> None:
    """Masks that differ by rank become the first rank's, and hold for a thousand steps; ranks stay alike."""
    model = DistributedDataParallel(net())
    masks = Masks(model, some_masks(seed=rank))
    assert all(torch.equal(masks.masks[n], m) for n, m in some_masks(seed=0).items())
    masks.check_ranks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    masks.apply_()
    masks.attach(optimizer)
    train_(model, optimizer, range(STEPS), [rank])
    assert_zero(model.module, masks)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    assert torch.equal(*both)


def disagreeing(rank: int, folder: Path) -> None:
    """Masks of a model that is wrapped later: the check finds what differs, on every rank; a broadcast mends it."""
    model = net()
    masks = Masks(model, {**some_masks(seed=0), "2.weight": some_masks(seed=rank)["2.weight"]})
    with pytest.raises(PlanError, match=r"disagree on the masks of \['2.weight'\]"):
        masks.check_ranks()
    masks.broadcast_()
    masks.check_ranks()
    assert_zero(model, masks)
    odd = Masks(model, {k: v for k, v in masks.masks.items() if rank == 0 or k != "4.weight"})
    with pytest.raises(PlanError, match="different weights"):
        odd.check_ranks()


def drawing() -> Method:
    """Draws masks from a generator that no one seeded alike: the first rank's count."""

    def draw(run: Sparse) -> None:
        run.masks.put({n: torch.rand(m.shape) > 0.5 for n, m in run.masks.masks.items()})

    return Method("drawing", draw, after=draw)


def methods(rank: int, folder: Path) -> None:
    """Gradual pruning on two ranks is that on one, with both batches; a method that draws draws alike."""
    model, alone = DistributedDataParallel(net()), net()
    for each, ranks in ((model, [rank]), (alone, [0, 1])):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-2)
        run = Sparse(each, optimizer, gmp(cubic(0.8, 0, 20), density=ranked))
        train_(each, optimizer, range(25), ranks)
        assert abs(run.masks.sparsity - 0.8) < 0.01
        run.masks.check_ranks()
    for a, b in zip(model.module.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.manual_seed(100 + rank)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Sparse(model, optimizer, drawing(), group=everyone(model))
    run.masks.check_ranks()
    run.strip()
    model = DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Sparse(model, optimizer, drawing())
    train_(model, optimizer, range(5), [rank])
    run.masks.check_ranks()
    assert_zero(model.module, run.masks)


def sharded_net() -> nn.Sequential:
    model = net()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def sharded(rank: int, folder: Path) -> None:
    """`fully_shard`: shards stay zero, Adam's memory of them too; masks are whole."""
    model = sharded_net()
    masks = Masks(model, some_masks(seed=rank))
    masks.check_ranks()
    masks.apply_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    masks.attach(optimizer)
    train_(model, optimizer, range(60), [rank])
    assert all(isinstance(w, DTensor) for w in masks.weights.values())
    assert_zero(model, masks)
    for name, w in masks.weights.items():
        assert not bool(whole(optimizer.state[w]["exp_avg"])[~masks.masks[name]].any())


def sharded_method(rank: int, folder: Path) -> None:
    """Gradual pruning of shards is that of the whole model; it goes on from a file bit for bit."""
    model, alone = sharded_net(), net()
    for each, ranks in ((model, [rank]), (alone, [0, 1])):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9)
        run = Sparse(each, optimizer, gmp(cubic(0.8, 0, 20)))
        train_(each, optimizer, range(25), ranks)
        run.masks.check_ranks()
    for a, b in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(a.detach()), b.detach(), rtol=1e-3, atol=1e-5)

    half = sharded_net()
    optimizer = torch.optim.SGD(half.parameters(), lr=0.05, momentum=0.9)
    run = Sparse(half, optimizer, gmp(cubic(0.8, 0, 20)))
    train_(half, optimizer, range(10), [rank])
    save_training(folder / f"half{rank}", run)
    weights, moments = half.state_dict(), optimizer.state_dict()
    again = sharded_net()
    again.load_state_dict(weights)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.05, momentum=0.9)
    run = Sparse(again, optimizer, gmp(cubic(0.8, 0, 20)))
    load_training(folder / f"half{rank}", run)
    optimizer.load_state_dict(moments)
    train_(again, optimizer, range(10, 25), [rank])
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.to_local(), b.to_local())


CASES: list[Callable[[int, Path], None]] = [parallel, disagreeing, methods, sharded, sharded_method]

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    for case in CASES:
        begun = time.perf_counter()
        case(rank, folder)
        print(f"OK {case.__name__}\n{time.perf_counter() - begun:.1f} s", flush=True)
    dist.destroy_process_group()
