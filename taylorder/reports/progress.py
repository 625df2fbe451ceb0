"""Progress on stderr: a bar with the time left per stage where a person watches, a few plain lines otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from taylorder.storage.stages import StagePlan


class StderrProgress:
    """What :func:`taylorder.analyze` calls with ``(stage, done, total)``; a context manager.

    Where it follows a plan it says which of the plan's stages that is.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bars: Progress | None = None
        if sys.stderr.isatty():
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
        self._plan: StagePlan | None = None
        self._at = 0
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}

    def say(self, message: str) -> None:
        """Print one line."""
        if self.bars is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self.console.print(message, markup=False)

    def follow(self, plan: StagePlan) -> None:
        """Number the stages as a plan does, from its first one on."""
        self._plan, self._at = plan, 0

    def begin(self, budget: str) -> None:
        """Go on with the stages that are for one of several budgets: others had stages of the same names."""
        start = None if self._plan is None else self._plan.start_of(budget)
        self._at = self._at if start is None else start

    def __enter__(self) -> StderrProgress:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars away, so that something else can be written."""
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` layers, sequences or configs are through a stage."""
        name = self._numbered(stage)
        if self.bars is None:
            self._line(name, done, total)
            return
        if name not in self._tasks:
            self._tasks[name] = self.bars.add_task(name, total=total)
        self.bars.update(self._tasks[name], completed=done)

    def _numbered(self, stage: str) -> str:
        """A stage with its number; those that had nothing to do are passed over."""
        place = None if self._plan is None else self._plan.place(stage, self._at)
        if self._plan is None or place is None:
            return stage
        self._at = place
        return f"stage {place + 1} of {len(self._plan.stages)}, {stage}"

    def _line(self, name: str, done: int, total: int) -> None:
        """One line when a stage is first heard of, and one per quarter."""
        first = name not in self._started
        started, before = self._started.setdefault(name, (time.monotonic(), done))
        if done < total and not first and done * 4 // total == (done - 1) * 4 // total:
            return
        left = ""
        if before < done < total:
            left = f", about {(time.monotonic() - started) / (done - before) * (total - done):.0f} s left"
        self.say(f"{name}: {done} of {total}{left}")
