"""Commands about a run: what measures it, or the same with something changed, shows it and evaluates it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from taylorder.analysis.results import Analysis, Calibration
from taylorder.analysis.text import CALIBRATION_SOURCE
from taylorder.runs.run_files import DEFAULT
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.settings import DEFAULTS, LONGEST_LEVER_SEQUENCE


def analyze_command(
    analysis: Analysis, selection: Selection, *, out: str, evaluated: bool = True, **changes: Any
) -> str:
    """`taylorder analyze` with the options that are not the defaults.

    Args:
        analysis: the measurements.
        selection: the choice.
        out: where the results go.
        evaluated: whether a short evaluation ends the run.
        changes: another ``window``, ``sinks``, ``policy``, ``context`` or ``budget``.

    """
    calibration, levers = analysis.calibration, selection.levers
    length, longest = calibration.sequence_length, analysis.model.max_context
    words = ["taylorder", "analyze", analysis.model.name]
    if calibration.source != CALIBRATION_SOURCE:
        option = "--text" if calibration.inputs is None else "--inputs"
        words += [word for file in calibration.source.split(", ") for word in (option, file)]
    rows, usual_rows = _rows(calibration), DEFAULTS.rows or length
    near: dict[str, Any] = {"window": analysis.window, "sinks": analysis.sinks}
    settings = near | {"policy": selection.policy, "context": selection.context}
    settings |= {"budget": None if levers is None or levers.budget is None else f"{levers.budget}B"} | changes
    of_text: list[tuple[str, Any, Any]] = [
        ("--max-tokens", calibration.tokens, DEFAULTS.max_tokens // length * length),
        ("--sequence-length", length, min(DEFAULTS.sequence_length, longest)),
    ]
    options = of_text if calibration.inputs is None else []
    options += [
        ("--rows", rows, rows if calibration.rows_per_sequence == min(usual_rows, length) else str(usual_rows)),
        ("--tolerance", selection.tolerance, DEFAULTS.tolerance),
        ("--max-order", analysis.max_order, DEFAULTS.max_order),
        ("--window", settings["window"], DEFAULTS.window),
        ("--sinks", settings["sinks"], DEFAULTS.sinks),
        ("--context", settings["context"], longest),
        ("--seed", calibration.seed, DEFAULTS.seed),
        ("--dtype", analysis.model.dtype, "float32"),
    ]
    if levers is None:
        options += [("--policy", settings["policy"], DEFAULTS.policy), ("--budget", settings["budget"], None)]
    else:
        options += [
            ("--levers", ",".join(levers.levers), None),
            ("--budget", settings["budget"], None),
            ("--lever-length", levers.sequence_length, min(settings["context"], LONGEST_LEVER_SEQUENCE)),
        ]
    words += [word for option, value, usual in options if value != usual for word in (option, str(value))]
    words += ["--per-head-alpha"] if any(row.head is not None for row in analysis.spectral) else []
    words += [] if evaluated else ["--no-eval"]
    return shlex.join([*words, "--out", out])


def show_command(directory: Path | None) -> str:
    """`taylorder show` of a run."""
    return shlex.join(["taylorder", "show", str(directory or DEFAULT)])


def eval_command(directory: Path | None, calibration: Calibration) -> str:
    """`taylorder eval` of a run, which knows its model, on inputs where that is what it was measured on."""
    inputs = [] if calibration.inputs is None else ["--inputs", "FILE"]
    return shlex.join(["taylorder", "eval", "--config", str(directory or DEFAULT), *inputs])


def generate_command(config: str) -> str:
    """`taylorder generate` with a config, beside the model as it is."""
    return shlex.join(["taylorder", "generate", "--prompt-file", "FILE", "--config", config, "--compare"])


def _rows(calibration: Calibration) -> str:
    return "all" if calibration.rows_per_sequence >= calibration.sequence_length else str(calibration.rows_per_sequence)
