"""``taylorder compile-report``: kernels compiled for GPUs that are not here, counts in SASS, and what is refused."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from command_line import ROOT, heavy_imports

from taylorder.commands import compile_report as command
from taylorder.compile_report import ahead_of_time, compilers, sass
from taylorder.kernels.triton_backend import settings
from taylorder.reports import compiled
from taylorder.reports.render import plain_text

ROW_KEYS = {
    "kernel", "target", "config", "registers", "spills", "shared_bytes", "shared_limit_bytes", "warps", "stages",
    "step", "max_registers", "default", "loops",
}  # fmt: skip

# What must spill, three failures that Triton reports in three ways, and a success after them.
MIXED = """
import json, sys
from dataclasses import replace
import torch
from taylorder.compile_report import ahead_of_time
from taylorder.compile_report.compilers import compile_all
from taylorder.kernels.triton_backend.settings import Setting

def job(head_dim, order, **constants):
    jobs = ahead_of_time.jobs(head_dim, torch.bfloat16)
    found = next(j for j in jobs if j.kernel == "read_state" and f"P={order} " in j.config and "prefill" in j.config)
    return replace(found, constants=tuple((dict(found.constants) | constants).items()))

small = job(16, 3)
tasks = [
    (replace(job(64, 3, ROWS=128), setting=Setting(0, 1, 2)), "sm_80"),
    (job(16, 3, T=24), "sm_90"),
    (small, "sm_10"),
    (replace(small, setting=replace(small.setting, registers=8)), "sm_90"),
    (small, "sm_80"),
]
rows = compile_all(tasks, lambda *_: None)
assert [(row.job, row.target) for row in rows] == tasks
outcomes = [getattr(row, "error", None) or {"registers": row.registers, "spills": row.spills} for row in rows]
json.dump(outcomes, sys.stdout)
"""


def compiling(*arguments, timeout=600):
    """Run Python in a process in which Triton compiles: it interprets in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def at_64():
    """The JSON document of head dim 64 for all targets."""
    targets = [word for target in ahead_of_time.TARGETS for word in ("--target", target)]
    done = compiling("-m", "taylorder", "compile-report", "--head-dim", 64, *targets, "--format", "json")
    assert done.returncode == 0, done.stderr
    number = len(ahead_of_time.TARGETS) * len(list(ahead_of_time.jobs(64, torch.bfloat16)))
    assert done.stderr.splitlines()[-1] == f"compiled: {number} of {number}"
    return json.loads(done.stdout)


def test_json_is_one_document_with_a_row_per_kernel_config_and_target(at_64):
    assert at_64["schema"] == "taylorder/compile-report@1"
    assert {"taylorder", "torch", "triton"} <= set(at_64["software"])
    assert (at_64["dtype"], at_64["all_settings"]) == ("bfloat16", False)
    assert all(set(row) == ROW_KEYS and row["default"] for row in at_64["rows"])
    jobs = list(ahead_of_time.jobs(64, torch.bfloat16))
    assert [(row["target"], row["kernel"], row["config"]) for row in at_64["rows"]] == [
        (target, job.kernel, job.config) for target in ahead_of_time.TARGETS for job in jobs
    ]
    assert [row["warps"] for row in at_64["rows"][: len(jobs)]] == [job.setting.warps for job in jobs]
    assert all(row["registers"] > 0 and row["shared_bytes"] > 0 for row in at_64["rows"])
    loops = [loop for row in at_64["rows"] for loop in row["loops"]]
    assert all(loop["ratio"] == loop["tensor_cycles"] / loop["issue_cycles"] for loop in loops)
    straight = ("take_token", "prepare_rows")  # what they loop over is unrolled
    looping = [row for row in at_64["rows"] if row["kernel"] not in straight]
    assert all(bool(row["loops"]) == row["target"].startswith("sm_") for row in looping)


