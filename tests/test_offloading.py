"""A model whose weights are not in place: everything that is measured and run gives what it gives with all in place."""

from __future__ import annotations

import json
from contextlib import nullcontext

import accelerate
import pytest
import tiny
import torch
import transformers as hf
from command_line import WORDS

import taylorder
from taylorder.analysis.projections import projection_weights
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.describe import describe
from taylorder.models.loading import load
from taylorder.models.offloading import is_offloaded, place_of, stored, weights, weights_bytes
from taylorder.models.running import device_of, input_device
from taylorder.selection.run_levers import run_levers
from taylorder.selection.settings import AnalyzeSettings, Budget

ON_DISK = {"": "disk"}
MIXED = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu",
         "lm_head": "disk"}  # fmt: skip


def in_memory(folder):
    """All weights beside the model, each brought in by its module: as for a GPU that has room for one layer."""
    model = load(str(folder)).model
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


OFFLOADED = {
    "disk": lambda folder: load(str(folder), device_map=ON_DISK).model,
    "mixed": lambda folder: load(str(folder), device_map=MIXED).model,
    "memory": in_memory,
}


@pytest.fixture(params=OFFLOADED)
def pair(request, folder):
    """A tiny Llama in place, and the same offloaded."""
    offloaded = OFFLOADED[request.param](folder)
    assert is_offloaded(offloaded)
    return load(str(folder)).model, offloaded


def test_it_is_the_same_model(pair):
    whole, offloaded = pair
    for _ in range(2):  # a run brings weights in and out
        expected, found = describe(whole, "model"), describe(offloaded, "model")
        assert (found.fingerprint, found.max_context, found.modules) == (
            expected.fingerprint, expected.max_context, expected.modules,
        )  # fmt: skip
        assert (
            input_device(offloaded) == device_of(offloaded.model.layers[0].self_attn, offloaded) == torch.device("cpu")
        )
    assert list(weights(offloaded)) == list(weights(whole)) == [name for name, _ in whole.named_parameters()]
    assert weights_bytes(offloaded) == weights_bytes(whole) == weights_bytes(whole, resident=True)


def test_what_is_read_without_running_is_read_a_weight_at_a_time(pair):
    whole, offloaded = pair
    for name, (module, key) in weights(whole).items():
        assert torch.equal(stored(*weights(offloaded)[name]), getattr(module, key))
    for module in ("model.layers.0.self_attn", "model.layers.1.self_attn"):
        expected = projection_weights(whole, module)
        found = projection_weights(offloaded, module)
        assert list(found) == ["q", "k", "v", "o"]
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert is_offloaded(offloaded)  # nothing stayed


def test_weights_on_disk_are_not_in_memory(folder):
    model = load(str(folder), device_map=MIXED).model
    layer = sum(p.numel() * 4 for p in load(str(folder)).model.model.layers[0].parameters())
    head = tiny.VOCAB * 32 * 4
    assert weights_bytes(model) - weights_bytes(model, resident=True) == layer + head
    assert weights_bytes(in_memory(folder), resident=True) == weights_bytes(model)


def test_a_tied_weight_counts_once_after_it_was_brought_in_and_out(tmp_path, tiny_tokenizer):
    folder = tiny.saved(tiny.llama(tie_word_embeddings=True), tiny_tokenizer, tmp_path / "tied")
    whole = load(str(folder)).model
    for offloaded in (load(str(folder), device_map=ON_DISK).model, in_memory(folder)):
        assert describe(offloaded).fingerprint == describe(whole).fingerprint
        assert describe(offloaded).fingerprint == describe(whole).fingerprint
        assert "lm_head.weight" not in weights(offloaded)


def test_an_analysis_is_the_same(pair, tiny_tokenizer):
    whole, offloaded = pair
    settings = dict(name="model", text=WORDS, max_tokens=128, sequence_length=32, rows=8, max_order=3)
    expected = taylorder.analyze(whole, tiny_tokenizer, **settings)
    found = taylorder.analyze(offloaded, tiny_tokenizer, **settings)
    assert found.candidates == expected.candidates
    assert found.spectral == expected.spectral
    assert found.calibration == expected.calibration


def test_a_budget_run_gives_the_same_config_bit_for_bit(pair, tiny_tokenizer, tmp_path):
    whole, offloaded = pair
    settings = AnalyzeSettings(max_tokens=128, budget=Budget.parse("50%"), context=48, lever_length=32)
    found = []
    for number, model in enumerate((whole, offloaded)):
        run = run_levers(model, tiny_tokenizer, describe(model, "model"), settings, text=WORDS)
        run.chosen.config.save(tmp_path / f"{number}.json")
        found.append(run)
    assert found[0].table.rows() == found[1].table.rows()
    assert found[0].chosen.rounds == found[1].chosen.rounds
    tensors = [run.chosen.config.tensors() for run in found]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(
        torch.equal(a, b) for name in tensors[0] for a, b in zip(tensors[0][name], tensors[1][name], strict=True)
    )
    assert [parameter.requires_grad for parameter in offloaded.parameters()] == [
        parameter.requires_grad for parameter in whole.parameters()
    ]


