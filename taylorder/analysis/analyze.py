"""``analyze``: the whole measurement of one model, from text to an :class:`Analysis`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorder.analysis.candidate_rows import candidate_rows
from taylorder.analysis.capture import LayerTensors, run_layers
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
    ROLES,
    Analysis,
    Calibration,
    CandidateRow,
    NearFieldPreview,
    SpectralRow,
    role_of,
)
from taylorder.analysis.settings import DEFAULTS
from taylorder.analysis.spectral import Matrix, fit_spectra
from taylorder.analysis.text import Text, query_rows
from taylorder.analysis.tokens import Tokens
from taylorder.analysis.truncation import Sweep, key_centres, measure, relative
from taylorder.errors import NonFiniteError, UnsupportedModelError, UsageError
from taylorder.kernels.spec import MAX_ORDER, SINKS
from taylorder.models.describe import describe
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.models.running import refuse_foreign_ids
from taylorder.storage import processes
from taylorder.storage.progress import Progress, silent

SPECTRA, HEADS = "spectra of the layers", "heads of the layers"
"""Stages, as progress is told."""

LOSS_TOKENS = 256
"""Tokens that the model's own loss is taken over, to tell whether it was trained at all."""

PREVIEW_WINDOW = 64
PREVIEW_ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Calibration sequences ``[N, T]`` and the positions of the query rows measured in each, ``[R]``."""

    tokens: Tokens
    input_ids: Tensor
    query_rows: list[Tensor]

    def far_share(self, near: int) -> float:
        """Share of the query rows that see more keys than a near field of so many holds."""
        return float(np.mean([row >= near for row in torch.cat(self.query_rows).tolist()]))


@dataclass(frozen=True, slots=True)
class _Heads:
    """What was measured of the heads, by module name: rows, key centres ``[G, d]``, preview ``[H][orders]``."""

    candidates: dict[str, list[CandidateRow]]
    centres: dict[str, Tensor]
    previews: dict[str, tuple[tuple[float, ...], ...]]


def analyze(
    model: Any,
    tokenizer: Any,
    *,
    name: str | None = None,
    description: ModelDescription | None = None,
    text: Text | Tokens | str | None = None,
    max_tokens: int = DEFAULTS.max_tokens,
    sequence_length: int = DEFAULTS.sequence_length,
    rows: int | None = DEFAULTS.rows,
    max_order: int = DEFAULTS.max_order,
    window: int = DEFAULTS.window,
    sinks: int = DEFAULTS.sinks,
    seed: int = DEFAULTS.seed,
    per_head_alpha: bool = DEFAULTS.per_head_alpha,
    progress: Progress | None = None,
) -> Analysis:
    """Measure every attention head of a pretrained transformer.

    For every query head, every order P from 1 to ``max_order`` and three expansion points: the error of the head's
    output when the exponential of its far scores is cut to P Taylor terms, ``exp(s) ~ sum of s^p / p! for p < P``
    (Heinsen & Kozachkov, arXiv 2602.00294; docs/math.md#2-order), against exact attention, both in float64 from the q,
    k, v that the model computes. Beside it what would predict it (docs/math.md#13-predictors), and the alpha of every
    projection by WeightWatcher (SETOL, arXiv 2507.17912).

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> analysis = taylorder.analyze(loaded.model, loaded.tokenizer)
    >>> analysis
    <Analysis of smollm2-135m: ... layers x ... heads, ... tokens, orders 1 to 8>
    >>> row = analysis.candidates[0]  # as in heads.csv
    >>> row.head, row.order, row.expansion
    (0, 1, 'zero')
    >>> share = row.relative_l2  # 0.07 is an error of 7 % of the output's length
    >>> table = analysis.to_frame()  # pandas, one row per head and candidate

    Args:
        model: a transformers model that dispatches its attention through ``AttentionInterface``.
        tokenizer: its tokenizer.
        name: what to call the model in the results; default as ``taylorder.describe`` has it.
        description: ``taylorder.describe(model)``, if it was made already.
        text: calibration text, as a string or in tokens; default the English that Python ships (465 kB).
        max_tokens: tokens used, cut into sequences of ``sequence_length``. Memory grows with it.
        sequence_length: tokens per sequence; models with fewer positions use as many as they have.
        rows: query rows measured per sequence, drawn at random; None measures all.
        max_order: largest order P measured, 1 … 8.
        window: near field: the last keys, the query's own included, that keep the true exponential.
        sinks: near field: the first keys.
        seed: of the draw of query rows.
        per_head_alpha: also fit alpha to each head's slice of q, k, v and o (noisy: few eigenvalues).
        progress: called with a stage, what is done of it, and its size.

    Returns:
        Plain values; ``candidates`` are the rows of ``heads.csv``, ``spectral`` those of ``spectral.csv``,
        ``key_centres`` the mean keys, float32 ``[G, d]`` per module. Errors are shares (relative L2), scores natural
        logarithms, losses nats per token.

    Raises:
        UnsupportedModelError: the model cannot be measured truthfully.
        UsageError: an argument is out of range, or the text too short.
        NonFiniteError: the model produces NaN or infinities.

    """
    _check_range("max_order", max_order, 1, MAX_ORDER)
    _check_range("window", window, 0, None)
    _check_range("sinks", sinks, 0, None)
    _check_range("seed", seed, 0, None)
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
    tokens = Tokens.of(tokenizer, text)
    length = min(sequence_length, description.max_context)
    input_ids = tokens.first(length, max_tokens)
    refuse_foreign_ids(model, input_ids)
    sample = _Sample(tokens, input_ids, query_rows(len(input_ids), length, rows, seed))
    sweeps = _sweeps(description, sample, max_order, window, sinks)
    report = progress or silent
    spectral = _spectra(model, description, per_head_alpha, report)
    heads = _measure_heads(model, description, sample, sweeps, report)
    preview = None
    if len(sweeps) > 1:
        preview = NearFieldPreview(PREVIEW_WINDOW, SINKS, _preview_orders(max_order), heads.previews)
    return Analysis(
        model=description,
        calibration=_calibration(model, description, sample, sample.far_share(window + sinks), seed),
        max_order=max_order,
        window=window,
        sinks=sinks,
        candidates=tuple(row for module in description.modules for row in heads.candidates[module.name]),
        spectral=spectral,
        preview=preview,
        key_centres=heads.centres,
    )


def _sweeps(
    description: ModelDescription, sample: _Sample, max_order: int, window: int, sinks: int
) -> tuple[Sweep, ...]:
    """What is measured: the near field asked for, and beside none, where it can be told, what a small one would change.

    Raises:
        UsageError: the near field leaves nothing to truncate.

    """
    if not sample.far_share(window + sinks):
        raise UsageError(
            f"window {window} and sinks {sinks} leave none of the {sum(map(len, sample.query_rows))} measured query "
            f"rows a far key in sequences of {sample.input_ids.shape[1]} tokens, so that nothing would be truncated: "
            "make the sequences longer (--sequence-length), or the near field smaller"
        )
    asked = Sweep(max_order, window, sinks)
    far_share = sample.far_share(PREVIEW_WINDOW + SINKS)
    if not description.causal or window or sinks or far_share < LEAST_FAR_SHARE:
        return (asked,)
    return asked, Sweep(_preview_orders(max_order)[-1], PREVIEW_WINDOW, SINKS, ("mean",))


def _preview_orders(max_order: int) -> tuple[int, ...]:
    return tuple(order for order in PREVIEW_ORDERS if order <= max_order)


def _measure_heads(
    model: Any, description: ModelDescription, sample: _Sample, sweeps: tuple[Sweep, ...], report: Progress
) -> _Heads:
    """Errors and scores of every head, layer by layer, while the model runs over all sequences once.

    Each process runs its share, and all of them get the same.
    """
    mine = processes.share(len(sample.input_ids), "calibration sequences")
    query_rows = sample.query_rows[mine.start : mine.stop]
    modules = {module.name: module for module in description.modules}
    heads = _Heads({}, {}, {})

    def consume(module_name: str, layer: LayerTensors) -> None:
        centre = key_centres(layer)
        scores, sums = measure(layer, centre, query_rows * modules[module_name].calls, sweeps)
        heads.centres[module_name] = centre.float().cpu()
        heads.candidates[module_name] = candidate_rows(modules[module_name], layer, scores, sums[0])
        for preview in sums[1:]:
            errors = relative(preview.squared["guarded"][0], scores.output_squared)
            heads.previews[module_name] = tuple(map(tuple, errors.T.tolist()))
        report(HEADS, len(heads.candidates), len(modules))

    run_layers(model, sample.input_ids[mine.start : mine.stop], consume, calls=description.calls)
    return heads


def _calibration(
    model: Any, description: ModelDescription, sample: _Sample, far_share: float, seed: int
) -> Calibration:
    """What the results say of the text, with the model's own loss on it."""
    tokens, input_ids = sample.tokens, sample.input_ids
    nll, vocabulary = _loss(model, description, input_ids[0, :LOSS_TOKENS])
    return Calibration(
        source=tokens.text.source,
        text_sha256=tokens.text.sha256,
        sequences=len(input_ids),
        sequence_length=input_ids.shape[1],
        tokens=input_ids.numel(),
        rows_per_sequence=len(sample.query_rows[0]),
        seed=seed,
        query_rows=tuple(tuple(positions.tolist()) for positions in sample.query_rows),
        bos=tokens.bos,
        unknown_share=tokens.unknown_share(input_ids),
        far_share=far_share,
        nll=nll,
        vocabulary=vocabulary,
    )


def _loss(model: Any, description: ModelDescription, sequence: Tensor) -> tuple[float | None, int | None]:
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

    def of_module(module: AttentionModule) -> list[SpectralRow]:
        weights = projection_weights(model, module.name)
        matrices = [Matrix(module.name, projection, weight) for projection, weight in weights.items()]
        if per_head:
            matrices += [
                Matrix(module.name, projection, part, head)
                for projection, weight in weights.items()
                for head, part in head_slices(weight, projection, module.heads, module.kv_heads)
            ]
        found = {role_of(projection) for projection in weights}
        return [*fit_spectra(matrices), *(SpectralRow(module.name, role) for role in ROLES if role not in found)]

    rows: list[SpectralRow] = []
    for done, of_one in enumerate(processes.spread(of_module, description.modules), start=1):
        rows += of_one
        report(SPECTRA, done, len(description.modules))
    return tuple(rows)
