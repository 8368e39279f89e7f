"""Products by oneDNN are torch's own, whatever the matrices look like in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import products
from secateur.products import OneDnn, fast, fast_for, worth_it

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN: its own products are used"
)


@pytest.fixture(autouse=True)
def every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones too."""
    monkeypatch.setattr(products, "WORK", 0)


def laid(rows: int, columns: int, layout: str) -> Tensor:
    whole = torch.randn(rows + 5, columns + 7, dtype=torch.float64).float()
    return {
        "plain": lambda: whole[:rows, :columns].contiguous(),
        "transposed": lambda: whole[:rows, :columns].T.contiguous().T,
        "part": lambda: whole[2 : 2 + rows, 3 : 3 + columns],
        "part of a transposed one": lambda: torch.randn(columns + 7, rows + 5).T[2 : 2 + rows, 3 : 3 + columns],
        "one row again and again": lambda: whole[:1, :columns].expand(rows, columns),
        "every second": lambda: torch.randn(rows * 2, columns * 2)[::2, ::2],
    }[layout]()


LAYOUTS = st.sampled_from(
    ["plain", "transposed", "part", "part of a transposed one", "one row again and again", "every second"]
)
SIZES = st.integers(1, 40)


@needs_onednn
@given(SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS, st.integers(0, 9))
def test_products_of_any_layout_are_those_of_float64(n: int, d: int, m: int, left: str, right: str, seed: int) -> None:
    torch.manual_seed(seed)
    a, b, c = laid(n, d, left), laid(d, m, right), torch.randn(m)
    expected = a.double() @ b.double()
    sums = torch.ones(n, m)
    with OneDnn():
        found, with_bias = a @ b, torch.addmm(c, a, b)
        sums.addmm_(a, b)
    for got, wanted in ((found, expected), (with_bias, expected + c), (sums, expected + 1)):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(
    "bias",
    [torch.randn(24), torch.randn(48)[::2], torch.randn(1).expand(24), torch.randn(1), torch.randn(16, 24)],
    ids=["plain", "every second", "expanded", "one number", "a matrix"],
)
def test_biases_of_any_layout(bias: Tensor) -> None:
    a, b = torch.randn(16, 32), torch.randn(32, 24)
    with OneDnn():
        found = torch.addmm(bias, a, b)
    torch.testing.assert_close(found, bias + a @ b, rtol=1e-5, atol=1e-5)
    if bias.dim() == 1:
        with torch.inference_mode(), OneDnn():
            found = F.linear(a, b.T, bias)
        torch.testing.assert_close(found, bias + a @ b, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_vector_in_the_place_of_a_matrix_is_left_to_torch(mode: type[torch.no_grad]) -> None:
    x, w = torch.randn(16, 32), torch.randn(32)
    with mode(), OneDnn():
        found = F.linear(x, w)
    torch.testing.assert_close(found, x @ w)


@needs_onednn
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_are_caught_in_every_mode(
    mode: type[torch.no_grad], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    real = products.product

    def told(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(tuple(left.shape))
        return real(left, right, bias)

    monkeypatch.setattr(products, "product", told)
    layer, x = nn.Linear(16, 24, bias), torch.randn(2, 8, 16)
    with mode(), OneDnn():
        y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert seen == [(16, 16)]
    assert y.shape == (2, 8, 24)


@needs_onednn
def test_gradients_go_through() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 4))
    x = torch.randn(9, 12)
    wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    with OneDnn():
        found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.ones(9, 4).double(), torch.ones(4, 3).double()),
        (torch.ones(9, 4).bfloat16(), torch.ones(4, 3).bfloat16()),
        (torch.ones(9, 4, device="meta"), torch.ones(4, 3, device="meta")),
        (torch.ones(9, 4).to_sparse(), torch.ones(4, 3)),
        (torch.ones(9, 4), torch.ones(4, 3, dtype=torch.complex64).conj().imag),  # a view whose sign is put off
        (torch.ones(7, 4), torch.ones(4, 3)),  # of so few rows torch's own are as fast
    ],
)
def test_what_is_left_to_torch(left: Tensor, right: Tensor) -> None:
    assert not worth_it(left, right)


def test_models_with_large_matrices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "slow_here", lambda: True)
    assert isinstance(fast_for(nn.Linear(256, 256)), OneDnn)
    assert not isinstance(fast_for(nn.Linear(16, 16)), OneDnn)
    assert not isinstance(fast_for(nn.Conv2d(256, 256, 3)), OneDnn)
    assert not isinstance(fast_for(nn.Linear(256, 256, device="meta")), OneDnn)


def test_only_where_torch_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    products.slow_here.cache_clear()
    monkeypatch.setattr(products, "_maker", lambda: "GenuineIntel")
    assert not products.slow_here()
    assert not isinstance(fast(), OneDnn)
    products.slow_here.cache_clear()
    monkeypatch.setattr(products, "_maker", lambda: "AuthenticAMD")
    assert products.slow_here() is (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())
    assert not isinstance(fast("cuda"), OneDnn)
    products.slow_here.cache_clear()
