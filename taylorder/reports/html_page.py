"""Pages that need nothing else: a template filled in, with style, script and data inside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taylorder.reports import charts, claims
from taylorder.reports.column_help import EXPLAINED
from taylorder.reports.fitting_tables import fold
from taylorder.reports.sections import Drawing, Paragraph, Table

_FOLDER = Path(__file__).parent / "page"
_EVERYWHERE = ("theme.js", "element.js", "copy.js", "overflow.js", "help.js", "download.js")
"""Scripts of every page."""

_WIDTH = 80
"""Characters that a table which folds has room for."""


def fill(template: str, scripts: Sequence[str], *, title: str, verdict: str, **values: Any) -> str:
    """Return a page as one string.

    Args:
        template: file in the folder ``page``, made from ``base.html.j2``.
        scripts: files there beside those of every page, in the order in which they run, as one module.
        title: heading of the page.
        verdict: what stands below it.
        values: what else the template asks for.

    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["drawing"] = lambda block: isinstance(block, Drawing)
    environment.tests["paragraph"] = lambda block: isinstance(block, Paragraph)
    environment.filters["folded"] = lambda block: fold(block, _WIDTH) if block.folds else block
    environment.filters |= {"help": EXPLAINED.get, "slug": lambda text: re.sub(r"\W+", "-", text)}
    environment.filters |= {"chart": charts.chart, "effects": claims.effects, "figures": claims.figures}
    environment.globals |= {"bottom": charts.BOTTOM, "top": charts.TOP, "right": charts.RIGHT}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template(template).render(
        title=title,
        verdict=verdict,
        explained=EXPLAINED,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup("".join((_FOLDER / name).read_text(encoding="utf-8") for name in (*_EVERYWHERE, *scripts))),
        **values,
    )
