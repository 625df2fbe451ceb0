"""What a measurement can be told; nothing heavy is imported, so that the command line can show the defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How a model is measured, and the only place where the defaults stand.

    ``max_tokens`` of the text are used, in sequences of ``sequence_length``; ``rows`` query rows of each are drawn with
    ``seed``, None for all. Orders 1 to ``max_order`` are measured beside a near field of ``window`` and ``sinks``.
    ``per_head_alpha`` also fits alpha to the slice of each head.
    """

    max_tokens: int = 8192
    sequence_length: int = 1024
    rows: int | None = 64
    max_order: int = 8
    window: int = 0
    sinks: int = 0
    seed: int = 0
    per_head_alpha: bool = False


DEFAULTS = MeasureSettings()
