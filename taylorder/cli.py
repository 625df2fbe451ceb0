"""The command line: parse, call, render, exit code.

Standard output is data; progress and errors go to standard error. Heavy imports stay inside the commands, so that
``taylorder --help`` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from taylorder.errors import TaylorderError, UsageError
from taylorder.provenance import software_versions

if TYPE_CHECKING:
    from taylorder.adapt.select import Selection
    from taylorder.analysis.results import Analysis

_FORMAT_HELP = "Print a report, or one JSON document and nothing else."
_INTERRUPTED = 130

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
    model.
    """


@app.command()
def analyze(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", show_default="the built-in smollm2-135m", help="Hub id, model folder or .gguf file."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            show_default="the English that Python ships",
            help="Calibrate on this UTF-8 file; repeat for several.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Use so many tokens of the text.")] = 8192,
    sequence_length: Annotated[int, typer.Option(metavar="N", min=2, help="Cut them into sequences of N.")] = 1024,
    rows: Annotated[str, typer.Option(metavar="N|all", help="Measure N random query rows of each sequence.")] = "64",
    tolerance: Annotated[
        str,
        typer.Option(
            metavar="TIER|X",
            help="Allow this relative L2 error of a head's output: a number, or fp16, bf16 or int4 for the error of "
            "rounding to it.",
        ),
    ] = "int4",
    max_order: Annotated[int, typer.Option(metavar="N", min=1, max=8, help="Measure orders 1 to N.")] = 8,
    window: Annotated[int, typer.Option(metavar="N", min=0, help="Keep the true exponential for the last N keys.")] = 0,
    sinks: Annotated[int, typer.Option(metavar="N", min=0, help="Keep the true exponential for the first N keys.")] = 0,
    policy: Annotated[
        Literal["error", "alpha"], typer.Option(help="Choose by measured error, or, to compare, by the alphas alone.")
    ] = "error",
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            show_default="the model's maximum",
            help="Choose only orders whose state is no larger than the KV cache at N tokens.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Write orders.json, heads.csv, spectral.csv and report.json here.")
    ] = Path("taylorder-out"),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed the draw of query rows.")] = 0,
    per_head_alpha: Annotated[
        bool, typer.Option("--per-head-alpha", help="Fit alpha to every head's slice too: noisy, and slow.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="Run on this torch device, such as cpu or cuda.")] = "cpu",
    output: Annotated[Literal["human", "json"], typer.Option("--format", help=_FORMAT_HELP)] = "human",
) -> None:
    """Measure a model, choose an order for every attention head, write the config and report.

    Example: [bold]taylorder analyze gpt2 --window 64 --sinks 4 --out gpt2-out[/bold]
    """
    files = text or []
    measured_rows = _parse_rows(rows)
    if max_tokens < sequence_length:
        raise UsageError(
            f"--max-tokens is {max_tokens}, fewer than one sequence of {sequence_length}; raise it, or lower "
            "--sequence-length"
        )
    for file in files:
        if not file.is_file():
            raise UsageError(f"--text {file} is not a file; name an existing text file")
    _check_writable(out)

    from taylorder.adapt.select import parse_tolerance, select

    largest_error = parse_tolerance(tolerance)

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        progress.say(f"loading {model or 'the built-in model'}")

        from taylorder.analysis.run import analyze as measure
        from taylorder.analysis.text import calibration_text
        from taylorder.models import describe, load
        from taylorder.reports import run_directory

        words = calibration_text(files)
        loaded = load(model, device=device)
        description = describe(loaded.model, loaded.name, weights_note=loaded.weights_note)
        progress.say(
            f"measuring {len(description.modules)} layers of {description.modules[0].heads} heads on {words.source}"
        )
        analysis = measure(
            loaded.model,
            loaded.tokenizer,
            name=loaded.name,
            description=description,
            text=words,
            max_tokens=max_tokens,
            sequence_length=sequence_length,
            rows=measured_rows,
            max_order=max_order,
            window=window,
            sinks=sinks,
            seed=seed,
            per_head_alpha=per_head_alpha,
            progress=progress,
        )
        selection = select(analysis, policy=policy, tolerance=largest_error, context=context or description.max_context)
        run_directory.write(out, analysis, selection)
    _print(analysis, selection, out, output)


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `taylorder analyze --out` wrote.")],
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the report into this SVG file instead.")
    ] = None,
    output: Annotated[Literal["human", "json"], typer.Option("--format", help=_FORMAT_HELP)] = "human",
) -> None:
    """Show the report of an earlier run again, without measuring.

    Example: [bold]taylorder show taylorder-out[/bold]
    """
    from taylorder.reports import run_directory, terminal

    analysis, selection = run_directory.read(directory)
    if svg is not None:
        terminal.export_svg(analysis, selection, svg)
        print(f"wrote {svg}", file=sys.stderr)
        return
    _print(analysis, selection, directory, output)


def _parse_rows(text: str) -> int | None:
    """Return a number of query rows, or None for all of them."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"--rows is {text!r}, expected a whole number from 1 on, or all")
    return int(text)


def _check_writable(directory: Path) -> None:
    """Refuse an output directory that could not be written after minutes of measuring."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {directory}: {existing} is a file; name a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {directory}: {existing} is not writable; name another directory")


def _print(analysis: Analysis, selection: Selection, directory: Path, output: str) -> None:
    """Write the result to standard output: a report as wide as the terminal, plain text into a pipe, or JSON."""
    from rich.console import Console

    from taylorder.reports import terminal
    from taylorder.reports.document import as_document, as_json

    if output == "json":
        sys.stdout.write(as_json(as_document(analysis, selection, directory)))
        return
    console = Console(highlight=False)
    if console.is_terminal:
        terminal.render(analysis, selection, console, directory)
    else:
        sys.stdout.write(terminal.as_text(analysis, selection, directory))


def main() -> None:
    """Run the command line; every failure a user can act on is one line on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these characters gets ? instead of a crash
    try:
        app()
    except TaylorderError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)
    except SystemExit as stop:
        # Inside a command typer turns the interrupt into this code without a word.
        if stop.code == _INTERRUPTED:
            _fail("interrupted", _INTERRUPTED)
        raise


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None
