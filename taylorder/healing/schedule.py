"""What every step of a training does: a pure function of its number, so that a run goes on wherever it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from taylorder.healing.settings import HealSettings, Stage

OUTPUTS_SHARE = 0.25
"""Of the steps, for the outputs of single modules where another stage comes after them."""

WARM_UP, LAST_RATE = 0.05, 0.1
"""Share of the steps in which the learning rate rises, and what it falls to along a cosine, of the highest."""

JUDGEMENTS, LEAST_BETWEEN = 12, 8
"""How often the held-out loss is taken, and how many steps lie between at least."""

REFIT = 0.5
"""After this share of the steps probes are fitted anew, beside the end."""


@dataclass(frozen=True, slots=True)
class Step:
    """``rate`` is the share of the highest learning rate."""

    stage: Stage
    length: int
    sequences: int
    rate: float

    @property
    def tokens(self) -> int:
        """Tokens that it reads."""
        return self.length * self.sequences


@dataclass(frozen=True)
class Schedule:
    """So many steps through stages and contexts; ``sequences`` is how many of the longest a step reads."""

    steps: int
    stages: tuple[Stage, ...]
    contexts: tuple[int, ...]
    sequences: int = 1

    @classmethod
    def of(cls, settings: HealSettings, steps: int) -> Schedule:
        """So many steps as the settings want them."""
        return cls(steps, settings.stages, settings.contexts, settings.sequences)

    def step(self, number: int) -> Step:
        """What step ``number``, from 0 on, does."""
        share = number / self.steps
        length = self.contexts[int(share * len(self.contexts))]
        stage = self.stages[0 if share < OUTPUTS_SHARE else -1]
        rising = min(1.0, (number + 1) / max(1, round(WARM_UP * self.steps)))
        falling = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2
        as_many_tokens = self.sequences * self.contexts[-1] // length
        return Step(stage, length, as_many_tokens, rising * falling)

    @cached_property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return sum(self.step(number).tokens for number in range(self.steps))

    @property
    def between(self) -> int:
        """Steps from one held-out loss to the next."""
        return max(LEAST_BETWEEN, self.steps // JUDGEMENTS)

    def judged_after(self, done: int) -> bool:
        """Whether the held-out loss is taken when so many steps are done."""
        return done == self.steps or done % self.between == 0

    def refitted_after(self, done: int) -> bool:
        """Whether probes are fitted anew when so many steps are done, beside the end."""
        return done == round(REFIT * self.steps) and 0 < done < self.steps

    @property
    def judgements(self) -> int:
        """How often the held-out loss is taken, that of the beginning among them."""
        return 1 + sum(2 * self.refitted_after(done) or self.judged_after(done) for done in range(1, self.steps + 1))
