"""Files that appear whole or not at all, alone or several together, and the hash of what is in one."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SHOWN = 40
"""Characters of a name that the temporary name repeats: one as long as the file system takes has no room for more."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block succeeds, remove it otherwise.

    A symlink stays one: what it points at is replaced. A device or pipe is yielded itself, since renaming onto one
    would put a file in its place.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:_SHOWN]}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_together(directory: Path, names: Sequence[str], beside: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty directory; when the block succeeds, what it holds of ``names`` replaces those in ``directory``.

    Names that it does not hold are removed. Until the block ends nothing in ``directory`` changes, so a full disk or an
    interrupt leaves an earlier set whole. The last name vouches for the set: it is taken away before any other file
    changes and comes last, so that even where the machine stops in between, no mixture has it. Names in ``beside``
    belong to the set without being vouched for: where only they and the last change, the last is there at any time.

    Raises:
        OSError: something cannot be written; a name is that of a folder.

    """
    directory = Path(os.path.realpath(directory))
    directory.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=directory))
    try:
        yield made
        *others, voucher = names
        for name in names:
            if (directory / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(directory / name))
        changed = [name for name in others if not _same(made / name, directory / name)]
        if set(changed) - set(beside):
            (directory / voucher).unlink(missing_ok=True)
        for name in (*changed, voucher):
            if (made / name).exists():
                os.replace(made / name, directory / name)
            else:
                (directory / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; when the block succeeds, it takes its place, and is removed otherwise.

    Whether what stands there may go is for the caller to say.

    Raises:
        OSError: something cannot be written.

    """
    folder = Path(os.path.realpath(folder))
    made, before = (folder.with_name(f".{folder.name[:_SHOWN]}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    made.mkdir(parents=True)
    try:
        yield made
        if folder.exists():
            os.rename(folder, before)
        os.rename(made, folder)
    finally:
        for left in (made, before):
            shutil.rmtree(left, ignore_errors=True)


def sha256(content: bytes) -> str:
    """Return the hash that vouches for a content, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _same(made: Path, there: Path) -> bool:
    if made.exists() and there.exists():
        return filecmp.cmp(made, there, shallow=False)
    return made.exists() == there.exists()
