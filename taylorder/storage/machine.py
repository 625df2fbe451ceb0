"""What a machine has: processors, memory and disk, as far as this process may use them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """``processors`` that this process may use, bytes of memory that are ``available`` now, and bytes free on a disk.

    What the system does not tell is None.
    """

    processors: int
    available: int | None
    disk: int | None

    @classmethod
    def here(cls, directory: Path = Path()) -> Machine:
        """What this machine has, and the disk that a directory is on or will be made on."""
        return cls(_processors(), _available(), _free(directory))


def _processors() -> int:
    """How many this process may run on, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _available() -> int | None:
    """Bytes that can be taken without swapping, within what the container may have."""
    free = [number for number in (_of_the_system(), _of_the_container()) if number is not None]
    return min(free, default=None)


def _of_the_system() -> int | None:
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _of_the_container() -> int | None:
    try:
        most, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # "max", where there is no limit
        return None
    return max(0, most - used)


def _free(directory: Path) -> int | None:
    wanted = Path(os.path.realpath(directory))
    try:
        return shutil.disk_usage(next(path for path in (wanted, *wanted.parents) if path.is_dir())).free
    except (OSError, StopIteration):
        return None
