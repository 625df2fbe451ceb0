"""The help of all commands: option names whole at every width, and examples to copy.

Typer's own cuts option names in a narrow terminal, breaks choices inside words, and names the type of every switch.
"""

from __future__ import annotations

import inspect
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.exceptions import TyperException

from taylorder.errors import UsageError

_WIDEST = 100
_NAMES = 28
"""Characters of the names beside which their help stands; a longer name stands above it."""

_BESIDE = 68
"""The narrowest terminal with names and help side by side."""

_EXAMPLE = "Example: "


class CommandWithHelp(TyperCommand):
    """A command whose help is laid out here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, what it does, examples, and options by group."""
        formatter.write("\n".join(_page(self, ctx)) + "\n")


class GroupWithHelp(TyperGroup):
    """The commands together, with the same help; what is wrong with arguments is said as any other error is."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Read what comes before the command."""
        with _as_usage_error():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: Any) -> Any:
        """Read the arguments of a command, and run it."""
        with _as_usage_error():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, what it does, examples, commands by group, and options."""
        formatter.write("\n".join(_page(self, ctx)) + "\n")


@contextmanager
def _as_usage_error() -> Iterator[None]:
    """Without typer's box, and with the way to the help of the command."""
    try:
        yield
    except TyperException as error:
        context, sentence = getattr(error, "ctx", None), error.format_message().strip().removesuffix(".")
        asked = "taylorder" if context is None else context.command_path
        raise UsageError(f"{sentence[:1].lower()}{sentence[1:]}; `{asked} --help` lists what there is") from error


def _page(command: Any, context: Any) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    pieces = " ".join(command.collect_usage_pieces(context))
    yield from _wrapped(f"Usage: {context.command_path} {pieces}", width, "    ")
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    for words in paragraphs:
        if not words.startswith(_EXAMPLE):
            yield ""
            yield from _wrapped(words, width)
    yield from _examples([words.removeprefix(_EXAMPLE) for words in paragraphs if words.startswith(_EXAMPLE)], width)
    for title, rows in _groups(command, context).items():
        yield from ("", _strong(title))
        for name, text in rows:
            yield from _row(name, text, width)


def _examples(commands: Iterable[str], width: int) -> Iterator[str]:
    from taylorder.reports.render import folded

    for number, command in enumerate(commands):
        if not number:
            yield from ("", _strong("Examples"))
        yield folded(command, width - 6)


def _groups(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and texts by heading: arguments, commands, then options in the order in which they are declared."""
    found: dict[str, list[tuple[str, str]]] = {}
    parameters = [one for one in command.get_params(context) if not getattr(one, "hidden", False)]
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):
            several = "" if parameter.nargs == 1 else "…"
            found.setdefault("Arguments", []).append((parameter.display_name_raw + several, _about(parameter)))
    for name in command.list_commands(context) if isinstance(command, TyperGroup) else ():
        made: Any = command.get_command(context, name)
        first = inspect.cleandoc(made.help or "").partition("\n\n")[0]
        found.setdefault(made.rich_help_panel or "Commands", []).append((name, " ".join(first.split())))
    for parameter in parameters:
        if not isinstance(parameter, TyperArgument):
            group = parameter.rich_help_panel or "Options"
            found.setdefault(group, []).append((_names(parameter, context), _about(parameter)))
    return found


def _names(option: Any, context: Any) -> str:
    """``-h, --help``, ``--tasks / --no-tasks`` or ``--out DIR``."""
    name = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        return f"{name} / {', '.join(option.secondary_opts)}"
    return name if option.is_flag else f"{name} {option.display_type_rich(context).strip('<>')}"


def _about(parameter: Any) -> str:
    """What a parameter does, and its default where it has one, which ``show_default`` may say in words."""
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    if parameter.show_default is False or shown is None or isinstance(shown, bool):
        return parameter.help or ""
    return f"{parameter.help} [default: {shown}]"


def _row(name: str, text: str, width: int) -> Iterator[str]:
    """A name, and its text beside it where there is room, else below."""
    beside = width >= _BESIDE
    indent = " " * (_NAMES if beside else 6)
    lines = _wrapped(indent + text, width, indent)
    if beside and len(name) + 4 <= _NAMES:
        lines[0] = f"  {_strong(name)}{lines[0][2 + len(name) :]}"
        yield from lines
    else:
        yield from (f"  {_strong(name)}", *lines)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of whole words, the first as it is and the others after ``indent``."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _strong(text: str) -> str:
    """Bold where that can be seen: what goes into a pipe or a file loses it again."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)
