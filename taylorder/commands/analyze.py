"""``taylorder analyze``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taylorder.commands import options
from taylorder.commands._choosing import Measured
from taylorder.commands._on_inputs import analyze_on_inputs, refuse_text_options
from taylorder.commands._planning import print_plan, timed
from taylorder.commands._shared import (
    check_kind,
    check_texts,
    check_writable,
    print_analysis,
    print_budgets,
    write_budgets,
)
from taylorder.errors import UsageError
from taylorder.models.placement import Placement
from taylorder.runs import run_files
from taylorder.selection.settings import (
    DEFAULT_TIER,
    DEFAULTS,
    AnalyzeSettings,
    Budget,
    PolicyName,
    parse_budgets,
    parse_tolerance,
)
from taylorder.storage import processes

if TYPE_CHECKING:
    from taylorder.analysis.results import Analysis
    from taylorder.analysis.tokens import Tokens
    from taylorder.evaluation.evaluate import Evaluation
    from taylorder.models.description import ModelDescription
    from taylorder.models.loading import LoadedModel
    from taylorder.reports.budgets import BudgetsReport
    from taylorder.reports.progress import StderrProgress
    from taylorder.selection.by_tolerance import Selection
    from taylorder.selection.candidates import Lever
    from taylorder.storage.stages import StagePlan


def analyze(
    model: options.Model = None,
    budget: Annotated[
        str | None,
        options.value(
            "Choose for every KV head what to run within this much cache: nominal bytes per KV head on average "
            "(128KiB), a share of exact (25%), of the whole cache (total:8GiB), or tokens per KV head (tokens:512); "
            "implies --levers all. Several with commas between them share what is measured and get a folder each.",
            "SIZE|PERCENT|…",
            False,
            options.BUDGET,
        ),
    ] = None,
    context: Annotated[
        int | None,
        options.number(
            "Count cache bytes at N tokens; without --budget and --levers, choose only orders whose state is no larger "
            "there than the KV cache.",
            1,
            "the model's maximum",
            options.BUDGET,
            max=2**31,
        ),
    ] = DEFAULTS.context,
    levers: Annotated[
        str | None,
        options.value(
            "Let these differ between KV heads: order, expansion, window, sinks, kept, ranks, coefficients. Without "
            "--budget, the fewest bytes whose relative L2 error (root mean square over KV heads) meets --tolerance.",
            "all|LEVER,…",
            False,
            options.BUDGET,
        ),
    ] = None,
    lever_length: Annotated[
        int | None,
        options.number(
            "Cut the text into sequences of N where levers are measured.",
            2,
            "the context, 4096 at most",
            options.BUDGET,
        ),
    ] = DEFAULTS.lever_length,
    fresh: Annotated[
        bool,
        options.flag(
            "--fresh",
            "Measure levers anew instead of going on from an earlier run, which may be of other settings.",
            options.BUDGET,
        ),
    ] = False,
    tolerance: Annotated[
        str,
        options.value(
            "Allow this relative L2 error of a head's output: a number, or fp16, bf16 or int4 for one of about that "
            "precision.",
            "TIER|X",
            group=options.TOLERANCE,
        ),
    ] = DEFAULT_TIER,
    max_order: Annotated[
        int, options.number("Measure orders 1 to N, 8 at most.", 1, group=options.TOLERANCE, max=8)
    ] = DEFAULTS.max_order,
    window: Annotated[
        int, options.number("Keep the true exponential for the last N keys.", 0, group=options.TOLERANCE)
    ] = DEFAULTS.window,
    sinks: Annotated[
        int, options.number("Keep the true exponential for the first N keys.", 0, group=options.TOLERANCE)
    ] = DEFAULTS.sinks,
    policy: Annotated[
        PolicyName,
        options.value("Choose by measured error, or, to compare, by the alphas alone.", group=options.TOLERANCE),
    ] = DEFAULTS.policy,
    text: Annotated[
        list[Path] | None,
        options.path(
            "Calibrate on this UTF-8 file; repeat for several.",
            "--text",
            default="the English that Python ships, and for levers its source code too",
            group=options.CALIBRATION,
        ),
    ] = None,
    max_tokens: Annotated[
        int, options.number("Use so many tokens of the text.", 2, group=options.CALIBRATION)
    ] = DEFAULTS.max_tokens,
    sequence_length: Annotated[
        int, options.number("Cut them into sequences of N.", 2, group=options.CALIBRATION)
    ] = DEFAULTS.sequence_length,
    rows: Annotated[
        str,
        options.value("Measure N random query rows of each sequence.", "N|all", group=options.CALIBRATION),
    ] = str(DEFAULTS.rows),
    inputs: options.InputsOfAnalysis = None,
    seed: Annotated[int, options.seed(options.CALIBRATION)] = DEFAULTS.seed,
    out: Annotated[
        Path,
        options.path("Write the run here: config, report, page and tables.", "--out", "DIR", group=options.MACHINE),
    ] = run_files.DEFAULT,
    output: options.Format = "human",
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.Dtype = "float32",
    no_eval: Annotated[
        bool,
        options.flag("--no-eval", "Do not measure what the config does to the model's loss.", options.MACHINE),
    ] = False,
    dry_run: Annotated[
        bool,
        options.flag("--dry-run", "Print the stages of this run and what they would take.", options.MACHINE),
    ] = False,
    per_head_alpha: Annotated[
        bool,
        options.flag("--per-head-alpha", "Fit alpha to every head's slice too: noisy, and slow.", options.MACHINE),
    ] = DEFAULTS.per_head_alpha,
) -> None:
    """Measure a model, choose what every attention head runs, and write the config and a report.

    With --budget it chooses among all ways to run a KV head, for the cache you can spare. Without, it gives heads the
    orders that keep to a tolerance, which on most models few heads do. Ends with the losses of a few sequences of
    held-out text; an interrupted run with --budget goes on where it was.

    Several processes share the sequences: torchrun --nproc-per-node 2 -m taylorder analyze and the same options.

    The built-in model takes a minute and a half without --budget, and with one some twenty minutes at 1,024 tokens, on
    two cores.

    Example: taylorder analyze --budget 25% --context 1024

    Example: taylorder analyze gpt2 --budget 10%,25%,50% --context 1024 --out gpt2-budgets

    Example: taylorder analyze gpt2 --window 64 --sinks 4 --out gpt2-out

    Example: taylorder analyze my-vit --inputs images.safetensors
    """
    place = Placement.of(device, device_map)
    files, budgets = text or [], parse_budgets(budget) if budget is not None else ()
    several = len(budgets) > 1
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
        budget=budgets[0] if budgets else None,
        levers=None if levers is None else _parse_levers(levers),
        lever_length=lever_length,
    )
    _refuse_unfit(settings, fresh)
    check_texts(files)
    check_writable(out)
    check_kind(out, several=several)
    if inputs:
        refuse_text_options(settings, text=bool(files), dry_run=dry_run)
        analyze_on_inputs(model, inputs, settings, place, dtype, out, output, evaluated=not no_eval)
        return
    runs = [(settings, out)]
    if several:
        runs = [(replace(settings, budget=one), out / one.folder) for one in budgets]

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        progress.say(f"loading {model or 'the built-in model'}")

        from taylorder.analysis.analyze import analyze as measure
        from taylorder.analysis.text import calibration_text
        from taylorder.analysis.tokens import tokenise
        from taylorder.models.describe import describe
        from taylorder.models.loading import load

        words = calibration_text(files)
        loaded = load(model, device=place.device, device_map=place.device_map, dtype=dtype)
        description = describe(loaded.model, loaded.name, weights_note=loaded.weights_note)
        if settings.with_levers:
            from taylorder.selection.run_levers import offer

            for one, _ in runs:  # what cannot be kept is refused now, not after minutes of measuring
                offer(description, one)
            _refuse_the_same([one for one, _ in runs], description)
        tokens = tokenise(loaded.tokenizer, words)
        for one, directory in runs:
            _announce(one, description, tokens, directory, progress, fresh)
        plan = _plan([one for one, _ in runs], loaded, description, tokens, evaluated=not no_eval)
        if dry_run:
            progress.say("timing the model")
            estimate = timed(plan, loaded.model, description, out)
            progress.stop()
            print_plan(estimate, description, output)
            return
        progress.follow(plan)
        heads = description.typical.heads
        progress.say(f"measuring {len(description.modules)} layers of {heads} heads on {tokens.text.source}")
        measured = Measured(
            loaded=loaded,
            tokens=tokens,
            analysis=measure(
                loaded.model,
                loaded.tokenizer,
                name=loaded.name,
                description=description,
                text=tokens,
                progress=progress,
                **settings.measured(),
            ),
            progress=progress,
        )
        if settings.with_levers:
            progress.say("measuring what each KV head could run instead (an interrupted run goes on where it was)")
        made = []
        for number, (chosen_by, directory) in enumerate(runs):
            if several:
                progress.say(f"budget {budgets[number].given}, {number + 1} of {len(runs)}")
                progress.begin(budgets[number].given)
            again = fresh and number == 0  # the others go on from what the first one measured
            made.append(
                measured.choose(chosen_by, directory, records=out / "records", fresh=again, evaluated=not no_eval)
            )
        if several:
            report = _report(measured.analysis, budgets, made)
            if processes.is_first():
                write_budgets(out, report)
    if several:
        print_budgets(report, out, output)
    else:
        print_analysis(measured.analysis, *made[0], out, output)


def _plan(
    settings: Sequence[AnalyzeSettings],
    loaded: LoadedModel,
    description: ModelDescription,
    tokens: Tokens,
    *,
    evaluated: bool,
) -> StagePlan:
    """The stages of this very run."""
    from taylorder.selection.choice_text import kinds
    from taylorder.selection.plan import ModelAndText, analysis_plan

    subject = ModelAndText(loaded.model, description, len(tokens.ids), kinds(tokens.text))
    return analysis_plan(subject, settings, evaluated=evaluated)


def _report(
    analysis: Analysis, budgets: Sequence[Budget], made: Sequence[tuple[Selection, Evaluation | None]]
) -> BudgetsReport:
    from taylorder.reports.budgets import BudgetRun, BudgetsReport

    return BudgetsReport(
        analysis,
        tuple(
            BudgetRun(budget.given, budget.folder, selection, evaluation)
            for budget, (selection, evaluation) in zip(budgets, made, strict=True)
        ),
    )


def _refuse_the_same(settings: Sequence[AnalyzeSettings], description: ModelDescription) -> None:
    """Refuse budgets that come to the same bytes, which would be chosen for twice."""
    seen: dict[int | None, str] = {}
    for one in settings:
        size = one.limit(description).budget
        given = "" if one.budget is None else one.budget.given
        if size in seen:
            raise UsageError(f"--budget has {seen[size]} and {given}, both {size} bytes per KV head; leave one out")
        seen[size] = given


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
    settings: AnalyzeSettings,
    description: ModelDescription,
    tokens: Tokens,
    out: Path,
    progress: StderrProgress,
    fresh: bool,
) -> None:
    """Say which run this one will replace; refuse to lose measurements of levers without having been told so."""
    from taylorder.runs import run_directory

    expected = settings.in_report(description)
    used = tokens.first(expected["sequence_length"], settings.max_tokens).numel()
    earlier = run_directory.replaces(out, model=description, text_sha256=tokens.text.sha256, tokens=used, **expected)
    if earlier is None:
        return
    if earlier.lost and not fresh:
        more = ", or add --fresh to replace it" if settings.with_levers else ", or delete this one"
        raise UsageError(f"{earlier.sentence}; to measure it again takes long: name another --out{more}")
    progress.say(earlier.sentence)


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
