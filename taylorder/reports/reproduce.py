"""The command that measures what an analysis measured, or the same with something changed."""

from __future__ import annotations

import shlex
from typing import Any

from taylorder.analysis.results import Analysis, Calibration
from taylorder.analysis.text import CALIBRATION_SOURCE
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.settings import DEFAULTS, LONGEST_LEVER_SEQUENCE


def analyze_command(
    analysis: Analysis,
    selection: Selection,
    *,
    out: str,
    window: int | None = None,
    sinks: int | None = None,
    policy: str | None = None,
    context: int | None = None,
    evaluated: bool = True,
) -> str:
    """`taylorder analyze` with the options that are not the defaults.

    Args:
        analysis: the measurements.
        selection: the choice.
        out: where the results go.
        window: another window, None for the same; so with sinks, policy and context.
        sinks: see window.
        policy: see window.
        context: see window.
        evaluated: whether a short evaluation ends the run.

    """
    calibration, levers = analysis.calibration, selection.levers
    length, longest = calibration.sequence_length, analysis.model.max_context
    words = ["taylorder", "analyze", analysis.model.name]
    if calibration.source != CALIBRATION_SOURCE:
        words += [word for file in calibration.source.split(", ") for word in ("--text", file)]
    rows, usual_rows = _rows(calibration), DEFAULTS.rows or length
    policy = policy or selection.policy
    context = selection.context if context is None else context
    options: list[tuple[str, Any, Any]] = [
        ("--max-tokens", calibration.tokens, DEFAULTS.max_tokens // length * length),
        ("--sequence-length", length, min(DEFAULTS.sequence_length, longest)),
        ("--rows", rows, rows if calibration.rows_per_sequence == min(usual_rows, length) else str(usual_rows)),
        ("--tolerance", selection.tolerance, DEFAULTS.tolerance),
        ("--max-order", analysis.max_order, DEFAULTS.max_order),
        ("--window", analysis.window if window is None else window, DEFAULTS.window),
        ("--sinks", analysis.sinks if sinks is None else sinks, DEFAULTS.sinks),
        ("--context", context, longest),
        ("--seed", calibration.seed, DEFAULTS.seed),
        ("--dtype", analysis.model.dtype, "float32"),
    ]
    if levers is None:
        options.append(("--policy", policy, DEFAULTS.policy))
    else:
        options += [
            ("--levers", ",".join(levers.levers), None),
            ("--budget", None if levers.budget is None else f"{levers.budget}B", None),
            ("--lever-length", levers.sequence_length, min(context, LONGEST_LEVER_SEQUENCE)),
        ]
    words += [word for option, value, usual in options if value != usual for word in (option, str(value))]
    words += ["--per-head-alpha"] if any(row.head is not None for row in analysis.spectral) else []
    words += [] if evaluated else ["--no-eval"]
    return shlex.join([*words, "--out", out])


def _rows(calibration: Calibration) -> str:
    return "all" if calibration.rows_per_sequence >= calibration.sequence_length else str(calibration.rows_per_sequence)
