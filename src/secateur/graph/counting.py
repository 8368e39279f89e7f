"""Counting what is left after a cut: sums of products of kept positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.types import Bools, Ints


@dataclass(frozen=True, eq=False)
class Counter:
    """Sums of products of kept counts, one a term."""

    constants: Ints
    roots: Ints
    starts: Ints
    term: Ints

    @classmethod
    def of(cls, terms: Sequence[tuple[int, tuple[Ints, ...]]], root: Ints) -> Counter:
        """Constants and the id vectors whose kept counts multiply them."""
        vectors = [root[ids] for _, live in terms for ids in live if ids.size]
        owner = [i for i, (_, live) in enumerate(terms) for ids in live if ids.size]
        lengths = np.array([len(v) for v in vectors], np.int64)
        return cls(
            np.array([c for c, _ in terms], np.int64),
            np.concatenate(vectors) if vectors else np.zeros(0, np.int64),
            np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if vectors else np.zeros(0, np.int64),
            np.array(owner, np.int64),
        )

    def __call__(self, removed: Bools) -> Ints:
        """The value of every term after a cut, bool by root."""
        out = self.constants.copy()
        if len(self.roots):
            kept = np.add.reduceat((~removed[self.roots]).astype(np.int64), self.starts)
            np.multiply.at(out, self.term, kept)
        return out
