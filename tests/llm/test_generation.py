"""Speed: what is timed computes what it should, and the cache is what the configuration says."""

import dataclasses

import numpy as np
import pytest
import tiny_llm
import torch

from secateur.errors import ArgumentError, TargetError
from secateur.llm import generation
from secateur.llm.generation import NO_CACHE, greedy, peak_memory, speed, speed_rows
from secateur.targets.eager import eager
from secateur.targets.onnxruntime import onnxruntime


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_greedy_is_generate(heads):
    net = tiny_llm.llama(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    ids = torch.tensor([[5, 9, 2, 40], [1, 2, 3, 4]])
    expected = net.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(greedy(net, ids, 6), expected)


def test_what_is_timed_writes_those_tokens_every_round():
    net = tiny_llm.llama()
    ids = torch.randint(64, (1, 8), generator=torch.Generator().manual_seed(0))
    made = generation._decoder(net, ids, 5, eager).artefact
    expected = greedy(net, ids, 6)[:, -1:]
    for _ in range(3):
        assert np.array_equal(made.run()[0], expected.numpy())  # the cache is cut back in between


def test_rates_rounds_and_cache():
    dense, pruned = tiny_llm.llama(), tiny_llm.llama(num_key_value_heads=1)
    found = speed([dense, pruned], eager, prompt=10, steps=3, batch=2, repeats=2)
    sizes = [f.cache_bytes for f in found]
    assert sizes == [2 * 2 * 2 * kv * 10 * 8 * 4 for kv in (2, 1)]  # layers, k and v, batch, heads, tokens, size, bytes
    for f in found:
        assert f.prefill_tokens == pytest.approx(20 / f.prefill.median)
        assert f.decode_tokens == pytest.approx(6 / f.decode.median)
        assert f.decode.seconds.size == found[0].decode.seconds.size >= 2
    rows = speed_rows(*found)
    assert [r["what"] for r in rows] == ["prefill", "decode"]
    assert rows[1]["dense_tokens_per_s"] == pytest.approx(found[0].decode_tokens)
    assert rows[1]["speedup"] == pytest.approx(found[0].decode.median / found[1].decode.median)
    assert not dense.training
    assert dense.config.use_cache is True  # as it was


def test_an_exported_file_reads_and_does_not_write():
    (found,) = speed([tiny_llm.llama()], onnxruntime, prompt=6, steps=2, repeats=1)
    assert found.decode is None
    assert found.note == NO_CACHE
    (row,) = speed_rows(None, found)
    assert row["what"] == "prefill"
    assert row["dense_tokens_per_s"] is None
    assert "no cache" in row["note"]


def test_a_model_without_a_cache_says_so():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(9, 9)

        def forward(self, input_ids, use_cache=False):
            return self.table(input_ids)

    (found,) = speed([Plain()], eager, prompt=4, steps=2, repeats=1)
    assert found.decode is None
    assert "no key-value cache" in found.note


def test_lengths_are_checked():
    with pytest.raises(ArgumentError, match=r"steps=0"):
        speed([tiny_llm.llama()], eager, steps=0)
    with pytest.raises(ArgumentError, match=r"0 models"):
        speed([], eager)


def test_peak_memory_is_that_of_a_process_of_its_own(tmp_path):
    small = tiny_llm.folder(tmp_path / "small", tiny_llm.llama())
    large = tiny_llm.folder(tmp_path / "large", tiny_llm.llama(intermediate_size=60_000))
    weights = 2 * 3 * 60_000 * 32 * 4
    least = peak_memory(small, 4, 2)
    assert peak_memory(large, 4, 2) - least > 0.5 * weights
    assert least < 32e6  # of 100 kB of weights: the classes that transformers imports when asked are not among it


def test_peak_memory_of_nothing_is_an_error(tmp_path):
    with pytest.raises(TargetError, match=r"peak memory"):
        peak_memory(tmp_path / "none", 4, 2)


def test_records_are_frozen():
    (found,) = speed([tiny_llm.llama()], eager, prompt=2, steps=1, repeats=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.batch = 3
