"""``taylorder claims``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taylorder.commands import options
from taylorder.commands._paths import path_of
from taylorder.commands._shared import check_writable, print_report
from taylorder.commands._stopping import kept
from taylorder.errors import UsageError
from taylorder.models.placement import Placement
from taylorder.runs import run_files
from taylorder.runs.subject import ToLoad, model_of_run, named_by

if TYPE_CHECKING:
    from taylorder.analysis.results import Analysis
    from taylorder.claims.evidence import ModelEvidence
    from taylorder.reports.progress import StderrProgress

_DEFAULT = run_files.DEFAULT
_POOLED = Path("taylorder-claims")


def claims(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            show_default=str(_DEFAULT),
            help=f"A run for each model: {options.A_RUN}.",
            parser=path_of("DIR"),
        ),
    ] = None,
    model: Annotated[
        str | None,
        options.value(
            "Load the model of the one DIR from here: Hub id, model folder or .gguf file.",
            "MODEL",
            "the run's",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        options.path(
            "Write claims.json here, and a page: the one DIR's report.html, or claims.html.",
            "--out",
            "DIR",
            f"the one DIR, or {_POOLED} for several",
        ),
    ] = None,
    tables: Annotated[bool, options.flag("--tables", "Also print the rules and the tables behind them.")] = False,
    fresh: Annotated[bool, options.flag("--fresh", "Measure anew instead of reading what was measured.")] = False,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.DtypeOfRun = None,
    output: options.Format = "human",
) -> None:
    """Test what is said about truncated attention on models that were analysed: a verdict each, with its evidence.

    Runs each model again for what its analysis does not hold, half an hour for the built-in one on two cores; what is
    finished is kept in DIR. Several models are pooled.

    Example: taylorder claims taylorder-out

    Example: taylorder claims smollm2-out gemma-out
    """
    chosen = [run_files.run_folder(directory) for directory in directories or [_DEFAULT]]
    if model is not None and len(chosen) > 1:
        raise UsageError(f"--model names one model, but there are {len(chosen)} directories; name one of them")
    target = out or (chosen[0] if len(chosen) == 1 else _POOLED)
    check_writable(target)
    place = Placement.of(device, device_map)

    from taylorder.reports import claims as report
    from taylorder.reports import html
    from taylorder.reports.progress import StderrProgress
    from taylorder.runs import run_directory
    from taylorder.runs.run_files import CLAIMS_FILE, CLAIMS_PAGE, FILES

    with StderrProgress() as progress:
        from taylorder.claims import registry

        analyses = [run_directory.read(directory)[0] for directory in chosen]
        _check_models(chosen, analyses)
        models = [
            _evidence(analysis, label, directory, model, place, dtype, fresh, progress)
            for analysis, label, directory in zip(analyses, _labels(chosen, analyses), chosen, strict=True)
        ]
        normal = registry.NORMAL_INPUTS.kept(target / "records-normal", fresh=fresh, progress=progress)
        progress.say("judging")
        made = report.ClaimsReport(tuple(evidence.name for evidence in models), registry.judge_claims(models, normal))
        document = report.as_document(made)
        if [target] == chosen:
            evaluation = run_directory.read_evaluation(target)
            page = html.render(
                *run_directory.read(target), evaluation, made.claims, target, run_directory.read_levers(target)
            )
            run_directory.write_document(target, CLAIMS_FILE, document, FILES["page"], page)
        else:
            page = html.render_claims(made, chosen, target)
            run_directory.write_document(target, CLAIMS_FILE, document, CLAIMS_PAGE, page)
    print_report(output, lambda: document, report.sections(made, tables=tables), report.WIDTH)


def _check_models(directories: list[Path], analyses: list[Analysis]) -> None:
    seen: dict[str, Path] = {}
    for directory, analysis in zip(directories, analyses, strict=True):
        if analysis.window or analysis.sinks:
            raise UsageError(
                f"{directory} was analysed with a near field (window {analysis.window}, sinks {analysis.sinks}), and "
                "the claims are about truncation without one; name a run of `taylorder analyze` without --window and "
                "--sinks"
            )
        other = seen.setdefault(analysis.model.fingerprint, directory)
        if other is not directory:
            raise UsageError(f"{other} and {directory} are runs of the same model, whose layers count once; name one")


def _labels(directories: list[Path], analyses: list[Analysis]) -> list[str]:
    """What to call the models: their names, and the directory where that is a path or not the only one of its name."""
    names = [
        # A path says where a model lies, not what it is called.
        directory.resolve().name if Path(analysis.model.name).exists() else analysis.model.name
        for directory, analysis in zip(directories, analyses, strict=True)
    ]
    return [
        name if names.count(name) == 1 else str(directory) for name, directory in zip(names, directories, strict=True)
    ]


def _evidence(
    analysis: Analysis, label: str, directory: Path, model: str | None, place: Placement,
    dtype: options.DtypeName | None, fresh: bool, progress: StderrProgress,
) -> ModelEvidence:  # fmt: skip
    """What a run does not hold is measured unless that was done before."""
    from taylorder.claims.measure import measure, measured_before

    records = directory / "records-claims"
    if model is None:
        to_load = model_of_run(directory, analysis.model.name, analysis.model, dtype)
    else:
        to_load = ToLoad(model, dtype or analysis.model.dtype)
    used = to_load.dtype
    evidence = None
    if not fresh and used != "auto" and place.device_map is None:  # otherwise only the model itself tells
        evidence = measured_before(analysis, records, place.device, used, label=label)
    if evidence is None:
        from taylorder.models.loading import load

        progress.say(f"loading {to_load.model}")
        way_out = f"name the model with --model, of several runs first for `taylorder claims {directory}` alone"
        with named_by(to_load.named_by, to_load.model, way_out):
            loaded = load(
                to_load.model,
                device=place.device,
                device_map=place.device_map,
                dtype=used,
                revision=to_load.revision,
            )
        progress.say(f"measuring {label} for the claims (an interrupted run goes on where it was)")
        with kept(f"what was finished is kept in {records}: the same command goes on from there", errors=False):
            evidence = measure(analysis, loaded, records, label=label, fresh=fresh, progress=progress)
    return evidence
