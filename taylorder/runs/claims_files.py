"""What ``claims`` leaves behind: its document, and the page of the run it is about or one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taylorder.runs.refusals import unwritable
from taylorder.runs.run_files import CLAIMS_FILE
from taylorder.storage.files import replacing_together
from taylorder.storage.finite_json import as_json


def write(directory: str | Path, document: Mapping[str, Any], page_file: str, page: str) -> None:
    """Write a document of claims, and the page that shows them.

    Raises:
        RunDirectoryError: the directory cannot be written.

    """
    directory = Path(directory)
    try:
        with replacing_together(directory, (page_file, CLAIMS_FILE)) as made:
            (made / page_file).write_text(page, encoding="utf-8")
            (made / CLAIMS_FILE).write_text(as_json(dict(document)), encoding="utf-8")
    except OSError as error:
        raise unwritable(directory, error) from error
