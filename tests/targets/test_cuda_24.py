"""The guards of the 2:4 target, and which linears it would take."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import TargetError
from secateur.targets.cuda_24 import MULTIPLES, cuda_24, why_dense
from secateur.targets.device import cuda_device


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.sampled_from([1, 2, 4, 63, 64, 66, 128]), st.integers(0, 3), st.integers(0, 2**31))
def test_what_is_taken_is_what_a_plain_loop_finds(rows, columns, spoiled, seed):
    linear = nn.Linear(columns, rows)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns))
    for row in weight:
        for start in range(0, columns, 4):
            row[start + rng.permutation(4)[: min(2, columns - start)] % max(1, columns - start)] = 0
    for _ in range(spoiled):
        weight[rng.integers(rows), :] = 1
    linear.weight.data = torch.from_numpy(weight).float()
    full = sum(np.count_nonzero(row[s : s + 4]) > 2 for row in weight for s in range(0, columns, 4))
    fits = rows % 32 == 0 and columns % 64 == 0
    assert (why_dense(linear)[""] == "") == (fits and full == 0)
    if fits and full:
        assert why_dense(linear)[""].startswith(f"{full} of {rows * columns // 4} ")


def test_shared_weights_stay_dense_and_every_linear_is_listed():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head, self.free = nn.Embedding(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
            self.head.weight = self.table.weight

    model = Tied()
    for p in model.parameters():
        p.data.zero_()
    assert why_dense(model) == {"head": "its weight is shared with another module, or computed", "free": ""}


def test_multiples_are_those_of_torch():
    cutlass = torch.sparse.SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS
    other = torch.sparse.SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS
    for dtype, multiple in MULTIPLES.items():
        assert multiple == (cutlass[dtype].sparse_min_rows, cutlass[dtype].sparse_min_cols)
        assert multiple[0] % other[dtype].sparse_min_rows == multiple[1] % other[dtype].sparse_min_cols == 0


def test_a_type_without_kernels_is_refused():
    with pytest.raises(TargetError, match=r"torch.float32 has no 2:4 kernels"):
        why_dense(nn.Linear(64, 64), torch.float32)


def test_no_device_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match="cuda_24 needs an NVIDIA GPU, its driver and a CUDA build of torch"):
        cuda_24.build(nn.Linear(64, 64), torch.ones(1, 64), 1)


@pytest.fixture
def old_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")


def test_an_early_device_is_refused_and_a_model_without_two_in_four_before_it_moves(old_device, monkeypatch):
    with pytest.raises(TargetError, match=r"T4 has compute capability 7.5, and 8.0 is needed"):
        cuda_24.build(nn.Linear(64, 64), torch.ones(1, 64), 1)
    assert cuda_device("any") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(TargetError, match=r"no linear of Linear is 2:4 \(: 1024 of 1024 groups .*\): sparsify with"):
        cuda_24.build(nn.Linear(64, 64), torch.ones(1, 64), 1)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no CUDA device with 2:4"
)
def test_on_a_device_it_computes_what_torch_computes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 8))
    model[0].weight.data.view(-1, 4)[:, :2].zero_()
    x = torch.randn(16, 128)
    (got,) = cuda_24.build(model, x, 1).call(x)
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=2e-2, atol=2e-2)
