"""What to say where a directory is not a complete run, and why."""

from __future__ import annotations

import errno
from pathlib import Path

from taylorder.errors import TaylorderError


class RunDirectoryError(TaylorderError):
    """A directory is not a complete run of ``taylorder analyze``."""


def unwritable(directory: Path, error: OSError) -> RunDirectoryError:
    """What to say where files of a directory could not be replaced."""
    reason = error.strerror or str(error)
    if error.errno == errno.EISDIR:
        reason += f": {error.filename}"
    return RunDirectoryError(f"{directory} cannot be written ({reason}) and keeps what it had; name another with --out")


def incomplete(path: Path) -> RunDirectoryError:
    """A file is not there: no run was finished."""
    if (path.parent / "config.json").is_file():
        return RunDirectoryError(f"{path.parent} is a model, not a run; `taylorder analyze {path.parent}` makes a run")
    return RunDirectoryError(
        f"{path.parent} has no {path.name}, so no run was finished there; "
        f"`taylorder analyze --out {path.parent}` makes one"
    )


def damaged(path: Path, what: str) -> RunDirectoryError:
    """A file does not hold what a run writes."""
    return RunDirectoryError(f"{path} is damaged ({what}); `taylorder analyze --out {path.parent}` writes it anew")
