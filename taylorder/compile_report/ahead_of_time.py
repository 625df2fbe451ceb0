"""Compiling ahead of time, without a GPU: what every shipped setting of every kernel takes on a target.

Triton's wheel has the assemblers of NVIDIA and AMD, so registers, spills and shared memory are facts; see ``sass`` for
the count of cycles. No time is measured.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taylorder.compile_report import TARGETS
from taylorder.compile_report.sass import Loop, loops
from taylorder.kernels.tables import count
from taylorder.kernels.triton_backend.launch import KERNELS, kernel, product_constants
from taylorder.kernels.triton_backend.layout_tables import Kind, layout_tables
from taylorder.kernels.triton_backend.plan import TOGETHER
from taylorder.kernels.triton_backend.settings import (
    GRADIENT_ROWS,
    GRADIENT_SETTINGS,
    MOST_GRADIENT_DIM,
    PREPARE_ROWS,
    PREPARED_ROWS,
    TAKE_TOKEN,
    Precision,
    Setting,
    fold_settings,
    near_settings,
    pending_settings,
    power_of_two,
    query_rows,
    state_settings,
)
from taylorder.kernels.triton_backend.state_gradients import gradient_layout
from taylorder.kernels.triton_backend.tiles import Layout

_POINTERS = {
    "storage": "coordinates",
    "input": "keys values sink_keys sink_values output queries new_keys new_values",
    "fp32": "features coefficients sums means polynomials multiplicity numerators denominators "
    "folded_values folded_counts far_keys far_values far_counts origin around_mean expansions "
    "priorities new_priorities sink_logits shifts row_values row_weights by_coordinates by_coefficients",
    "i64": "state_rows tokens extents guarded",
    "i32": "items runs factors prefixes tile_groups level_ranks degree_ranks slot_degrees sink_counts ranks far_from "
    "numbers kept delays",
    "u8": "drops valid",
}
"""Names of all pointers, by the type of their elements."""

_KINDS = {name: kind for kind, names in _POINTERS.items() for name in names.split()}

_NUMBERS = {"scaling": "fp32", "threshold": "fp32", "softcap": "fp32"}
"""Types of arguments that are neither pointers nor int32."""

SHARED_LIMITS = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx90a": 64 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}
"""Most bytes of shared memory that a program can have, where that is known."""

GRADIENT_SLOTS = 16
"""Block of slots in ``differentiate_rows``: no state of the orders compiled has more."""

_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Job:
    """One kernel with one setting, to be compiled.

    Attributes:
        kernel: its name.
        config: what it is for, in words.
        dtype: of the inputs.
        head_dim: d, which is d_v too.
        constants: further compile-time constants.
        setting: how it is launched.
        default: whether that is the setting a launch takes before autotuning.
        reads_copy: whether the state is read from a copy in the dtype of products.

    """

    kernel: str
    config: str
    dtype: torch.dtype
    head_dim: int
    constants: tuple[tuple[str, Any], ...]
    setting: Setting
    default: bool
    reads_copy: bool = False


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes on one target.

    Attributes:
        job: what was compiled.
        target: for which GPU.
        registers: per thread; vector registers on AMD.
        spills: bytes of a thread's stack on NVIDIA, spilled vector registers on AMD; 0 is what should stand here.
        shared_bytes: shared memory of a program.
        loops: innermost loops with matrix products; empty where ``sass`` does not count, as on AMD.

    """

    job: Job
    target: str
    registers: int
    spills: int
    shared_bytes: int
    loops: tuple[Loop, ...]

    @property
    def too_large(self) -> bool:
        """Whether it could not be launched: a compiler does not compare shared memory with what there is."""
        limit = SHARED_LIMITS.get(self.target)
        return limit is not None and self.shared_bytes > limit


@dataclass(frozen=True)
class Failed:
    """What did not compile.

    Attributes:
        job: what was to be compiled.
        target: for which GPU.
        error: why not, in one line.

    """

    job: Job
    target: str
    error: str


