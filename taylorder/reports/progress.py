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

_STAGES = {"alpha": "spectra of the layers", "heads": "heads of the layers"}


class StderrProgress:
    """What :func:`taylorder.analyze` calls with ``(stage, done, total)``; a context manager."""

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
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}

    def say(self, message: str) -> None:
        """Print one line."""
        if self.bars is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self.console.print(message, markup=False)

    def __enter__(self) -> StderrProgress:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` layers are through a stage."""
        name = _STAGES.get(stage, stage)
        if self.bars is None:
            self._line(stage, name, done, total)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self.bars.add_task(name, total=total)
        self.bars.update(self._tasks[stage], completed=done)

    def _line(self, stage: str, name: str, done: int, total: int) -> None:
        """One line when a stage is first heard of, and one per quarter."""
        first = stage not in self._started
        started, before = self._started.setdefault(stage, (time.monotonic(), done))
        if done < total and not first and done * 4 // total == (done - 1) * 4 // total:
            return
        left = ""
        if before < done < total:
            left = f", about {(time.monotonic() - started) / (done - before) * (total - done):.0f} s left"
        self.say(f"{name}: {done} of {total}{left}")
