"""Sentence embeddings: how faithful a pruned encoder is, and unlabelled batches to bring it back with."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from materials import bbc_news, lee_documents, minilm_tokenizer, wordsim353
from secateur.evidence import quality
from secateur.evidence.quality import Figure

LENGTH = 128
Batch = dict[str, Tensor]


def pooled(output: Mapping[str, Tensor]) -> Tensor:
    """Mean over tokens, normalised; batches are made of equal lengths, so nothing is masked."""
    return F.normalize(output["last_hidden_state"].mean(1), dim=-1)


def embedding_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: object) -> Tensor:
    """One minus the cosine of the embeddings."""
    return 1 - (pooled(student) * pooled(teacher)).sum(-1).mean()


def batch_of(rows: Sequence[Sequence[int]]) -> Batch:
    """Token ids of one length as model arguments."""
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Texts:
    """Turns text into token ids of at most 128 word pieces."""

    def __init__(self) -> None:
        self.tokenizer = minilm_tokenizer()
        self.cls, self.sep = (self.tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))

    def ids(self, text: str) -> list[int]:
        """Word pieces without the special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def framed(self, ids: Sequence[int], length: int = LENGTH) -> list[int]:
        """With the special tokens, cut to a length."""
        return [self.cls, *ids[: length - 2], self.sep]


@torch.inference_mode()
def embed(model: nn.Module, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Embeddings (n, 384), by batches of equal length: nothing is padded."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_length[len(row)].append(i)
    out: dict[int, Tensor] = {}
    for length, members in by_length.items():
        step = max(1, 4096 // length)
        for at in range(0, len(members), step):
            part = members[at : at + step]
            out.update(zip(part, pooled(model.eval()(**batch_of([rows[i] for i in part]))), strict=True))
    return torch.stack([out[i] for i in range(len(rows))]).numpy()


@dataclass
class Fidelity:
    """Judges an encoder against the dense one: no figure of it is fitted on or stops a run.

    ``cosine``: mean cosine to the dense embedding of the Lee documents. ``pair correlation``: of their 1225
    similarities with the dense model's. ``WordSim-353``: Spearman correlation with people. ``BBC accuracy``: of a
    logistic regression trained on the *dense* model's embeddings of other articles (the first 64 word pieces of each).
    """

    texts: Texts
    dense: nn.Module

    def __post_init__(self) -> None:
        news = bbc_news()
        framed = lambda text: self.texts.framed(self.texts.ids(text))  # noqa: E731
        opening = lambda text: self.texts.framed(self.texts.ids(text), 64)  # noqa: E731
        self.lee = [framed(t) for t in lee_documents()]
        self.pairs = wordsim353()
        self.words = sorted({w for a, b, _ in self.pairs for w in (a, b)})
        self.word_rows = [framed(w) for w in self.words]
        self.test_rows, self.test_labels = [opening(t) for t, _ in news.test], np.array([c for _, c in news.test])
        self.dense_lee = embed(self.dense, self.lee)
        self.probe = LogisticRegression(max_iter=2000).fit(
            embed(self.dense, [opening(t) for t, _ in news.probe]), [c for _, c in news.probe]
        )

    def __call__(self, model: nn.Module) -> dict[str, Figure]:
        """All four figures with their 95 % intervals."""
        lee, words = embed(model, self.lee), embed(model, self.word_rows)
        at = {w: i for i, w in enumerate(self.words)}
        similarity = [float(words[at[a]] @ words[at[b]]) for a, b, _ in self.pairs]
        predicted = self.probe.predict(embed(model, self.test_rows))
        return {
            "cosine": quality.cosine(lee, self.dense_lee),
            "pair correlation": quality.pair_correlation(lee, self.dense_lee),
            "WordSim-353": quality.spearman(similarity, [s for _, _, s in self.pairs]),
            "BBC accuracy": quality.accuracy(predicted, self.test_labels),
        }


def crops(texts: Texts, tokens: int, seed: int, size: int = 512, mix: Mapping[int, float] | None = None) -> list[Batch]:
    """Batches of about ``size`` tokens cut from unlabelled news, ``tokens`` in all, each batch of one length.

    Args:
        mix: length -> share of the tokens; a length below 8 stands for words and short phrases of that many pieces.
    """
    mix = mix or {3: 0.06, 6: 0.08, 16: 0.12, 32: 0.24, 64: 0.25, 128: 0.25}
    rng = random.Random(seed)
    documents = [texts.ids(t) for t in bbc_news().unlabelled]
    full_stop = texts.tokenizer.token_to_id(".")
    batches = []
    for length, share in mix.items():
        for _ in range(max(1, round(share * tokens / size))):
            rows = [_crop(rng, documents, texts, length, full_stop) for _ in range(max(1, size // length))]
            batches.append(batch_of(rows))
    rng.shuffle(batches)
    return batches


def _crop(rng: random.Random, documents: Sequence[list[int]], texts: Texts, length: int, stop: int) -> list[int]:
    """From the start of a document or of a sentence; anywhere for short phrases."""
    inner = length - 2
    while True:
        ids = documents[rng.randrange(len(documents))]
        if len(ids) < inner:
            continue
        starts = [0, *(i + 1 for i, v in enumerate(ids) if v == stop and i + 1 + inner <= len(ids))]
        anywhere = length < 8
        at = rng.randrange(len(ids) - inner + 1) if anywhere else (0 if rng.random() < 0.35 else rng.choice(starts))
        return texts.framed(ids[at : at + inner], length)


def of_length(batches: Iterable[Batch], test: Callable[[int], bool]) -> list[Batch]:
    """Those whose rows have a length that passes."""
    return [b for b in batches if test(b["input_ids"].shape[1])]
