"""What an analysis measured: plain frozen values, one class per table.

``CandidateRow`` is a row of ``heads.csv`` and ``SpectralRow`` one of ``spectral.csv``; fields are columns, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

from taylorder.kernels.spec import Expansion
from taylorder.models.description import ModelDescription
from taylorder.storage.frames import as_html, frame_of

if TYPE_CHECKING:
    from pandas import DataFrame

Role: TypeAlias = Literal["q", "k", "v", "o"]
"""What a projection makes, or is made of: queries, keys, values, and the output from the heads' outputs."""

LatentProjection: TypeAlias = Literal["q_b", "k_b", "v_b"]
"""The second of two matrices, behind a latent (DeepSeek V2, V3): rows of ``q_b_proj``, those of ``kv_b_proj`` that make
keys, and those that make values."""

Projection: TypeAlias = Role | LatentProjection

ROLES: tuple[Role, ...] = get_args(Role)


def role_of(projection: Projection) -> Role:
    """What a projection makes."""
    return next(role for role in ROLES if role == projection.removesuffix("_b"))


LEAST_FAR_SHARE = 0.5
"""Share of the measured query rows that must have far keys for an order to be chosen: the others have no error."""


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """Error of one head under one candidate, over all sampled query rows of all sequences.

    Errors compare the head's output with exact attention, both in float64 from the same q, k, v. ``relative_l2``,
    ``rmse``, ``cosine``, ``max_error`` and ``median_row_error`` are with the guard applied, ``raw_*`` without it.
    ``None`` marks a figure that does not exist (a vacuous bound), never one that failed to be computed.
    """

    module: str
    head: int
    kv_head: int
    order: int
    expansion: Expansion
    window: int
    sinks: int
    relative_l2: float
    rmse: float
    cosine: float
    max_error: float
    nonpositive_share: float
    score_mean: float
    score_std: float
    score_max: float
    median_row_error: float
    raw_relative_l2: float
    raw_rmse: float
    raw_cosine: float
    raw_max_error: float
    gaussian_prediction: float
    fitted_floor: float
    certified_bound: float | None
    log_keys: float
    logit_rank: int


@dataclass(frozen=True, slots=True)
class SpectralRow:
    """WeightWatcher's power-law fit of one projection matrix (or of one head's slice of it).

    ``status`` is ``success``, ``failed`` (a fit was tried and is unusable: every figure is None) or ``unavailable``
    (the module has no such matrix). Where a module makes queries, keys or values of a latent, ``projection`` is that of
    the matrix behind it, and ``role`` what it makes. ``alpha_low`` and ``alpha_high`` span the alphas of all tail
    starts whose Kolmogorov-Smirnov distance D lies within 0.01 of the best one; ``hill_alpha`` is that of the largest
    half of the eigenvalues, None where they are all alike. ``head`` is None for the whole projection.
    """

    module: str
    projection: Projection
    alpha: float | None = None
    D: float | None = None
    sigma: float | None = None
    tail: int | None = None
    status: Literal["success", "failed", "unavailable"] = "unavailable"
    alpha_low: float | None = None
    alpha_high: float | None = None
    rows: int = 0
    columns: int = 0
    spectral_norm: float | None = None
    stable_rank: float | None = None
    hill_alpha: float | None = None
    head: int | None = None

    @property
    def role(self) -> Role:
        """What the matrix makes."""
        return role_of(self.projection)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The text and the query rows that were measured; enough to draw them again.

    ``bos`` is the token that every sequence begins with, None where the tokenizer puts none in front of a text;
    ``unknown_share`` the share of tokens that the tokenizer did not know; ``far_share`` the share of measured query
    rows that have keys outside of the near field. ``nll`` is the loss of the model as it is, in nats per token, on the
    first :data:`~taylorder.analysis.analyze.LOSS_TOKENS` tokens, and ``vocabulary`` the number of its tokens; None
    without a language-model head. ``inputs`` are names and shapes of a batch of the model's own inputs, in words, which
    stand in the place of a text, and whose hash ``text_sha256`` is then; None for text.
    """

    source: str
    text_sha256: str
    sequences: int
    sequence_length: int
    tokens: int
    rows_per_sequence: int
    seed: int
    query_rows: tuple[tuple[int, ...], ...] = field(repr=False)
    bos: int | None = None
    unknown_share: float = 0.0
    far_share: float = 1.0
    nll: float | None = None
    vocabulary: int | None = None
    inputs: str | None = None

    @property
    def rows(self) -> int:
        """Query rows measured, over all sequences."""
        return sum(map(len, self.query_rows))

    @property
    def far_rows(self) -> int:
        """Those of them that have far keys."""
        return round(self.far_share * self.rows)


@dataclass(frozen=True, slots=True)
class NearFieldPreview:
    """What a near field would change: relative L2 per head and order, expansion ``mean``, as measured."""

    window: int
    sinks: int
    orders: tuple[int, ...]
    relative_l2: dict[str, tuple[tuple[float, ...], ...]] = field(repr=False)
    """Module name to ``[H][len(orders)]``."""


@dataclass(frozen=True)
class Analysis:
    """Everything ``taylorder.analyze`` measured on one model."""

    model: ModelDescription
    calibration: Calibration
    max_order: int
    window: int
    sinks: int
    candidates: tuple[CandidateRow, ...]
    spectral: tuple[SpectralRow, ...]
    preview: NearFieldPreview | None
    key_centres: dict[str, torch.Tensor] = field(repr=False)
    """Module name to the mean key of each KV head, float32 ``[G, d]``."""

    def __repr__(self) -> str:
        """One line; the tables are those of :meth:`to_frame` and :meth:`spectral_frame`."""
        near = f", window {self.window} and {self.sinks} sinks" if self.window or self.sinks else ""
        text = f"{self.calibration.sequences} x {self.calibration.sequence_length:,} tokens"
        return f"<Analysis of {self.model.name}: {self.model.shape}, {text}, orders 1 to {self.max_order}{near}>"

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_frame(self) -> DataFrame:
        """One row per head and candidate, as in ``heads.csv``: the fields of :class:`CandidateRow`.

        >>> analysis.to_frame().groupby("order").relative_l2.median()
        order
        1 ...
        """
        return frame_of(CandidateRow, self.candidates)

    def spectral_frame(self) -> DataFrame:
        """One row per projection, as in ``spectral.csv``: the fields of :class:`SpectralRow`.

        >>> analysis.spectral_frame().query("projection == 'q'").alpha.describe()
        count ...
        """
        return frame_of(SpectralRow, self.spectral)
