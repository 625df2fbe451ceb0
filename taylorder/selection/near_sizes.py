"""Near fields of the same nominal bytes that give different shares of them to kept keys.

``token`` are the nominal bytes of a token of cache; a kept key costs those and its priority.
"""

from __future__ import annotations

from fractions import Fraction

from taylorder.adapt.cost import PRIORITY_BYTES
from taylorder.kernels.spec import Near

SHARES = (Fraction(3, 4), Fraction(1, 2), Fraction(8, 9))
"""What kept keys may have of a near field without its sinks; the first served best where all KV heads had one
(docs/choosing.md)."""


def keeping(near: Near, share: Fraction, token: int) -> Near:
    """A window that gives a share of its tokens to kept keys, for no more bytes; the window itself if it is too short.

    >>> keeping(Near(252, 4), Fraction(3, 4), 256)
    Near(window=63, sinks=4, kept=186)
    """
    window = max(1, round(near.window * (1 - share)))
    kept = (near.window - window) * token // (token + PRIORITY_BYTES)
    return Near(window, near.sinks, kept) if kept > 0 else near


def window_alone(near: Near, token: int) -> Near:
    """A window that takes the bytes of the kept keys, rounded down to tokens."""
    return Near(near.window + near.kept * (token + PRIORITY_BYTES) // token, near.sinks)


def grown(near: Near, more: int, token: int) -> Near:
    """A near field that takes so many more bytes, rounded down to keys; window and kept keys grow alike."""
    if not near.kept:
        return Near(near.window + more // token, near.sinks)
    window = more * near.window // (near.window * token + near.kept * (token + PRIORITY_BYTES))
    kept = (more - window * token) // (token + PRIORITY_BYTES)
    return Near(near.window + window, near.sinks, near.kept + kept)


def kept_share(near: Near) -> Fraction:
    """Which of :data:`SHARES` a near field's kept keys have, or none of them: the nearest."""
    exactly = Fraction(near.kept, max(1, near.window + near.kept))
    return min((Fraction(0), *SHARES), key=lambda share: abs(share - exactly))
