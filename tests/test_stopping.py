"""Commands that are ended from outside, or whose output goes nowhere; paths that cannot be; what is kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import synthetic
import tiny
from command_line import ROOT, WORDS

from taylorder.commands._shared import write_run
from taylorder.commands._stopping import kept, termination_as_interrupt
from taylorder.errors import NonFiniteError, StoppedError, Terminated
from taylorder.models import loading
from taylorder.storage.files import replacing

LONG = "x" * 300


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run directory."""
    folder = tmp_path_factory.mktemp("written") / "run [1] of mine"
    measured = synthetic.analysis(layers=3)
    write_run(folder, measured, synthetic.selection(measured))
    return folder


@pytest.fixture
def analyze(run, loads, evaluates_on, tiny_tokenizer, monkeypatch, tmp_path):
    """Call ``taylorder analyze`` on a tiny model, into ``tmp_path / "out"``."""
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])
    evaluates_on(WORDS)
    loads(tiny.llama(), tiny_tokenizer)

    def call(*arguments):
        small = ("--max-tokens", 96, "--sequence-length", 32, "--rows", 4, "--max-order", 2)
        return run("analyze", "--out", tmp_path / "out", *small, *arguments)

    return call


def shell(command, *, timeout=60):
    """Run a command line in which ``taylorder`` is this one."""
    program = f"taylorder() {{ '{sys.executable}' -m taylorder \"$@\"; }}; {command}"
    return subprocess.run(
        ["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize("arguments", ["--help", "--version", "show '{run}'", "analyze", "compile-report"])
def test_closed_output_is_one_sentence(written, arguments):
    done = shell(f"taylorder {arguments.format(run=written)} >&-")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: standard output is closed; send it to a terminal, ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", ["--help", "--version", "show '{run}'", "show '{run}' --format json"])
def test_full_output_is_one_sentence(written, arguments):
    done = shell(f"taylorder {arguments.format(run=written)} >/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: standard output cannot be written (No space left on device); send it ")


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_progress_that_nobody_takes_ends_nothing(tmp_path, where):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nfrom taylorder import cli\nfrom taylorder.reports.progress import StderrProgress\n"
        "def show() -> None:\n"
        "    with StderrProgress() as progress:\n"
        "        for done in range(9):\n"
        "            progress('heads', done, 9)\n"
        "            time.sleep(0.05)\n"
        "    print('measured')\n"
        "[known] = [known for known in cli.app.registered_commands if known.callback.__name__ == 'show']\n"
        "known.callback = show\nsys.argv[1:] = ['show']\ncli.main()\n"
    )
    done = shell(f"PYTHONPATH='{ROOT}' '{sys.executable}' '{script}' {where}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "measured\n", "")


def test_an_error_goes_nowhere_else_where_standard_error_is_closed(written):
    done = shell(f"taylorder show '{written}/nothing' 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_reader_that_has_enough_is_no_error(written):
    done = shell(f"taylorder show '{written}' | head -1")
    assert (done.stdout, done.stderr) == ("taylorder: smollm2-135m\n", "")


@pytest.mark.parametrize("file", ["", "report.json", "orders.json", "heads.csv", "report.html"])
def test_a_run_is_named_by_any_of_its_files(run, written, file):
    assert run("show", written / file) == (0, run("show", written)[1], "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "--out", ""], ["analyze", "--out", LONG], ["analyze", "--text", ""], ["analyze", "--text", LONG],
        ["show", ""], ["show", LONG], ["show", ".", "--svg", ""], ["claims", ""], ["claims", LONG],
        ["claims", ".", "--out", ""], ["eval", "--config", ""], ["eval", "--config", LONG], ["eval", LONG],
        ["eval", "--config", "a", "--out", ""], ["bench", "--config", ""], ["bench", LONG],
        ["generate", "hi", "--config", LONG], ["analyze", "--out", f"a/{LONG}/b"],
    ],
)  # fmt: skip
def test_empty_and_impossible_paths_are_refused_before_any_work(run, nothing_loads, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert "is empty, perhaps an unset variable" in err or "File name too long" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["analyze", "--out"], ["show"], ["eval", "--config"], ["claims"]])
def test_a_loop_of_links_is_refused_before_any_work(run, nothing_loads, tmp_path, arguments):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    code, _, err = run(*arguments, tmp_path / "loop")
    assert code == 2
    assert f" {tmp_path}/loop is no path here (Too many levels of symbolic links); choose another\n" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "--rows", "9" * 5000], "--rows is '9999"),
        (["analyze", "--context", 10**30], "error: invalid value for '--context'"),
        (["analyze", "--levers", ""], "--levers has ''"),
        (["analyze", "--lever-length", 16], "--lever-length is about levers"),
        (["analyze", "--fresh"], "--fresh is about levers"),
        (["eval", "--lengths", "9" * 5000], "--lengths is '9999"),
        (["bench", "--lengths", "9" * 5000], "--lengths is '9999"),
        (["bench", "--seed", 2**64], "error: invalid value for '--seed'"),
        (["generate", "hi", "--config", "a", "--seed", 2**64], "error: invalid value for '--seed'"),
    ],
)  # fmt: skip
def test_numbers_beyond_all_use_and_options_without_one_are_refused_first(
    run, nothing_loads, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err) < 1000


