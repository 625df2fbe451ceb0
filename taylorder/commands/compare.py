"""``taylorder compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taylorder.commands import options
from taylorder.commands._paths import path_of
from taylorder.commands._shared import check_texts, check_writable, load_described, print_report
from taylorder.errors import TaylorderError, UsageError
from taylorder.models.placement import Placement
from taylorder.runs import run_files
from taylorder.runs.run_files import config_file
from taylorder.runs.subject import ToLoad, model_of_run

if TYPE_CHECKING:
    from taylorder.adapt.config import OrderConfig
    from taylorder.models.description import ModelDescription
    from taylorder.models.loading import LoadedModel
    from taylorder.reports.progress import StderrProgress
    from taylorder.runs.run_pair import RunPair

_SEQUENCES = 8
_CONTEXT = 1024
"""Where neither config says what it was chosen for."""

_SUFFIX = ".html"


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="A", help="An orders.json, or the run of one: its folder or a file in it.", parser=path_of("A")
        ),
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same model.", parser=path_of("B"))],
    context: Annotated[
        int | None,
        options.number("Count tokens and bytes after N tokens, and measure on as many.", 2, "the smaller of theirs"),
    ] = None,
    measure: Annotated[
        bool, options.flag("--eval", "Also run the model on the same sequences as it is, with A and with B.")
    ] = False,
    sequences: Annotated[int | None, options.number("With --eval, use so many sequences.", 1, str(_SEQUENCES))] = None,
    text: Annotated[
        list[Path] | None,
        options.path(
            "With --eval, measure on this UTF-8 file; repeat for several.",
            "--text",
            default="docstrings of numpy and scipy",
        ),
    ] = None,
    model: Annotated[
        str | None, options.value("Load the model from here, where it is loaded.", "MODEL", "as the configs name it")
    ] = None,
    out: Annotated[
        Path | None,
        options.path("Write the page here, or with comparison.json into this folder.", "--out", "FILE.html|DIR", False),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.DtypeOfRun = None,
    output: options.Format = "human",
) -> None:
    """Show two configs of one model side by side: what differs per KV head, bytes, and with --eval paired losses.

    Reads two files and runs nothing, unless --eval asks for it.

    Example: taylorder compare small-out large-out --eval
    """
    given = [option for option, value in (("--text", text), ("--sequences", sequences)) if value is not None]
    if given and not measure:
        raise UsageError(f"{given[0]} says what to measure on, and nothing is measured without --eval; add it")
    place = Placement.of(device, device_map)
    check_texts(text or [])
    if out is not None:
        check_writable(out.parent if out.suffix == _SUFFIX else out)

    from taylorder.reports.progress import StderrProgress
    from taylorder.runs.recorded_config import read_recorded
    from taylorder.runs.run_pair import RunPair, check_same_model
    from taylorder.selection.config_pair import pair_configs, recorded_shapes

    a, b = (read_recorded(config_file(path)) for path in (first, second))
    check_same_model(a, b)
    with StderrProgress() as progress:

        def load() -> tuple[LoadedModel, ModelDescription]:
            to_load = model_of_run(a.path.parent, a.config.model.name, a.model, dtype)
            if model is not None:
                to_load = ToLoad(model, to_load.dtype)
            loaded, description = load_described(to_load, place, progress, "name the model with --model")
            for side in (a, b):
                side.config.check(description)
            return loaded, description

        loaded, description = load() if measure else (None, a.model or b.model)
        shapes = recorded_shapes(a.config, b.config) if description is None else description.modules
        if shapes is None:
            loaded, description = load()
            shapes = description.modules
        tokens = _tokens(context, a.config, b.config, description)
        causal = description is None or description.causal
        pair = RunPair(a, b, pair_configs(a.config, b.config, shapes, tokens, causal=causal))
        if measure and loaded is not None and description is not None:
            pair = _measured(pair, loaded, description, text or [], sequences or _SEQUENCES, seed, progress)
    _show(pair, shlex.join([*_command(first, second, context), "--eval"]), out, output)


def _tokens(asked: int | None, a: OrderConfig, b: OrderConfig, model: ModelDescription | None) -> int:
    """The context that was asked for, or the smaller of those the configs were chosen for."""
    most = None if model is None else model.max_context
    if asked is not None:
        if most is not None and asked > most:
            raise UsageError(f"--context is {asked}, but the model sees {most} tokens at most; lower it")
        return asked
    chosen = [config.context for config in (a, b) if config.context is not None] or [_CONTEXT]
    return min(chosen if most is None else [*chosen, most])


def _measured(
    pair: RunPair,
    loaded: LoadedModel,
    description: ModelDescription,
    files: list[Path],
    sequences: int,
    seed: int,
    progress: StderrProgress,
) -> RunPair:
    """The same with losses of both on the same sequences."""
    from dataclasses import replace

    from taylorder.evaluation.evaluation_text import evaluation_text
    from taylorder.evaluation.two_configs import measure_both

    measured = measure_both(
        loaded.model,
        loaded.tokenizer,
        description,
        pair.a.config,
        pair.b.config,
        text=evaluation_text(files),
        length=pair.configs.context,
        sequences=sequences,
        seed=seed,
        progress=progress,
        say=progress.say,
    )
    return replace(pair, measured=measured)


def _command(first: Path, second: Path, context: int | None) -> list[str]:
    asked = [] if context is None else ["--context", str(context)]
    return ["taylorder", "compare", str(first), str(second), *asked]


def _show(pair: RunPair, command: str, out: Path | None, output: str) -> None:
    """Print the report, and write the page where it was asked for."""
    from taylorder.reports import html, run_pair
    from taylorder.runs import run_directory
    from taylorder.storage.files import replacing

    document = run_pair.as_document(pair)
    if out is not None:
        page = html.render_pair(pair, command)
        if out.suffix == _SUFFIX:
            try:
                with replacing(out) as temporary:
                    temporary.write_text(page, encoding="utf-8")
            except OSError as error:
                raise TaylorderError(f"{out} cannot be written ({error.strerror}); name another with --out") from error
        else:
            run_directory.write_document(out, run_files.OF_PAIR[0], document, run_files.OF_PAIR[1], page)
        written = out if out.suffix == _SUFFIX else out / run_files.OF_PAIR[1]
        print(f"wrote {written}", file=sys.stderr)
    print_report(output, lambda: document, run_pair.sections(pair, command))
