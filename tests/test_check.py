"""``taylorder check``: what is supported and why not, what stays exact, cache bytes, and what commands would take."""

from __future__ import annotations

import json

import pytest
import tiny
from command_line import heavy_imports

from taylorder.reports.render import plain_text


@pytest.fixture(autouse=True)
def nothing_timed(monkeypatch):
    speed = ("token", "step", "pair", "loss", "spectrum", "term", "use", "near", "polynomial")
    monkeypatch.setattr("taylorder.selection.speed.speed", lambda *_: dict.fromkeys(speed, 1e-6))


@pytest.fixture
def checked(run):
    """Its document."""

    def call(*arguments, code=0):
        ended, out, err = run("check", *arguments, "--format", "json")
        assert ended == code, err
        document = json.loads(out)
        assert document["schema"] == "taylorder/check@1"
        return document

    return call


def test_a_supported_model_has_its_cache_and_every_command(run, checked, saved):
    document = checked(saved, "--context", 50)
    assert document["supported"] is True
    assert document["stay_exact"] == []
    # 2 layers of 2 KV heads, keys and values of 8 numbers in bfloat16
    assert document["cache"] == {
        "bytes_per_token": 128, "context": 50, "bytes": 6400, "stay_exact_bytes": 0,
        "latent_bytes_per_token": 128, "kv_heads": 4,
    }  # fmt: skip
    plans = {command["command"].split()[0]: command for command in document["commands"]}
    assert list(plans) == ["analyze", "eval,", "generate,"]
    assert all(command["seconds"] > 0 for command in document["commands"])
    assert plans["analyze"]["disk_bytes"] > 0
    assert document["commands"][1]["command"] == f"analyze {saved} --budget 25% --context {tiny.CONTEXT}"
    assert {stage["stage"] for stage in document["commands"][1]["stages"]} >= {"probes", "levers", "moving bytes"}
    _, out, _ = run("check", saved)
    assert "128 B per token" in out
    assert "no layer has to" in out


def test_layers_with_sliding_windows_are_named_as_exact(checked, run, tmp_path, tiny_tokenizer):
    folder = tiny.saved(tiny.gemma3(), tiny_tokenizer, tmp_path / "model")
    document = checked(folder)
    assert [layer["sliding_window"] for layer in document["stay_exact"]] == [8, 8]
    assert document["cache"]["stay_exact_bytes"] > 0
    assert "2 of 4 layers (0, 2): sliding windows of 8 tokens" in " ".join(run("check", folder)[1].split())


def test_layers_that_read_the_same_keys_are_named_as_exact(checked, run, tmp_path, tiny_tokenizer):
    folder = tiny.saved(tiny.gemma3n(), tiny_tokenizer, tmp_path / "model")
    document = checked(folder, "--context", 50)
    assert [layer["reason"] for layer in document["stay_exact"]] == [
        "sliding",
        "sliding",
        "shared",
        "sliding",
        "shared",
    ]
    assert document["stay_exact"][-1]["keys_of"] == "model.layers.3.self_attn"
    assert (document["cache"]["bytes"], document["cache"]["stay_exact_bytes"]) == (64 * 50, 64 * (8 + 8 + 50))
    told = " ".join(run("check", folder)[1].split())
    assert "3 of 6 layers (0, 2, 4): sliding windows of 8 tokens, whose cache is constant already" in told
    assert "2 of 6 layers (3, 5): keys that several of them read, which have to be kept" in told


def test_layers_of_other_shapes_are_told_apart(run, checked, tmp_path, tiny_tokenizer):
    folder = tiny.saved(tiny.gemma4(), tiny_tokenizer, tmp_path / "model")
    told = " ".join(run("check", folder)[1].split())
    assert "4 layers x 4 heads over 1 KV head of dimension 16; 2 layers over 2 KV heads of dimension 8" in told
    (folder / "model.safetensors").unlink()
    model = checked(folder)["model"]
    assert [model[key] for key in ("full", "sliding", "kv_heads", "head_dim")] == [2, 2, 1, 16]


@pytest.mark.parametrize(("factory", "counts"), [("llama4", (2, 0, 2, 0)), ("gemma3n", (1, 3, 0, 2))])
def test_layers_that_stay_exact_are_counted_from_a_config_too(checked, tmp_path, tiny_tokenizer, factory, counts):
    folder = tiny.saved(getattr(tiny, factory)(), tiny_tokenizer, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    model = checked(folder)["model"]
    assert tuple(model[kind] for kind in ("full", "sliding", "chunked", "shared")) == counts


def test_an_encoder_has_no_cache_and_no_budget(checked, run, tmp_path, tiny_tokenizer):
    folder = tiny.saved(tiny.bert(), tiny_tokenizer, tmp_path / "model")
    document = checked(folder)
    assert document["cache"] is None
    reasons = [command["reason"] for command in document["commands"]]
    assert reasons[0] is None
    assert "levers are for causal models" in reasons[1]
    assert "generates no text" in reasons[-1]
    out = run("check", folder)[1]
    assert "an encoder has no cache" in " ".join(out.split())
    assert "levers are for causal models" in " ".join(out.split())


@pytest.fixture
def refused_folder(tmp_path, tiny_tokenizer):
    import transformers

    config = transformers.GPTJConfig(vocab_size=104, n_positions=64, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    return tiny.saved(tiny.build(transformers.GPTJForCausalLM, config), tiny_tokenizer, tmp_path / "gptj")


def test_a_refused_model_is_told_why_as_analyze_does(run, checked, refused_folder, tmp_path):
    code, out, err = run("check", refused_folder)
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == run("analyze", refused_folder, "--out", tmp_path / "out")[2].splitlines()[-1]
    document = checked(refused_folder, code=3)
    assert document["supported"] is False
    assert f"error: {document['reason']}" == err.splitlines()[-1]


def test_without_weights_the_config_alone_speaks(run, checked, folder, refused_folder):
    (folder / "model.safetensors").unlink()
    document = checked(folder)
    assert document["supported"] is None
    assert document["cache"] == {"bytes_per_token": 128, "context": tiny.CONTEXT, "bytes": 128 * tiny.CONTEXT}
    assert "There are no weights here" in " ".join(run("check", folder)[1].split())
    (refused_folder / "model.safetensors").unlink()
    code, _, err = run("check", refused_folder)
    assert code == 3
    assert "computes attention in its own code" in err


def test_sliding_layers_are_counted_from_a_config_too(run, checked, tmp_path):
    tiny.gemma3().config.save_pretrained(tmp_path)
    document = checked(tmp_path)
    assert (document["model"]["full"], document["model"]["sliding"]) == (2, 2)
    assert document["cache"]["bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    assert "2 layers with sliding windows" in run("check", tmp_path)[1]


def test_what_is_no_model_is_a_usage_error(run, tmp_path):
    assert run("check", tmp_path / "nothing")[0] == 2


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_the_report_fits(run, saved, monkeypatch, columns):
    shown = []
    monkeypatch.setattr(
        "taylorder.commands.check.print_report", lambda output, document, sections: shown.extend(sections)
    )
    assert run("check", saved)[0] == 0
    text = plain_text(shown, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "What commands would take here" in text


def test_help_is_answered_at_once():
    heavy, code, out = heavy_imports("check", "--help")
    assert (heavy, code) == ([], 0)
    assert "taylorder check my-model" in out
