"""The kernels as a repository of the Hub: layout, metadata, and that it loads from disk as the library loads it."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tolerances import TOLERANCE

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "build_hub_kernel.py"
SOURCES = sorted(path.relative_to(ROOT / "taylorder/kernels") for path in (ROOT / "taylorder/kernels").rglob("*.py"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What the script's command writes."""
    target = tmp_path_factory.mktemp("hub") / "new" / "repository"
    done = subprocess.run([sys.executable, SCRIPT, target], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"{target}\n", "")
    return target


@pytest.fixture(scope="module")
def script():
    """The script as a module; scripts/ is not a package."""
    spec = importlib.util.spec_from_file_location("build_hub_kernel", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(repository):
    return sorted((repository / "build").iterdir())


def test_every_variant_is_the_whole_package(repository):
    assert sorted(path.name for path in repository.iterdir()) == ["LICENSE", "README.md", "build"]
    assert [variant.name for variant in variants(repository)] == ["torch-cpu", "torch-cuda", "torch-rocm"]
    assert Path("triton_backend/attention.py") in SOURCES
    for variant in variants(repository):
        found = {path.relative_to(variant) for path in variant.rglob("*") if path.is_file()}
        assert found == {*SOURCES, Path("metadata.json")}
        for name in SOURCES:
            assert (variant / name).read_bytes() == (ROOT / "taylorder/kernels" / name).read_bytes()
    assert (repository / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (repository / "README.md").read_text().startswith("---\nlibrary_name: kernels\nlicense: apache-2.0\n---\n")


def test_nothing_but_the_target_is_left(repository):
    assert list(repository.parent.iterdir()) == [repository]


def test_metadata_is_what_the_library_requires(repository):
    ids = set()
    for variant in variants(repository):
        metadata = json.loads((variant / "metadata.json").read_text())
        assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", metadata["name"])
        assert metadata["id"].isidentifier()
        assert f"torch-{metadata['backend']['type']}" == variant.name
        assert (metadata["version"], metadata["license"], metadata["python-depends"]) == (0, "apache-2.0", [])
        assert metadata["digest"] == {
            "algorithm": "sha256",
            "files": {
                name.as_posix(): base64.b64encode(hashlib.sha256((variant / name).read_bytes()).digest()).decode()
                for name in SOURCES
            },
        }
        ids.add(metadata["id"])
    assert len(ids) == len(variants(repository))


def test_the_id_is_another_when_a_file_is(script):
    one, again, other = (
        json.loads(script.metadata({"__init__.py": content}, "cpu"))["id"] for content in (b"1", b"1", b"2")
    )
    assert one == again != other


def test_an_empty_folder_is_filled(script, tmp_path):
    assert script.build(tmp_path) == tmp_path
    assert (tmp_path / "build/torch-cpu/__init__.py").is_file()


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_is_there_is_not_overwritten(taken, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "folder/mine"):
        path.write_text("mine")
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / taken], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"{tmp_path / taken} is not empty, expected a new or empty folder: remove it or name another" in done.stderr
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/mine").read_text() == "mine"


def imported(path, depth):
    """Absolute top-level names that a file imports, and relative imports that leave a package ``depth`` folders up."""
    for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level > depth:
            yield "." * node.level


def test_every_file_is_python_3_9_and_imports_only_what_a_hub_kernel_may(repository):
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for variant in variants(repository):
        found = {str(name): sorted({*imported(variant / name, len(name.parts))} - allowed) for name in SOURCES}
        assert found == {str(name): [] for name in SOURCES}


def test_a_forbidden_import_is_found(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(
        "import os, numpy.linalg\nfrom taylorder import kernels\nfrom . import spec\nfrom .. import other\n"
    )
    assert list(imported(path, 1)) == ["os", "numpy", "taylorder", ".."]


PROGRAM = """
    import importlib.util, json, re, sys, types
    from pathlib import Path

    refused = {"taylorder", "transformers", "pydantic", "scipy", "rich", "safetensors", "triton"}

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in refused:
                raise ImportError(f"{name} is not for kernels")

    sys.meta_path.insert(0, Refuse())
    import torch

    def load(variant):
        name = json.loads((variant / "metadata.json").read_text())["id"]
        spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    root = Path(sys.argv[1])
    copies = [load(root / "build" / name) for name in ("torch-cpu", "torch-cuda")]
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 9, 8), torch.randn(1, 1, 9, 8), torch.randn(1, 1, 9, 8)

    def distance(found, expected):
        return float((found.double() - expected).norm() / expected.norm())

    def measure(backend):
        for kernel in copies:
            heads = [kernel.HeadSpec(kernel.Taylor(order, "mean"), kernel.Near(2, 1)) for order in (3, 2)]
            output, state = kernel.taylor_attention(q, k, v, heads, scaling=0.3, backend=backend)
            expected, _ = kernel.reference_attention(q, k, v, heads, scaling=0.3)
            perturbed, _ = kernel.reference_attention(q, k.roll(1, 2), v, heads, scaling=0.3)
            yield [state.backend, state.tokens, distance(output, expected), distance(output, perturbed)]

    found = [*measure("torch")]
    refused.discard("triton")  # the package loads and runs without it; only its own backend needs it
    found += measure("triton")

    sys.modules["kernels"] = types.SimpleNamespace(get_local_kernel=lambda path: load(path / "build" / "torch-cpu"))
    scope = {}
    exec(re.search("```python\\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)[1], scope)
    example = list(scope["output"].shape)

    names = [kernel.taylor_attention.__module__ for kernel in copies]
    print(json.dumps({"found": found, "example": example, "names": names}))
"""


def test_two_copies_load_from_disk_and_run_on_both_backends(repository):
    """As ``kernels.importer`` does it: by path, under the id, from nowhere that Python would look."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(PROGRAM), repository],
        cwd=repository,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    ids = [
        json.loads((repository / "build" / name / "metadata.json").read_text())["id"]
        for name in ("torch-cpu", "torch-cuda")
    ]
    assert result["names"] == [f"{name}.dispatch" for name in ids]
    assert [row[:2] for row in result["found"]] == [["torch", 9]] * 2 + [["triton", 9]] * 2
    assert max(error for *_, error, _ in result["found"]) <= TOLERANCE[torch.float32]
    assert min(control for *_, control in result["found"]) > 0.01
    assert result["example"] == [1, 4, 100, 16]
