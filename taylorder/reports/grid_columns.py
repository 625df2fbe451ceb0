"""Where the cells of a layer x head grid go in a line of text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from taylorder.models.description import AttentionModule
from taylorder.reports.numbers import LayerNames

SLIDING_MARK = "~"


class HeadRow:
    """One grid row: a cell per head, a gap between heads, a bar between the groups that share a KV head."""

    def __init__(self, module: AttentionModule, cell: int, gap: str) -> None:
        self.cell, self.gap, self.heads = cell, gap, module.heads
        # Where every head has a KV head of its own, or all share one, there is nothing to set apart.
        self.group = module.group if 1 < module.group < module.heads else module.heads
        self.bar = f"{gap}\u2502{gap}" if gap or cell > 1 else " "

    @property
    def width(self) -> int:
        """Characters of one row."""
        bars = self.heads // self.group - 1
        return self.heads * self.cell + (self.heads - 1 - bars) * len(self.gap) + bars * len(self.bar)

    def line(self, cells: Sequence[Text]) -> Text:
        """Join one cell per head."""
        groups = [Text(self.gap).join(cells[start : start + self.group]) for start in range(0, self.heads, self.group)]
        return Text(self.bar).join(groups)

    def header(self, after: str = "") -> Text:
        """Head numbers above their columns, ``after`` behind each, or only their range where columns are too narrow."""
        if self.cell < len(str(self.heads - 1)):
            return Text(f"head 0-{self.heads - 1}".ljust(self.width))
        return self.line([Text(f"{head}{after}".rjust(self.cell)) for head in range(self.heads)])


def widest_row(module: AttentionModule, room: int, choices: Sequence[tuple[int, str]]) -> HeadRow | None:
    """The first of the ``(cell, gap)`` choices that fits in ``room`` characters; None if none does."""
    rows = (HeadRow(module, cell, gap) for cell, gap in choices)
    return next((row for row in rows if row.width <= room), None)


def label_width(names: LayerNames) -> int:
    """Characters before the first cell of a row."""
    return max(5, *(len(label) for label in names.labels.values())) + 3


def heading(names: LayerNames) -> Text:
    """What stands above the row labels."""
    return Text(f"{'layer':>{label_width(names) - 3}}   ")


def row_label(names: LayerNames, module: AttentionModule) -> Text:
    """Layer number, with a mark if the layer attends to a sliding window."""
    mark = SLIDING_MARK if module.sliding_window is not None else " "
    return Text(f"{names.labels[module.name]:>{label_width(names) - 3}}{mark}  ")
