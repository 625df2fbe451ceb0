"""``taylorder analyze``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taylorder.commands import options
from taylorder.commands._shared import check_texts, check_writable, print_analysis, write_run
from taylorder.commands._stopping import kept
from taylorder.errors import UsageError
from taylorder.selection.settings import (
    DEFAULT_TIER,
    DEFAULTS,
    AnalyzeSettings,
    PolicyName,
    parse_bytes,
    parse_tolerance,
)

if TYPE_CHECKING:
    from taylorder.analysis.tokens import Tokens
    from taylorder.models.description import ModelDescription
    from taylorder.models.loading import LoadedModel
    from taylorder.reports.progress import StderrProgress
    from taylorder.selection.candidates import Lever
    from taylorder.selection.run_levers import LeverRun


def analyze(
    model: options.Model = None,
    text: Annotated[
        list[Path] | None,
        options.path(
            "Calibrate on this UTF-8 file; repeat for several.",
            "--text",
            default="the English that Python ships, and for levers its source code too",
        ),
    ] = None,
    max_tokens: Annotated[int, options.number("Use so many tokens of the text.", 2)] = DEFAULTS.max_tokens,
    sequence_length: Annotated[int, options.number("Cut them into sequences of N.", 2)] = DEFAULTS.sequence_length,
    rows: Annotated[str, options.value("Measure N random query rows of each sequence.", "N|all")] = str(DEFAULTS.rows),
    tolerance: Annotated[
        str,
        options.value(
            "Allow this relative L2 error of a head's output: a number, or fp16, bf16 or int4 for one of about that "
            "precision.",
            "TIER|X",
        ),
    ] = DEFAULT_TIER,
    max_order: Annotated[int, options.number("Measure orders 1 to N.", 1, max=8)] = DEFAULTS.max_order,
    window: Annotated[int, options.number("Keep the true exponential for the last N keys.", 0)] = DEFAULTS.window,
    sinks: Annotated[int, options.number("Keep the true exponential for the first N keys.", 0)] = DEFAULTS.sinks,
    policy: Annotated[
        PolicyName, options.value("Choose by measured error, or, to compare, by the alphas alone.")
    ] = DEFAULTS.policy,
    context: Annotated[
        int | None,
        options.number(
            "Choose only orders whose state is no larger than the KV cache at N tokens.",
            1,
            "the model's maximum",
            max=2**31,
        ),
    ] = DEFAULTS.context,
    budget: Annotated[
        str | None,
        options.value(
            "Choose for every KV head what to run within this many nominal bytes per KV head on average, such as "
            "128KiB; implies --levers all.",
            "SIZE",
            False,
        ),
    ] = None,
    levers: Annotated[
        str | None,
        options.value(
            "Let these differ between KV heads: order, expansion, window, sinks, kept, ranks, coefficients. Without "
            "--budget, the fewest bytes whose relative L2 error (root mean square over KV heads) meets --tolerance.",
            "all|LEVER,…",
            False,
        ),
    ] = None,
    lever_length: Annotated[
        int | None,
        options.number("Cut the text into sequences of N where levers are measured.", 2, "the context, 4096 at most"),
    ] = DEFAULTS.lever_length,
    fresh: Annotated[
        bool, options.flag("--fresh", "Measure levers anew instead of going on from an interrupted run.")
    ] = False,
    out: Annotated[
        Path, options.path("Write orders.json, heads.csv, spectral.csv and report.json here.", "--out", "DIR")
    ] = Path("taylorder-out"),
    seed: options.Seed = DEFAULTS.seed,
    per_head_alpha: Annotated[
        bool, options.flag("--per-head-alpha", "Fit alpha to every head's slice too: noisy, and slow.")
    ] = DEFAULTS.per_head_alpha,
    no_eval: Annotated[
        bool, options.flag("--no-eval", "Do not measure what the config does to the model's loss.")
    ] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    output: options.Format = "human",
) -> None:
    """Measure a model, choose an order for every attention head, write the config and report.

    With --budget or --levers it chooses among all ways to run a KV head, sinks and windows included, and takes a while;
    an interrupted run goes on where it was. Ends with the losses of a few sequences of held-out text.

    Example: [bold]taylorder analyze gpt2 --window 64 --sinks 4 --out gpt2-out[/bold]

    Example: [bold]taylorder analyze gpt2 --budget 64KiB --context 1024 --out gpt2-out[/bold]
    """
    files = text or []
    settings = AnalyzeSettings(
        max_tokens=max_tokens,
        sequence_length=sequence_length,
        rows=_parse_rows(rows),
        max_order=max_order,
        window=window,
        sinks=sinks,
        seed=seed,
        per_head_alpha=per_head_alpha,
        policy=policy,
        tolerance=parse_tolerance(tolerance),
        context=context,
        budget=None if budget is None else parse_bytes(budget),
        levers=None if levers is None else _parse_levers(levers),
        lever_length=lever_length,
    )
    _refuse_unfit(settings, fresh)
    check_texts(files)
    check_writable(out)

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        progress.say(f"loading {model or 'the built-in model'}")

        from taylorder.analysis.analyze import analyze as measure
        from taylorder.analysis.text import calibration_text
        from taylorder.analysis.tokens import tokenise
        from taylorder.models.describe import describe
        from taylorder.models.loading import load
        from taylorder.selection.by_tolerance import select

        words = calibration_text(files)
        loaded = load(model, device=device, dtype=dtype)
        description = describe(loaded.model, loaded.name, weights_note=loaded.weights_note)
        if settings.with_levers:
            from taylorder.selection.run_levers import offer, run_levers

            offer(description, settings)  # what cannot be kept is refused now, not after minutes of measuring
        tokens = tokenise(loaded.tokenizer, words)
        _announce(settings, description, tokens, out, progress)
        analysis = measure(
            loaded.model,
            loaded.tokenizer,
            name=loaded.name,
            description=description,
            text=tokens,
            progress=progress,
            **settings.measured(),
        )
        context = settings.context or description.max_context
        selection = select(analysis, policy=settings.policy, tolerance=settings.tolerance, context=context)
        run = None
        if settings.with_levers:
            progress.say("measuring what each KV head could run instead (an interrupted run goes on where it was)")
            records = out / "records"
            with kept(f"what was finished is kept in {records}: the same command goes on from there", errors=False):
                run = run_levers(
                    loaded.model,
                    loaded.tokenizer,
                    description,
                    settings,
                    text=tokens,
                    records=records,
                    fresh=fresh,
                    progress=progress,
                    say=progress.say,
                )
            run = _with_example(run, loaded, description, tokens)
            selection = selection.with_levers(run.chosen.config, run.summary)
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


def _with_example(run: LeverRun, loaded: LoadedModel, description: ModelDescription, tokens: Tokens) -> LeverRun:
    """Add to the summary which tokens of a text KV heads keep, where any keeps keys."""
    from taylorder.adapt.near_example import TOKENS, near_example

    config = run.chosen.config
    if config.probe is None:
        return run
    length = min(TOKENS, description.max_context)
    example = near_example(loaded.model, loaded.tokenizer, config, tokens, length)
    return replace(run, summary=replace(run.summary, example=example))


def _refuse_unfit(settings: AnalyzeSettings, fresh: bool) -> None:
    """Refuse options that do not go together."""
    if settings.max_tokens < settings.sequence_length:
        raise UsageError(
            f"--max-tokens is {settings.max_tokens}, fewer than one sequence of {settings.sequence_length}; raise it, "
            "or lower --sequence-length"
        )
    for name, given in (("--lever-length", settings.lever_length is not None), ("--fresh", fresh)):
        if given and not settings.with_levers:
            raise UsageError(f"{name} is about levers, and none are asked for; add --budget or --levers")
    if settings.with_levers and settings.policy != DEFAULTS.policy:
        raise UsageError(f"--policy {settings.policy} knows no levers; leave out --budget and --levers, or --policy")


def _announce(
    settings: AnalyzeSettings, description: ModelDescription, tokens: Tokens, out: Path, progress: StderrProgress
) -> None:
    """Say which run this one will replace, and what is measured."""
    from taylorder.runs import run_directory

    expected = settings.in_report(description)
    used = tokens.first(expected["sequence_length"], settings.max_tokens).numel()
    earlier = run_directory.replaces(out, model=description, text_sha256=tokens.text.sha256, tokens=used, **expected)
    if earlier:
        progress.say(earlier)
    heads = description.modules[0].heads
    progress.say(f"measuring {len(description.modules)} layers of {heads} heads on {tokens.text.source}")


def _parse_levers(text: str) -> frozenset[Lever]:
    from taylorder.selection.candidates import parse_levers

    return parse_levers(text)


def _parse_rows(text: str) -> int | None:
    """Return a number of query rows, or None for all of them."""
    if text == "all":
        return None
    if not options.is_whole_number(text, 1):
        raise UsageError(f"--rows is {options.shortly(text)}, expected a whole number from 1 on, or all")
    return int(text)
