"""What a command is about: the config that is meant, named as MODEL, with --config or not at all, and its model."""

from __future__ import annotations

from pathlib import Path

from taylorder.commands._paths import path_of
from taylorder.errors import MissingConfigError
from taylorder.runs import run_files
from taylorder.runs.subject import ConfigAndModel, subject_of


def subject(model: str | None, config: Path | None, dtype: str | None) -> ConfigAndModel:
    """The config that is meant, and its model.

    Args:
        model: what a command was given as MODEL: a model, a run in the place of --config, or nothing.
        config: what it was given as --config: a file, a run, or nothing, which means the default run.
        dtype: the dtype asked for, None for that of the run.

    Raises:
        UsageError: there is nothing there.
        ConfigError: the config is malformed.

    """
    run = None if model is None or config is not None else path_of("MODEL")(model)
    if run is not None and (run_files.run_folder(run) / run_files.FILES["orders"]).is_file():
        model, config = None, run
    if config is None and not run_files.DEFAULT.exists():
        raise MissingConfigError(
            f"no config is named, and there is no {run_files.DEFAULT} here: `taylorder analyze` makes it; or name a "
            "run or an orders.json with --config"
        )
    return subject_of(config or run_files.DEFAULT, model, dtype)
