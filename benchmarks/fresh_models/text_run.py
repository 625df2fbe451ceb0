"""One run of a small language model: trained with a contender from a seed, and its losses on what it never saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy

from fresh_models.contenders import BY_NAME
from fresh_models.log import About, Record
from fresh_models.models import TEXT_HEAD_DIM, attached, text_model
from fresh_models.text import PASSAGE, Judged, Texts, texts
from fresh_models.training import JUDGES, Course, Schedule, train

STEPS, EVERY = 600, 100
"""Steps that read text, and steps between judgements."""

COPYING = Schedule(500, 1e-2, EVERY, enough=-0.5)
"""How every model is trained to copy before that: until random words that came already cost half a nat."""

LENGTH, SEQUENCES = 256, 8
JUDGED = 32
"""Sequences of each kind that judge."""


@dataclass(frozen=True)
class TextRun:
    """What distinguishes one run from the others.

    A model is trained to copy first, on random words where nothing else helps, and reads text then, with ``rate``.
    """

    contender: str
    seed: int = 0
    rate: float = 3e-3

    task: ClassVar[str] = "text"

    @classmethod
    def of(cls, about: About) -> TextRun:
        """The run of that name."""
        return cls(**{name: value for name, value in about.items() if name != "task"})

    @property
    def about(self) -> About:
        """Its name in records."""
        return {"task": self.task, **asdict(self)}

    def at(self, rate: float, seed: int) -> TextRun:
        """The same with another learning rate and seed."""
        return replace(self, rate=rate, seed=seed)

    @staticmethod
    def merit(record: Record) -> float:
        """What speaks for a run: a low loss at the length it was trained with."""
        return -float(record["loss"][f"{LENGTH} tokens"])

    def measure(self) -> tuple[Record, bytes]:
        """Train and judge; the record, and the weights as a safetensors file."""
        contender, material = BY_NAME[self.contender], texts()
        torch.manual_seed(self.seed)
        model = text_model(material.vocabulary)
        handle = attached(model, contender)
        kinds = judged(material)
        repeated, read = (draw(LENGTH, SEQUENCES, self.seed) for draw in (material.repeated, material.batches))
        copying = trained(model, repeated, kinds["random words"], COPYING)
        reading = trained(model, read, kinds[f"{LENGTH} tokens"], Schedule(STEPS, self.rate, EVERY))
        record = {
            "loss": {kind: mean_loss(model, sequences) for kind, sequences in kinds.items()},
            "parameters": sum(values.numel() for values in model.parameters()), "text": material.sha256,
            "state_bytes": {str(T): contender.state_bytes(TEXT_HEAD_DIM, T) for T in (LENGTH, 2 * LENGTH)},
            "copying": copying.curve, "copied_at": copying.done_at, "curve": reading.curve,
            "clipped": reading.clipped, "broke_off": copying.broke_off or reading.broke_off,
            "seconds": round(copying.seconds + reading.seconds, 1),
        }  # fmt: skip
        if handle is not None:
            handle.close()
        weights = {name: values for name, values in model.state_dict().items() if name != "lm_head.weight"}  # tied
        return record, save(weights)


def trained(model: Any, batches: Iterator[Tensor], judges: Sequence[Judged], schedule: Schedule) -> Course:
    """Train on sequences, judged by the mean log likelihood of tokens in nats."""

    def loss() -> Tensor:
        ids = next(batches)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return train(model, loss, lambda: -mean_loss(model, judges), schedule)


def judged(material: Texts) -> dict[str, list[Judged]]:
    """What judges, by kind: unseen text of the length trained with, and of twice that the second half.

    Then other text, copies of unseen text, lists, and copies of random words.
    """
    unseen = material.unseen(JUDGED)
    random = next(material.repeated(LENGTH, JUDGED, JUDGES))
    kinds = {
        f"{LENGTH} tokens": whole(unseen[:, :LENGTH]),
        f"{2 * LENGTH} tokens": [(ids, slice(LENGTH, 2 * LENGTH)) for ids in unseen[:, : 2 * LENGTH]],
        "docstrings": whole(material.other[:JUDGED, :LENGTH]),
    }
    return kinds | {
        "copies": material.copies(LENGTH, JUDGED),
        "lists": material.lists(JUDGED),
        "random words": [(ids, slice(PASSAGE, LENGTH)) for ids in random],
    }


def whole(sequences: Iterable[Tensor]) -> list[Judged]:
    """All predictions of these sequences."""
    return [(ids, slice(1, len(ids))) for ids in sequences]


def mean_loss(model: Any, sequences: Sequence[Judged]) -> float:
    """Nats per judged token."""
    losses = []
    with torch.no_grad():
        for ids, places in sequences:
            logits = model(input_ids=ids[None], use_cache=False).logits[0, places.start - 1 : places.stop - 1]
            losses.append(cross_entropy(logits, ids[places], reduction="none"))
    return float(torch.cat(losses).mean())
