"""Execute docs/start.ipynb with the built-in model and write what it shows into it.

    python scripts/notebook.py

What it shows comes from one run from top to bottom; a digest tells whether the code is still that which ran.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from taylorder.storage.files import replacing

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "start.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run, in their order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: NotebookNode) -> str:
    """Of the code of all cells: outputs belong to all of it, since what a cell shows depends on those above it."""
    sources = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(sources.encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in a folder, with the interpreter of this process, and keep what they show.

    Kernels and settings that the user has are not looked at, and nothing is left outside the folder.

    Raises:
        CellExecutionError: a cell failed.

    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with TemporaryDirectory(prefix="kernel-") as own:  # short: the path of a socket has 100 characters at most
        homes = dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"), own)
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            connection_file=str(Path(own) / "connection.json"),
            transport="ipc",
        )
        client = NotebookClient(notebook, km=manager, timeout=3600, record_timing=False)
        client.execute(cleanup_kc=True, cwd=str(folder), env=os.environ | homes | {"PYTHONPATH": path})
    for cell in code_cells(notebook):
        # What goes to standard error is progress and notes of libraries, other ones on every machine.
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = NotebookNode(METADATA, executed_sha256=digest(notebook))


def main() -> None:
    """Execute the notebook of the documentation, and write it only if every cell ran."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with TemporaryDirectory(prefix="taylorder-") as folder:
        execute(notebook, Path(folder))
    with replacing(NOTEBOOK) as path:
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
