"""The command line: parse, call, render, exit code.

Standard output is data; progress and errors go to standard error. Heavy imports stay inside the commands, so that
``taylorder --help`` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Annotated, NoReturn

import typer

from taylorder.commands._help import CommandWithHelp, GroupWithHelp
from taylorder.commands._stopping import (
    INTERRUPTED,
    drop_output,
    ended,
    let_standard_error_fail,
    termination_as_interrupt,
)
from taylorder.commands.analyze import analyze
from taylorder.commands.bench import bench
from taylorder.commands.chat import chat
from taylorder.commands.check import check
from taylorder.commands.claims import claims
from taylorder.commands.compare import compare
from taylorder.commands.compile_report import compile_report
from taylorder.commands.doctor import doctor
from taylorder.commands.evaluate import evaluate
from taylorder.commands.export import export
from taylorder.commands.generate import generate
from taylorder.commands.heal import heal
from taylorder.commands.lm_eval import lm_eval
from taylorder.commands.pull import pull
from taylorder.commands.push import push
from taylorder.commands.show import show
from taylorder.errors import TaylorderError, UsageError
from taylorder.storage import processes
from taylorder.storage.provenance import software_versions

_NAME = "taylorder"
_SHARED = ("analyze", "heal")
"""Commands that several processes run together."""

_WAY_OUT = "send it to a terminal, a pipe, a file with room or /dev/null"

app = typer.Typer(
    cls=GroupWithHelp,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_versions(asked: bool) -> None:
    if asked:
        for name, version in software_versions().items():
            typer.echo(f"{name} {version}")
        raise typer.Exit


@app.callback()
def taylorder(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of taylorder and of what it runs on.",
            callback=_print_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Run a language model with a smaller KV cache, and know what it costs, head by head.

    `analyze` measures a model and writes a config into a folder, taylorder-out unless told otherwise; the other
    commands read it from there. Standard output is data, progress goes to standard error. Exit codes: 0 done,
    1 failed, 2 usage or input that is not there, 3 unsupported model, 4 a bound that was asked for was missed.

    Example: taylorder analyze --budget 25% --context 1024

    Example: taylorder eval

    Example: taylorder generate --prompt-file story.txt --compare
    """
    if processes.world() > 1 and context.invoked_subcommand not in _SHARED:
        raise UsageError(
            f"{processes.world()} processes were started for `{context.invoked_subcommand}`, which runs in one; only "
            "`taylorder analyze` and `heal` share their work: start it without torchrun"
        )
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


_RESEARCH = "Research"

app.command(cls=CommandWithHelp)(analyze)
app.command("eval", cls=CommandWithHelp)(evaluate)
app.command(cls=CommandWithHelp)(generate)
app.command(cls=CommandWithHelp)(chat)
app.command(cls=CommandWithHelp)(show)
app.command(cls=CommandWithHelp)(compare)
app.command(cls=CommandWithHelp)(heal)
app.command(cls=CommandWithHelp)(bench)
app.command(cls=CommandWithHelp)(check)
app.command(cls=CommandWithHelp)(doctor)
app.command(
    "lm-eval",
    cls=CommandWithHelp,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(lm_eval)
app.command(cls=CommandWithHelp)(export)
app.command(cls=CommandWithHelp)(push)
app.command(cls=CommandWithHelp)(pull)
app.command(cls=CommandWithHelp, rich_help_panel=_RESEARCH)(claims)
app.command("compile-report", cls=CommandWithHelp, rich_help_panel=_RESEARCH)(compile_report)


def main() -> None:
    """Run the command line; every failure a user can act on is one line on standard error and an exit code."""
    let_standard_error_fail()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these characters gets ? instead of a crash
    if sys.stdout is None:
        _fail(f"standard output is closed; {_WAY_OUT}", TaylorderError.exit_code)
    with _said(), termination_as_interrupt(), processes.joined(), _said(), _others_silent():
        _run()


@contextmanager
def _said() -> Iterator[None]:
    """Say what ends the block in one line, and with which exit code."""
    try:
        yield
    except TaylorderError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        _fail(*ended(stop))
    except BrokenPipeError:  # `| head`: whoever reads has enough
        drop_output()
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None:  # what is written to files is caught, and named, where it is written
            drop_output()
            _fail(f"standard output cannot be written ({error.strerror}); {_WAY_OUT}", TaylorderError.exit_code)
        _fail(f"{error.filename}: {error.strerror}; name another file or folder", TaylorderError.exit_code)


@contextmanager
def _others_silent() -> Iterator[None]:
    """Of several processes the first prints; what ends one of them is said all the same."""
    if processes.is_first():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _run() -> NoReturn:
    try:
        app(prog_name=_NAME)
    except SystemExit as stop:
        # Inside a command typer turns the interrupt into this code without a word.
        if stop.code == INTERRUPTED:
            _fail(*ended(stop))
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk shows only here where little was written
        raise
    raise SystemExit(0)


def _fail(message: str, code: int) -> NoReturn:
    if processes.first_to_fail():
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None
