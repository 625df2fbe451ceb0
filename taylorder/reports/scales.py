"""Figures of a heat map: what stands in a cell, its colour, and the thresholds that a reader may set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from taylorder.reports.sections import Fill

_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
"""Perceptually even, and told apart by the colour blind."""

_STEPS = 64


class Figure(NamedTuple):
    """A figure of a head or a layer, for JSON.

    ``value`` is the number to sort and count by, None where there is none; ``text`` stands in a cell, ``words`` are
    what a screen reader says, and ``step`` is that on the palette, None for no colour.
    """

    value: float | None
    text: str
    words: str
    step: int | None


@dataclass(frozen=True, slots=True)
class Scale:
    """Which figures are bright, from ``low`` down, and which are dark, from ``high`` up."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[object]) -> Scale:
        """From the least to the largest of the figures there are."""
        there = known(values)
        return cls(min(there), max(there)) if there else cls(0.0, 1.0)

    def step(self, value: float | None) -> int | None:
        """Step on the palette; None for what is no figure."""
        if value is None or math.isnan(value):
            return None
        if self.high <= self.low or value <= self.low:
            return 0
        if value >= self.high:
            return _STEPS - 1
        share = (value - self.low) / (self.high - self.low)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(share * (_STEPS - 1))

    def ticks(self, text: Callable[[float], str]) -> list[str]:
        """What stands below the ends of the palette and its middle."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        places = (self.low,) if self.low == self.high else (self.low, middle, self.high)
        return [text(place) for place in places]


def palette() -> list[Fill]:
    """Colours from the bright end to the dark one, each with black or white, whichever is the more readable on it."""
    stops = [bytes.fromhex(stop) for stop in _VIRIDIS.split()]
    fills = []
    for step in range(_STEPS):
        at = (1 - step / (_STEPS - 1)) * (len(stops) - 1)
        below = min(len(stops) - 2, int(at))
        pairs = zip(stops[below], stops[below + 1], strict=True)
        colour = [round(low + (at - below) * (high - low)) for low, high in pairs]
        light = _luminance(colour) + 0.05
        fills.append(Fill("#" + bytes(colour).hex(), "#000000" if light / 0.05 > 1.05 / light else "#ffffff"))
    return fills


def _luminance(colour: Iterable[int]) -> float:
    shares = [channel / 255 for channel in colour]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def even_bounds(values: Iterable[object]) -> list[tuple[float, str]]:
    """Thresholds of even steps that take in all figures."""
    there = known(values)
    if not there:
        return []
    low, high = min(there), max(there)
    step = max(0.01, rounded((high - low) / 100, 1, math.ceil))
    places = range(math.floor(low / step), math.ceil((high + step) / step))
    texts = dict.fromkeys(f"{place * step:.2f}" for place in places)
    return [(float(text), text) for text in texts]


def rounded(value: float, digits: int, way: Callable[[float], float]) -> float:
    """``digits`` significant digits, rounded by ``way``."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{way(value / unit) * unit:.{digits - 1}e}")


def known(values: Iterable[object]) -> list[float]:
    """The figures among them that are numbers."""
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def finite(value: float) -> float | None:
    """A figure, None where JSON has none."""
    return value if math.isfinite(value) else None
