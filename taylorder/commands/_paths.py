"""Paths on the command line: impossible ones are refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from taylorder.errors import UsageError

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