def test_a_folder_that_takes_no_file_is_refused_first(run, nothing_loads, monkeypatch, tmp_path):
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    code, _, err = run("analyze", "--out", tmp_path / "new" / "run")
    assert code == 2
    assert err.endswith(f": {tmp_path} is not writable (Read-only file system); name another directory\n")


def test_a_name_as_long_as_the_system_takes_can_be_written(tmp_path):
    path = tmp_path / ("\u00e4" * 127)
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_link_is_followed_and_a_device_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "whole"
    with replacing("/dev/null") as temporary:
        temporary.write_text("gone")
    assert Path("/dev/null").is_char_device()


# The analysis is there before its evaluation begins


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (KeyboardInterrupt, 130, "error: interrupted; "),
        (Terminated, 143, "error: terminated; "),
        (NonFiniteError, 1, "error: tiny breaks down; "),
    ],
)
@pytest.mark.parametrize("budget", [(), ("--budget", "0.75KiB", "--lever-length", 48)])
def test_a_finished_analysis_is_kept_whatever_ends_its_evaluation(
    analyze, run, monkeypatch, tmp_path, end, code, said, budget
):
    def stop(*_, **__):
        raise end("tiny breaks down")

    monkeypatch.setattr("taylorder.evaluation.evaluate.evaluate_shortly", stop)
    out = tmp_path / "out"
    found, printed, err = analyze(*budget)
    assert (found, printed) == (code, "")
    kept_there = f"the analysis is kept in {out}, without losses: `taylorder show {out}` prints it"
    assert err.splitlines()[-1] == said + kept_there
    code, text, err = run("show", out)
    assert (code, err) == (0, "")
    assert "Losses were not measured" in text


def test_an_error_without_a_name_says_too_what_is_kept():
    with pytest.raises(RuntimeError) as caught, kept("the analysis is kept"):
        raise RuntimeError("out of memory")
    assert caught.value.__notes__ == ["the analysis is kept"]
    with pytest.raises(NonFiniteError, match="^broken$"), kept("the same command goes on", errors=False):
        raise NonFiniteError("broken")
    said = "^interrupted; the same command goes on$"
    with pytest.raises(StoppedError, match=said), kept("the same command goes on", errors=False):
        raise KeyboardInterrupt


def test_a_run_of_other_settings_is_announced_and_the_same_is_not(analyze):
    assert "which this one replaces" not in analyze("--no-eval")[2]
    assert "out holds a run of these settings, which this one replaces" in analyze("--no-eval")[2]
    err = analyze("--no-eval", "--seed", 3, "--max-tokens", 64)[2]
    assert "which this one replaces when it is finished: tokens 96, now 64; seed 0, now 3\n" in err


def test_sigterm_ends_a_command_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), termination_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


# Runs in the place of models


