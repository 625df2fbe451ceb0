"""Paths on the command line: impossible ones are refused, and a run may be named by its folder or by a file in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from taylorder.errors import TaylorderError, UsageError
from taylorder.runs import run_files

_CONFIG = run_files.FILES["orders"]

_LATER = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
"""What may be wrong with a path that is looked into later, or made."""

_LONGEST = 255
"""Bytes of a name that file systems take."""

_SHOWN = 200
"""Characters of a path that a message repeats."""


def path_of(option: str) -> Callable[[str | Path], Path]:
    """A parser for the paths of one option that refuses what no file can be called."""

    def parse(text: str | Path) -> Path:
        if not str(text):
            raise UsageError(f"{option} is empty, perhaps an unset variable of the shell; name a file or folder")
        try:
            if any(len(os.fsencode(part)) > _LONGEST for part in Path(text).parts):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            os.stat(text)
        except OSError as error:
            if error.errno not in _LATER:
                shown = str(text)
                if len(shown) > _SHOWN:
                    shown = f"{shown[:30]}... of {len(os.fsencode(shown))} bytes"
                raise UsageError(f"{option} {shown} is no path here ({error.strerror}); choose another") from error
        return Path(text)

    return parse


def run_folder(path: Path) -> Path:
    """The folder of a run, which may be named by a file in it."""
    return path.parent if path.name in (*run_files.ALL, *run_files.OF_BUDGETS) and path.is_file() else path


def config_file(path: Path) -> Path:
    """The config that a path means: the file itself, or the config of the run that it is or is a file of."""
    folder = run_folder(path)
    if not folder.is_dir() or path.name == _CONFIG:
        return path
    if not (folder / _CONFIG).is_file():
        if (sentence := run_files.several_runs(folder)) is not None:
            raise UsageError(sentence)
        raise UsageError(f"{folder} has no {_CONFIG}; name a config file, or what `taylorder analyze --out` wrote")
    return folder / _CONFIG


def run_and_config(model: str | None, config: Path | None) -> tuple[Path | None, Path | None]:
    """The run that stands where MODEL does, by its folder or a file in it, and the config that it or --config means.

    None for what there is not: MODEL is a model, or there is no config.
    """
    run = path_of("MODEL")(model) if model is not None and config is None else None
    if run is not None and not (run_folder(run) / _CONFIG).is_file():
        run = None
    meant = config or run
    return run, None if meant is None else config_file(meant)


def model_of_run(run: Path, named: str) -> str:
    """The model that a run is about: its own folder if it lies in one, else the one its config names."""
    folder = run_folder(run)
    return str(folder) if (folder / "config.json").is_file() else named


@contextmanager
def named_by(run: Path | None, name: str | None, way_out: str) -> Iterator[None]:
    """Where the model that a run names is not to be found, say who named it and what to do; nothing without a run."""
    try:
        yield
    except TaylorderError as error:
        if run is not None and name is not None and not Path(name).expanduser().exists():
            sentence = str(error).removesuffix(".")
            error.args = (f"{sentence}; {run} names it so, perhaps as seen from another folder: {way_out}",)
        raise
