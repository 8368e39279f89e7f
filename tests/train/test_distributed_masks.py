"""Over gloo: `DistributedDataParallel` and `fully_shard`. The cases of two processes stand in distributed_cases.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import secateur as sc
import tiny
from secateur.choose.patterns import nm
from secateur.errors import ArgumentError
from secateur.train.dynamic import rigl, sparse_evolution
from secateur.train.names import whole
from secateur.train.regularize import growing_l2
from secateur.train.sparse import Method, Sparse
from secateur.train.srste import srste

HERE = Path(__file__).parent
CASES = ["parallel", "disagreeing", "methods", "sharded", "sharded_method"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Both processes run all cases, one after another: starting them takes longer than the cases."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "distributed_cases.py"), str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [p.communicate(timeout=240)[0] for p in ranks]
    finally:
        for p in ranks:
            p.kill()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case: str, outputs: list[str]) -> None:
    for rank, said in enumerate(outputs):
        assert f"OK {case}\n" in said, f"rank {rank}:\n{said[-3000:]}"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """Of this process alone: what needs whole tensors fails on its shards already."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def growing() -> Method:
    plan = sc.random_plan(tiny.groups_of(tiny.mlp(8, 16, 4), torch.zeros(1, 8)), 0.5, seed=0)
    return growing_l2(plan, delta=0.1, every=1)


def trained(model: nn.Module, method: Method) -> Sparse:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = Sparse(model, optimizer, method)
    for x in tiny.draws(6, 5, 8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return run


@pytest.mark.parametrize(
    "make", [lambda: rigl(0.5, end=100, every=2), lambda: sparse_evolution(0.5, end=100, every=2), growing]
)
def test_shards_are_trained_as_the_whole(make: Callable[[], Method], mesh: Any) -> None:
    model = tiny.mlp(8, 16, 4)
    fully_shard(model, mesh=mesh)
    sharded, alone = trained(model, make()), trained(tiny.mlp(8, 16, 4), make())
    tiny.assert_same(sharded.masks.masks, alone.masks.masks)
    for a, b in zip(model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(whole(a.detach()), b.detach())


def test_shards_with_dense_weights_beside_them_are_refused(mesh: Any) -> None:
    model = tiny.mlp(8, 16, 4)
    fully_shard(model, mesh=mesh)
    with pytest.raises(ArgumentError, match="srste keeps dense weights of its own, which cannot be sharded yet"):
        trained(model, srste(nm(2, 4)))
