"""How long a training takes, from one timed step of each kind, and how many steps there is time for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from taylorder.healing.losses import add_gradients
from taylorder.healing.schedule import Schedule
from taylorder.healing.settings import HealSettings, Stage
from taylorder.healing.student import Student
from taylorder.storage import processes

MOST_STEPS = 100_000

REFITS, REFIT = 2, 1.5
"""How often probes are fitted, and how much longer a token takes there than in a forward pass."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds per token of one training, shared between the processes that there are.

    Attributes:
        stages: of a step, by its stage.
        forward: of a forward pass, such as that of a held-out loss.
        held_out_tokens: that are read for one held-out loss.
        refit_tokens: that probes are fitted to.

    """

    stages: dict[Stage, float]
    forward: float
    held_out_tokens: int = 0
    refit_tokens: int = 0

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
        forward = time.monotonic() - began
        slowest = max(processes.gather((*seconds.values(), forward)), key=sum)
        *of_stages, forward = (taken / len(sequence) / processes.world() for taken in slowest)
        return cls(dict(zip(seconds, of_stages, strict=True)), forward)

    def having(self, held_out_tokens: int, refit_tokens: int) -> Pace:
        """The same for a training with so many tokens held out, and so many that probes are fitted to."""
        return replace(self, held_out_tokens=held_out_tokens, refit_tokens=refit_tokens)

    def seconds(self, schedule: Schedule) -> float:
        """How long a training will take."""
        steps = (schedule.step(number) for number in range(schedule.steps))
        trained = sum(step.tokens * self.stages[step.stage] for step in steps)
        judged = schedule.judgements * self.held_out_tokens + REFITS * REFIT * self.refit_tokens
        return trained + judged * self.forward


def longest_schedule(settings: HealSettings, paces: Sequence[Pace]) -> Schedule:
    """The most steps that every training can take within minutes and tokens; at least one."""

    def fits(steps: int) -> bool:
        schedule = Schedule.of(settings, steps)
        seconds = sum(pace.seconds(schedule) for pace in paces)
        in_time = settings.minutes is None or seconds <= 60 * settings.minutes
        return in_time and (settings.tokens is None or schedule.tokens <= settings.tokens)

    low, high = 1, 2
    while high < MOST_STEPS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Schedule.of(settings, low)
