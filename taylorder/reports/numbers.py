"""How numbers and names are written for people: errors in percent, sizes in binary units, modules as layer numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from taylorder.models.description import AttentionModule, WhyExact
from taylorder.reports.sections import Cell

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def percent(error: float, digits: int = 2) -> str:
    """A relative error as a percentage with at least ``digits`` significant digits: ``8.1%``, ``106%``, ``1.2e4%``."""
    return f"{percent_figure(error, digits)}%"


def percent_figure(error: float, digits: int = 2) -> str:
    """The same without the sign, for a column of such figures."""
    value = 100 * error
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 9999.5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if abs(value) >= 10**digits - 0.5:
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.{digits}f}"


def percent_cell(error: float) -> str:
    """A relative error in percent, without the sign, in at most three characters."""
    value = 100 * error
    if not math.isfinite(value):
        return str(value)[-3:]
    if value < 0.05:
        return "<.1"
    if value < 9.95:
        return f"{value:.1f}"
    if value < 999.5:
        return f"{value:.0f}"
    exponent = int(math.log10(value))
    return f"{min(9, round(value / 10**exponent))}e{exponent}" if exponent < 10 else "big"


def size(count: int) -> str:
    """Bytes in binary units with three significant digits; powers of ten where units run out."""
    if count < 1024:
        return f"{count} B"
    if count >= 999 * 1024 ** (len(_UNITS) - 1):
        return f"1e{round(math.log10(count))} B"  # may be too large for a float
    value, unit = float(count), 0
    while value >= 999.5:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {_UNITS[unit]}"


def number(count: int) -> str:
    """An integer with thousands separators, as a power of ten from 10^12 on."""
    return f"{count:,}" if count < 10**12 else f"1e{round(math.log10(count))}"


def compact(count: int, digits: int = 2) -> str:
    """An integer with thousands separators, with a few significant digits from a million on."""
    if count < 10**6:
        return f"{count:,}"
    mantissa, exponent = f"{count:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def counted(count: int, noun: str) -> str:
    """``1 head``, ``270 heads``."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """``image``, ``image and video``, ``image, video and audio``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Short labels of attention modules, and the pattern that gives the full names back."""

    labels: dict[str, str]
    pattern: str

    def head(self, module: str, head: int) -> str:
        """``layer 4 head 2``."""
        return f"layer {self.labels[module]} head {head}"


def layer_names(modules: Sequence[str]) -> LayerNames:
    """Label modules by the one number in which their names differ, or else by position."""
    parts = [module.split(".") for module in modules]
    if len({len(split) for split in parts}) == 1:
        columns = list(zip(*parts, strict=True))
        varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
        if not varying:
            varying = [place for place, column in enumerate(columns) if column[0].isdigit()][:1]
        if len(varying) == 1 and all(text.isdigit() for text in columns[varying[0]]):
            place = varying[0]
            pattern = ".".join("N" if index == place else text for index, text in enumerate(parts[0]))
            return LayerNames({module: split[place] for module, split in zip(modules, parts, strict=True)}, pattern)
    labels = {module: str(position) for position, module in enumerate(modules)}
    return LayerNames(labels, f"{modules[0]} to {modules[-1]}, numbered in order")


def layer_labels(modules: Sequence[AttentionModule]) -> list[tuple[AttentionModule, Cell]]:
    """Every module with its label, marked if it stays exact."""
    labels = layer_names([module.name for module in modules]).labels
    return [(module, Cell(labels[module.name], mark="" if module.stays_exact is None else "~")) for module in modules]


def staying(module: AttentionModule) -> str | None:
    """What keeps a module exact, ``sliding window of 512 tokens``; None where nothing does."""
    match module.stays_exact:
        case "sliding":
            return f"sliding window of {counted(module.sliding_window or 0, 'token')}"
        case "chunked":
            return f"chunks of {counted(module.chunk or 0, 'token')}"
        case "shared":
            return "keys that several layers read"
        case "repeated":
            return "several calls with the same keys"
        case "indexed":
            return "keys picked by a learned index"
        case "biased":
            return "a bias added to scores"
    return None


_STAYING: dict[WhyExact, str] = {
    "sliding": "sliding-window layer",
    "chunked": "chunked layer",
    "shared": "key-sharing layer",
    "repeated": "repeatedly attending layer",
    "indexed": "key-picking layer",
    "biased": "biased layer",
}


def staying_layers(modules: Sequence[AttentionModule]) -> str:
    """The layers that stay exact, ``4 sliding-window layers``, by what keeps them so."""
    whys = Counter(module.stays_exact for module in modules)
    return " and ".join(counted(whys[why], noun) for why, noun in _STAYING.items() if whys[why])
