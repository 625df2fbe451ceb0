"""Options that several commands have, and what declares any other: what is said of it comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from taylorder.commands._paths import path_of
from taylorder.errors import UsageError
from taylorder.runs.run_files import DEFAULT

_DIGITS = 18
_SHOWN = 60
"""Characters of an argument that a message repeats."""


BUDGET, TOLERANCE = "Choose by budget", "Choose by tolerance"
CALIBRATION, MACHINE = "Calibration", "Output and machine"
"""Headings of options in the help."""

A_RUN = "the folder that `taylorder analyze --out` wrote, or a file in it"
"""What a run is, in the help of whatever takes one."""


def value(
    text: str, metavar: str | None = None, default: str | bool = True, group: str | None = None, **more: Any
) -> Any:
    """An option, with what its help says of it and of its default, and under which heading."""
    return typer.Option(help=text, metavar=metavar, show_default=default, rich_help_panel=group, **more)


def flag(name: str, text: str, group: str | None = None) -> Any:
    """An option that is given or not."""
    return typer.Option(name, help=text, rich_help_panel=group)


def number(text: str, least: int, default: str | bool = True, group: str | None = None, **more: Any) -> Any:
    """An option that is a whole number from ``least`` on."""
    return value(text, "N", default, group, min=least, **more)


def path(text: str, name: str, metavar: str = "FILE", default: str | bool = True, group: str | None = None) -> Any:
    """An option that is a path, or several; ``name`` is what messages call it."""
    return value(text, metavar, default, group, parser=path_of(name))


def seed(group: str | None = None) -> Any:
    """The seed."""
    return number("Seed whatever is drawn: rows, sequences, tasks, tokens.", 0, group=group, max=2**32 - 1)


_MODEL = {
    "metavar": "MODEL",
    "show_default": "the built-in smollm2-135m",
    "help": "Hub id, model folder or .gguf file.",
}
_MODEL_OF_RUN = {
    "metavar": "MODEL",
    "show_default": "the config's, loaded as its run loaded it",
    "help": "Hub id, model folder or .gguf file; or a run, in the place of --config.",
}
Model = Annotated[str | None, typer.Argument(**_MODEL)]
ModelOfRun = Annotated[str | None, typer.Argument(**_MODEL_OF_RUN)]
ModelOfRunOption = Annotated[str | None, typer.Option(**_MODEL_OF_RUN)]
Config = Annotated[
    Path | None, path(f"Take this config: an orders.json, or a run ({A_RUN}).", "--config", "FILE|DIR", str(DEFAULT))
]


def inputs(group: str | None = None) -> Any:
    """Files of what a model is run on."""
    text = (
        "Instead of text, run the model on the tensors of this safetensors file, by the names of its arguments: "
        "pixel_values, input_features, decoder_input_ids…; repeat for several batches."
    )
    return path(text, "--inputs", default=False, group=group)


Inputs = Annotated[list[Path] | None, inputs()]
InputsOfAnalysis = Annotated[list[Path] | None, inputs(CALIBRATION)]
Seed = Annotated[int, seed()]
Device = Annotated[str, value("Run on this torch device, such as cpu or cuda.", "NAME", group=MACHINE)]
DeviceMap = Annotated[
    str | None,
    value(
        "Spread the model over devices, memory and disk: auto, balanced, sequential, or a JSON file of modules and the "
        "device of each, cpu and disk among them.",
        "NAME|FILE",
        False,
        group=MACHINE,
    ),
]
DtypeName = Literal["float32", "bfloat16", "float16", "auto"]
Dtype = Annotated[DtypeName, value("Hold weights and compute in this dtype; auto is the checkpoint's.", group=MACHINE)]
DtypeOfRun = Annotated[
    DtypeName | None,
    value("Hold weights and compute in this dtype; auto is the checkpoint's.", default="the run's", group=MACHINE),
]
Format = Annotated[
    Literal["human", "json"],
    typer.Option("--format", help="Print a report, or one JSON document and nothing else.", rich_help_panel=MACHINE),
]


def parse_numbers(option: str, text: str | None, least: int) -> tuple[int, ...] | None:
    """The whole numbers of a list with commas, each once, in order; None for None."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(is_whole_number(word, least) for word in words):
        raise UsageError(
            f"{option} is {shortly(text)}, expected whole numbers from {least} on with commas between them"
        )
    return tuple(sorted({int(word) for word in words}))


def is_whole_number(text: str, least: int) -> bool:
    """Whether a text is a whole number from ``least`` on, of no more digits than anything can be counted with."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) >= least


def shortly(text: str) -> str:
    """A text in quotes, as much of it as fits into a sentence."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
