"""The command line: options, exit codes, and what goes to which stream."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic
import tiny
from command_line import ROOT, heavy_imports, options

from taylorder.adapt.config import OrderConfig
from taylorder.commands._shared import write_run
from taylorder.errors import Terminated, UnsupportedModelError
from taylorder.models.describe import describe
from taylorder.reports.progress import StderrProgress
from taylorder.runs import run_directory


@pytest.fixture
def directory(tmp_path):
    measured = synthetic.analysis(layers=4)
    write_run(tmp_path / "run", measured, synthetic.selection(measured))
    return tmp_path / "run"


@pytest.fixture
def tiny_model(loads):
    """`load` gives a tiny random Llama; every 7 characters are a token."""

    def tokenizer(text, **_):
        return SimpleNamespace(input_ids=[8 + sum(map(ord, text[i : i + 7])) % 120 for i in range(0, 7 * 400, 7)])

    return loads(tiny.llama(), tokenizer, note="weights dequantised from Q4_0")


@pytest.fixture
def held_out(evaluates_on):
    evaluates_on("All work and no play makes Jack a dull boy. " * 80)


SMALL = ("--max-tokens", 64, "--sequence-length", 32, "--rows", 4, "--max-order", 4)


COMMANDS = (
    "analyze", "show", "eval", "generate", "chat", "compare", "bench", "compile-report", "check", "doctor", "export",
    "heal", "push", "pull",
)  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS), ["--version"], []])
def test_help_and_version_import_nothing_heavy(arguments):
    heavy, _, out = heavy_imports(*arguments)
    assert heavy == []
    assert out.strip()


CONTRACT = {
    "analyze": {
        "--text": None, "--inputs": None,
        "--max-tokens": 8192, "--sequence-length": 1024, "--rows": "64", "--tolerance": "int4",
        "--max-order": 8, "--window": 0, "--sinks": 0, "--policy": "error", "--context": None,
        "--budget": None, "--levers": None, "--lever-length": None, "--fresh": False,
        "--out": Path("taylorder-out"), "--seed": 0, "--per-head-alpha": False, "--no-eval": False, "--dry-run": False,
        "--device": "cpu", "--device-map": None, "--dtype": "float32", "--format": "human",
    },
    "eval": {
        "--config": None, "--text": None, "--inputs": None, "--lengths": None, "--tokens": 16384, "--tasks": True,
        "--rivals": False, "--max-kl": None,
        "--out": None, "--seed": 0, "--device": "cpu", "--device-map": None, "--dtype": None, "--format": "human",
    },
    "heal": {
        "--config": None, "--out": Path("taylorder-healed"), "--text": None, "--train": "lora",
        "--stage": "outputs,logits", "--minutes": None, "--tokens": None, "--context": None, "--sequences": 1,
        "--drop-window": 0.0, "--controls": True, "--fresh": False, "--seed": 0, "--device": "cpu",
        "--device-map": None, "--format": "human",
    },
    "show": {"--section": None, "--svg": None, "--format": "human"},
    "generate": {
        "--config": None, "--prompt-file": None, "--model": None, "--compare": False, "--max-new-tokens": 128,
        "--temperature": 0.0, "--seed": 0, "--device": "cpu", "--device-map": None, "--dtype": None,
    },
    "chat": {
        "--config": None, "--system": None, "--max-new-tokens": 512, "--temperature": 0.0, "--seed": 0,
        "--device": "cpu", "--device-map": None, "--dtype": None,
    },
    "bench": {
        "--config": None, "--lengths": None, "--new-tokens": 16, "--seed": 0, "--device": "cpu",
        "--device-map": None, "--dtype": None, "--format": "human",
    },
    "compile-report": {
        "--target": None, "--head-dim": None, "--dtype": "bfloat16", "--all-settings": False, "--format": "human",
    },
    "check": {"--context": None, "--format": "human", "--device": "cpu", "--device-map": None, "--dtype": "float32"},
    "doctor": {"--format": "human"},
    "compare": {
        "--context": None, "--eval": False, "--sequences": None, "--text": None, "--model": None, "--out": None,
        "--seed": 0, "--device": "cpu", "--device-map": None, "--dtype": None, "--format": "human",
    },
    "export": {
        "--out": Path("taylorder-export"), "--model": None, "--link": False, "--layer-wise": False,
        "--device-map": None, "--dtype": None,
    },
    "push": {"--config": None, "--private": False},
    "pull": {"--out": Path("taylorder-out"), "--revision": None},
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_the_contract_is_there_and_explained(run, command):
    found = options(command)
    assert not any(option.required for option in found.values())
    assert {name: option.default for name, option in found.items()} == CONTRACT[command]
    code, out, _ = run(command, "--help")
    assert code == 0
    assert re.search(r"^Examples\n    taylorder ", out, re.MULTILINE)


@pytest.mark.parametrize("width", [50, 80, 120])
@pytest.mark.parametrize("command", [None, *COMMANDS, "claims"])
def test_help_is_whole_at_every_width(run, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run(*([] if command is None else [command]), "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    assert not re.search(r"<\w+>|\[bold]|x>=", out)
    lines = [line.strip() for line in out.splitlines()]
    for name in options(command) if command is not None else COMMANDS:
        assert any(re.match(rf"{name}( |$)", line) for line in lines), name


def test_help_of_analyze_begins_with_the_budget(run):
    lines = run("analyze", "-h")[1].splitlines()
    headings = [line for line in lines if line and line[0].isupper() and not line.endswith(".")]
    groups = ["Choose by budget", "Choose by tolerance", "Calibration", "Output and machine", "Options"]
    assert [line for line in headings if line in groups] == groups
    assert lines[lines.index("Choose by budget") + 1].startswith("  --budget SIZE|PERCENT|…  ")


def test_commands_stand_in_the_order_of_use_below_three_examples(run):
    out = run("--help")[1]
    assert len(re.findall("^    taylorder ", out, re.MULTILINE)) == 3
    named = re.findall(r"^  ([a-z-]+)  ", out, re.MULTILINE)
    assert named[:6] == ["analyze", "eval", "generate", "chat", "show", "compare"]
    assert out.index("\nResearch\n") < out.index("\n  claims ") < out.index("\n  compile-report ")


def test_no_arguments_print_the_help_and_are_a_usage_error(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert out == run("--help")[1]


def test_progress_without_a_terminal_is_a_few_lines(capsys):
    with StderrProgress() as progress:
        for layer in range(1, 101):
            progress("heads of the layers", layer, 100)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "heads of the layers: 1 of 100"
    assert re.fullmatch(r"heads of the layers: 50 of 100, about \d+ s left", lines[2])
    assert lines[-1] == "heads of the layers: 100 of 100"
    assert len(lines) == 5


def test_progress_on_a_terminal_is_a_bar_per_stage(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with StderrProgress() as progress:
        progress("spectra of the layers", 2, 30)
        progress("heads of the layers", 1, 30)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/30" in err
    assert "1/30" in err
    assert "left" in err


def test_version_names_the_stack():
    done = subprocess.run(
        [sys.executable, "-m", "taylorder", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.search(r"^torch \d", done.stdout, re.MULTILINE)
    assert re.search(r"^python \d", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "error: --rows is '0', expected a whole number from 1 on, or all"),
        (["--rows", "some"], "error: --rows is 'some', expected a whole number from 1 on, or all"),
        (["--tolerance", "int2"], "error: tolerance is 'int2', expected a number between 0 and 1 or one of fp16"),
        (["--tolerance", "1.5"], "error: tolerance is '1.5', expected a number between 0 and 1"),
        (["--text", "/no/such/file"], "error: --text /no/such/file is not a file; name an existing text file"),
        (["--max-tokens", "100"], "error: --max-tokens is 100, fewer than one sequence of 1024"),
        (["--max-order", "9"], "error: invalid value for '--max-order'"),
        (["--max-order", "0"], "error: invalid value for '--max-order'"),
        (["--window", "-1"], "error: invalid value for '--window'"),
        (["--context", "0"], "error: invalid value for '--context'"),
        (["--policy", "luck"], "error: invalid value for '--policy'"),
        (["--format", "xml"], "error: invalid value for '--format'"),
        (["--nonsense"], "error: no such option: --nonsense"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(run, tiny_model, tmp_path, arguments, message):
    code, out, err = run("analyze", "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert tiny_model == []
    assert not (tmp_path / "out").exists()


def test_an_output_directory_that_is_a_file_is_refused_first(run, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("analyze", "--out", tmp_path / "file" / "run")
    assert code == 2
    assert err == f"error: --out {tmp_path}/file/run: {tmp_path}/file is a file; name a directory\n"
    assert tiny_model == []


def test_analyze_writes_reports_and_keeps_stdout_for_data(run, tiny_model, held_out, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 80)
    out_directory = tmp_path / "out"
    code, out, err = run("analyze", "some/model", "--text", text, "--out", out_directory, "--window", 4, *SMALL)
    assert code == 0
    assert tiny_model == ["some/model"]
    assert {path.name for path in out_directory.iterdir()} == {
        "orders.json", "orders.safetensors", "heads.csv", "spectral.csv", "report.json", "report.html",
    }  # fmt: skip
    assert out.startswith("taylorder: some/model\n")
    assert "Verdict" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out + err
    assert "loading some/model" in err
    assert "heads of the layers: 2 of 2" in err
    assert "heads of the layers" not in out
    assert f"the analysis is in {out_directory}; measuring what the model loses" in err
    assert "What the model loses: 4 sequences of 64 tokens" in out
    assert "Held-out text: a few words" in out
    assert re.search(r"runs of 64 tokens: 1[26] of 1[26]", err)

    shown = run("show", out_directory)
    assert shown == (0, out, "")

    measured, chosen = run_directory.read(out_directory)
    assert measured.calibration.source == str(text)
    assert (measured.window, measured.max_order, chosen.tolerance, chosen.context) == (4, 4, 0.07, tiny.CONTEXT)


def test_analyze_json_prints_one_document_and_nothing_else(run, tiny_model, tmp_path):
    code, out, err = run(
        "analyze", "--out", tmp_path, "--format", "json", "--policy", "alpha", "--tolerance", "bf16", "--rows", "all",
        "--context", 4096, "--seed", 3, "--per-head-alpha", "--no-eval", *SMALL[:4], "--max-order", 2,
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert document["settings"]["policy"] == "alpha"
    assert document["settings"]["tolerance"] == 2e-3
    assert document["settings"]["context"] == 4096
    assert document["calibration"]["rows_per_sequence"] == 32
    assert document["calibration"]["seed"] == 3
    assert Path(document["files"]["report"]).is_file()
    assert len(document["heads"]) == 8
    assert document["evaluation"] is None
    assert tiny_model == [None], "no MODEL is the built-in"
    assert "layers" in err
    measured, _ = run_directory.read(tmp_path)
    assert any(row.head is not None for row in measured.spectral)


def test_unsupported_models_stop_before_anything_long(run, tiny_model, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise UnsupportedModelError("this model caps its scores")

    monkeypatch.setattr("taylorder.models.describe.describe", refuse)
    monkeypatch.setattr("taylorder.analysis.analyze.analyze", lambda *_, **__: pytest.fail("measured"))
    code, out, err = run("analyze", "--out", tmp_path / "out")
    assert code == 3
    assert out == ""
    assert err.splitlines()[-1] == "error: this model caps its scores"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", ["taylorder.models.loading.load", "taylorder.analysis.analyze.analyze"])
@pytest.mark.parametrize("end, code, said", [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")])
def test_an_end_from_outside_is_one_line_with_its_code(run, tiny_model, monkeypatch, tmp_path, moment, end, code, said):
    def stop(*_, **__):
        raise end

    monkeypatch.setattr(moment, stop)
    found, out, err = run("analyze", "--out", tmp_path / "out")
    assert (found, out, err.splitlines()[-1]) == (code, "", f"error: {said}")
    assert not (tmp_path / "out").exists()


def test_eval_compares_at_every_length(run, tiny_model, held_out, orders, tmp_path):
    path = orders(2, expansion="mean", window=4, sinks=2)
    document = tmp_path / "eval.json"
    code, out, err = run(
        "eval", "some/model", "--config", path, "--lengths", "48,24", "--tokens", 96, "--out", document
    )
    assert code == 0, err
    assert tiny_model == ["some/model"]
    assert out.startswith("taylorder eval: some/model\n")
    assert max(map(len, out.splitlines())) <= 80
    assert out.index("4 sequences of 24 tokens") < out.index("2 sequences of 48 tokens") < out.index("Verdict")
    assert "\x1b" not in out + err
    assert "runs of 48 tokens: 10 of 10" in err
    assert "spectra of the layers: 2 of 2" in err
    written = json.loads(document.read_text(encoding="utf-8"))
    assert [each["length"] for each in written["comparisons"]] == [24, 48]
    assert written["tasks"]["reason"].endswith("tasks need a fast tokenizer")
    assert written["bound"] is None


def test_eval_json_prints_one_document_and_nothing_else(run, tiny_model, held_out, orders):
    path = orders(1, expansion="mean", window=8, sinks=2)
    code, out, _ = run("eval", "--config", path, "--format", "json", "--no-tasks", "--seed", 3, "--tokens", 64)
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "taylorder/eval@1"
    assert [(each["length"], each["sequences"], each["seed"]) for each in document["comparisons"]] == [(64, 1, 3)]
    assert document["tasks"] == {"reason": "--no-tasks", "results": []}


def test_a_missed_bound_is_4_after_everything_is_printed(run, tiny_model, held_out, orders, tmp_path):
    path, document = orders(1, expansion="mean"), tmp_path / "eval.json"
    options = ("--lengths", 32, "--tokens", 64, "--no-tasks")
    code, out, err = run("eval", "--config", path, *options, "--max-kl", "1e-3", "--out", document)
    assert code == 4
    assert "Bound missed" in out
    last = err.splitlines()[-1]
    assert re.fullmatch(
        r"error: the config's mean KL is [\d.]+ nats per token at 32 tokens; --max-kl allows 0\.001", last
    )
    assert json.loads(document.read_text(encoding="utf-8"))["bound"]["met"] is False
    code, out, _ = run("eval", "--config", path, *options, "--max-kl", 100)
    assert code == 0
    assert "Bound met: mean KL at most 100." in out


def test_eval_of_an_exact_config_says_so(run, tiny_model, held_out, orders):
    options = ("--lengths", 32, "--tokens", 64, "--no-tasks", "--max-kl", 0)
    code, out, err = run("eval", "--config", orders("exact"), *options)
    assert code == 0
    assert "The config keeps every head exact: it is the exact model" in out
    assert "to window" not in out
    assert "spectra" not in err


def test_eval_reads_the_alphas_of_the_run_beside_the_config(run, tiny_model, held_out, tmp_path, monkeypatch):
    assert run("analyze", "--out", tmp_path, "--no-eval", "--policy", "alpha", *SMALL)[0] == 0
    monkeypatch.setattr("taylorder.evaluation.rivals.fitted_alphas", lambda *_: pytest.fail("fitted again"))
    options = ("--lengths", 32, "--tokens", 64, "--no-tasks", "--format", "json")
    code, out, err = run("eval", "--config", tmp_path / "orders.json", *options)
    assert code == 0, err
    assert len(json.loads(out)["comparisons"][0]["standings"]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "1"], "error: --lengths is '1', expected whole numbers from 2 on with commas between them"),
        (["--lengths", "32,,64"], "error: --lengths is '32,,64', expected whole numbers"),
        (["--lengths", "128", "--tokens", "64"], "error: --tokens is 64, fewer than one sequence of 128"),
        (["--max-kl", "-1"], "error: --max-kl is -1.0, expected a number of nats from 0 on"),
        (["--max-kl", "nan"], "error: --max-kl is nan, expected a number of nats from 0 on"),
        (["--text", "/no/such/file"], "error: --text /no/such/file is not a file"),
        (["--out", "/"], "error: --out / is a directory; name a file"),
        (["--tokens", "1"], "error: invalid value for '--tokens'"),
    ],
)
def test_bad_options_of_eval_are_refused_before_anything_is_loaded(run, tiny_model, orders, arguments, message):
    code, out, err = run("eval", "--config", orders(2), *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert tiny_model == []


def test_eval_refuses_what_the_model_does_not_allow(run, tiny_model, loads, held_out, orders, tmp_path):
    code, _, err = run("eval", "--config", tmp_path / "none.json")
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: {tmp_path}/none.json does not exist; `taylorder analyze` writes one",
    )
    assert tiny_model == []
    code, _, err = run("eval", "--config", orders(2), "--lengths", "65")
    assert code == 2
    assert "--lengths has 65, but the model sees 64 tokens at most" in err
    loads(tiny.bert(), name="bert")
    code, _, err = run("eval", "--config", orders(2))
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: the config was made for tiny, with architecture = LlamaForCausalLM, and the model is bert, with "
        "architecture = BertModel; name the model it was made for, or run `taylorder analyze` on this model"
    )
    OrderConfig.uniform(describe(tiny.bert(), "bert"), 3).save(tmp_path / "bert.json")
    code, _, err = run("eval", "--config", tmp_path / "bert.json", "--max-kl", 1)
    assert code == 2
    assert "--max-kl is 1, but bert predicts no next token, so there is no KL; leave it out" in err


@pytest.mark.parametrize("arguments", [["eval"], ["bench"], ["generate", "hi"], ["show"], ["claims"]])
def test_where_nothing_is_named_the_default_run_is_asked_for(run, nothing_loads, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.search("error: .*taylorder-out.*; `taylorder analyze|there is no taylorder-out here: `taylorder ana", err)


def test_show_of_nothing_is_one_line_and_2(run, tmp_path):
    code, out, err = run("show", tmp_path)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {tmp_path} has no report.json, so no run was finished there; `taylorder analyze --out {tmp_path}` "
        "makes one\n"
    )


def test_show_json_is_the_report_with_paths(run, directory):
    code, out, err = run("show", directory, "--format", "json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    assert document["files"]["heads"] == str(directory / "heads.csv")
    assert document["heads"] == report["heads"]
    assert document["verdict"]["text"] == report["verdict"]["text"]


def test_show_prints_the_sections_that_are_asked_for(run, directory):
    whole = run("show", directory)[1]
    code, out, err = run("show", directory, "--section", "summary")
    assert (code, err) == (0, "")
    assert whole.startswith(out)
    assert out.splitlines()[1].split()[:2] == ["what", "runs"]
    assert "The run" not in out
    _, both, _ = run("show", directory, "--section", "distance", "--section", "run")
    assert both.index("The run") < both.index("How far the heads are")
    assert all(part in whole for part in both.split("\n\n"))
    code, out, err = run("show", directory, "--section", "heads")
    assert (code, out) == (2, "")
    assert "there is no section 'heads' in this report; it has summary, run, orders, errors, by-order," in err
    code, _, err = run("show", directory, "--section", "run", "--format", "json")
    assert code == 2
    assert "leave it out, or --format json" in err


def test_show_draws_a_picture(run, directory, tmp_path):
    code, out, err = run("show", directory, "--svg", tmp_path / "report.svg")
    assert (code, out, err) == (0, "", f"wrote {tmp_path}/report.svg\n")
    assert (tmp_path / "report.svg").read_text(encoding="utf-8").startswith("<svg")


def test_no_colour_into_a_pipe_and_none_where_it_is_not_wanted(run, directory, monkeypatch):
    for variable in ("FORCE_COLOR", "NO_COLOR", "COLORTERM", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    assert "\x1b" not in run("show", directory)[1]
    for variable, value in (("FORCE_COLOR", "1"), ("COLORTERM", "truecolor"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(variable, value)
    assert re.search(r"\x1b\[[0-9;]*48;2;", run("show", directory)[1])
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", run("show", directory)[1])


def test_a_terminal_without_unicode_gets_a_report_too(directory):
    command = [sys.executable, "-m", "taylorder", "show", str(directory)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert "Verdict" in done.stdout
    assert done.stderr == ""
