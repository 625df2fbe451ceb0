"""What ``taylorder doctor`` prints: what was looked at, and a sentence for everything that is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taylorder.reports.numbers import counted
from taylorder.reports.sections import Cell, Section, facts, paragraph
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/doctor@1"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: its name and what was found.

    ``way_out`` says what is wrong and what to do, empty where nothing is; what is ``needed`` no command works without.
    """

    name: str
    found: str
    way_out: str = ""
    needed: bool = False

    @property
    def broken(self) -> bool:
        """Whether nothing works because of it."""
        return self.needed and bool(self.way_out)


def as_document(found: Sequence[Finding]) -> dict[str, Any]:
    """The result as one JSON document, schema ``taylorder/doctor@1``."""
    ready = not any(one.broken for one in found)
    return stamped(SCHEMA, {"ready": ready, "findings": [asdict(one) for one in found]})


def sections(found: Sequence[Finding]) -> Iterator[Section]:
    """What was found, and below it what to do."""
    yield Section("taylorder doctor", (facts({one.name: Cell(one.found, style=_style(one)) for one in found}),))
    amiss = [one for one in found if one.way_out]
    if not amiss:
        yield Section("", (paragraph("Nothing is missing.", style="good"),))
        return
    broken = sum(one.broken for one in amiss)
    said = "needed by every command" if broken else "none of them needed by every command"
    heading = f"{counted(broken, 'thing')} to mend" if broken else f"{counted(len(amiss), 'hint')}"
    ways = facts({one.name: one.way_out for one in sorted(amiss, key=lambda one: not one.broken)})
    yield Section(heading, (paragraph(f"{said}:", style="faint"), ways))


def _style(one: Finding) -> Any:
    return "bad" if one.broken else "doubtful" if one.way_out else ""
