"""Text for small language models: what ships with Python, cut into words by an alphabet made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorder.analysis.text import source_code
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.healing.text import training_text
from taylorder.storage.files import sha256

VOCABULARY = 512
HELD_OUT = 10
"""One in so many blocks is never trained on."""

BLOCK = 512
SHORT_LINE = 20
"""Lines of so many characters may come more than once."""

ITEMS = 12
"""Lines of a list."""

PASSAGE = 32
"""Random words that come over and over."""

Judged = tuple[Tensor, slice]
"""A sequence of tokens, and which of its predictions count: places of the predicted tokens."""


@dataclass(frozen=True)
class Texts:
    """Blocks of tokens ``[N, 512]``: those to learn from, those held out, and those of another kind of text."""

    tokenizer: Any
    learnt: Tensor
    held_out: Tensor
    other: Tensor
    sha256: str

    @property
    def vocabulary(self) -> int:
        """How many words there are."""
        return int(self.tokenizer.get_vocab_size())

    @classmethod
    def cut(cls, written: str, other: str, vocabulary: int = VOCABULARY) -> Texts:
        """Make the alphabet of a text and cut it, each of its long lines once: held-out ones stand nowhere else."""
        written = _once(written)
        tokenizer = _tokenizer(written, vocabulary)
        blocks, others = (_blocks(tokenizer, text) for text in (written, other))
        held = torch.arange(len(blocks)) % HELD_OUT == HELD_OUT // 2
        return cls(tokenizer, blocks[~held], blocks[held], others, sha256((written + other).encode()))

    def batches(self, length: int, count: int, seed: int) -> Iterator[Tensor]:
        """Sequences to learn from ``[count, length]`` without end, none twice before all were read."""
        random = torch.Generator().manual_seed(seed)
        sequences = self.learnt.view(-1, length)
        while True:
            drawn = sequences[torch.randperm(len(sequences), generator=random)]
            yield from (batch for batch in drawn.split(count) if len(batch) == count)

    def unseen(self, count: int) -> Tensor:
        """So many of the blocks held out, evenly from the whole text ``[count, 512]``."""
        return self.held_out[torch.linspace(0, len(self.held_out) - 1, count).long()]

    def repeated(self, length: int, count: int, seed: int) -> Iterator[Tensor]:
        """Sequences ``[count, length]`` of a passage of random words over and over, none twice, without end."""
        random = torch.Generator().manual_seed(seed)
        while True:
            passages = torch.randint(self.vocabulary, (count, PASSAGE), generator=random)
            yield passages.repeat(1, length // PASSAGE)

    def copies(self, length: int, count: int) -> list[Judged]:
        """Passages of unseen text that come twice: the second time is judged."""
        half = length // 2
        return [(torch.cat([block[:half]] * 2), slice(half, 2 * half)) for block in self.unseen(count)]

    def lists(self, count: int) -> list[Judged]:
        """Lines of a name and a value, and one of them once more: its value is judged."""
        unseen = self.tokenizer.decode(self.held_out.flatten().tolist()).split()
        words = sorted({word for word in unseen if word.isalpha()})
        return [self._list(words, np.random.default_rng(seed)) for seed in range(count)]

    def _list(self, words: Sequence[str], random: np.random.Generator) -> Judged:
        drawn = random.choice(words, (ITEMS, 2), replace=False)
        name, value = drawn[random.integers(ITEMS)]
        asked = self.tokenizer.encode("".join(f"{one}: {other}\n" for one, other in drawn) + f"{name}:").ids
        answer = self.tokenizer.encode(f" {value}").ids
        return torch.tensor([*asked, *answer]), slice(len(asked), len(asked) + len(answer))


@cache
def texts() -> Texts:
    """Python's language reference, docstrings and source, and beside it docstrings of numpy and scipy."""
    return Texts.cut(f"{training_text().content}\n{source_code().content}", evaluation_text().content[:400_000])


def _once(text: str) -> str:
    """The text without the second of any two long lines; short ones, and blank ones, keep it readable."""
    found: dict[object, str] = {}
    for number, line in enumerate(text.splitlines()):
        found[line.strip() if len(line) > SHORT_LINE else number] = line
    return "\n".join(found.values())


def _tokenizer(text: str, vocabulary: int) -> Any:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(text.splitlines(keepends=True), vocab_size=vocabulary, show_progress=False)
    return tokenizer


def _blocks(tokenizer: Any, text: str) -> Tensor:
    ids = torch.tensor(tokenizer.encode(text).ids)
    return ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)
