"""The rooms of the package: what each may import, read from the source of every module, run or not."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import taylorder

TESTS = Path(__file__).parent
PACKAGE = Path(taylorder.__file__).parent

ROOMS = (
    "cli", "commands", "reports", "integrations", "claims", "compile_report", "runs", "healing", "selection",
    "evaluation", "adapt", "analysis", "models", "kernels", "storage", "errors",
)  # fmt: skip
"""From the top: a room imports only itself and what stands after it. ``errors`` and ``cli`` are single modules."""

KERNELS_IMPORT = {"torch", "triton"} | sys.stdlib_module_names
"""What published kernels may need beside themselves."""


def modules(root):
    """Source files by dotted name, the first part of which is the name of the folder ``root``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join((root.name, *path.relative_to(root).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name, path, known):
    """The modules that a module imports, each with whether it does so relatively, wherever in the file that stands.

    Imports inside functions and under TYPE_CHECKING are among them; names of modules are told from names in modules.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*origin, *([node.module] if node.module else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            yield from ((target if target in known else base, bool(node.level)) for target in inner)


def faults(root):
    """Every sentence that says what is wrong with the imports of the package in the folder ``root``."""
    known = modules(root)
    imported = {name: set() for name in known}
    said = []
    for name, path in known.items():
        room = _room(name)
        if room not in ROOMS and room is not None:
            said.append(f"{name} is in no room that is listed")
        for target, relative in imports(name, path, known):
            if room == "kernels" and not relative and target.partition(".")[0] not in KERNELS_IMPORT:
                said.append(f"{name} imports {target}, and kernels only torch, triton and themselves relatively")
            if target.startswith(f"{root.name}.") and target not in known:
                said.append(f"{name} imports {target}, which is no module")
            elif target.startswith(f"{root.name}.") and target != name:
                imported[name].add(target)
    for name, targets in imported.items():
        for target in sorted(targets):
            if _room(target) == "cli" and name != f"{root.name}.__main__":
                said.append(f"{name} imports the command line")
            elif _height(target) > _height(name):
                said.append(f"{name} imports {target}, from a room above its own")
    return said + list(_circles(imported))


def _circles(imported):
    """One sentence for each circle; what closes it is taken out of ``imported``, or it would hide others."""
    while True:
        try:
            return TopologicalSorter({name: sorted(imported[name]) for name in imported}).prepare()
        except CycleError as error:
            circle = error.args[1]
            yield f"a circle of imports: {' <- '.join(circle)}"
            imported[circle[1]].discard(circle[0])


def _height(name):
    """How high up a module is; the package itself and ``__main__``, which import what they like, are highest."""
    return len(ROOMS) - ROOMS.index(_room(name)) if _room(name) in ROOMS else len(ROOMS) + 1


def _room(name):
    """The room of a module; None for the package itself and its ``__main__``."""
    parts = name.split(".")
    return None if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def test_each_room_imports_only_rooms_below_it():
    assert faults(PACKAGE) == []


@pytest.fixture
def made_up(tmp_path):
    """A package of three rooms, by the source of its modules."""

    def write(**sources):
        root = tmp_path / "house"
        everything = {"__init__": "", "reports/__init__": "", "models/__init__": "", "kernels/__init__": "", **sources}
        for name, source in everything.items():
            path = root / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return faults(root)

    return write


GOOD = {
    "__main__": "from house.cli import main",
    "cli": "def main():\n    from house.reports import page",
    "reports/page": "import house.models.sources\nfrom house.reports import table",
    "reports/table": "from typing import Any",
    "models/sources": "from house.kernels import fold",
    "kernels/fold": "import math\nimport torch\nfrom . import state\nfrom .state import total",
    "kernels/state": "from triton import language",
}


def test_a_house_in_order_has_no_faults(made_up):
    assert made_up(**GOOD) == []


CHECKED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("errors", "from house.reports.page import f", "house.errors imports house.reports.page, from a room above"),
        ("errors", "def f():\n    import house.models.sources", "errors imports house.models.sources, from a room"),
        ("errors", f"{CHECKED}from house.reports import page", "errors imports house.reports.page, from a room above"),
        ("kernels/rows", "from ..models import sources", "kernels.rows imports house.models.sources, from a room"),
        ("kernels/rows", "from house.kernels import fold", "kernels only torch, triton and themselves relatively"),
        ("kernels/state", "def f():\n    import numpy", "imports numpy, and kernels only torch, triton and"),
        ("runs/write", "def f():\n    from house import cli", "house.runs.write imports the command line"),
        ("reports/table", "from house.reports import page", "a circle of imports: house.reports"),
        ("reports/table", f"{CHECKED}from house.reports import page", "a circle of imports: house.reports"),
        ("kernels/state", "def f():\n    from .fold import g", "a circle of imports: house.kernels"),
        ("reports/page", "from house.reports.gone import f", "imports house.reports.gone, which is no module"),
        ("cellar/wine", "", "house.cellar.wine is in no room that is listed"),
    ],
)
def test_a_back_edge_a_circle_and_what_kernels_may_not_have_are_found(made_up, module, source, said):
    found = made_up(**{**GOOD, module: source})
    assert len(found) == 1
    assert said in found[0]


def test_no_test_imports_another():
    """What tests share is in modules of its own: a test's names are not for others."""
    known = {path.stem: path for path in TESTS.glob("*.py")}
    found = [
        (name, target)
        for name, path in known.items()
        for target, _ in imports(name, path, known)
        if target.startswith("test_")
    ]
    assert found == []
