"""Associative recall (MQAR, arXiv 2312.04927): pairs of a key and a value, and keys asked for again behind them.

A sequence of T words begins with its pairs; in what follows, each of their keys stands once more, at an even place
drawn at random, with its value behind it. All other words are blank. What is learnt, and judged, is the word behind a
key that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

WORDS = 256
"""The blank, 127 keys and 128 values."""

KEYS = 127
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Batch:
    """Sequences ``[B, T]``, and the places of their questions ``[B, pairs]``; answers stand one place behind."""

    words: Tensor
    asked: Tensor

    @property
    def answers(self) -> Tensor:
        """The right words ``[B, pairs]``."""
        return self.words.gather(1, self.asked + 1)


@dataclass(frozen=True)
class Recall:
    """The task with so many pairs in so many words."""

    pairs: int = 8

    @property
    def length(self) -> int:
        """Words of a sequence: three times those of its pairs for questions, and 64 at least."""
        return max(64, 8 * self.pairs)

    @property
    def guessing(self) -> float:
        """The share right of a model that answers with any value of the sequence."""
        return 1 / self.pairs

    def batch(self, sequences: int, random: torch.Generator) -> Batch:
        """Draw sequences; keys and values of one differ from each other."""
        keys = 1 + _drawn(sequences, KEYS, self.pairs, random)
        values = 1 + KEYS + _drawn(sequences, WORDS - 1 - KEYS, self.pairs, random)
        words = torch.zeros(sequences, self.length, dtype=torch.int64)
        words[:, 0 : 2 * self.pairs : 2], words[:, 1 : 2 * self.pairs : 2] = keys, values
        asked = 2 * (self.pairs + _drawn(sequences, self.length // 2 - self.pairs, self.pairs, random))
        return Batch(words.scatter(1, asked, keys).scatter(1, asked + 1, values), asked)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Batches of 4,096 words without end, none twice."""
        random = torch.Generator().manual_seed(seed)
        while True:
            yield self.batch(BATCH_TOKENS // self.length, random)


def _drawn(sequences: int, among: int, count: int, random: torch.Generator) -> Tensor:
    """Different numbers below ``among`` for every sequence, ``[sequences, count]``."""
    return torch.rand(sequences, among, generator=random).argsort(1)[:, :count]
