"""``taylorder analyze --inputs``: a model that sees or hears, from the command line."""

from __future__ import annotations

import json

import pytest
import seeing
import tiny
from pages import Page
from safetensors.torch import save_file

from taylorder.adapt.config import OrderConfig
from taylorder.runs import run_directory


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A folder with a tiny ViT, without a tokenizer, and two files of three images each."""
    folder = tmp_path_factory.mktemp("vit")
    tiny.vit().save_pretrained(folder)
    for seed in (0, 1):
        save_file(seeing.batch("vit", 3, seed), folder / f"images{seed}.safetensors")
    return folder


@pytest.fixture
def analyze(run, seen, tmp_path, monkeypatch):
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])
    files = [word for seed in (0, 1) for word in ("--inputs", seen / f"images{seed}.safetensors")]

    def call(*arguments):
        return run("analyze", seen, *files, "--out", tmp_path / "out", "--max-order", 3, *arguments)

    return call


def test_it_measures_chooses_writes_and_says_how_far_outputs_move(analyze, run, seen, tmp_path):
    code, out, err = analyze("--tolerance", "0.9")
    assert code == 0, err
    assert "6 x 5 tokens" in out
    assert "(pixel_values 3 x 3 x 16 x 16)" in out
    assert "final hidden states" in out
    assert "On the inputs that were measured: " in " ".join(out.split())
    assert "taylorder eval" not in out.partition("What the model loses")[2].partition("Verdict")[0]
    assert "--inputs FILE" in out
    analysis, selection = run_directory.read(tmp_path / "out")
    assert analysis.calibration.sequences == 6
    assert {module.tokens for module in analysis.model.modules} == {5}
    evaluation = run_directory.read_evaluation(tmp_path / "out")
    judged = evaluation.comparisons[0].standing("config")
    assert judged is not None
    assert 0 < judged.hidden_relative_l2 < 1
    assert selection.config.counts() == OrderConfig.load(tmp_path / "out" / "orders.json").counts()
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "pixel_values 3 x 3 x 16 x 16" in page.text
    code, shown, _ = run("show", tmp_path / "out")
    assert code == 0
    assert shown == out


def test_eval_measures_on_other_inputs(analyze, run, seen, tmp_path):
    analyze("--tolerance", "0.9", "--no-eval")
    other = seen / "images1.safetensors"
    code, out, err = run("eval", tmp_path / "out", "--inputs", other, "--format", "json")
    assert code == 0, err
    (comparison,) = json.loads(out)["comparisons"]
    moved = {standing["name"]: standing["hidden_relative_l2"] for standing in comparison["standings"]}
    assert moved["exact"] == 0 < moved["config"] < 1
    assert comparison["text_source"] == str(other)
    code, out, _ = run("eval", tmp_path / "out", "--inputs", other)
    assert code == 0
    assert "final hidden states" in out
    code, _, err = run("eval", tmp_path / "out", "--inputs", other, "--max-kl", 1)
    assert code == 2
    assert "--max-kl is about text" in err


def test_the_document_and_the_command_that_makes_it_again(analyze, seen):
    code, out, err = analyze("--format", "json", "--no-eval")
    assert code == 0, err
    document = json.loads(out)
    assert document["calibration"]["inputs"] == "pixel_values 3 x 3 x 16 x 16"
    _, out, _ = analyze("--no-eval")
    shown = " ".join(out.replace("\\", " ").split())
    assert " ".join(f"--inputs {seen / f'images{seed}.safetensors'}" for seed in (0, 1)) in shown
    assert "--max-tokens" not in shown


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["--max-tokens", 4096], "--max-tokens"), (["--budget", "50%"], "--budget"), (["--dry-run"], "--dry-run")],
)
def test_options_about_text_are_refused(analyze, arguments, option):
    code, _, err = analyze(*arguments)
    assert code == 2
    assert f"{option} is about text, and --inputs takes its place" in err


def test_files_that_cannot_be_read_and_models_without_inputs_are_told(run, seen, tmp_path):
    (tmp_path / "x.safetensors").write_text("no tensors")
    for file, words in ((tmp_path / "x.safetensors", "cannot be read"), (tmp_path / "none", "cannot be read")):
        code, _, err = run("analyze", seen, "--inputs", file, "--out", tmp_path / "out")
        assert code == 2
        assert words in err
    code, _, err = run("analyze", seen, "--out", tmp_path / "out")
    assert code == 2
    assert "`taylorder analyze --inputs FILE.safetensors` instead" in " ".join(err.split())
