import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.train.losses import (
    cosine_loss,
    kd_kl,
    kl_logits,
    pair_similarity_loss,
    relative_mse,
    square_head,
)
from secateur.train.settings import warmup_cosine


def by_hand(student, teacher, temperature):
    """Sum over classes in plain Python."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        ps = [math.exp(v / temperature) for v in s]
        pt = [math.exp(v / temperature) for v in t]
        ps, pt = [v / sum(ps) for v in ps], [v / sum(pt) for v in pt]
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(ps, pt, strict=True))
    return temperature**2 * total / len(student)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 8), classes=st.integers(2, 6))
def test_kd_kl_is_the_formula(seed, temperature, classes):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 5, classes, generator=generator, dtype=torch.float64)
    assert kd_kl(s, t, temperature).item() == pytest.approx(by_hand(s, t, temperature), rel=1e-9, abs=1e-12)
    reference = F.kl_div(F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1), reduction="batchmean")
    torch.testing.assert_close(kd_kl(s, t, temperature), reference * temperature**2)
    assert kd_kl(s, t, temperature) != kd_kl(t, s, temperature)


def test_gradient_does_not_shrink_with_the_temperature():
    # at high T the gradient tends to (s - t) / n (zero-mean logits), whatever T
    s = torch.tensor([[0.3, -0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[-0.5, 0.2, 0.3]], dtype=torch.float64)
    grads = [torch.autograd.grad(kd_kl(s, t, temperature), s)[0] for temperature in (100.0, 1000.0)]
    for g in grads:
        torch.testing.assert_close(g, (s.detach() - t) / 3, rtol=1e-2, atol=0)


def test_kl_logits_finds_the_logits_and_masks():
    s, t = torch.randn(2, 3, 4, 5)
    loss = kl_logits(3.0)
    assert loss(s, t, None) == kd_kl(s, t, 3.0)
    assert loss({"loss": torch.ones(()), "logits": s}, {"logits": t}, None) == kd_kl(s, t, 3.0)
    keep = torch.zeros(3, 4, dtype=torch.bool)
    keep[0, 1] = keep[2, 3] = True
    masked = kl_logits(3.0, mask=lambda batch: batch["keep"])(s, t, {"keep": keep})
    torch.testing.assert_close(masked, kd_kl(torch.stack([s[0, 1], s[2, 3]]), torch.stack([t[0, 1], t[2, 3]]), 3.0))
    first = kl_logits(3.0, dim=1, mask=lambda batch: torch.ones(3, 5))(s, t, None)
    torch.testing.assert_close(first, kd_kl(s.movedim(1, -1), t.movedim(1, -1), 3.0))
    with pytest.raises(ValueError, match="temperature"):
        kl_logits(0.0)


def test_relative_mse_over_all_tensors():
    t = {"a": torch.full((2, 2), 2.0), "ids": torch.arange(3), "b": (torch.ones(3),)}
    s = {"a": torch.full((2, 2), 1.0), "ids": torch.arange(3), "b": (torch.zeros(3),)}
    assert relative_mse(s, t).item() == pytest.approx((0.25 + 1.0) / 2)
    with pytest.raises(DataError, match=r"\(3,\) and \(2,\)"):
        relative_mse(torch.ones(3), torch.ones(2))
    with pytest.raises(DataError, match="no floating-point"):
        relative_mse(torch.arange(3), torch.arange(3))
    with pytest.raises(DataError, match="1 and 2 tensors"):
        relative_mse(torch.ones(3), (torch.ones(3), torch.ones(3)))


def test_cosine_and_pairs():
    s, t = torch.randn(2, 6, 8, dtype=torch.float64)
    a, b = s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine_loss(s, t), 1 - (a * b).sum(1).mean())
    pairs = [((a[i] @ a[j]) - (b[i] @ b[j])) ** 2 for i in range(6) for j in range(6) if i != j]
    torch.testing.assert_close(pair_similarity_loss(s, t), torch.stack(pairs).mean())
    assert pair_similarity_loss(s[:1], t[:1]) == 0
    torch.testing.assert_close(
        pair_similarity_loss(s, t @ torch.linalg.qr(torch.randn(8, 8).double())[0]),
        pair_similarity_loss(s, t),
    )
    with pytest.raises(DataError, match="pool"):
        pair_similarity_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 4))


def test_square_head_counts_only_what_the_mask_keeps():
    s, t = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    rows = keep.reshape(-1)
    a, b = s.reshape(-1, 3)[rows], t.reshape(-1, 3)[rows]
    torch.testing.assert_close(square_head(s, t, keep), F.mse_loss(a, b) / F.mse_loss(b, torch.zeros_like(b)))
    t[0, 4] = float("nan")  # what padding holds does not matter
    s.requires_grad_(True)
    loss = square_head(s, t, keep)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()
    with pytest.raises(DataError, match="mask"):
        square_head(s, t, keep[:, :3])


def test_warmup_cosine():
    factors = [warmup_cosine(i, 100, 0.1) for i in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert [warmup_cosine(0, 1, w) for w in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
