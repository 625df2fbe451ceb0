"""What ``claims`` leaves in a directory that is no run: ``claims.json`` and ``claims.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taylorder.files import replacing
from taylorder.reports import html_claims
from taylorder.reports.document import CLAIMS_FILE, CLAIMS_PAGE, as_json
from taylorder.reports.run_directory import RunDirectoryError


def write(directory: str | Path, document: Mapping[str, Any], runs: Sequence[Path]) -> None:
    """Write a document of claims about finished runs, and its page.

    Raises:
        RunDirectoryError: the directory cannot be written.

    """
    directory = Path(directory)
    try:
        with replacing(directory / CLAIMS_FILE) as temporary:
            temporary.write_text(as_json(dict(document)), encoding="utf-8")
        html_claims.write(directory / CLAIMS_PAGE, document, runs)
    except OSError as error:
        raise RunDirectoryError(f"{directory} cannot be written ({error.strerror}); name another with --out") from error
