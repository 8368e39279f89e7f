"""Selection against a full stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.choose import select as module
from secateur.choose.select import top, top_counts, top_per_row
from secateur.errors import PlanError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scores take the same way as many."""
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "CHUNK", 7)


def sorted_out(scores: Tensor, keep: int, alive: Tensor | None = None) -> Tensor:
    """The oracle: Python's stable sort by falling score, of what is alive."""
    flat = scores.reshape(-1).tolist()
    lives = [True] * len(flat) if alive is None else alive.reshape(-1).tolist()
    order = sorted((i for i in range(len(flat)) if lives[i]), key=lambda i: -flat[i])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.reshape(scores.shape)


VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0000001]),
    st.floats(-1e3, 1e3, width=32),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor] | None, int]:
    sizes = draw(st.lists(st.integers(0, 25), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    scores = [torch.tensor(draw(st.lists(VALUES, min_size=n, max_size=n)), dtype=dtype) for n in sizes]
    alive = None
    if draw(st.booleans()):
        alive = [torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool) for n in sizes]
    return scores, alive, draw(st.integers(0, sum(sizes if alive is None else [int(a.sum()) for a in alive])))


@settings(max_examples=120)
@given(cases())
def test_counts_over_tensors_are_those_of_one_stable_sort(case: tuple[list[Tensor], list[Tensor] | None, int]) -> None:
    scores, alive, keep = case
    whole = sorted_out(torch.cat(scores), keep, None if alive is None else torch.cat(alive))
    expected = [int(part.sum()) for part in whole.split([len(s) for s in scores])]
    assert top_counts(scores, keep, alive) == expected
    for i, s in enumerate(scores):
        mine = None if alive is None else alive[i]
        assert torch.equal(top(s, expected[i], mine), sorted_out(s, expected[i], mine))


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=40), st.data())
def test_masks_are_nested_and_never_take_what_is_dead(values: list[float], data: st.DataObject) -> None:
    scores = torch.tensor(values)
    alive = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    before = torch.zeros_like(alive)
    for keep in range(int(alive.sum()) + 1):
        mask = top(scores, keep, alive)
        assert int(mask.sum()) == keep
        assert not (mask & ~alive).any()
        assert not (before & ~mask).any()
        before = mask


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [64, 1 << 19])
@pytest.mark.parametrize("by_torch", [False, True])
def test_many_scores_with_ties_of_every_type(
    dtype: torch.dtype, device: str, chunk: int, by_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    if by_torch:  # the way of other devices
        monkeypatch.setattr(module, "_plain", lambda s: s)
    torch.manual_seed(0)
    scores = (torch.randn(60, 50) * 4).to(dtype)
    scores[::7] = scores[::7].round()
    alive = torch.rand(60, 50) < 0.8
    for keep in (0, 1, 77, 1500, int(alive.sum())):
        for lives in (None, alive):
            found = top(scores.to(device), keep, None if lives is None else lives.to(device))
            assert torch.equal(found.cpu(), sorted_out(scores, keep, lives))
    parts = [scores.to(device)[:13], scores.to(device)[13:]]
    assert top_counts(parts, 900) == [int(p.sum()) for p in sorted_out(scores, 900).split([13, 47])]


def test_tensors_of_two_types_are_ranked_together() -> None:
    assert top_counts([torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.5]).double()], 2) == [1, 1]


def test_other_layouts_and_scores_with_a_history() -> None:
    scores = torch.randn(9, 8, requires_grad=True)
    assert torch.equal(top(scores.T, 20), sorted_out(scores.detach().T, 20))
    assert torch.equal(top(torch.tensor(3.0), 1), torch.tensor(True))


@settings(max_examples=80)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 9), st.integers(0, 10**6), st.booleans())
def test_rows_are_chosen_from_one_by_one(rows: int, columns: int, keep: int, seed: int, some_dead: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, columns), generator=generator).float()
    alive = torch.rand(rows, columns, generator=generator) < 0.7 if some_dead else None
    able = columns if alive is None else int(alive.sum(1).min())
    if keep > able:
        with pytest.raises(PlanError, match=f"cannot keep {keep}"):
            top_per_row(scores, keep, alive)
        return
    mask = top_per_row(scores, keep, alive)
    for i in range(rows):
        assert torch.equal(mask[i], sorted_out(scores[i], keep, None if alive is None else alive[i]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_cannot_be_ranked_is_refused(bad: float) -> None:
    scores = torch.tensor([[1.0, bad], [2.0, 3.0]])
    for call in (lambda: top(scores, 1), lambda: top_counts([scores], 1), lambda: top_per_row(scores, 1)):
        with pytest.raises(PlanError, match="1 of 4 scores are NaN or inf.*check the weights"):
            call()


def test_counts_beyond_what_is_there_are_refused() -> None:
    scores, alive = torch.arange(4.0), torch.tensor([True, False, True, False])
    with pytest.raises(PlanError, match="cannot keep 5 of 4 weights: keep between 0 and 4"):
        top(scores, 5)
    with pytest.raises(PlanError, match=r"cannot keep 3 of the 2 weights that are alive \(of 4\)"):
        top(scores, 3, alive)
    with pytest.raises(PlanError, match="cannot keep -1"):
        top_counts([scores], -1)
    with pytest.raises(PlanError, match=r"masks of \[3\] weights for \[4\] scores"):
        top_counts([scores], 1, [alive[:3]])
    with pytest.raises(PlanError, match="expected torch.bool"):
        top(scores, 1, alive.float())
    with pytest.raises(PlanError, match="scores are torch.int64; expected floats"):
        top(torch.arange(4), 1)
