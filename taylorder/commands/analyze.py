"""``taylorder analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from taylorder.commands._shared import Device, Format, Model, check_texts, check_writable, print_analysis
from taylorder.errors import UsageError


def analyze(
    model: Model = None,
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
            help="Allow this relative L2 error of a head's output: a number, or fp16, bf16 or int4 for one of "
            "about that precision.",
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
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Do not measure what the config does to the model's loss.")
    ] = False,
    device: Device = "cpu",
    output: Format = "human",
) -> None:
    """Measure a model, choose an order for every attention head, write the config and report.

    Ends with the losses of a few sequences of held-out text.

    Example: [bold]taylorder analyze gpt2 --window 64 --sinks 4 --out gpt2-out[/bold]
    """
    files = text or []
    measured_rows = _parse_rows(rows)
    if max_tokens < sequence_length:
        raise UsageError(
            f"--max-tokens is {max_tokens}, fewer than one sequence of {sequence_length}; raise it, or lower "
            "--sequence-length"
        )
    check_texts(files)
    check_writable(out)

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
        evaluation = None
        if not no_eval:
            from taylorder.adapt.evaluate import evaluate_shortly
            from taylorder.analysis.evaluation_text import evaluation_text

            progress.say("measuring what the model loses, on held-out text (--no-eval skips this)")
            evaluation = evaluate_shortly(
                loaded.model,
                loaded.tokenizer,
                description,
                selection.config,
                text=evaluation_text,
                seed=seed,
                progress=progress,
            )
        run_directory.write(out, analysis, selection, evaluation)
    print_analysis(analysis, selection, evaluation, out, output)


def _parse_rows(text: str) -> int | None:
    """Return a number of query rows, or None for all of them."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"--rows is {text!r}, expected a whole number from 1 on, or all")
    return int(text)
