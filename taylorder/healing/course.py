"""One training from its first step to its best weights: resumed where it was, ended by plan, time or patience."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.healing.checkpoint import Checkpoint
from taylorder.healing.held_out import HeldOut
from taylorder.healing.losses import add_gradients
from taylorder.healing.outcome import Outcome, part, recorded_probes, with_recorded
from taylorder.healing.schedule import Schedule
from taylorder.healing.settings import RATES, HealSettings
from taylorder.healing.student import Student
from taylorder.healing.text import TrainingText
from taylorder.storage import processes
from taylorder.storage.progress import Progress, silent

BETAS, MOST_NORM = (0.9, 0.95), 1.0
"""Of AdamW, and what gradients are scaled down to."""

PATIENCE = 5
"""Held-out losses without a new best, after which a training stops."""

SECONDS_BETWEEN = 60.0
"""From one state that is kept on disk to the next."""

Refit = Callable[[Student, OrderConfig], OrderConfig]
"""Makes the config that fits the weights of now."""


@dataclass
class _State:
    """How far a training is."""

    done: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    writes: int = 0


@dataclass(frozen=True)
class _Best:
    weights: dict[str, Tensor]
    config: OrderConfig | None


class Course:
    """A training of a student, step after step."""

    def __init__(
        self,
        name: str,
        student: Student,
        schedule: Schedule,
        text: TrainingText,
        settings: HealSettings,
        checkpoint: Checkpoint,
        *,
        limit: float | None = None,
        refit: Refit | None = None,
        progress: Progress = silent,
        say: Callable[[str], None] = lambda sentence: None,
        seconds_between: float = SECONDS_BETWEEN,
    ) -> None:
        """Begin, or go on from the checkpoint.

        Args:
            name: what it is called where progress is told.
            student: what is trained.
            schedule: what each step does.
            text: what it reads.
            settings: how it is trained.
            checkpoint: where its state is kept.
            limit: seconds after which no further step is begun.
            refit: fits probes anew, where the config keeps keys.
            progress: called with steps.
            say: called with losses.
            seconds_between: from one state that is kept to the next.

        """
        self._name, self._student, self._schedule, self._text = name, student, schedule, text
        self._settings, self._checkpoint, self._limit, self._refit = settings, checkpoint, limit, refit
        self._progress, self._say, self._between = progress, say, seconds_between
        self._held_out = HeldOut(student, text.held_out, towards_text=settings.towards_text)
        student.trained.load(student.trained.first)
        parameters = list(student.trained.parameters.values())
        self._optimiser = torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, weight_decay=0.0)
        self._state, self._written = _State(), time.monotonic()
        self._best = _Best(student.trained.state(), student.config)
        self._restore()

    def run(self) -> Outcome:
        """Train to the end.

        Raises:
            NonFiniteError: a loss is not finite.

        """
        state, began = self._state, time.monotonic() - self._state.seconds
        if not state.held_out:
            self._judge()
        stopped = self._reason(began)
        while stopped is None:
            self._progress(self._name, state.done, self._schedule.steps)
            self._step()
            if self._refit is not None and self._schedule.refitted_after(state.done):
                self._refit_now(self._refit)
            elif self._schedule.judged_after(state.done):
                self._judge()
            state.seconds = time.monotonic() - began
            if processes.from_first(lambda: time.monotonic() - self._written >= self._between):
                self._keep()
            stopped = self._reason(began)
        self._progress(self._name, self._schedule.steps, self._schedule.steps)
        self._last_refit()
        state.seconds = time.monotonic() - began
        tokens = sum(self._schedule.step(number).tokens for number in range(state.done))
        return Outcome(
            self._best.weights, self._best.config, state.losses, state.held_out, state.best, tokens, state.seconds,
            stopped,
        )  # fmt: skip

    def _reason(self, began: float) -> str | None:
        """Why to stop now, None to go on."""
        state = self._state
        if state.done >= self._schedule.steps:
            return "all steps are done"
        since = [loss for done, loss in state.held_out if done > state.best]
        if len(since) >= PATIENCE:
            return f"{PATIENCE} held-out losses without a new best"
        limit = self._limit
        if limit is not None and processes.from_first(lambda: time.monotonic() - began > limit):
            return "the time is over"
        return None

    def _step(self) -> None:
        state, settings = self._state, self._settings
        step = self._schedule.step(state.done)
        batch = self._text.batch(step.length, step.sequences, settings.seed, state.done)
        far_only = self._far_only()
        parameters = self._student.trained.parameters.values()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        rows = processes.share(len(batch), "sequences in a step")
        losses = [add_gradients(self._student, step.stage, batch[row], 1 / len(batch), far_only) for row in rows]
        processes.sum_in_place([parameter.grad for parameter in parameters if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(parameters, MOST_NORM)
        for group in self._optimiser.param_groups:
            group["lr"] = step.rate * RATES[settings.train]
        self._optimiser.step()
        for parameter in parameters:
            parameter.grad = None
        state.losses.append(float(np.mean(processes.gathered(losses))))
        state.done += 1

    def _far_only(self) -> list[str]:
        """The modules that run without their near fields in this step."""
        settings = self._settings
        if not settings.drop_window:
            return []
        generator = np.random.default_rng((settings.seed, self._state.done, 1))
        names = self._student.with_polynomials
        return [
            name for name, draw in zip(names, generator.random(len(names)), strict=True) if draw < settings.drop_window
        ]

    def _refit_now(self, refit: Refit) -> None:
        """Fit probes to the weights of now, and go on with them if they are better than those that there were."""
        student, config = self._student, self._student.config
        if config is None:
            return
        known = self._judge()
        self._say(f"{self._name}: fitting probes anew after {self._state.done} steps")
        student.use(refit(student, config))
        if self._judge() >= known:
            student.use(config)

    def _last_refit(self) -> None:
        """Fit probes to the best weights, and keep them if they are better than those that these had."""
        student, state, best = self._student, self._state, self._best
        student.trained.load(best.weights)
        student.use(best.config)
        if self._refit is None or best.config is None or not state.best:
            return
        self._say(f"{self._name}: fitting probes anew to the best weights")
        student.use(self._refit(student, best.config))
        self._judge(of=state.best)

    def _judge(self, of: int | None = None) -> float:
        """Take the held-out loss, and note where it is the best so far; ``of`` are the steps of the weights."""
        state = self._state
        done = state.done if of is None else of
        loss = self._held_out.loss()
        best = min((known for _, known in state.held_out), default=math.inf)
        if loss < best:
            state.best = done
            self._best = _Best(self._student.trained.state(), self._student.config)
        state.held_out.append((done, loss))
        last = f"loss {state.losses[-1]:.4f}, " if state.losses else ""
        word = ", the best so far" if loss < best and done else ""
        self._say(f"{self._name}, step {done} of {self._schedule.steps}: {last}held out {loss:.4f}{word}")
        return loss

    def _keep(self) -> None:
        """Write everything that the next step depends on."""
        state, student = self._state, self._student
        state.writes += 1
        self._written = time.monotonic()
        tensors = {f"now.{name}": tensor for name, tensor in student.trained.state().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.weights.items()}
        for name, parameter in student.trained.parameters.items():
            moments = self._optimiser.state[parameter]
            tensors |= {f"mean.{name}": moments["exp_avg"], f"square.{name}": moments["exp_avg_sq"]}
        value = asdict(state)
        for which, config in (("now", student.config), ("best", self._best.config)):
            about, probes = recorded_probes(config)
            value[f"probe_{which}"] = about
            tensors |= {f"probe_{which}.{name}": probe.clone() for name, probe in probes.items()}  # may be the same
        self._checkpoint.write(state.writes, value, tensors)

    def _restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        latest = self._checkpoint.read()
        if latest is None:
            return
        value, tensors = latest
        state, student = self._state, self._student
        state.done, state.seconds, state.best, state.writes = (
            value[name] for name in ("done", "seconds", "best", "writes")
        )
        state.losses, state.held_out = value["losses"], [(done, loss) for done, loss in value["held_out"]]
        student.trained.load(part(tensors, "now"))
        mean, square = part(tensors, "mean"), part(tensors, "square")
        for name, parameter in student.trained.parameters.items():
            self._optimiser.state[parameter] = {
                "step": torch.tensor(float(state.done)),
                "exp_avg": mean[name].to(parameter.device),
                "exp_avg_sq": square[name].to(parameter.device),
            }
        first = student.config
        self._best = _Best(
            part(tensors, "best"), with_recorded(first, value["probe_best"], part(tensors, "probe_best"))
        )
        student.use(with_recorded(first, value["probe_now"], part(tensors, "probe_now")))