def test_an_adapted_model_generates_the_same(pair):
    whole, offloaded = pair
    ids = tiny.tokens(2, 20)
    config = taylorder.OrderConfig.uniform(whole, 2, expansion="mean", window=4, sinks=1)
    made = []
    for model in pair:
        with taylorder.adapted(model, config):
            made.append(model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0))
    assert torch.equal(*made)
    with torch.no_grad():
        assert torch.equal(offloaded(ids).logits, whole(ids).logits)  # and is left as it was


def test_parameters_of_which_nobody_knows_are_refused(folder):
    model = in_memory(folder)
    accelerate.hooks.remove_hook_from_module(model.model.layers[0].mlp.up_proj)
    model.model.layers[0].mlp.up_proj.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"1 parameters without data .*mlp\.up_proj.*with a device_map"):
        describe(model)


def test_levers_of_a_class_whose_layers_cannot_run_twice_are_refused(folder, monkeypatch):
    from taylorder.selection import recomputing

    model = load(str(folder), device_map=ON_DISK).model
    monkeypatch.setattr(recomputing, "_layers", lambda _: [])
    with pytest.raises(UnsupportedModelError, match=r"no layer that transformers can run again.*leave out --budget"):
        recomputing.goes_by_layer(model, 32)


def test_the_folder_of_offloaded_weights_lasts_as_long_as_the_model(folder):
    loaded = load(str(folder), device_map=ON_DISK)
    assert place_of(loaded.model) == torch.device("cpu")
    assert repr(loaded) == f"<LoadedModel {folder}: LlamaForCausalLM, float32 on cpu>"


def test_commands_take_a_device_map(run, folder, tmp_path, monkeypatch):
    (folder / "words.txt").write_text(WORDS, encoding="utf-8")
    (tmp_path / "map.json").write_text(json.dumps(MIXED), encoding="utf-8")
    where, out = ("--device-map", tmp_path / "map.json"), tmp_path / "out"
    small = ("--text", folder / "words.txt", "--max-tokens", 128, "--sequence-length", 32, "--rows", 8, "--no-eval")
    code, _, err = run("analyze", folder, *small, *where, "--max-order", 2, "--out", out)
    assert code == 0, err
    whole = tmp_path / "whole"
    assert run("analyze", folder, *small, "--max-order", 2, "--out", whole)[0] == 0
    assert (out / "heads.csv").read_bytes() == (whole / "heads.csv").read_bytes()
    assert (out / "orders.json").read_bytes() == (whole / "orders.json").read_bytes()
    code, said, err = run("generate", "jack", "--config", out, *where, "--max-new-tokens", 4)
    assert code == 0, err
    assert said == run("generate", "jack", "--config", whole, "--max-new-tokens", 4)[1]
    code, said, err = run("bench", "--config", out, *where, "--lengths", 8, "--new-tokens", 2, "--format", "json")
    assert code == 0, err
    assert json.loads(said)["device"] == f"device map {tmp_path / 'map.json'}"
    code, said, _ = run("check", folder, *where)
    assert code == 0
    assert "of them on disk" in said
    asked = []

    def refused(_name, **options):
        asked.append(options["device_map"])
        raise UsageError("that is enough")

    monkeypatch.setattr("taylorder.models.loading.load", refused)
    monkeypatch.setattr("taylorder.claims.measure.measured_before", lambda *_, **__: pytest.fail("not asked for"))
    for command in (
        ["analyze", folder], ["eval", "--config", out], ["generate", "x", "--config", out], ["chat", "--config", out],
        ["bench", "--config", out], ["compare", out, whole, "--eval"], ["claims", out], ["check", folder],
    ):  # fmt: skip
        assert run(*command, "--device-map", "auto")[0] == UsageError.exit_code
    assert asked == ["auto"] * 8


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_two_devices_give_the_config_of_one(folder, tiny_tokenizer):
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.norm": 1, "lm_head": 0}
    settings = AnalyzeSettings(max_tokens=128, budget=Budget.parse("50%"), context=48, lever_length=32)
    ids, made = tiny.tokens(2, 20), []
    for options in ({"device": "cuda:0"}, {"device_map": places}):
        model = load(str(folder), **options).model
        found = run_levers(model, tiny_tokenizer, describe(model, "model"), settings, text=WORDS)
        with nullcontext() if not made else torch.cuda.device(1), taylorder.adapted(model, found.chosen.config):
            made.append((found.chosen.choice, model.generate(ids.to("cuda:0"), max_new_tokens=12, do_sample=False)))
    assert made[0][0] == made[1][0]
    assert torch.equal(made[0][1], made[1][1])
    assert {device_of(layer, model).index for layer in model.model.layers} == {0, 1}
    assert isinstance(model, hf.LlamaForCausalLM)
