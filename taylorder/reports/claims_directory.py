"""What ``claims`` leaves in a directory that is no run: ``claims.json`` and ``claims.html``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taylorder.reports import html_claims
from taylorder.reports.claims import ClaimsReport, as_document
from taylorder.reports.document import as_json
from taylorder.reports.run_directory import unwritable
from taylorder.runs.run_files import CLAIMS_FILE, CLAIMS_PAGE
from taylorder.storage.files import replacing_together


def write(directory: str | Path, report: ClaimsReport, runs: Sequence[Path]) -> None:
    """Write claims about finished runs, and their page.

    Raises:
        RunDirectoryError: the directory cannot be written.

    """
    directory = Path(directory)
    try:
        with replacing_together(directory, (CLAIMS_PAGE, CLAIMS_FILE)) as made:
            (made / CLAIMS_PAGE).write_text(html_claims.render(report, runs, directory), encoding="utf-8")
            (made / CLAIMS_FILE).write_text(as_json(as_document(report)), encoding="utf-8")
    except OSError as error:
        raise unwritable(directory, error) from error
