"""``analyze``: the whole measurement of one model, from text to an :class:`Analysis`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from taylorder.analysis import text as texts
from taylorder.analysis.capture import run_layers
from taylorder.analysis.finite import refuse_broken_weights
from taylorder.analysis.losses import (
    EXACT,
    has_language_model_head,
    hidden_states,
    language_model_head,
    token_losses,
)
from taylorder.analysis.projections import head_slices, projection_weights
from taylorder.analysis.results import (
    LEAST_FAR_SHARE,
    Analysis,
    Calibration,
    CandidateRow,
    NearFieldPreview,
    SpectralRow,
)
from taylorder.analysis.spectral import Matrix, fit_spectra, unavailable
from taylorder.analysis.statistics import certified_bound, fitted_floor, gaussian_prediction, logit_ranks
from taylorder.analysis.tokens import tokenise
from taylorder.analysis.truncation import ErrorSums, LayerTensors, ScoreSums, Sweep, key_centres, measure, relative
from taylorder.errors import NonFiniteError, UnsupportedModelError, UsageError
from taylorder.kernels.spec import MAX_ORDER, SINKS
from taylorder.models.describe import describe
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.models.running import refuse_foreign_ids
from taylorder.storage.progress import Progress

LOSS_TOKENS = 256
"""Tokens that the model's own loss is taken over, to tell whether it was trained at all."""

PREVIEW_WINDOW = 64
PREVIEW_ORDERS = (1, 2, 3, 4)


def analyze(
    model: Any,
    tokenizer: Any,
    *,
    name: str | None = None,
    description: ModelDescription | None = None,
    text: texts.Text | None = None,
    max_tokens: int = 8192,
    sequence_length: int = 1024,
    rows: int | None = 64,
    max_order: int = MAX_ORDER,
    window: int = 0,
    sinks: int = 0,
    seed: int = 0,
    per_head_alpha: bool = False,
    progress: Progress | None = None,
) -> Analysis:
    """Measure every attention head of a pretrained transformer.

    Args:
        model: a transformers model that dispatches its attention through ``AttentionInterface``.
        tokenizer: its tokenizer.
        name: what to call the model in the results; default the config's name.
        description: ``taylorder.models.describe.describe(model)``, if it was made already.
        text: calibration text; default the English that Python ships.
        max_tokens: tokens used, cut into sequences of ``sequence_length``. Memory grows with it.
        sequence_length: tokens per sequence; models with fewer positions use as many as they have.
        rows: query rows measured per sequence, drawn at random; None measures all.
        max_order: largest order P measured, 1 … 8.
        window: near field: the last keys, the query's own included, that keep the true exponential.
        sinks: near field: the first keys.
        seed: of the draw of query rows.
        per_head_alpha: also fit alpha to each head's slice of q, k, v and o (noisy: few eigenvalues).
        progress: see :data:`Progress`.

    Raises:
        UnsupportedModelError: the model cannot be measured truthfully.
        UsageError: an argument is out of range, or the text too short.
        NonFiniteError: the model produces NaN or infinities.

    """
    _check_range("max_order", max_order, 1, MAX_ORDER)
    _check_range("window", window, 0, None)
    _check_range("sinks", sinks, 0, None)
    if rows is not None:
        _check_range("rows", rows, 1, None)
    if description is None:
        description = describe(model, name)
    if not description.causal and (window or sinks):
        raise UsageError(
            f"{description.name} attends in both directions and has no near field; found window {window} and sinks "
            f"{sinks}, expected 0 and 0"
        )
    refuse_broken_weights(model, description.name)
    text = text or texts.calibration_text()
    length = min(sequence_length, description.max_context)
    tokens = tokenise(tokenizer, text)
    input_ids = tokens.first(length, max_tokens)
    refuse_foreign_ids(model, input_ids)
    query_rows = texts.query_rows(len(input_ids), length, rows, seed)
    far_share = _far_share(query_rows, window + sinks)
    if not far_share:
        raise UsageError(
            f"window {window} and sinks {sinks} leave none of the {len(input_ids) * len(query_rows[0])} measured query "
            f"rows a far key in sequences of {length} tokens, so that nothing would be truncated: make the sequences "
            "longer (--sequence-length), or the near field smaller"
        )

    report = progress or (lambda stage, done, total: None)
    spectral = _spectra(model, description, per_head_alpha, report)
    with_preview = (
        description.causal
        and not (window or sinks)
        and _far_share(query_rows, PREVIEW_WINDOW + SINKS) >= LEAST_FAR_SHARE
    )
    sweeps: tuple[Sweep, ...] = (Sweep(max_order, window, sinks),)
    if with_preview:
        orders = tuple(order for order in PREVIEW_ORDERS if order <= max_order)
        sweeps += (Sweep(orders[-1], PREVIEW_WINDOW, SINKS, ("mean",)),)

    modules = {module.name: module for module in description.modules}
    candidates: dict[str, list[CandidateRow]] = {}
    centres: dict[str, torch.Tensor] = {}
    previews: dict[str, tuple[tuple[float, ...], ...]] = {}

    def consume(module_name: str, layer: LayerTensors) -> None:
        centre = key_centres(layer)
        statistics, sums = measure(layer, centre, query_rows, sweeps)
        centres[module_name] = centre.float().cpu()
        candidates[module_name] = _rows(modules[module_name], layer, statistics, sums[0])
        if with_preview:
            errors = relative(sums[1].squared["guarded"][0], statistics.output_squared)
            previews[module_name] = tuple(map(tuple, errors.T.tolist()))
        report("heads", len(candidates), len(modules))

    run_layers(model, input_ids, consume)
    nll, vocabulary = _loss(model, description, input_ids[0, :LOSS_TOKENS])
    calibration = Calibration(
        source=text.source,
        text_sha256=text.sha256,
        sequences=len(input_ids),
        sequence_length=length,
        tokens=input_ids.numel(),
        rows_per_sequence=len(query_rows[0]),
        seed=seed,
        query_rows=tuple(tuple(positions.tolist()) for positions in query_rows),
        bos=tokens.bos,
        unknown_share=tokens.unknown_share(input_ids),
        far_share=far_share,
        nll=nll,
        vocabulary=vocabulary,
    )
    return Analysis(
        model=description,
        calibration=calibration,
        max_order=max_order,
        window=window,
        sinks=sinks,
        candidates=tuple(row for module in modules for row in candidates[module]),
        spectral=spectral,
        preview=NearFieldPreview(PREVIEW_WINDOW, SINKS, orders, previews) if with_preview else None,
        key_centres=centres,
    )