def test_no_setting_for_head_dim_64_spills_or_needs_more_shared_memory_than_there_is(at_64):
    assert {row["config"]: row["spills"] for row in at_64["rows"] if row["spills"]} == {}
    assert all(row["shared_bytes"] <= row["shared_limit_bytes"] for row in at_64["rows"])


def test_the_products_of_the_main_loop_are_those_of_the_formula_and_keep_tensor_cores_busy(at_64):
    [row] = [
        row
        for row in at_64["rows"]
        if (row["kernel"], row["target"]) == ("read_state", "sm_90") and re.search("P=4 pair .*prefill", row["config"])
    ]
    main = max(row["loops"], key=lambda loop: loop["tensor_cycles"])
    assert main["ratio"] >= 0.9
    tile, rows = (int(re.search(rf"{name}=(\d+)", row["config"])[1]) for name in ("T", "rows"))
    assert main["tensor_cycles"] % (2 * rows * tile * 64 / 4096) == 0  # whole tiles, at 4096 operations a cycle
    assert main["issue_cycles"] == main["instructions"] * row["warps"] / 4


def test_a_state_of_head_dim_64_has_hardly_more_rows_than_the_minimal_basis(at_64):
    overheads = {(each["head_dim"], each["order"]): each["overhead"] for each in at_64["state_overhead"]}
    assert set(overheads) == {(64, 3), (64, 4)}
    assert 1 <= overheads[64, 4] <= 1.10
    assert 1 <= overheads[64, 3] <= 1.5


def test_what_spills_is_seen_to_spill_and_no_failure_takes_other_rows_with_it():
    done = compiling("-c", MIXED)
    assert done.returncode == 0, done.stderr
    spilling, bad_tile, aborted, few_registers, good = json.loads(done.stdout)
    assert spilling["spills"] > 0
    assert re.fullmatch(r"CompilationError: at \d+:\d+: arange's range must be a power of 2", bad_tile)
    assert aborted.startswith("the compiler ended with SIGABRT: LLVM ERROR: Cannot select")
    assert re.match(r"PTXASError: .*Insufficient registers .* in function read_state", few_registers)
    assert all("\n" not in error for error in (bad_tile, aborted, few_registers))
    assert good["registers"] > 0
    assert good["spills"] == 0


SASS = """
.text.read_state:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_2:
        /*0020*/                   LDSM.16.M88.4 R4, [R8] ;
        /*0030*/                   HMMA.16816.F32.BF16 R12, R4, R6, R12 ;
        /*0040*/              @!P1 HMMA.1688.F32.TF32 R12, R4, R6, R12 ;
        /*0050*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;
        /*0060*/              @!P0 BRA `(.L_x_2) ;
.L_x_3:
        /*0070*/                   FADD R3, R3, R4 ;
        /*0080*/               @P2 BRA `(.L_x_3) ;
        /*0090*/                   BRA `(.L_x_1) ;
.L_x_4:
        /*00a0*/                   WARPGROUP.ARRIVE ;
        /*00b0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*00c0*/                   HGMMA.64x64x8.F32.TF32 R24, R4, gdesc[UR8], R24, gsb0 ;
        /*00d0*/              @!P0 BRA `(.L_x_4) ;
        /*00e0*/                   EXIT ;
.L_x_5:
        /*00f0*/                   BRA `(.L_x_5);
"""


def test_cycles_of_innermost_loops_are_counted_by_hand():
    warp, group = sass.loops(SASS, warps=8, capability=90)
    # TF32 takes twice the time: 16 x 8 x 16 and twice 16 x 8 x 8, 2 operations each, for each of 8 warps.
    assert warp == sass.Loop(5, 2 * (16 * 8 * 16 + 2 * 16 * 8 * 8) * 8 / 4096, 5 * 8 / 4)
    # Four warps share a group product.
    assert group == sass.Loop(4, 2 * (64 * 128 * 16 + 2 * 64 * 64 * 8) * 8 / 4 / 4096, 4 * 8 / 4)
    assert warp.ratio == 1.6
    assert sass.loops(SASS, warps=8, capability=80)[0].tensor_cycles == 2 * warp.tensor_cycles


