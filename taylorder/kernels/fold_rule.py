"""When tokens that have become far are folded into a state: it changes no result, only time and memory."""

from __future__ import annotations

BLOCK = 64
"""Fewest tokens folded at a time once a state exists: a decode step folds nothing 63 times out of 64."""

RAW_SHARE = 0.8
"""Tokens are kept as they are until they hold this share of the state's numbers: then both take about equal time."""


def worth_a_state(features: int, head_dim: int, value_dim: int) -> int:
    """Fewest far tokens for which a state of so many features is begun."""
    return max(BLOCK, int(RAW_SHARE * features * (value_dim + 1) / (head_dim + value_dim)))
