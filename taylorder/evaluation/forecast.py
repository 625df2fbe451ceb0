"""What an evaluation will run, said before it begins, and how long it will take, said after its first sequence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from taylorder.storage.durations import duration
from taylorder.storage.progress import Progress


class Forecast:
    """A progress callback that times the first sequence under all contenders, and says what that makes of the rest."""

    def __init__(
        self,
        samples: Sequence[Tensor],
        contenders: Sequence[str],
        *,
        progress: Progress,
        say: Callable[[str], None],
        task_tokens: int = 0,
        task_states: int = 0,
    ) -> None:
        """Say what will run.

        Args:
            samples: sequences ``[N, T]`` for every length, in the order in which they run.
            contenders: names of what runs on each.
            progress: where progress goes on to.
            say: called with a sentence.
            task_tokens: tokens of the prompts of all tasks, 0 without tasks.
            task_states: how many times the tasks run.

        """
        self._progress, self._say = progress, say
        self._first = samples[0].shape[1] * len(contenders)
        self._total = sum(one.numel() for one in samples) * len(contenders) + task_tokens * task_states
        self._runs = len(contenders)
        self._began: float | None = time.monotonic()
        texts = " and ".join(f"{len(one)} of {one.shape[1]:,} tokens" for one in samples)
        tasks = f"; then continuations, and tasks {task_states} times" if task_tokens else ""
        say(f"to run: {', '.join(contenders)}; each on sequences of the text, {texts}{tasks}")

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Pass progress on, and say the time once there is something to judge by."""
        self._progress(stage, done, total)
        if self._began is not None and done >= self._runs:
            seconds = (time.monotonic() - self._began) * self._total / self._first
            self._began = None
            self._say(f"that takes about {duration(seconds)} in all, by the first sequence")
