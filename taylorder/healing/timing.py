"""How long a training takes, from one timed step of each kind, and how many steps there is time for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from taylorder.healing.losses import add_gradients
from taylorder.healing.schedule import Schedule
from taylorder.healing.settings import HealSettings, Stage
from taylorder.healing.student import Student
from taylorder.storage import processes

MOST_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds per token of a step at each stage and of a held-out loss, of one training in one process."""

    stages: dict[Stage, float]
    held_out: float

    @classmethod
    def of(cls, student: Student, sequence: Tensor, stages: Sequence[Stage]) -> Pace:
        """Time a sequence ``[T]``; nothing is learnt from it. All processes get what the slowest needs."""
        seconds: dict[Stage, float] = {}
        for stage in stages:
            began = time.monotonic()
            add_gradients(student, stage, sequence, 1.0)
            seconds[stage] = time.monotonic() - began
        for parameter in student.trained.parameters.values():
            parameter.grad = None
        began = time.monotonic()
        student.hidden(sequence)
        held_out = time.monotonic() - began
        slowest = max(processes.gather((*seconds.values(), held_out)), key=sum)
        *of_stages, held_out = (taken / len(sequence) for taken in slowest)
        return cls(dict(zip(seconds, of_stages, strict=True)), held_out)

    def seconds(self, schedule: Schedule, held_out_tokens: int) -> float:
        """How long a training will take."""
        steps = (schedule.step(number) for number in range(schedule.steps))
        trained = sum(step.tokens * self.stages[step.stage] for step in steps)
        return (trained + schedule.judgements * held_out_tokens * self.held_out) / processes.world()


def longest_schedule(settings: HealSettings, paces: Sequence[Pace], held_out_tokens: int) -> Schedule:
    """The most steps that every training can take within minutes and tokens; at least one."""

    def fits(steps: int) -> bool:
        schedule = Schedule(steps, settings.stages, settings.contexts)
        seconds = sum(pace.seconds(schedule, held_out_tokens) for pace in paces)
        in_time = settings.minutes is None or seconds <= 60 * settings.minutes
        return in_time and (settings.tokens is None or schedule.tokens <= settings.tokens)

    low, high = 1, 2
    while high < MOST_STEPS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Schedule(low, settings.stages, settings.contexts)
