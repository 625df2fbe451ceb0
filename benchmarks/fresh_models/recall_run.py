"""One run of associative recall: a model trained with a contender from a seed, and its share of right answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy

from fresh_models.contenders import BY_NAME, Contender
from fresh_models.log import About, Record
from fresh_models.models import INITIAL, attached, guard_of, recall_model
from fresh_models.recall import Batch, Recall
from fresh_models.training import JUDGES, Course, Schedule, train

STEPS, EVERY, ENOUGH = 2400, 200, 0.99
TESTED = 32768
"""Words of the sequences that judge: the same throughout a training, and others after it."""


@dataclass(frozen=True)
class RecallRun:
    """What distinguishes one run from the others.

    With ``first``, it is trained with so many pairs first, then with twice as many, and so on.
    """

    contender: str
    head_dim: int = 16
    pairs: int = 8
    seed: int = 0
    rate: float = 3e-3
    initial: float = INITIAL
    first: int | None = None

    task: ClassVar[str] = "recall"

    @property
    def about(self) -> About:
        """Its name in records, where ``first`` is named if there is one."""
        return {"task": self.task, **{name: value for name, value in asdict(self).items() if value is not None}}

    @classmethod
    def of(cls, about: About) -> RecallRun:
        """The run of that name."""
        return cls(**{name: value for name, value in about.items() if name != "task"})

    def at(self, rate: float, seed: int) -> RecallRun:
        """The same with another learning rate and seed."""
        return replace(self, rate=rate, seed=seed)

    @property
    def of_main_line(self) -> bool:
        """Whether it differs from others of the main line in contender, seed and rate alone."""
        return self == RecallRun(self.contender, seed=self.seed, rate=self.rate)

    @property
    def before(self) -> list[int]:
        """Pairs of the trainings before the last."""
        pairs = [] if self.first is None else [self.first]
        while pairs and 2 * pairs[-1] < self.pairs:
            pairs.append(2 * pairs[-1])
        return pairs

    @staticmethod
    def merit(record: Record) -> tuple[bool, int, float]:
        """What speaks for a run: that it solved the task, in the fewer steps the better, or else its share right."""
        solved = record["solved_at"]
        return solved is not None, -(solved or 0), record["share"]

    def measure(self) -> tuple[Record, bytes]:
        """Train and judge; the record, and the weights as a safetensors file."""
        contender = BY_NAME[self.contender]
        torch.manual_seed(self.seed)
        model = recall_model(self.head_dim, self.initial)
        with guard_of(contender):
            record = self._trained(model, contender)
        record |= learnt(model, contender)
        weights = {name: values for name, values in model.state_dict().items() if name != "lm_head.weight"}  # tied
        return record, save(weights)

    def _trained(self, model: Any, contender: Contender) -> Record:
        task = Recall(self.pairs)
        handle = attached(model, contender)
        courses = [trained(model, Recall(pairs), self.seed, self.rate) for pairs in (*self.before, self.pairs)]
        course, broke_off = courses[-1], [each.broke_off for each in courses if each.broke_off is not None]
        record = {
            "share": None, "solved_at": course.done_at,
            "guessing": task.guessing, "steps": STEPS, "tested": TESTED // task.length * task.pairs,
            "state_bytes": contender.state_bytes(self.head_dim, task.length), "length": task.length,
            "curve": course.curve, "clipped": course.clipped, "broke_off": broke_off[0] if broke_off else None,
            "before": [[pairs, *each.curve[-1]] for pairs, each in zip(self.before, courses, strict=False)],
            "seconds": round(sum(each.seconds for each in courses), 1),
        }  # fmt: skip
        if handle is not None:
            handle.counts.guarded_rows.clear()
        record["share"] = share_right(model, task, JUDGES + 1)
        if handle is not None:
            rows = torch.stack(list(handle.counts.guarded_rows.values())).double()
            record["guarded"] = float(rows.mean()) / TESTED
            handle.close()
        return record


def trained(model: Any, task: Recall, seed: int, rate: float) -> Course:
    """Train on a task, with the batches of a seed."""
    batches = task.batches(seed)

    def loss() -> Tensor:
        batch = next(batches)
        return cross_entropy(answered(model, batch).flatten(0, 1), batch.answers.flatten())

    return train(model, loss, lambda: share_right(model, task, JUDGES), Schedule(STEPS, rate, EVERY, ENOUGH))


def answered(model: Any, batch: Batch) -> Tensor:
    """Logits at the places of questions ``[B, pairs, words]``, and nowhere else."""
    hidden = model.model(input_ids=batch.words, use_cache=False).last_hidden_state
    return model.lm_head(hidden.gather(1, batch.asked[..., None].expand(-1, -1, hidden.shape[-1])))


def share_right(model: Any, task: Recall, seed: int) -> float:
    """Share of right answers on sequences of that seed."""
    random, right = torch.Generator().manual_seed(seed), []
    with torch.no_grad():
        for _ in range(8):
            batch = task.batch(TESTED // 8 // task.length, random)
            right.append((answered(model, batch).argmax(-1) == batch.answers).double().mean())
    return float(torch.stack(right).mean())


def learnt(model: Any, contender: Contender) -> dict[str, Any]:
    """The coefficients of every head ``[layers, H, P]``, where they were trained."""
    if not contender.trains_coefficients:
        return {}
    return {"coefficients": [layer.self_attn.coefficients.tolist() for layer in model.model.layers]}