def test_no_cycles_are_counted_where_the_peak_is_unknown_or_nothing_is_multiplied():
    assert sass.loops(SASS, warps=8, capability=75) == []
    assert sass.loops(re.sub("HG?MMA", "IMAD", SASS), warps=8, capability=90) == []


@pytest.fixture
def report():
    """A report on rows made up: one fine, one that spills, one too large, one failed, and AMD."""
    first, second, *_, last = ahead_of_time.jobs(64, torch.bfloat16)
    unlike = replace(first, setting=settings.Setting(32, 4, 2, 128), default=False)
    loops = (sass.Loop(100, 32.0, 200.0), sass.Loop(120, 288.0, 240.0))
    return compiled.CompileReport(
        dtype="bfloat16",
        every_setting=True,
        targets=("sm_80", "gfx942"),
        rows=(
            ahead_of_time.Compiled(first, "sm_80", 128, 0, 24 << 10, loops),
            ahead_of_time.Compiled(unlike, "sm_80", 128, 1, 24 << 10, loops),
            ahead_of_time.Compiled(second, "sm_80", 64, 0, 200 << 10, loops[1:]),
            ahead_of_time.Failed(last, "sm_80", "PTXASError: Insufficient registers"),
            ahead_of_time.Compiled(first, "gfx942", 256, 29, 9216, ()),
        ),
        overheads=(compiled.Overhead(16, 8, 1.0001), compiled.Overhead(64, 3, 1.46247), compiled.Overhead(64, 4, 1.08)),
    )


def test_the_human_report_says_what_spills_fails_and_cannot_be_launched(report):
    text = plain_text(compiled.sections(report))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "taylorder compile-report"
    plain = " ".join(text.split())
    assert "inputs bfloat16 compiled every setting that ships; triton" in plain
    assert [line for line in lines if line in report.targets] == ["sm_80", "gfx942"]
    assert "d=64 P=3 linear T=32 " + " ".join(["32/4/2", "128", "0", "24", "0.16", "1.20"]) in plain
    assert "32/4/2/128 128 1 24 0.16 1.20" in plain
    assert f"{report.rows[3].job.config} 32/8/2 - - - failed" in plain
    assert "256 29 9 -" in plain
    assert "16 - - 1.000 64 1.462 1.080 -" in plain
    assert "1 of 5 did not compile: add_near_and_divide" in plain
    assert "on sm_80: PTXASError: Insufficient registers" in plain
    assert (
        "2 of 4 spill registers: fold_tokens d=64 P=3 linear T=32 32/4/2/128 on sm_80: 1 byte of stack "
        "fold_tokens d=64 P=3 linear T=32 on gfx942: 29 vector registers" in plain
    )
    assert "1 of 4 could not be launched, for want of shared memory: read_state" in plain
    assert "on sm_80: 200 KiB of 163 KiB" in plain
    assert "Static counts of compiled code: nothing ran, and no time was taken." in plain


def test_the_human_report_says_so_when_nothing_is_wrong(report):
    text = plain_text(compiled.sections(replace(report, rows=report.rows[:1], targets=("sm_80",))))
    assert "All 1 compiled." in text
    assert "None spills registers." in text
    assert "could not be launched" not in text


def test_figures_of_a_failed_row_are_null_in_json(report):
    document = compiled.as_document(report)
    failed = document["rows"][3]
    assert set(failed) == ROW_KEYS | {"error"}
    assert (failed["registers"], failed["spills"], failed["shared_bytes"], failed["loops"]) == (None, None, None, [])
    assert document["rows"][1]["max_registers"] == 128
    assert document["rows"][0]["loops"][1] == {
        "instructions": 120, "tensor_cycles": 288.0, "issue_cycles": 240.0, "ratio": 1.2,
    }  # fmt: skip
    assert [row["shared_limit_bytes"] for row in document["rows"]] == [163 << 10] * 4 + [64 << 10]


