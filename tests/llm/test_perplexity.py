"""Perplexity against the plain loop of the papers."""

import dataclasses
import math

import pytest
import tiny_llm
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ArgumentError, DataError
from secateur.llm.perplexity import count_windows, over_windows, perplexity, scored, texts_of, tokenize

IDS = torch.randint(64, (330,), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def plain(model, ids, window):
    """Non-overlapping windows, the mean of all next-token losses."""
    losses = []
    for i in range(len(ids) // window):
        row = ids[i * window : (i + 1) * window]
        logits = model(row[None]).logits[0].float()
        losses.append(F.cross_entropy(logits[:-1], row[1:], reduction="none").double())
    return math.exp(torch.cat(losses).mean()), torch.cat(losses)


@torch.no_grad()
def strided(model, ids, window, stride):
    """Each token once, with the longest context that the windows give it."""
    losses, done = [], 1
    for begin in range(0, len(ids) - window + 1, stride):
        row = ids[begin : begin + window]
        logits = model(row[None]).logits[0]
        for at in range(done - begin, window):
            losses.append(F.cross_entropy(logits[at - 1], row[at]).double())
        done = begin + window
    return math.exp(torch.stack(losses).mean()), len(losses)


@pytest.mark.parametrize("window", [16, 50, 330])
def test_is_the_plain_loop(window):
    net = tiny_llm.llama()
    found = perplexity(net, IDS, window)
    expected, losses = plain(net, IDS, window)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert (found.tokens, found.windows) == (len(losses), 330 // window)
    assert (found.window, found.stride) == (window, window)


@pytest.mark.parametrize(("window", "stride"), [(32, 16), (32, 1), (20, 19), (32, 31)])
def test_overlapping_windows_score_each_token_once(window, stride):
    net, ids = tiny_llm.llama(), IDS[:120]
    found = perplexity(net, ids, window, stride)
    expected, count = strided(net, ids, window, stride)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.tokens == count
    assert found.windows == count_windows(120, window, stride)


def test_longer_context_is_never_scored_twice():
    seen = torch.zeros(120, dtype=torch.long)
    net, ids = tiny_llm.llama(), torch.arange(120) % 64
    for one in scored(net, ids, 30, 7):
        begin = one.index * 7
        seen[begin + 30 - len(one.targets) : begin + 30] += 1
    assert seen[0] == 0
    assert seen[1 : 30 + 7 * ((120 - 30) // 7)].eq(1).all()


def test_batches_change_nothing():
    net = tiny_llm.llama()
    one = perplexity(net, IDS, 16)
    for batch in (2, 7, 100):
        other = perplexity(net, IDS, 16, batch=batch)
        assert other.value == pytest.approx(one.value, rel=1e-6)
        assert (other.tokens, other.windows) == (one.tokens, one.windows)


def test_half_precision_is_scored_in_float32():
    net = tiny_llm.llama().bfloat16()
    found = perplexity(net, IDS, 16)
    assert found.value == pytest.approx(plain(net, IDS, 16)[0], rel=1e-6)
    assert all(s.logits.dtype == torch.float32 for s in scored(net, IDS, 16))


def test_the_interval_is_over_windows_and_holds_the_value():
    found = perplexity(tiny_llm.llama(), IDS, 16)
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    again = perplexity(tiny_llm.llama(), IDS, 16)
    assert dataclasses.asdict(again) == dataclasses.asdict(found)
    assert math.isnan(over_windows([1.0], [3])[1])


def test_the_model_is_left_in_its_mode():
    net = tiny_llm.llama().train()
    perplexity(net, IDS, 16)
    assert net.training
    net.model.layers[0].eval()
    modes = [m.training for m in net.modules()]
    perplexity(net, IDS, 16)
    assert [m.training for m in net.modules()] == modes


def test_progress_is_told():
    told = []
    perplexity(tiny_llm.llama(), IDS, 100, tell=lambda done, of, words: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_nan_names_the_window():
    class Broken(nn.Module):
        def forward(self, input_ids):
            out = torch.zeros(*input_ids.shape, 64)
            out[input_ids[:, 0] == 5, 3, 2] = math.nan
            return out

    ids = torch.zeros(40, dtype=torch.long)
    ids[20] = 5
    with pytest.raises(DataError, match=r"window 2 \(tokens from 20\).*not finite"):
        perplexity(Broken(), ids, 10)


def test_a_forbidden_token_is_no_nan():
    class Forbids(nn.Module):
        def forward(self, input_ids):
            out = torch.zeros(*input_ids.shape, 64)
            out[..., 63] = -math.inf
            return out

    assert perplexity(Forbids(), IDS.clamp(max=62), 30).value == pytest.approx(63)


def test_errors_say_what_to_do():
    net = tiny_llm.llama()
    with pytest.raises(DataError, match=r"9 tokens do not fill one window of 10"):
        perplexity(net, IDS[:9], 10)
    with pytest.raises(DataError, match=r"token id 64 .* vocabulary of 64.*another"):
        perplexity(net, torch.tensor([1, 64] * 8), 4)
    with pytest.raises(DataError, match=r"token id -1 "):
        perplexity(net, torch.tensor([1, -1] * 8), 4)
    for window, stride, batch in ((1, None, 1), (8, 9, 1), (8, 0, 1), (8, None, 0)):
        with pytest.raises(ArgumentError, match=r"window=|stride="):
            perplexity(net, IDS, window, stride if stride != 0 else -1, batch)
    with pytest.raises(ArgumentError, match=r"stride=0"):
        perplexity(net, IDS, 8, 0)
    with pytest.raises(ArgumentError, match=r"expected logits"):
        perplexity(Flat(), IDS, 8)


class Flat(nn.Module):
    def forward(self, input_ids):
        return input_ids.float()


def test_text_to_tokens(tmp_path):
    found = tokenize(tiny_llm.tokenizer(), ["w0 w1", "w2"])
    assert found.tolist() == [2, 3, 4]
    with pytest.raises(DataError, match=r"text 1 of 2 is empty"):
        tokenize(tiny_llm.tokenizer(), ["w0", " \n"])
    with pytest.raises(DataError, match=r"no text"):
        tokenize(tiny_llm.tokenizer(), [])
    (tmp_path / "file").write_text("w0")
    with pytest.raises(ArgumentError, match=r"file/a.txt cannot be read \(NotADirectoryError.*give a text file"):
        texts_of([tmp_path / "file" / "a.txt"])
    good, empty, binary = (tmp_path / n for n in ("a.txt", "b.txt", "c.txt"))
    good.write_text("w0")
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\xfa")
    assert texts_of([good]) == ["w0"]
    for path, words in ((empty, "is empty"), (binary, "UTF-8")):
        with pytest.raises(DataError, match=words):
            texts_of([path])
    with pytest.raises(ArgumentError, match=r"no such file"):
        texts_of([tmp_path / "none.txt"])
