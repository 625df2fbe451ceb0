"""What reports are made of: headings that say what they are about, and indented notes."""

from __future__ import annotations

from typing import Literal, TypeAlias

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

INDENT = (0, 0, 0, 2)

About: TypeAlias = Literal["each head", "all heads", "config", "verdict"]


class Heading(Rule):
    """A heading; ``about`` decides where its section stands on the page."""

    def __init__(self, text: str, about: About) -> None:
        super().__init__(Text(text, style="bold"), align="left", style="dim")
        self.about = about

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the heading, over several lines where a line would cut it."""
        title = Text(str(self.title), style="bold")
        if title.cell_len + 2 > options.max_width:
            yield title
        else:
            yield from super().__rich_console__(console, options)


def title(text: str, about: About = "all heads") -> Padding:
    """A heading with room around it."""
    return Padding(Heading(text, about), (1, 0))


def note(text: str) -> Padding:
    """An indented paragraph."""
    return Padding(Text(text), INDENT, expand=False)
