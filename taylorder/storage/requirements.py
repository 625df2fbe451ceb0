"""Whether what this package asks for is installed, in versions that it works with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version


@dataclass(frozen=True, slots=True)
class Required:
    """A package that is asked for: the versions that will do, as pip writes them, and the one ``found``, if any."""

    name: str
    versions: str
    found: str | None
    fits: bool


def requirements(package: str = "taylorder") -> tuple[Required, ...]:
    """What a package asks for on this machine, extras aside; nothing where the package itself was not installed."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in requires(package) or ()]
    except PackageNotFoundError:
        return ()
    here = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    made = []
    for one in here:
        found = _installed(one.name)
        fits = found is not None and one.specifier.contains(found, prereleases=True)
        made.append(Required(one.name, str(one.specifier), found, fits))
    return tuple(made)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
