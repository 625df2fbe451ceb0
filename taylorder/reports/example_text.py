"""The tokens of an example text that a KV head keeps, for the page: stretches of it by what became of their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from taylorder.adapt.near_example import NearExample, NearTokens
from taylorder.analysis.results import Analysis
from taylorder.reports.numbers import counted, layer_names, number
from taylorder.selection.by_tolerance import Selection

MOST_DRAWN = 6

KINDS = {"sink": "sinks", "window": "the window", "kept": "kept by priority", "far": "dropped, or read from a state"}
"""What becomes of a token, and how the page calls it."""


@dataclass(frozen=True, slots=True)
class DrawnText:
    """The text as one KV head has it at its end: what it keeps in words, and its stretches, each with its kind."""

    title: str
    stretches: tuple[tuple[str, str], ...]


def drawn_texts(analysis: Analysis, selection: Selection) -> tuple[DrawnText, ...]:
    """Those of the KV heads that keep most keys, of all that hold at most half of the example; in the model's order.

    Where many keep as many, they are taken from all over the model.
    """
    example = None if selection.levers is None else selection.levers.example
    if example is None:
        return ()
    length = len(example.pieces)
    some = [held for held in example.kv_heads if 2 * (held.sinks + held.window + len(held.kept)) <= length]
    least = sorted((len(held.kept) for held in some), reverse=True)[:MOST_DRAWN]
    most = [held for held in some if len(held.kept) >= least[-1]]
    chosen = [most[nth * len(most) // len(least)] for nth in range(len(least))]
    names = layer_names([module.name for module in analysis.model.modules])
    return tuple(
        DrawnText(_title(held, length, names.labels[held.module]), _stretches(example, held)) for held in chosen
    )


def source(selection: Selection) -> str:
    """Where the text is from."""
    example = None if selection.levers is None else selection.levers.example
    return "" if example is None else f"{example.source}, {counted(len(example.pieces), 'token')}"


def _title(held: NearTokens, length: int, layer: str) -> str:
    others = length - held.sinks - held.window
    return (
        f"layer {layer}, KV head {held.kv_head}: {counted(held.sinks, 'sink')}, window {number(held.window)}, and "
        f"{number(len(held.kept))} of the other {counted(others, 'token')}"
    )


def _stretches(example: NearExample, held: NearTokens) -> tuple[tuple[str, str], ...]:
    kinds = _kinds(held, len(example.pieces))
    pairs = zip(kinds, example.pieces, strict=True)
    return tuple((kind, "".join(piece for _, piece in pieces)) for kind, pieces in groupby(pairs, lambda pair: pair[0]))


def _kinds(held: NearTokens, length: int) -> Sequence[str]:
    kept = set(held.kept)
    return [
        "sink" if place < held.sinks
        else "window" if place >= length - held.window
        else "kept" if place in kept
        else "far"
        for place in range(length)
    ]  # fmt: skip
