"""``analyze``: the whole measurement of one model, from text to an :class:`Analysis`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorder.analysis.candidate_rows import candidate_rows
from taylorder.analysis.capture import LayerTensors, run_layers, run_layers_on
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
from taylorder.models.inputs import GivenInputs, Inputs
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
    """What the model is run on, and how query rows are drawn: as many of each sequence, with one seed.

    ``tokens`` are those of a text, whose sequences ``inputs`` are then; None for inputs of the model's own.
    """

    inputs: Inputs
    tokens: Tokens | None
    length: int
    rows: int | None
    seed: int

    def query_rows(self, length: int | None = None) -> list[Tensor]:
        """Positions of the query rows measured in each batch, ``[R]``, of sequences so long."""
        return query_rows(len(self.inputs), length or self.length, self.rows, self.seed)

    def far_share(self, near: int) -> float:
        """Share of the query rows that see more keys than a near field of so many holds."""
        return float(np.mean([row >= near for row in torch.cat(self.query_rows()).tolist()]))


@dataclass(frozen=True, slots=True)
class _Heads:
    """What was measured of the heads, by module name: rows, key centres ``[G, d]``, preview ``[H][orders]``.

    ``seen`` are sequences and tokens of each.
    """

    candidates: dict[str, list[CandidateRow]]
    centres: dict[str, Tensor]
    previews: dict[str, tuple[tuple[float, ...], ...]]
    seen: dict[str, tuple[int, int]]


def analyze(
    model: Any,
    tokenizer: Any = None,
    *,
    inputs: Inputs | GivenInputs | None = None,
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
        tokenizer: its tokenizer; None where it is run on ``inputs``.
        inputs: what to run the model on instead of text: batches of tensors by the names of its arguments, all of the
            same shapes, or a function that yields them. What self attention sees is measured, of encoders and of
            decoders; cross attention stays as it is. All batches go through the model together.
        name: what to call the model in the results; default as ``taylorder.describe`` has it.
        description: ``taylorder.describe(model)``, if it was made already.
        text: calibration text, as a string or in tokens; default the English that Python ships (465 kB).
        max_tokens: tokens of the text used, cut into sequences of ``sequence_length``. Memory grows with it.
        sequence_length: tokens per sequence; models with fewer positions use as many as they have.
        rows: query rows measured per sequence, drawn at random; None measures all. Of inputs, the sequences of one
            batch are measured at the same positions.
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
        UsageError: an argument is out of range, the text too short, or the inputs are no tensors that the model takes.
        NonFiniteError: the model produces NaN or infinities.

    """
    _check_range("max_order", max_order, 1, MAX_ORDER)
    _check_range("window", window, 0, None)
    _check_range("sinks", sinks, 0, None)
    _check_range("seed", seed, 0, None)
    if rows is not None:
        _check_range("rows", rows, 1, None)
    given = None if inputs is None else Inputs.of(inputs)
    if (given is None) == (tokenizer is None and not isinstance(text, Tokens)) or (given is not None and text):
        raise UsageError("analyze takes a tokenizer, with a text or without, or inputs; give it one of the two")
    if description is None:
        description = describe(model, name, inputs=given)
    if not description.causal and (window or sinks):
        raise UsageError(
            f"{description.name} attends in both directions and has no near field; found window {window} and sinks "
            f"{sinks}, expected 0 and 0"
        )
    refuse_broken_weights(model, description.name)
    tokens, length = None, description.max_context
    if given is None:
        tokens, length = Tokens.of(tokenizer, text), min(sequence_length, length)
        sequences = tokens.first(length, max_tokens)
        refuse_foreign_ids(model, sequences)
        given = Inputs.of_tokens(sequences, tokens.text.source)
    sample = _Sample(given, tokens, length, rows, seed)
    sweeps = _sweeps(description, sample, max_order, window, sinks)
    report = progress or silent
    spectral = _spectra(model, description, per_head_alpha, report)
    heads = _measure_heads(model, description, sample, sweeps, report)
    preview = None
    if len(sweeps) > 1:
        preview = NearFieldPreview(PREVIEW_WINDOW, SINKS, _preview_orders(max_order), heads.previews)
    return Analysis(
        model=description,
        calibration=_calibration(model, description, sample, heads, sample.far_share(window + sinks)),
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
            f"window {window} and sinks {sinks} leave none of the {sum(map(len, sample.query_rows()))} measured query "
            f"rows a far key in sequences of {sample.length} tokens, so that nothing would be truncated: "
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
    mine = processes.share(len(sample.inputs), "calibration sequences")
    modules = {module.name: module for module in description.modules}
    heads = _Heads({}, {}, {}, {})

    def consume(module_name: str, layer: LayerTensors) -> None:
        centre = key_centres(layer)
        sequences, _, length, _ = layer.q.shape
        rows = sample.query_rows(length)[mine.start : mine.stop]
        # A batch may be of several examples, and of an image in windows; and a module may attend several times.
        rows *= sequences // len(rows)
        scores, sums = measure(layer, centre, rows, sweeps)
        heads.centres[module_name] = centre.float().cpu()
        heads.candidates[module_name] = candidate_rows(modules[module_name], layer, scores, sums[0])
        heads.seen[module_name] = sequences // len(mine) * len(sample.inputs), length
        for preview in sums[1:]:
            errors = relative(preview.squared["guarded"][0], scores.output_squared)
            heads.previews[module_name] = tuple(map(tuple, errors.T.tolist()))
        report(HEADS, len(heads.candidates), len(modules))

    batch = sample.inputs.together(mine)
    if sample.tokens is None:
        run_layers_on(model, batch, consume, description.cross)
    else:
        run_layers(model, batch["input_ids"], consume, calls=description.calls)
    return heads


def _calibration(
    model: Any, description: ModelDescription, sample: _Sample, heads: _Heads, far_share: float
) -> Calibration:
    """What the results say of the text or the inputs, with the model's own loss on text."""
    tokens, inputs = sample.tokens, sample.inputs
    if tokens is None:
        sequences, length = heads.seen[description.typical.name]
        source, sha256, bos, unknown = inputs.source, inputs.sha256, None, 0.0
        nll, vocabulary = None, None
    else:
        input_ids = inputs.together()["input_ids"]
        sequences, length = input_ids.shape
        source, sha256, bos = tokens.text.source, tokens.text.sha256, tokens.bos
        unknown = tokens.unknown_share(input_ids)
        nll, vocabulary = _loss(model, description, input_ids[0, :LOSS_TOKENS])
    drawn = sample.query_rows(length)
    return Calibration(
        source=source,
        text_sha256=sha256,
        sequences=sequences,
        sequence_length=length,
        tokens=sequences * length,
        rows_per_sequence=len(drawn[0]),
        seed=sample.seed,
        query_rows=tuple(tuple(positions.tolist()) for positions in drawn),
        bos=bos,
        unknown_share=unknown,
        far_share=far_share,
        nll=nll,
        vocabulary=vocabulary,
        inputs=None if tokens is not None else inputs.words,
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
