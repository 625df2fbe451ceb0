"""Text that comes in line by line, and text that goes out piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import TypeVar

from taylorder.errors import UsageError

Result = TypeVar("Result")


def refuse_no_text(text: str, what: str) -> None:
    """Refuse what Python makes of bytes that are no text."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(f"{what} is no UTF-8 text; convert it")


def at_terminal() -> bool:
    """Whether somebody types."""
    return sys.stdin is not None and sys.stdin.isatty()


def typed_lines(prompt: str) -> Iterator[str]:
    """Lines of standard input until it ends, without their ends; a terminal is prompted, and lets lines be edited."""
    if sys.stdin is None:
        raise UsageError("standard input is closed; type into a terminal, or pipe lines in")
    if at_terminal():
        with suppress(ImportError):
            import readline  # noqa: F401  # from here on `input` knows arrow keys and earlier lines
    while True:
        try:
            line = _prompted(prompt) if at_terminal() else sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is no {error.encoding} text ({error.reason}); convert it") from error
        if not line:
            return
        refuse_no_text(line, "a line of standard input")
        yield line.removesuffix("\n")


def streamed(pieces: Generator[str, None, Result], heading: str) -> Result:
    """Write every piece as it comes, below a heading, and end the line, also where generation is interrupted.

    The heading waits for the first piece: what is refused before that leaves standard output empty.
    """
    begun = False
    with closing(pieces):
        try:
            while True:
                piece = next(pieces)
                sys.stdout.write(piece if begun else heading + piece)
                sys.stdout.flush()
                begun = True
        except StopIteration as end:
            if not begun:
                sys.stdout.write(heading)
            begun = True
            result: Result = end.value
            return result
        finally:
            if begun:
                sys.stdout.write("\n")
                sys.stdout.flush()


def _prompted(prompt: str) -> str:
    """A line with its end, and nothing where input ends; what follows either begins on a line of its own."""
    try:
        return input(prompt) + "\n"
    except EOFError:
        print()
        return ""
    except KeyboardInterrupt:
        print()
        raise
