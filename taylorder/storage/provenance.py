"""Versions of everything that can change a number."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("taylorder", "torch", "transformers", "weightwatcher", "numpy", "scipy", "triton")


def software_versions() -> dict[str, str]:
    """Installed versions of taylorder, the stack below it, and Python."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
