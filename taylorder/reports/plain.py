"""Reports as plain text: what a pipe or a file gets."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console


def plain_text(render: Callable[[Console], None], width: int = 80) -> str:
    """What ``render`` prints, without colour and trailing blanks, no wider than ``width``."""
    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False)
    with console.capture() as captured:
        render(console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
