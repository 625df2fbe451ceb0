"""What ``taylorder doctor`` looks at, one function per thing; what is broken is a finding and never an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from taylorder.errors import TaylorderError, first_line
from taylorder.reports.doctor import Finding
from taylorder.reports.numbers import counted, size
from taylorder.storage.machine import Machine
from taylorder.storage.provenance import software_versions
from taylorder.storage.requirements import requirements

LITTLE_MEMORY = 4 * 2**30
"""Less is too little to analyse the built-in model within a budget, which takes some 3 GiB."""

_COMPLETIONS = (".bash_completions/taylorder.sh", ".zfunc/_taylorder", ".config/fish/completions/taylorder.fish")
"""Where typer puts the completion of bash, zsh and fish, below the home directory."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def findings() -> Iterator[Finding]:
    """Everything that is looked at, in the order of the report."""
    yield from _packages()
    for look in (_threads, _blas, _memory, _disk, _devices, _triton, _c_compiler, _builtin, _completion):
        yield _guarded(look)


def _guarded(look: Callable[[], Finding]) -> Finding:
    """A finding, also where the look itself fails: what is wrong with an installation shows in many ways."""
    name = look.__name__.strip("_").replace("_", " ")
    try:
        return look()
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        return Finding(name, "could not be looked at", f"{said}; reinstall what that names")


def _packages() -> Iterator[Finding]:
    """Python, this package, and all that it asks for, without which nothing works."""
    versions = software_versions()
    yield Finding("python", versions["python"])
    try:
        asked = requirements()
    except ImportError:  # whoever installs with --no-deps may lack it, and much else
        yield Finding("packaging", "not installed", "transformers needs it too: pip install packaging", needed=True)
        return
    if not asked:
        yield Finding("taylorder", "not installed", "what it needs is unknown: install it with pip install .")
        return
    yield Finding("taylorder", versions["taylorder"])
    for one in sorted(asked, key=lambda one: (one.name not in versions, one.name)):
        wanted = f"{one.name}{one.versions}"
        way_out = "" if one.fits else f"{one.versions or 'any version'} is needed: pip install '{wanted}'"
        yield Finding(one.name, one.found or "not installed", way_out, needed=True)


def _threads() -> Finding:
    import torch

    processors, threads = Machine.here().processors, torch.get_num_threads()
    told = ", ".join(f"{name} is {os.environ[name]}" for name in _THREADS if name in os.environ)
    text = f"torch runs on {counted(threads, 'thread')}, {counted(processors, 'processor')} here"
    way_out = ""
    if threads > processors:
        way_out = f"threads that share a processor wait for each other: set OMP_NUM_THREADS={processors}"
    return Finding("threads", f"{text} ({told})" if told else text, way_out)


def _blas() -> Finding:
    import numpy as np
    import torch

    torchs = next((part for part in torch.__config__.show().split(", ") if "BLAS_INFO=" in part), "BLAS_INFO=unknown")
    built = np.show_config(mode="dicts") or {}
    numpys = built.get("Build Dependencies", {}).get("blas", {})
    return Finding(
        "BLAS", f"torch: {torchs.partition('=')[2]}; numpy: {numpys.get('name')} {numpys.get('version', '')}".strip()
    )


def _memory() -> Finding:
    available = Machine.here().available
    if available is None:
        return Finding("memory", "the system does not tell")
    way_out = ""
    if available < LITTLE_MEMORY:
        way_out = "analyze --budget takes some 3 GiB for the built-in model: end other programs, or lower --max-tokens"
    return Finding("memory", f"{size(available)} available", way_out)


def _disk() -> Finding:
    free = Machine.here().disk
    if free is None:
        return Finding("disk", "the system does not tell")
    way_out = "a run takes some 100 MiB: make room, or name another disk with --out" if free < 2**28 else ""
    return Finding("disk", f"{size(free)} free in this folder", way_out)


def _devices() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    named = [f"cuda:{number} {gpu.name} with {size(gpu.total_memory)}" for number, gpu in enumerate(gpus)]
    return Finding("devices", ", ".join(["cpu", *named]))


def _triton() -> Finding:
    """Whether the kernels of GPUs can be compiled; on a CPU nothing asks for them."""
    if find_spec("triton") is None:
        return Finding("Triton", "not installed", "GPUs run the torch kernels: set TAYLORDER_BACKEND=torch there")
    import torch

    from taylorder.kernels.triton_backend.launch import interpreted, triton_problem

    if interpreted():
        way_out = "unset TRITON_INTERPRET, which is for tests: nothing compiles while it is set"
        return Finding("Triton", "runs in its interpreter", way_out)
    if not torch.cuda.is_available():
        return Finding("Triton", "there, and not needed: no GPU, and CPUs run the torch kernels")
    problem = triton_problem(torch.device("cuda"))
    if problem is None:
        return Finding("Triton", "compiles for the GPU")
    return Finding("Triton", "cannot compile for the GPU", f"{problem}; or set TAYLORDER_BACKEND=torch")


def _c_compiler() -> Finding:
    """The one that Triton would call."""
    name = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang")), None)
    if name is not None and shutil.which(name):
        return Finding("C compiler", f"{shutil.which(name)}")
    found = "none" if name is None else f"CC is {name}, which is not there"
    return Finding("C compiler", found, "only Triton on a GPU needs one: install gcc or clang, or set CC")


def _builtin() -> Finding:
    from taylorder.models.sources import BUILTIN, locate

    try:
        locate(BUILTIN)
    except TaylorderError as error:
        return Finding("built-in model", "not installed", str(error))
    return Finding("built-in model", f"{BUILTIN} is installed")


def _completion() -> Finding:
    there = [path for name in _COMPLETIONS if (path := Path.home() / name).is_file()]
    if there:
        return Finding("shell completion", f"installed in {', '.join(map(str, there))}")
    return Finding("shell completion", "not installed", "taylorder --install-completion, then open a new shell")
