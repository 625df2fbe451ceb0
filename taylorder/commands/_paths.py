"""Paths on the command line: impossible ones are refused, and a run may be named by its folder or by a file in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from taylorder.errors import UsageError
from taylorder.runs import run_files

CONFIG = run_files.FILES["orders"]

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
    if not folder.is_dir() or path.name == CONFIG:
        return path
    if not (folder / CONFIG).is_file():
        if (sentence := run_files.several_runs(folder)) is not None:
            raise UsageError(sentence)
        raise UsageError(f"{folder} has no {CONFIG}; name a config file, or what `taylorder analyze --out` wrote")
    return folder / CONFIG
