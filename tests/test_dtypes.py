"""The dtype a model runs in: asked for, recorded, printed again, and named where float16 makes weights differ."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import torch

import taylorder
from taylorder.claims.measure import measure, measured_before
from taylorder.commands._shared import write_run
from taylorder.errors import ConfigError, TaylorderError
from taylorder.models.describe import describe
from taylorder.models.loading import load
from taylorder.reports.reproduce import analyze_command
from taylorder.runs import run_directory
from taylorder.selection.by_tolerance import select

_SIZES = ("--max-tokens", 64, "--sequence-length", 32, "--rows", 4, "--max-order", 2, "--no-eval")


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """A bfloat16 checkpoint with values that float16 has no room for."""
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[:, 0] *= 1e-5
    return tiny.saved(model.to(torch.bfloat16), tiny_tokenizer, tmp_path / "model")


@pytest.fixture
def analysed(tiny_tokenizer):
    def make(dtype):
        model = tiny.llama().to(getattr(torch, dtype))
        return taylorder.analyze(
            model, tiny_tokenizer, name="tiny", max_tokens=64, sequence_length=32, rows=4, max_order=2
        )

    return make


@pytest.mark.parametrize(
    ("asked", "used"), [("float32",) * 2, ("bfloat16",) * 2, ("float16",) * 2, ("auto", "bfloat16")]
)
def test_every_command_runs_in_the_dtype_asked_for(folder, tmp_path, run, asked, used):
    out = tmp_path / "out"
    orders = out / "orders.json"
    assert run("analyze", folder, *_SIZES, "--dtype", asked, "--out", out)[0] == 0
    assert json.loads((out / "report.json").read_text())["model"]["dtype"] == used
    assert taylorder.OrderConfig.load(orders).calibration["dtype"] == used
    sizes = ("--lengths", 32, "--tokens", 32, "--no-tasks", "--format", "json")
    code, text, err = run("eval", folder, "--config", orders, *sizes, "--dtype", asked)
    assert (code, json.loads(text)["dtype"]) == (0, used), err
    sizes = ("--lengths", 8, "--new-tokens", 1, "--format", "json")
    code, text, err = run("bench", folder, "--config", orders, *sizes, "--dtype", asked)
    assert (code, json.loads(text)["dtype"]) == (0, used), err
    options = ("--model", folder, "--config", orders, "--max-new-tokens", 2, "--dtype", asked)
    code, text, err = run("generate", "abc", *options)
    assert code == 0, err
    assert text


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "auto"])
def test_a_dtype_may_be_named(folder, dtype):
    loaded = load(str(folder), dtype=dtype)
    assert loaded.model.dtype == torch.bfloat16
    assert describe(loaded.model).dtype == "bfloat16"


def test_an_unknown_dtype_is_named(folder):
    with pytest.raises(TaylorderError, match="float17 is none of .*expected float32"):
        load(str(folder), dtype="float17")


def test_float16_says_so_where_the_weights_differ(folder):
    described = {
        dtype: describe(load(str(folder), dtype=dtype).model, "tiny") for dtype in ("float32", "bfloat16", "float16")
    }
    assert described["float32"].fingerprint == described["bfloat16"].fingerprint
    config = {dtype: taylorder.OrderConfig.uniform(model, 2, "mean") for dtype, model in described.items()}
    config["float32"].check(described["bfloat16"])
    config["float16"].check(described["float16"])
    with pytest.raises(ConfigError, match=r"model is in float16, which rounds .*analyze --dtype float16` on it$"):
        config["bfloat16"].check(described["float16"])
    with pytest.raises(ConfigError, match=r"was in float16, which rounds .* than float32: .*--dtype float16"):
        config["float16"].check(described["float32"])
    other = replace(described["float32"], fingerprint="sha256:0")
    with pytest.raises(ConfigError, match=r"run `taylorder analyze` on this model$"):
        config["bfloat16"].check(other)


def test_a_config_that_states_no_dtype_is_taken_for_float32(folder):
    described = describe(load(str(folder), dtype="float16").model)
    config = taylorder.OrderConfig.uniform(replace(described, fingerprint="sha256:0"), 2, "mean")
    with pytest.raises(ConfigError, match="the model is in float16"):
        config.model_copy(update={"calibration": {}}).check(described)


def test_the_command_that_repeats_a_run_names_the_dtype(analysed):
    def command(dtype):
        analysis = analysed(dtype)
        selection = select(analysis, policy="error", tolerance=0.07, context=64)
        assert selection.config.calibration["dtype"] == dtype
        return analyze_command(analysis, selection, out="out")

    assert "--dtype float16" in command("float16")
    assert "--dtype" not in command("float32")


def test_a_report_that_states_no_dtype_is_of_float32(analysed, tmp_path):
    analysis = analysed("float32")
    write_run(tmp_path, analysis, select(analysis, policy="error", tolerance=0.07, context=64))
    document = json.loads((tmp_path / "report.json").read_text())
    del document["model"]["dtype"]
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert run_directory.read(tmp_path)[0].model.dtype == "float32"


@pytest.mark.parametrize(("option", "dtype"), [((), "float16"), (("--dtype", "bfloat16"), "bfloat16")])
def test_claims_load_the_model_as_it_was_analysed(analysed, tmp_path, run, monkeypatch, option, dtype):
    analysis = analysed("float16")
    write_run(tmp_path, analysis, select(analysis, policy="error", tolerance=0.07, context=64))

    def load(name, **options):
        raise TaylorderError(f"asked for {name} in {options['dtype']}")

    monkeypatch.setattr("taylorder.models.loading.load", load)
    code, _, err = run("claims", tmp_path, *option)
    assert code == 1
    assert f"asked for tiny in {dtype}" in err


def test_claims_measured_in_another_dtype_are_measured_anew(analysed, tmp_path, folder):
    analysis = analysed("float16")
    assert measured_before(analysis, tmp_path, "cpu", "float16") is None
    settings = (tmp_path / "heads" / "settings.json").read_text()
    assert measured_before(analysis, tmp_path, "cpu", "bfloat16") is None
    assert (tmp_path / "heads" / "settings.json").read_text() != settings
    with pytest.raises(ConfigError, match=r"weights differ; that was in float16.*--dtype float16"):
        measure(analysis, load(str(folder)), tmp_path)