def test_a_run_stands_where_a_model_does(analyze, run, tmp_path, monkeypatch):
    assert analyze("some/model", "--no-eval", "--policy", "alpha")[0] == 0
    names, dtypes = [], []
    substitute = loading.load  # what the fixture put there

    def loaded(name, **options):
        names.append(name)
        dtypes.append(options["dtype"])
        return substitute(name, **options)

    monkeypatch.setattr("taylorder.models.loading.load", loaded)
    out, options = tmp_path / "out", ("--lengths", 32, "--no-tasks", "--tokens", 64, "--format", "json")
    whole = [run("eval", *place, *options) for place in (
        [out], [out / "orders.json"], [out / "report.json"], ["some/model", "--config", out],
    )]  # fmt: skip
    assert [code for code, _, _ in whole] == [0] * 4
    assert len({printed for _, printed, _ in whole}) == 1
    assert run("bench", out / "heads.csv", "--lengths", 8, "--new-tokens", 1)[0] == 0
    assert run("bench", out, "--lengths", 8, "--new-tokens", 1, "--dtype", "float16")[0] == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").rename(tmp_path / "taylorder-out")
    assert run("bench", "--lengths", 8, "--new-tokens", 1)[0] == 0
    assert names == ["some/model"] * 7
    assert dtypes == ["float32"] * 5 + ["float16", "float32"]
    code, _, err = run("eval", "--config", tmp_path)
    assert (code, err) == (2, f"error: {tmp_path} has no orders.json; name a config file, or what `taylorder analyze "
                              "--out` wrote\n")  # fmt: skip


def test_a_run_is_read_from_anywhere_with_the_model_and_dtype_of_its_analysis(run, saved, monkeypatch, tmp_path):
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])
    monkeypatch.chdir(saved.parent)
    small = ("--text", saved / "words.txt", "--max-tokens", 64, "--sequence-length", 32, "--rows", 4, "--max-order", 2)
    code, _, err = run("analyze", saved.name, *small, "--dtype", "bfloat16", "--no-eval", "--out", tmp_path / "out")
    assert code == 0, err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = ("--lengths", 8, "--new-tokens", 1, "--format", "json")
    code, out, err = run("bench", "--config", "../out", *options)
    assert code == 0, err
    assert json.loads(out)["dtype"] == "bfloat16"
    assert err.splitlines()[0] == f"loading {saved}"
    monkeypatch.chdir(saved.parent)
    assert run("bench", tmp_path / "out", *options)[2].splitlines()[0] == f"loading {saved.name}"


def test_a_model_that_only_the_run_knows_is_asked_for(analyze, run, tmp_path, monkeypatch):
    assert analyze("./of another folder", "--no-eval")[0] == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, _, err = run("claims", "out")
    assert code == 2
    assert "./of another folder does not exist" in err
    assert "out names it so, perhaps as seen from another folder: name the model with --model" in err
    assert "name the model itself, and the run with --config" in run("eval", "out")[2]


def test_the_prompt_may_come_from_standard_input(run, monkeypatch, orders):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run("generate", "-", "--config", orders(2))
    assert (code, err) == (2, "error: PROMPT is -, but standard input is closed; pipe the prompt in, or give it as "
                              "PROMPT\n")  # fmt: skip
    code, _, err = run("generate", "caf\udce9", "--config", orders(2))
    assert (code, err) == (2, "error: the prompt is no UTF-8 text; convert it\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("blocks", [0, 8])
def test_a_full_disk_over_an_earlier_run_leaves_it_whole(written, tmp_path, blocks):
    """``ulimit -f`` counts kibibytes: the small files fit and the large ones do not."""
    run = shutil.copytree(written, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code = (
        "import pathlib, sys; sys.path.insert(0, 'tests'); import synthetic\n"
        "from taylorder.commands._shared import write_run\n"
        "measured = synthetic.analysis(layers=3, window=64, sinks=4)\n"
        "write_run(pathlib.Path(sys.argv[1]), measured, synthetic.selection(measured))"
    )
    done = shell(f"ulimit -f {blocks}; '{sys.executable}' -c \"$0\" '{run}'".replace('"$0"', f'"{code}"'))
    assert done.returncode == 1
    assert "cannot be written (File too large) and keeps what it had; name another with --out" in done.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
