"""Where one config holds more than the other: a grid of KV heads by layer for the terminal, and a map for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from taylorder.evaluation.two_configs import A, B
from taylorder.kernels.spec import Exact, HeadSpec, Taylor
from taylorder.reports import near_words
from taylorder.reports.numbers import counted, layer_names, number
from taylorder.reports.sections import Beside, Cell, Column, Fill, GridLayout, GridRow, HeadGrid, Key, Legend
from taylorder.selection.config_pair import ConfigPair, Held, KvHeadPair

ALIKE, OTHERWISE = "=", "~"


class Side(NamedTuple):
    """How a KV head is shown of which one config holds more, by the mark."""

    meaning: str
    fill: Fill | None


SIDES = {
    "A": Side("A holds at least twice as many tokens", Fill("#b3470f", "#ffffff")),
    "a": Side("A holds more", Fill("#f2b48a", "#000000")),
    ALIKE: Side("both run the same", None),
    OTHERWISE: Side("as many tokens, but something else differs", None),
    "b": Side("B holds more", Fill("#a9d6f5", "#000000")),
    "B": Side("B holds at least twice as many tokens", Fill("#1f6fb2", "#ffffff")),
}
"""Two hues that the colour blind tell apart; capitals say what the darker shade does."""

MEANS = (A, B, f"{B}-{A}")
"""Titles of what the KV heads of a layer hold on average."""


def side(pair: KvHeadPair) -> str:
    """The mark of a KV head."""
    if not pair.tokens:
        return ALIKE if pair.same else OTHERWISE
    fewer, more = sorted((pair.a.tokens, pair.b.tokens))
    letter = B if pair.tokens > 0 else A
    return letter if more >= 2 * fewer else letter.lower()


def counts(configs: ConfigPair) -> Counter[str]:
    """KV heads by mark."""
    return Counter(map(side, configs.kv_heads))


def grid(configs: ConfigPair) -> HeadGrid:
    """A mark for every KV head, and beside them what the KV heads of a layer hold on average."""
    rows = []
    widest = _widest(configs)
    for label, pairs in layers(configs):
        marks = [side(pair) for pair in pairs]
        cells = tuple(Cell(mark, style="strong" if mark in "AB" else "", fill=SIDES[mark].fill) for mark in marks)
        summary = tuple(Cell(f"{mark}: {marks.count(mark)}") for mark in SIDES if mark in marks)
        rows.append(GridRow(label, (*cells, *[Cell("")] * (widest - len(cells))), summary, means(pairs)))
    beside = tuple(
        Beside(title, 3 + max(len(title), *(len(row.beside[column].text) for row in rows)))
        for column, title in enumerate(MEANS)
    )
    spacing = ((len(str(widest - 1)), " "), (1, ""))
    layouts = (GridLayout((0, 1, 2)), GridLayout((2,)), GridLayout((), "There is no room for the tokens of a layer."))
    return HeadGrid(tuple(rows), 1, spacing, (Column("KV heads by mark"),), beside, layouts)


def differences(configs: ConfigPair) -> list[tuple[Cell, list[tuple[Cell, str]], tuple[Cell, ...]]]:
    """The map of the page: for every KV head of a layer B's tokens less A's and both in words; the layer's means."""
    return [(label, [_difference(pair) for pair in pairs], means(pairs)) for label, pairs in layers(configs)]


def across(configs: ConfigPair) -> range:
    """The columns of the map: KV heads of the layer that has most."""
    return range(_widest(configs))


def _widest(configs: ConfigPair) -> int:
    return max(len(pairs) for _, pairs in layers(configs))


def _difference(pair: KvHeadPair) -> tuple[Cell, str]:
    mark = side(pair)
    text = signed(pair.tokens).text if pair.tokens else mark
    return Cell(text, pair.tokens, fill=SIDES[mark].fill), f"A {held(pair.a)}, B {held(pair.b)}"


def means(pairs: Sequence[KvHeadPair]) -> tuple[Cell, ...]:
    """Tokens that KV heads hold on average, under A and B, and the difference."""
    a, b = (round(sum(tokens) / len(pairs)) for tokens in zip(*((p.a.tokens, p.b.tokens) for p in pairs), strict=True))
    return Cell(number(a), a), Cell(number(b), b), signed(b - a)


def legend(configs: ConfigPair) -> Legend:
    """What the marks mean, with the number of KV heads behind each."""
    found = counts(configs)
    return Legend(
        tuple(
            Key((Cell(mark, fill=shown.fill),), f"{shown.meaning} ({counted(found[mark], 'KV head')})")
            for mark, shown in SIDES.items()
            if found[mark]
        )
    )


def held(what: Held) -> str:
    """What a KV head holds: sinks/window/kept keys, and the polynomial for all others; ``all`` is exact."""
    if isinstance(what.specs[0].far, Exact):
        return "all"
    text = near_words.tokens(what.specs[0].near, parts=True)
    orders = sorted({spec.far.order for spec in what.specs if isinstance(spec.far, Taylor)})
    if not orders:
        return text
    return f"{text} +P{'-'.join(map(str, sorted({orders[0], orders[-1]})))}{_options(what.specs)}"


def _options(specs: tuple[HeadSpec, ...]) -> str:
    """Expansion, low ranks and fitted coefficients of the polynomials of a KV head."""
    polynomials = [spec.far for spec in specs if isinstance(spec.far, Taylor)]
    marks: list[str] = [*sorted({far.expansion for far in polynomials})]
    ranks = [far.ranks[-1] for far in polynomials if far.ranks is not None]
    marks += [f"r{min(ranks)}"] if ranks else []
    marks += ["fitted"] if any(far.coefficients is not None for far in polynomials) else []
    return f" {' '.join(marks)}"


def layers(configs: ConfigPair) -> list[tuple[Cell, tuple[KvHeadPair, ...]]]:
    """The KV heads of every layer, with its label, marked where it stays exact."""
    by_module: dict[str, list[KvHeadPair]] = {}
    for pair in configs.kv_heads:
        by_module.setdefault(pair.module, []).append(pair)
    labels = layer_names(list(by_module)).labels
    return [
        (Cell(labels[module], mark="~" if module in configs.closed else ""), tuple(pairs))
        for module, pairs in by_module.items()
    ]


def signed(count: int, text: str | None = None) -> Cell:
    """A difference with its sign; 0 has none."""
    return Cell(f"{'+' if count > 0 else '-' if count < 0 else ''}{text or number(abs(count))}", count)
