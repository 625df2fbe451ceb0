"""Commands that are ended from outside, or whose output goes nowhere: one sentence each, and what is kept."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from taylorder.errors import StoppedError, TaylorderError, Terminated

INTERRUPTED, TERMINATED = StoppedError.exit_code, 143
"""Exit codes: 128 and the number of the signal."""


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it cleans up and says what is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Yield what says whether Ctrl-C was pressed in the block, which goes on; pressed again, it ends the command."""
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield lambda: False  # somebody else has it: a shell that runs this in the background ignores it
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def kept(sentence: str, *, errors: bool = True) -> Iterator[None]:
    """Say what is kept where the block is interrupted, and, with ``errors``, whatever else ends it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        word, code = ended(stop)
        stopped = StoppedError(f"{word}; {sentence}")
        stopped.exit_code = code
        raise stopped from stop
    except TaylorderError as error:
        if errors:
            error.args = (f"{error}; {sentence}",)
        raise
    except Exception as error:
        if errors:
            error.add_note(sentence)
        raise


def ended(stop: BaseException | None) -> tuple[str, int]:
    """How a command came to its end, in a word, and its exit code; ``stop`` may be what came of another exception."""
    while stop is not None and not isinstance(stop, Terminated):
        stop = stop.__cause__ or stop.__context__
    return ("interrupted", INTERRUPTED) if stop is None else ("terminated", TERMINATED)


class _Lossy(io.FileIO):
    """A file in which what cannot be written is lost without a word."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def let_standard_error_fail() -> None:
    """Where standard error is closed, full or read by nobody, progress is lost, and not what is being measured."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    elif sys.stderr is sys.__stderr__ and sys.__stderr__ is not None:
        lossy = _Lossy(sys.__stderr__.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(lossy), sys.__stderr__.encoding, "replace", line_buffering=True)


def drop_output() -> None:
    """Send what standard output still holds nowhere, or the interpreter complains of it once more when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated
