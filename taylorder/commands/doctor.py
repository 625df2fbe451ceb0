"""``taylorder doctor``."""

from __future__ import annotations

from taylorder.commands import options
from taylorder.commands._shared import print_report
from taylorder.errors import TaylorderError


def doctor(output: options.Format = "human") -> None:
    """Look at the installation and the machine, and say what is missing and the way out.

    Ends with exit code 1 only where something is broken that every command needs.

    Example: taylorder doctor
    """
    from taylorder.commands._diagnosis import findings
    from taylorder.reports import doctor as report

    found = tuple(findings())
    print_report(output, lambda: report.as_document(found), report.sections(found))
    broken = [one.name for one in found if one.broken]
    if broken:
        raise TaylorderError(f"{', '.join(broken)} cannot be used as installed; the report says what to do")
