"""``taylorder pull``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from taylorder.commands import options
from taylorder.commands._shared import check_writable, print_next
from taylorder.errors import UsageError
from taylorder.runs import run_files


def pull(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="What `taylorder push` wrote.")],
    out: Annotated[Path, options.path("Write the config into this folder.", "--out", "DIR")] = run_files.DEFAULT,
    revision: Annotated[str | None, options.value("Take this branch, tag or commit.", "NAME", "the newest")] = None,
) -> None:
    """Fetch a config from the Hugging Face Hub.

    Example: taylorder pull me/smollm2-64KiB --out small
    """
    check_writable(out)
    if (out / run_files.FILES["report"]).exists():
        raise UsageError(f"--out {out} holds a run, which is more than its config; name another folder")

    from taylorder.integrations.hub import pull as fetch

    config = fetch(repository, out, revision)
    there = shlex.quote(str(out))
    print_next(
        f"wrote {out}, a config of {config.model.name}",
        f"taylorder generate PROMPT --config {there}",
        f"taylorder eval --config {there}",
    )