def _far_share(query_rows: Sequence[torch.Tensor], near: int) -> float:
    """Share of the query rows that see more keys than a near field of so many holds."""
    rows = torch.cat(list(query_rows)).tolist()
    return float(np.mean([row >= near for row in rows]))


def _loss(model: Any, description: ModelDescription, sequence: torch.Tensor) -> tuple[float | None, int | None]:
    """Mean negative log-likelihood of a sequence ``[T]`` in nats, and the number of tokens in the vocabulary.

    None for both where the model predicts no tokens, breaks down, or turns its logits in a way that is not followed.
    """
    if not description.causal or not has_language_model_head(model):
        return None, None
    try:
        head = language_model_head(model)
    except (UnsupportedModelError, NonFiniteError):
        return None, None
    hidden = hidden_states(model, sequence)
    losses = token_losses(head, sequence, {EXACT: hidden})[EXACT]
    return float(losses.nll.mean(dtype=np.float64)), head(hidden[:1]).shape[-1]


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"{low} to {high}"
        raise UsageError(f"{name} is {value}, expected {expected}")


def _spectra(model: Any, description: ModelDescription, per_head: bool, report: Progress) -> tuple[SpectralRow, ...]:
    """Alpha of every projection, layer by layer; projections a module does not have are listed as unavailable."""
    rows: list[SpectralRow] = []
    for done, module in enumerate(description.modules, start=1):
        weights = projection_weights(model, module.name)
        matrices = [Matrix(module.name, projection, weight) for projection, weight in weights.items()]
        if per_head:
            matrices += [
                Matrix(module.name, projection, part, head)
                for projection, weight in weights.items()
                for head, part in head_slices(weight, projection, module.heads, module.kv_heads)
            ]
        rows += fit_spectra(matrices)
        rows += [
            unavailable(module.name, projection) for projection in ("q", "k", "v", "o") if projection not in weights
        ]
        report("alpha", done, len(description.modules))
    return tuple(rows)


def _rows(module: AttentionModule, layer: LayerTensors, scores: ScoreSums, sums: ErrorSums) -> list[CandidateRow]:
    """One row per head, expansion point and order."""
    sweep = sums.sweep
    elements = scores.rows * module.value_dim
    relative_l2 = {kind: relative(squared, scores.output_squared) for kind, squared in sums.squared.items()}
    rmse = {kind: (squared / elements).sqrt() for kind, squared in sums.squared.items()}
    median = torch.cat(sums.row_errors, dim=-1).quantile(0.5, dim=-1)
    std = (scores.squared_deviation / scores.count).sqrt()
    largest_value = layer.v.abs().amax((0, 2, 3)).tolist()
    ranks = logit_ranks(layer.q, layer.k, layer.valid)
    rows = []
    for head in range(module.heads):
        kv_head = head // module.group
        for index, expansion in enumerate(sweep.expansions):
            for order in range(1, sweep.max_order + 1):
                place = (index, order - 1, head)
                rows.append(
                    CandidateRow(
                        module=module.name,
                        head=head,
                        kv_head=kv_head,
                        order=order,
                        expansion=expansion,
                        window=sweep.window,
                        sinks=sweep.sinks,
                        relative_l2=float(relative_l2["guarded"][place]),
                        rmse=float(rmse["guarded"][place]),
                        cosine=float(sums.cosine["guarded"][place]) / scores.rows,
                        max_error=float(sums.largest["guarded"][place]),
                        nonpositive_share=float(sums.guarded_rows[place]) / scores.rows,
                        score_mean=float(scores.total[head]) / scores.count,
                        score_std=float(std[head]),
                        score_max=float(scores.largest[head]),
                        median_row_error=float(median[place]),
                        raw_relative_l2=float(relative_l2["raw"][place]),
                        raw_rmse=float(rmse["raw"][place]),
                        raw_cosine=float(sums.cosine["raw"][place]) / scores.rows,
                        raw_max_error=float(sums.largest["raw"][place]),
                        gaussian_prediction=gaussian_prediction(float(std[head]), order),
                        fitted_floor=fitted_floor(float(std[head]), order),
                        certified_bound=certified_bound(
                            float(sums.far_radius[index, head]), order, largest_value[kv_head]
                        ),
                        log_keys=math.log(scores.keys),
                        logit_rank=ranks[head],
                    )
                )
    return rows
