"""``taylorder analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from taylorder.commands._paths import path_of
from taylorder.commands._shared import (
    Device,
    Dtype,
    Format,
    Model,
    Seed,
    check_texts,
    check_writable,
    is_whole_number,
    print_analysis,
    shortly,
    write_run,
)
from taylorder.commands._stopping import kept
from taylorder.errors import UsageError

_OF_LEVERS = ("--lever-length", "--fresh")
"""Options that do nothing where no levers are measured."""


def analyze(
    options: typer.Context,
    model: Model = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            show_default="the English that Python ships",
            help="Calibrate on this UTF-8 file; repeat for several.",
            parser=path_of("--text"),
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
            max=2**31,
            show_default="the model's maximum",
            help="Choose only orders whose state is no larger than the KV cache at N tokens.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            show_default=False,
            help="Choose for every KV head what to run within this many nominal bytes per KV head on average, such as "
            "128KiB; implies --levers all.",
        ),
    ] = None,
    levers: Annotated[
        str | None,
        typer.Option(
            metavar="all|LEVER,…",
            show_default=False,
            help="Let these differ between KV heads: order, expansion, window, sinks, ranks, coefficients. Without "
            "--budget, the fewest bytes whose relative L2 error (root mean square over KV heads) meets --tolerance.",
        ),
    ] = None,
    criterion: Annotated[
        Literal["relative-l2", "gradient", "kl", "sqrt-kl", "iterative"],
        typer.Option(help="Minimise this within --budget (docs/choosing.md says what each measures)."),
    ] = "iterative",
    lever_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            show_default="the context, 4096 at most",
            help="Cut the text into sequences of N where levers are measured.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure levers anew instead of going on from an interrupted run.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Write orders.json, heads.csv, spectral.csv and report.json here.",
            parser=path_of("--out"),
        ),
    ] = Path("taylorder-out"),
    seed: Seed = 0,
    per_head_alpha: Annotated[
        bool, typer.Option("--per-head-alpha", help="Fit alpha to every head's slice too: noisy, and slow.")
    ] = False,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Do not measure what the config does to the model's loss.")
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Format = "human",
) -> None:
    """Measure a model, choose an order for every attention head, write the config and report.

    With --budget or --levers it chooses among all ways to run a KV head, sinks and windows included, and takes a while;
    an interrupted run goes on where it was. Ends with the losses of a few sequences of held-out text.

    Example: [bold]taylorder analyze gpt2 --window 64 --sinks 4 --out gpt2-out[/bold]

    Example: [bold]taylorder analyze gpt2 --budget 64KiB --context 1024 --out gpt2-out[/bold]
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

    from taylorder.selection.by_tolerance import parse_tolerance, select

    largest_error = parse_tolerance(tolerance)
    with_levers = budget is not None or levers is not None
    if budget is None and _given(options, "--criterion"):
        raise UsageError("--criterion says what is minimised within a budget, and there is none; add --budget")
    for name in _OF_LEVERS:
        if not with_levers and _given(options, name):
            raise UsageError(f"{name} is about levers, and none are asked for; add --budget or --levers")
    if with_levers and policy == "alpha":
        raise UsageError("--policy alpha knows no levers; leave out --budget and --levers, or --policy")

    from taylorder.selection.candidates import parse_levers
    from taylorder.selection.knapsack import parse_bytes

    bytes_per_head = None if budget is None else parse_bytes(budget)
    chosen_levers = parse_levers("all" if levers is None else levers)

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        progress.say(f"loading {model or 'the built-in model'}")

        from taylorder.analysis.analyze import analyze as measure
        from taylorder.analysis.text import calibration_text
        from taylorder.analysis.tokens import tokenise
        from taylorder.models.describe import describe
        from taylorder.models.loading import load
        from taylorder.runs import run_directory

        words = calibration_text(files)
        loaded = load(model, device=device, dtype=dtype)
        description = describe(loaded.model, loaded.name, weights_note=loaded.weights_note)
        limit = None
        if with_levers:
            from taylorder.selection.lever_table import refuse_unsupported
            from taylorder.selection.run_levers import offer
            from taylorder.selection.under_limit import Limit

            refuse_unsupported(description)
            tolerated = None if bytes_per_head is not None else largest_error
            limit = Limit(context or description.max_context, bytes_per_head, tolerated)
            near = (window, sinks) if window or sinks else None
            offer(description, chosen_levers, limit, near, lever_length)  # refused now, not after minutes of measuring
        length = min(sequence_length, description.max_context)
        if earlier := run_directory.replaces(
            out,
            model=description,
            text_sha256=words.sha256,
            tokens=tokenise(loaded.tokenizer, words).first(length, max_tokens).numel(),
            sequence_length=length,
            rows_per_sequence=min(measured_rows or length, length),
            seed=seed,
            max_order=max_order,
            window=window,
            sinks=sinks,
            policy="levers" if with_levers else policy,
            tolerance=largest_error,
            context=context or description.max_context,
            budget=bytes_per_head,
        ):
            progress.say(earlier)
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
        run = None
        if limit is not None:
            from taylorder.selection.by_tolerance import with_levers as relying_on
            from taylorder.selection.run_levers import run_levers

            progress.say("measuring what each KV head could run instead (an interrupted run goes on where it was)")
            records = out / "records"
            with kept(f"what was finished is kept in {records}: the same command goes on from there", errors=False):
                run = run_levers(
                    loaded.model,
                    loaded.tokenizer,
                    description,
                    text=words,
                    levers=chosen_levers,
                    limit=limit,
                    criterion=criterion,
                    records=records,
                    fresh=fresh,
                    near=near,
                    max_tokens=max_tokens,
                    sequence_length=lever_length,
                    seed=seed,
                    progress=progress,
                    say=progress.say,
                )
            selection = relying_on(selection, run.chosen.config, run.summary)
        write_run(out, analysis, selection, None, run)
        evaluation = None
        if not no_eval:
            from taylorder.evaluation.evaluate import LEVER_SECONDS, SHORT_LENGTH, SHORT_SECONDS, evaluate_shortly
            from taylorder.evaluation.evaluation_text import evaluation_text

            progress.say(f"the analysis is in {out}; measuring what the model loses (--no-eval skips this)")
            with kept(f"the analysis is kept in {out}, without losses: `taylorder show {out}` prints it"):
                evaluation = evaluate_shortly(
                    loaded.model,
                    loaded.tokenizer,
                    description,
                    selection.config,
                    text=evaluation_text,
                    seed=seed,
                    progress=progress,
                    length=SHORT_LENGTH if run is None else run.summary.sequence_length,
                    beside_window=run is not None,
                    seconds=SHORT_SECONDS if run is None else LEVER_SECONDS,
                )
                write_run(out, analysis, selection, evaluation, run)
    print_analysis(analysis, selection, evaluation, out, output)


def _given(options: typer.Context, option: str) -> bool:
    """Whether an option stands on the command line."""
    source = options.get_parameter_source(option.removeprefix("--").replace("-", "_"))
    return source is not None and source.name != "DEFAULT"


def _parse_rows(text: str) -> int | None:
    """Return a number of query rows, or None for all of them."""
    if text == "all":
        return None
    if not is_whole_number(text, 1):
        raise UsageError(f"--rows is {shortly(text)}, expected a whole number from 1 on, or all")
    return int(text)
