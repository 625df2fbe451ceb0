"""A time as a person says it."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A rough time: seconds up to a minute and a half, minutes up to an hour and a half, else hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 10 * 3600 else f"{round(seconds / 3600):,} h"