def jobs(head_dim: int, dtype: torch.dtype, every_setting: bool = False) -> Iterator[Job]:
    """What runs for heads of that size: all phases of all kernels, orders 3 and 4 (and 8 at head dim 16), and rank 8.

    Args:
        head_dim: d, which is d_v too.
        dtype: of the inputs.
        every_setting: also those that only autotuning would choose.

    """
    precision = Precision.of(dtype, "cuda")
    block = power_of_two(head_dim)

    def settled(
        name: str, config: str, settings: Sequence[Setting], constants: dict[str, Any], copy: bool = False
    ) -> Iterator[Job]:
        for index, setting in enumerate(settings if every_setting else settings[:1]):
            yield Job(name, config, dtype, head_dim, tuple(constants.items()), setting, index == 0, copy)

    phases: dict[int, str] = {}
    # The last: a few new tokens, or one of many query heads on one KV head.
    for phase, stacked in (("prefill", None), ("decode", 8), ("stacked", 64)):
        phases.setdefault(query_rows(head_dim, head_dim, precision, stacked), phase)
    for order, ranks in [*((order, None) for order in orders(head_dim)), (4, (0, head_dim, 8, 8))]:
        layout = Layout.choose(head_dim, order, ranks)
        tiling = layout.constants(order)
        label = f"d={head_dim} P={order} {layout.name} T={layout.tile}" + (" rank 8" if ranks else "")
        yield from settled("fold_tokens", label, fold_settings(head_dim, head_dim, precision), tiling)
        for rows, phase in phases.items():
            yield from settled(
                "read_state",
                f"{label} {phase} rows={rows}",
                state_settings(rows),
                {**tiling, "ROWS": rows, "TOGETHER": TOGETHER},
                copy=phase == "prefill",
            )
        if head_dim <= MOST_GRADIENT_DIM:
            yield from _gradient_jobs(head_dim, order, ranks, every_setting)
    widths = {"HEAD_BLOCK": block}
    yield from settled("take_token", f"d={head_dim}", TAKE_TOKEN, {**widths, "RANKED": True, "MEANS": True})
    for order in orders(head_dim):
        constants = {"LEVELS": 1, "DEGREES": order, "SLOTS": 1 << (order - 1).bit_length(), "MEANS": True}
        constants |= {**widths, "ORIGIN": True, "ROWS": PREPARED_ROWS}
        yield from settled("prepare_rows", f"d={head_dim} P={order}", PREPARE_ROWS, constants)
    for rows, phase in phases.items():
        settings = pending_settings(head_dim, head_dim, precision, rows)
        for levels in (1, 2):
            label = f"d={head_dim} {phase} rows={rows}" + (" ranks" if levels > 1 else "")
            constants = {**widths, "LEVELS": levels, "ROWS": rows}
            yield from settled("read_pending", label, settings, {**constants, "DEGREES": 4})
        settings = near_settings(head_dim, head_dim, precision, rows)
        for terms in (False, True):
            if terms and phase != "decode" and not every_setting:
                continue  # one of each head dim shows that they compile
            label = f"d={head_dim} {phase} rows={rows}" + (" sinks and cap" if terms else "")
            flags = dict.fromkeys(("LEARNED", "CAPPED", "SHIFTED"), terms)
            yield from settled("add_near_and_divide", label, settings, {**constants, "LEVELS": 1, **flags})


def _gradient_jobs(head_dim: int, order: int, ranks: tuple[int, ...] | None, every_setting: bool) -> Iterator[Job]:
    """What passes gradients through states, in float32 whatever the inputs are."""
    layout, exact = gradient_layout(head_dim, order, ranks), Precision.of(torch.float32, "cuda")
    tiling = layout.constants(order)
    label = f"d={head_dim} P={order} {layout.name} T={layout.tile}" + (" rank 8" if ranks else "") + " float32"
    rows = {"HEAD_BLOCK": power_of_two(head_dim), "SLOTS": GRADIENT_SLOTS, "ROWS": GRADIENT_ROWS}
    for name, settings, constants in (
        ("fold_rows", fold_settings(head_dim, head_dim, exact), tiling),
        ("differentiate_rows", GRADIENT_SETTINGS, tiling | rows),
    ):
        for index, setting in enumerate(settings if every_setting else settings[:1]):
            yield Job(name, label, torch.float32, head_dim, tuple(constants.items()), setting, index == 0)


