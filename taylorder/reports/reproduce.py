"""The command that measures what an analysis measured, or the same with something changed."""

from __future__ import annotations

import shlex
from typing import Any

from taylorder.analysis.results import Analysis, Calibration
from taylorder.analysis.text import CALIBRATION_SOURCE
from taylorder.kernels.spec import MAX_ORDER
from taylorder.selection.by_tolerance import TIERS, Selection
from taylorder.selection.criteria import DEFAULT_CRITERION


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
    rows = _rows(calibration)
    policy = policy or selection.policy
    context = selection.context if context is None else context
    options: list[tuple[str, Any, Any]] = [
        ("--max-tokens", calibration.tokens, 8192 // length * length),
        ("--sequence-length", length, min(1024, longest)),
        ("--rows", rows, rows if calibration.rows_per_sequence == min(64, length) else "64"),
        ("--tolerance", selection.tolerance, TIERS["int4"]),
        ("--max-order", analysis.max_order, MAX_ORDER),
        ("--window", analysis.window if window is None else window, 0),
        ("--sinks", analysis.sinks if sinks is None else sinks, 0),
        ("--context", context, longest),
        ("--seed", calibration.seed, 0),
        ("--dtype", analysis.model.dtype, "float32"),
    ]
    if levers is None:
        options.append(("--policy", policy, "error"))
    else:
        options += [
            ("--levers", ",".join(levers.levers), None),
            ("--budget", None if levers.budget is None else f"{levers.budget}B", None),
            ("--criterion", levers.criterion, DEFAULT_CRITERION if levers.budget is not None else levers.criterion),
            ("--lever-length", levers.sequence_length, min(context, 4096)),
        ]
    words += [word for option, value, usual in options if value != usual for word in (option, str(value))]
    words += ["--per-head-alpha"] if any(row.head is not None for row in analysis.spectral) else []
    words += [] if evaluated else ["--no-eval"]
    return shlex.join([*words, "--out", out])


def _rows(calibration: Calibration) -> str:
    return "all" if calibration.rows_per_sequence >= calibration.sequence_length else str(calibration.rows_per_sequence)
