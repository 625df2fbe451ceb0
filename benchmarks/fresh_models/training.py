"""Training as all contenders get it: AdamW, warm-up and cosine, gradients clipped; judged on words never seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WARM_UP, CLIP = 0.1, 1.0
JUDGES = 1_000_000
"""Seed of what judges a training, the same for all; what is learnt from has the small seed of its run."""

Loss = Callable[[], torch.Tensor]
Judge = Callable[[], float]


@dataclass(frozen=True)
class Schedule:
    """How long a model is trained, how often it is judged, and what the judgement has to reach to stop.

    ``rate`` is the largest learning rate; ``enough`` None stops at the last step alone.
    """

    steps: int
    rate: float
    every: int
    enough: float | None = None

    def factor(self, step: int) -> float:
        """The share of ``rate`` at a step: up to 1 in a tenth of all steps, down to 0 along half a cosine."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass(frozen=True)
class Course:
    """How a training went: the judgement at steps ``curve``, and the CPU seconds it took."""

    curve: Sequence[tuple[int, float]]
    seconds: float
    clipped: float
    """Share of the steps whose gradient was clipped."""

    broke_off: int | None = None
    """The step whose gradient was no number, which ended the training; None if there was none."""

    done_at: int | None = None
    """The step whose judgement was good enough, which ended the training; None if none was."""

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.curve[-1][0]


def train(model: Any, loss: Loss, judge: Judge, schedule: Schedule) -> Course:
    """Train until the schedule ends, the judgement is good enough or a gradient is no number.

    ``loss`` draws its batch.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.rate)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule.factor)
    started, clipped = time.process_time(), 0
    curve: list[tuple[int, float]] = []
    for step in range(1, schedule.steps + 1):
        optimiser.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        broke_off = not math.isfinite(norm)
        if not broke_off:
            clipped += norm > CLIP
            optimiser.step()
            rates.step()
        if broke_off or step % schedule.every == 0 or step == schedule.steps:
            with torch.no_grad():
                curve.append((step, judge()))
            done = schedule.enough is not None and curve[-1][1] >= schedule.enough
            if broke_off or done:
                break
    seconds = time.process_time() - started
    return Course(curve, seconds, clipped / step, step if broke_off else None, step if done else None)