def orders(head_dim: int) -> tuple[int, ...]:
    """Orders whose state somebody could afford: at head dim 256, order 4 takes 3 GB per KV head."""
    return {16: (3, 4, 8), 256: (3,)}.get(head_dim, (3, 4))


def compile_job(job: Job, target: str) -> Compiled:
    """Compile.

    Raises:
        ValueError: the target is not of the form sm_NN or gfxNNN.

    """
    import triton
    from triton.compiler import ASTSource

    function = kernel(job.kernel)
    machine = gpu_target(target)
    precision = Precision.of(job.dtype, machine.backend)
    constants = {**product_constants(job.head_dim, job.head_dim, precision), **dict(job.constants)}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    if step := KERNELS[job.kernel].step:
        constants[step] = job.setting.step
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = _KINDS.get(name)
        signature[name] = _NUMBERS.get(name, "i32") if kind is None else f"*{_element(kind, name, job)}"
        if kind is not None or name == "ld":  # both are multiples of 16, which wide loads depend on
            attributes[(position,)] = [["tt.divisibility", 16]]
    options = {"num_warps": job.setting.warps, "num_stages": job.setting.stages}
    if job.setting.registers is not None and machine.backend == "cuda":
        options["maxnreg"] = job.setting.registers
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=machine, options=options)
    if "cubin" in made.asm:
        registers, spills = _nvidia_usage(made.asm["cubin"])
        # Without its analysis of data flow, which takes a fifth of the time and changes nothing in the code.
        sass = _tool("nvdisasm", "-c", "-ndf", binary=made.asm["cubin"])
        inner_loops = loops(sass, job.setting.warps, machine.arch)
    else:
        registers, spills = (_amd_figure(made.asm["amdgcn"], name) for name in ("vgpr_count", "vgpr_spill_count"))
        inner_loops = []
    return Compiled(job, target, registers, spills, made.metadata.shared, tuple(inner_loops))


def _element(kind: str, name: str, job: Job) -> str:
    """Element type of a pointer."""
    storage = _DTYPES[Precision.of(job.dtype, "cuda").storage]
    if kind == "storage" or (name == "features" and job.reads_copy):
        return storage
    return _DTYPES[job.dtype] if kind == "input" else kind


def gpu_target(name: str) -> Any:
    """Triton's target for a name such as sm_90 or gfx942.

    Raises:
        ValueError: the name is of another form.

    """
    from triton.backends.compiler import GPUTarget

    if capability := re.fullmatch(r"sm_(\d+)", name):
        return GPUTarget("cuda", int(capability[1]), 32)
    if re.fullmatch(r"gfx\d\w+", name):
        return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)
    raise ValueError(f"target is {name!r}, expected sm_NN (NVIDIA) or gfxNNN (AMD), such as {', '.join(TARGETS)}")


def _tool(name: str, *arguments: str, binary: bytes) -> str:
    """Run one of the tools in Triton's wheel on a cubin."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([str(path), *arguments, file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} cannot read what was compiled: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack, which is where spilled registers go."""
    printed = _tool("cuobjdump", "-res-usage", binary=cubin)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    if usage is None:
        raise RuntimeError(f"cuobjdump did not say what a kernel uses: {printed!r}")
    return int(usage[1]), int(usage[2])


def _amd_figure(assembly: str, name: str) -> int:
    figure = re.search(rf"{name}:\s*(\d+)", assembly)
    if figure is None:
        raise RuntimeError(f"the AMD assembly does not say its {name}")
    return int(figure[1])


def state_overhead(head_dim: int, order: int) -> float:
    """Rows of a state over those of the minimal basis, padding and double entries included, for a full-rank head."""
    layout, kind = Layout.choose(head_dim, order), Kind(order, None)
    rows = layout_tables(layout, head_dim, (kind,), torch.device("cpu")).tiles(kind) * layout.tile + 1
    minimal = sum(count(degree, head_dim) for degree in range(order))
    return rows / minimal