def test_the_exit_code_is_1_if_a_row_failed_and_0_if_it_only_spills(run, monkeypatch, report):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    rows = {}

    def compile_all(tasks, progress):
        return rows["given"]

    monkeypatch.setattr(compilers, "compile_all", compile_all)
    rows["given"] = report.rows
    code, out, err = run("compile-report", "--head-dim", 16, "--target", "sm_80", "--format", "json")
    assert code == 1
    assert len(json.loads(out)["rows"]) == 5
    assert err.splitlines()[-1] == "error: 1 of 5 did not compile; the report says why"
    rows["given"] = report.rows[:3]
    code, out, err = run("compile-report", "--head-dim", 16, "--target", "sm_80")
    assert code == 0, err
    assert "1 of 3 spill registers:" in out


def test_a_refusal_imports_nothing_heavy():
    for arguments in (["--target", "sm90"], ["--head-dim", "48"]):
        assert heavy_imports("compile-report", *arguments)[:2] == ([], 2)


def test_targets_and_head_dims_are_those_of_the_kernels():
    assert ahead_of_time.TARGETS == command.TARGETS
    assert settings.HEAD_DIMS == command.HEAD_DIMS
    assert set(command.KNOWN) >= {*ahead_of_time.TARGETS, *ahead_of_time.SHARED_LIMITS}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_90", "--target", "h100"], "error: --target is 'h100', expected one of sm_80, sm_86, "),
        (["--target", "sm_99"], "error: --target is 'sm_99', expected one of sm_80, sm_86, "),
        (["--target", "gfx999"], "gfx950, gfx1100, gfx1101"),
        (["--target", "sm_90a"], "error: --target is 'sm_90a', expected one of"),
        (["--target", "gfx"], "error: --target is 'gfx', expected one of"),
        (
            ["--head-dim", "72"],
            "error: --head-dim is 72, expected one of 16, 32, 64, 80, 96, 128, 256; heads in between run as the next",
        ),
        (["--dtype", "float64"], "error: invalid value for '--dtype'"),
        (["--format", "xml"], "error: invalid value for '--format'"),
        ([], "error: TRITON_INTERPRET is '1', with which Triton interprets and compiles nothing; unset it"),
    ],
)
def test_what_cannot_be_compiled_is_refused(run, monkeypatch, arguments, message):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code, out, err = run("compile-report", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_missing_triton_is_named(run, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = run("compile-report")
    assert (code, out) == (1, "")
    assert "error: Triton, which compiles, is not installed; there is one for Linux only: pip install triton" in err


def test_targets_of_another_form_are_refused_by_the_kernels_too():
    for name in ("sm_90", "sm_100", "gfx942", "gfx90a"):
        assert command._targets([name, name]) == (name,)
        assert ahead_of_time.gpu_target(name).backend == ("cuda" if name.startswith("sm_") else "hip")
    assert [ahead_of_time.gpu_target(name).warp_size for name in ("sm_90", "gfx942", "gfx1100")] == [32, 64, 32]
    with pytest.raises(ValueError, match="target is 'h100', expected sm_NN"):
        ahead_of_time.gpu_target("h100")


@pytest.mark.slow
def test_no_default_setting_of_any_head_dim_spills():
    done = compiling("-m", "taylorder", "compile-report", "--format", "json", timeout=3600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == len(ahead_of_time.TARGETS) * sum(
        len(list(ahead_of_time.jobs(d, torch.bfloat16))) for d in settings.HEAD_DIMS
    )
    assert [(row["kernel"], row["config"], row["target"], row["spills"]) for row in rows if row["spills"]] == []
    assert all(row["shared_bytes"] <= row["shared_limit_bytes"] for row in rows)
