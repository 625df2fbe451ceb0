"""The command line: parse, call, render, exit code.

Standard output is data; progress and errors go to standard error. Heavy imports stay inside the commands, so that
``taylorder --help`` answers at once.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, NoReturn

import typer

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
from taylorder.commands.claims import claims
from taylorder.commands.compile_report import compile_report
from taylorder.commands.evaluate import evaluate
from taylorder.commands.generate import generate
from taylorder.commands.show import show
from taylorder.errors import TaylorderError
from taylorder.storage.provenance import software_versions

_WAY_OUT = "send it to a terminal, a pipe, a file with room or /dev/null"

app = typer.Typer(
    name="taylorder",
    no_args_is_help=True,
    rich_markup_mode="rich",
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
    """Measure how many Taylor terms of the softmax exponential each attention head of a model needs, and choose.

    Standard output is data, progress goes to standard error. Exit codes: 0 done, 1 failed, 2 usage, 3 unsupported
    model, 4 a bound that was asked for was missed.
    """


app.command()(analyze)
app.command()(show)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(chat)
app.command()(bench)
app.command()(claims)
app.command("compile-report")(compile_report)


def main() -> None:
    """Run the command line; every failure a user can act on is one line on standard error and an exit code."""
    let_standard_error_fail()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these characters gets ? instead of a crash
    if sys.stdout is None:
        _fail(f"standard output is closed; {_WAY_OUT}", TaylorderError.exit_code)
    try:
        with termination_as_interrupt():
            _run()
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


def _run() -> NoReturn:
    try:
        app()
    except SystemExit as stop:
        # Inside a command typer turns the interrupt into this code without a word.
        if stop.code == INTERRUPTED:
            _fail(*ended(stop))
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk shows only here where little was written
        raise
    raise SystemExit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None
