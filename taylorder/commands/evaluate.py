"""``taylorder eval``."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taylorder.commands import options
from taylorder.commands._on_inputs import refuse_beside_inputs
from taylorder.commands._shared import check_texts, check_writable, load_described, print_report
from taylorder.commands._subject import subject
from taylorder.errors import BoundMissedError, TaylorderError, UsageError
from taylorder.models.placement import Placement

if TYPE_CHECKING:
    from taylorder.models.description import ModelDescription
    from taylorder.reports.evaluation import EvalReport
    from taylorder.reports.progress import StderrProgress
    from taylorder.runs.subject import ConfigAndModel


def evaluate(
    model: options.ModelOfRun = None,
    config: options.Config = None,
    text: Annotated[
        list[Path] | None,
        options.path(
            "Evaluate on this UTF-8 file; repeat for several.", "--text", default="docstrings of numpy and scipy"
        ),
    ] = None,
    inputs: options.Inputs = None,
    lengths: Annotated[
        str | None,
        options.value(
            "Evaluate on sequences of so many tokens.",
            "N,N…",
            "the context that the config was chosen for, else 1024, 4096 and 8192",
        ),
    ] = None,
    tokens: Annotated[int, options.number("Use so many tokens at every length.", 2)] = 16384,
    tasks: Annotated[
        bool,
        options.flag("--tasks/--no-tasks", "Also score lookup, copy and recall, and compare greedy continuations."),
    ] = True,
    every_rival: Annotated[
        bool,
        options.flag("--rivals", "Also compare with order 4 around zero, whose state is far larger than most caches."),
    ] = False,
    max_kl: Annotated[
        float | None, options.value("Exit with 4 if the config's mean KL to exact exceeds X nats at any length.", "X")
    ] = None,
    out: Annotated[
        Path | None, options.path("Also write the JSON document here.", "--out", default=False, group=options.MACHINE)
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.DtypeOfRun = None,
    output: options.Format = "human",
) -> None:
    """Measure what a config costs in loss, beside exact attention and simpler uses of the same bytes.

    Says what it will run, and after the first sequence how long that takes: for the built-in model at 1,024 tokens
    some ten minutes on two cores, half of them for the tasks.

    Example: taylorder eval --no-tasks

    Example: taylorder eval --config gpt2-out --lengths 1024,4096

    Example: taylorder eval my-vit-out --inputs other-images.safetensors
    """
    files = text or []
    asked = options.parse_numbers("--lengths", lengths, 2)
    check_texts(files)
    if max_kl is not None and not 0 <= max_kl < math.inf:
        raise UsageError(f"--max-kl is {max_kl}, expected a number of nats from 0 on")
    for length in asked or ():
        if tokens < length:
            raise UsageError(f"--tokens is {tokens}, fewer than one sequence of {length}; raise it, or lower --lengths")
    if out is not None:
        if out.is_dir():
            raise UsageError(f"--out {out} is a directory; name a file")
        if not out.exists() or out.is_file():
            check_writable(Path(os.path.realpath(out)).parent)
    if inputs:
        given = {"--text": bool(files), "--lengths": asked is not None, "--max-kl": max_kl is not None}
        refuse_beside_inputs(given | {"--rivals": every_rival})
    place = Placement.of(device, device_map)
    about = subject(model, config, dtype)

    from taylorder.reports.progress import StderrProgress

    with StderrProgress() as progress:
        if inputs:
            _print(_on_inputs(about, inputs, place, progress), out, output)
            return
        loaded, description = load_described(about.to_load, place, progress)
        about.config.check(description)

        from taylorder.analysis.losses import has_language_model_head

        if max_kl is not None and not (description.causal and has_language_model_head(loaded.model)):
            raise UsageError(
                f"--max-kl is {max_kl:g}, but {description.name} predicts no next token, so there is no KL; leave it "
                "out"
            )

        from taylorder.evaluation.evaluate import evaluate as measure
        from taylorder.evaluation.evaluation_text import evaluation_text
        from taylorder.reports.evaluation import EvalReport

        evaluation = measure(
            loaded.model,
            loaded.tokenizer,
            about.config,
            description=description,
            text=evaluation_text(files),
            lengths=asked,
            tokens=tokens,
            alphas=_alphas_beside(about.path, description),
            tasks=tasks,
            every_rival=every_rival,
            seed=seed,
            progress=progress,
            say=progress.say,
        )
        report = EvalReport(
            model=description,
            config=about.config,
            config_path=str(about.path),
            evaluation=evaluation,
            tasks=evaluation.tasks,
            tasks_reason=evaluation.tasks_reason if tasks else "--no-tasks",
            max_kl=max_kl,
            device=str(place),
            dtype=description.dtype,
        )
    _print(report, out, output)


def _on_inputs(about: ConfigAndModel, files: list[Path], place: Placement, progress: StderrProgress) -> EvalReport:
    """How far outputs move on inputs of the model's own."""
    from taylorder.evaluation.on_inputs import evaluate_on_inputs
    from taylorder.models.inputs import Inputs
    from taylorder.reports.evaluation import EvalReport

    given = Inputs.of_files(files)
    loaded, description = load_described(about.to_load, place, progress, inputs=given)
    about.config.check(description)
    return EvalReport(
        model=description,
        config=about.config,
        config_path=str(about.path),
        evaluation=evaluate_on_inputs(loaded.model, description, about.config, given, progress=progress),
        device=str(place),
        dtype=description.dtype,
    )


def _alphas_beside(path: Path, description: ModelDescription) -> dict[str, float | None] | None:
    """The alphas that the run beside the config measured on the same weights, None if there is no such run."""
    from taylorder.analysis.alpha_ranks import layer_alpha
    from taylorder.runs import run_directory

    try:
        measured, _ = run_directory.read(path.parent)
    except TaylorderError:
        return None
    if measured.model.fingerprint != description.fingerprint:
        return None
    return {module.name: layer_alpha(measured.spectral, module.name) for module in description.modules}


def _print(report: EvalReport, out: Path | None, output: str) -> None:
    """Print everything, write the file, and only then say that a bound was missed."""
    from taylorder.reports import evaluation
    from taylorder.reports.evaluation_words import missed
    from taylorder.storage.files import replacing
    from taylorder.storage.finite_json import as_json

    document = evaluation.as_document(report)
    print_report(output, lambda: document, evaluation.sections(report))
    if out is not None:
        try:
            with replacing(out) as temporary:
                temporary.write_text(as_json(document), encoding="utf-8")
        except OSError as error:
            raise TaylorderError(f"{out} cannot be written ({error.strerror}); name another with --out") from error
    if report.max_kl is not None and (message := missed(report.evaluation, report.max_kl)) is not None:
        sys.stdout.flush()
        raise BoundMissedError(message)
