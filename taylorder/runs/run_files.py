"""What the files of a run are called, and what to say where they are not what a run leaves behind.

Apart, since the modules that write and read them take seconds to import.
"""

from __future__ import annotations

import errno
from pathlib import Path

from taylorder.errors import TaylorderError, UsageError

DEFAULT = Path("taylorder-out")
"""Where `taylorder analyze` writes a run, and where other commands look for one, unless told otherwise."""

FILES = {
    "orders": "orders.json",
    "heads": "heads.csv",
    "spectral": "spectral.csv",
    "report": "report.json",
    "page": "report.html",
}
CLAIMS_FILE, CLAIMS_PAGE = "claims.json", "claims.html"
"""What `taylorder claims` made of the run, where it was asked to; and the page, where it was asked about several."""

LEVERS_FILE = "levers.csv"
"""One row per KV head and candidate, where levers were measured."""

PROBES_FILE = "probes.csv"
"""One row per KV head, where probes were fitted and judged on held-out text."""

ALL = (
    FILES["orders"], "orders.safetensors", FILES["heads"], FILES["spectral"], LEVERS_FILE, PROBES_FILE, FILES["page"],
    CLAIMS_FILE, FILES["report"],
)  # fmt: skip
"""The files of a run, and of what was found out about it; the last says that the others are complete."""


OF_BUDGETS = ("budgets.json", "index.html")
"""What stands beside the runs of several budgets, each of which has a folder of its own."""

CARD_FILE = "README.md"
"""What the Hub shows of a config, or of a model that was exported with one."""

HEALED = (
    CARD_FILE, "adapter_config.json", "adapter_model.safetensors", "orders.safetensors", FILES["orders"], "heal.json",
)  # fmt: skip
"""What `taylorder heal` writes; the last says that the others are complete."""

OF_PAIR = ("comparison.json", "comparison.html")
"""What `taylorder compare` writes about two configs, where it is asked to."""


def run_folder(path: Path) -> Path:
    """The folder of a run, which may be named by a file in it."""
    return path.parent if path.name in (*ALL, *OF_BUDGETS) and path.is_file() else path


def config_file(path: Path) -> Path:
    """The config that a path means: the file itself, or the config of the run that it is or is a file of."""
    folder, name = run_folder(path), FILES["orders"]
    if not folder.is_dir() or path.name == name:
        return path
    if not (folder / name).is_file():
        if (sentence := several_runs(folder)) is not None:
            raise UsageError(sentence)
        raise UsageError(f"{folder} has no {name}; name a config file, or what `taylorder analyze --out` wrote")
    return folder / name


class RunDirectoryError(TaylorderError):
    """A directory is not a complete run of ``taylorder analyze``."""


class MissingRunError(RunDirectoryError, UsageError):
    """There is no run, or no whole one, where one was named."""


def unwritable(directory: Path, error: OSError) -> RunDirectoryError:
    """What to say where files of a directory could not be replaced."""
    reason = error.strerror or str(error)
    if error.errno == errno.EISDIR:
        reason += f": {error.filename}"
    return RunDirectoryError(f"{directory} cannot be written ({reason}) and keeps what it had; name another with --out")


def incomplete(path: Path) -> MissingRunError:
    """A file is not there: no run was finished."""
    if (path.parent / "config.json").is_file():
        return MissingRunError(f"{path.parent} is a model, not a run; `taylorder analyze {path.parent}` makes a run")
    if (sentence := several_runs(path.parent)) is not None:
        return MissingRunError(sentence)
    return MissingRunError(
        f"{path.parent} has no {path.name}, so no run was finished there; "
        f"`taylorder analyze --out {path.parent}` makes one"
    )


def several_runs(directory: Path) -> str | None:
    """What to say where one run was asked for and there are those of several budgets; None anywhere else."""
    if not (directory / OF_BUDGETS[0]).is_file():
        return None
    folders = sorted(str(path.parent) for path in directory.glob(f"*/{FILES['report']}"))
    return f"{directory} holds a run for each of several budgets; name one of them: {', '.join(folders)}"


def damaged(path: Path, what: str) -> RunDirectoryError:
    """A file does not hold what a run writes."""
    return RunDirectoryError(f"{path} is damaged ({what}); `taylorder analyze --out {path.parent}` writes it anew")
