"""Agreement against what numpy and sorting say."""

import numpy as np
import pytest
import tiny_llm
import torch

from secateur.errors import ArgumentError
from secateur.llm.agreement import agreement, beside, block_errors
from secateur.llm.perplexity import perplexity

IDS = torch.randint(64, (200,), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def plain(model, dense, ids, window):
    """All logits at once, float64."""
    rows = ids[: len(ids) // window * window].view(-1, window)
    a, b = (np.asarray(m(rows).logits[:, :-1].reshape(-1, 64).double()) for m in (model, dense))
    q, p = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    kl = (p * np.log(p / q)).sum(1).mean()
    first = [np.argsort(-x, axis=1, kind="stable")[:, :5] for x in (a, b)]
    top5 = np.mean([len(set(i) & set(j)) / 5 for i, j in zip(*first, strict=True)])
    return (a.argmax(1) == b.argmax(1)).mean(), top5, kl


def test_is_the_plain_computation():
    dense, pruned = tiny_llm.llama(), tiny_llm.halved(tiny_llm.llama())
    found = agreement(pruned, dense, IDS, window=20)
    top1, top5, kl = plain(pruned, dense, IDS, 20)
    assert 0 < top1 < 1
    assert found.top1.value == pytest.approx(top1, abs=1e-12)
    assert found.top5.value == pytest.approx(top5, abs=1e-12)
    assert found.kl.value == pytest.approx(kl, rel=1e-5)
    for figure in (found.top1, found.top5, found.kl):
        assert figure.low <= figure.value <= figure.high
        assert figure.n == found.tokens == 190


def test_a_model_agrees_with_itself():
    net = tiny_llm.llama()
    found = agreement(net, net, IDS, window=20, batch=3)
    assert (found.top1.value, found.top5.value, found.kl.value) == (1, 1, 0)


def test_both_perplexities_come_along():
    dense, pruned = tiny_llm.llama(), tiny_llm.halved(tiny_llm.llama())
    found = beside(pruned, dense, IDS, window=20, stride=10)
    assert found.pruned == perplexity(pruned, IDS, 20, 10)
    assert found.dense == perplexity(dense, IDS, 20, 10)


def test_ties_go_to_the_lower_token():
    class Even(torch.nn.Module):
        def __init__(self, last):
            super().__init__()
            self.last = last

        def forward(self, input_ids):
            out = torch.zeros(*input_ids.shape, 8)
            out[..., 7] = self.last
            return out

    found = agreement(Even(1.0), Even(0.0), IDS % 8, window=20)
    assert (found.top1.value, found.top5.value) == (0, pytest.approx(0.8))  # 7 0 1 2 3 beside 0 1 2 3 4


def test_other_vocabularies_are_refused():
    with pytest.raises(ArgumentError, match=r"vocabulary of 64, the dense one of 70"):
        agreement(tiny_llm.llama(), tiny_llm.llama(vocab_size=70), IDS, window=20)


@torch.no_grad()
def test_errors_by_block_are_those_of_the_hidden_states():
    dense, pruned = tiny_llm.llama(layers=3), tiny_llm.halved(tiny_llm.llama(layers=3))
    rows = IDS[:80].view(4, 20)
    pairs = [m(rows, output_hidden_states=True).hidden_states[1:] for m in (pruned, dense)]
    expected = [((a - b).norm() / b.norm()).item() for a, b in zip(*pairs, strict=True)]
    assert block_errors(pruned, dense, IDS, 20) == pytest.approx(expected, rel=1e-5)
    assert block_errors(tiny_llm.llama(layers=2), dense, IDS, 20) == []
