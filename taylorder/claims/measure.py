"""Run a model again for the claims: everything that its finished analysis does not hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from taylorder.analysis.losses import has_language_model_head
from taylorder.analysis.results import Analysis
from taylorder.analysis.text import calibration_text, query_rows
from taylorder.analysis.tokens import tokenise
from taylorder.claims.evidence import Measured
from taylorder.claims.measurements import heads, invariance, order_losses, state_times, task_scores
from taylorder.claims.measurements.heads import measure_heads
from taylorder.claims.measurements.invariance import scale_queries
from taylorder.claims.measurements.order_losses import measure_order_losses
from taylorder.claims.measurements.score_ranges import measure_ranges
from taylorder.claims.measurements.state_times import measure_times
from taylorder.claims.measurements.task_scores import TaskScore, measure_task_scores
from taylorder.claims.rounding import PRECISIONS
from taylorder.errors import ConfigError, UsageError
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.models.fingerprint import fingerprint, way_out_of_rounding
from taylorder.models.loading import LoadedModel
from taylorder.models.refusals import dtype_name
from taylorder.storage.progress import Progress
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

LENGTH, SEQUENCES, ROWS = 1024, 4, 32
"""Sequences of the calibration text that heads are measured on, and query rows of each."""

LONG = (256, 512, 1024, 2048, 4096)
"""Contexts whose ranges of scores are measured, those the model allows."""

LOSS_SEQUENCES = 8
SCALED_LENGTH = 512

_WHOLE = "measured"


def measured_before(analysis: Analysis, directory: Path, device: str, dtype: str) -> Measured | None:
    """What an earlier run kept, if it was finished."""
    kept = Records(directory / _WHOLE, _settings(analysis, device, dtype)).get(_WHOLE)
    return None if kept is None else TypeAdapter(Measured).validate_python(kept)


def measure(
    analysis: Analysis,
    loaded: LoadedModel,
    directory: Path,
    *,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
) -> Measured:
    """Measure a model whose analysis is finished; an interrupted run goes on from ``directory``.

    Args:
        analysis: of the model.
        loaded: the model and its tokenizer.
        directory: where finished pieces are kept.
        fresh: start over.
        progress: called with a stage, what is done of it, and its size.

    Raises:
        ConfigError: the model is not the one that was analysed.
        NonFiniteError: the model breaks down.

    """
    description, model, tokenizer = analysis.model, loaded.model, loaded.tokenizer
    dtype = dtype_name(model)
    if fingerprint(model) != description.fingerprint:
        remedy = way_out_of_rounding(description.dtype, dtype)
        raise ConfigError(
            f"{loaded.name} is not the model that was analysed as {description.name}: its weights differ; "
            f"{remedy or 'name that one with --model, or run `taylorder analyze` again'}"
        )
    settings = _settings(analysis, str(model.device), dtype)

    def stage(name: str) -> dict[str, Any]:
        return {"records": Records(directory / name, settings[name], fresh=fresh), "progress": progress}

    words = tokenise(tokenizer, calibration_text())
    length = min(LENGTH, description.max_context)
    ids = words.first(length, SEQUENCES * length)
    measured_heads = measure_heads(model, description, ids, query_rows(len(ids), length, ROWS, 0), **stage("heads"))
    short = min(SCALED_LENGTH, length)
    scaled = words.first(short, short)
    scaling = scale_queries(model, description, scaled, query_rows(1, short, ROWS, 0))
    ranges, losses, times = None, None, None
    scores: tuple[TaskScore, ...] = ()
    if description.causal:
        lengths = [each for each in LONG if each <= description.max_context] or [length]
        long = words.first(lengths[-1], lengths[-1])[0]
        ranges = measure_ranges(model, description, long, lengths)
    if description.causal and has_language_model_head(model) and description.open_modules:
        unseen = tokenise(tokenizer, evaluation_text())
        drawn = unseen.draw(length, LOSS_SEQUENCES, 0)
        losses = measure_order_losses(model, description, drawn, **stage("losses"))
        times = measure_times(model, description, **stage("times"))
        try:
            scores = measure_task_scores(model, tokenizer, description, **stage("tasks"))
        except UsageError:
            scores = ()  # a tokenizer without offsets, or with too few words
    found = Measured(measured_heads, ranges, losses, times, scores, scaling)
    Records(directory / _WHOLE, settings, fresh=fresh).put(_WHOLE, asdict(found))
    return found


def _settings(analysis: Analysis, device: str, dtype: str) -> dict[str, dict[str, Any]]:
    """What the pieces of every stage depend on: a stage whose own settings change is measured anew, and no other."""
    model = {
        "model": analysis.model.fingerprint,
        "dtype": dtype,
        "bos": analysis.calibration.bos,
        "software": software_versions(),
    }
    calibrated = {**model, "text": calibration_text().sha256}
    return {
        "heads": {
            **calibrated,
            "sizes": [LENGTH, SEQUENCES, ROWS],
            "figures": [heads.ORDERS, heads.DISTANCES, heads.SINKS, heads.TIED, heads.TIES, heads.LEAST_KEYS],
            "rounding": PRECISIONS,
        },
        "ranges": {**calibrated, "sizes": LONG},
        "invariance": {**calibrated, "sizes": [SCALED_LENGTH, ROWS], "figures": [invariance.FACTORS, invariance.ORDER]},
        "losses": {
            **model,
            "text": evaluation_text().sha256,
            "sizes": [LENGTH, LOSS_SEQUENCES],
            "figures": [order_losses.ORDERS, order_losses.NEAR],
        },
        "times": {
            **model,
            "device": torch.device(device).type,
            "sizes": [state_times.LENGTHS, state_times.ROUNDS, state_times.TOKENS],
            "figures": [state_times.ORDERS, state_times.WINDOW, state_times.SINKS],
        },
        "tasks": {
            **model,
            "sizes": [task_scores.LENGTH, task_scores.WINDOWS_LONG],
            "figures": [task_scores.STATES, task_scores.BESIDE, task_scores.WINDOWS, task_scores.SINKS],
        },
    }
