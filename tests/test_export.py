"""``taylorder export``: what transformers, its server and taylorder itself do with the folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import keeping_configs
import pytest
import tiny
import torch
from command_line import ROOT
from transformers import AutoModelForCausalLM, DynamicCache

from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.adapt.handle import adapted
from taylorder.adapt.layer_wise import layer_wise
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.reports.numbers import size

PROMPT = "the quick brown fox jumps over 13 lazy dogs"
GREEDY = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module")
def config_folder(saved):
    """A run whose config keeps 15 keys per KV head: far fewer than the prompt has."""
    config = keeping_configs.small(AutoModelForCausalLM.from_pretrained(saved))[1]
    config.save(saved.parent / "config" / "orders.json")
    return saved.parent / "config"


@pytest.fixture(scope="module")
def exported(saved, config_folder):
    folder = saved.parent / "exported"
    _taylorder("export", str(config_folder), "--model", str(saved), "--out", str(folder))
    return folder


@pytest.fixture
def ids(tiny_tokenizer):
    return tiny_tokenizer(PROMPT, return_tensors="pt").input_ids


def _taylorder(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "taylorder", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def _continued(model, ids, **options):
    made = model.generate(ids, return_dict_in_generate=True, **GREEDY, **options)
    return made.sequences[0].tolist(), made.past_key_values


def test_a_trusted_folder_generates_with_the_config(exported, config_folder, saved, ids):
    plain = AutoModelForCausalLM.from_pretrained(saved)
    exact, _ = _continued(plain, ids)
    with adapted(plain, OrderConfig.load(config_folder / "orders.json")):
        expected, _ = _continued(plain, ids)
    assert exact != expected, "the config changes nothing that could be seen here"

    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    for _ in range(2):  # what was prepared for the first call serves the second
        tokens, cache = _continued(model, ids)
        assert tokens == expected
        assert isinstance(cache, TaylorCache)


def test_outside_generate_and_without_trust_the_model_is_exact(exported, saved, ids):
    plain = AutoModelForCausalLM.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    model.generate(ids, **GREEDY)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    tokens, cache = _continued(AutoModelForCausalLM.from_pretrained(exported), ids)
    assert tokens == _continued(plain, ids)[0]
    assert type(cache) is DynamicCache


def test_the_folder_is_model_and_config_to_taylorder_too(exported):
    done = _taylorder("generate", PROMPT, "--config", str(exported), "--max-new-tokens", "4")
    assert f"loading {exported}" in done.stderr
    assert "1.95 KiB nominal (exact: 5.75 KiB nominal)" in done.stderr


def test_linked_weights_lie_where_they_were(exported, config_folder, saved, tmp_path, ids):
    folder = tmp_path / "linked"
    _taylorder("export", str(config_folder), "--model", str(saved), "--link", "--out", str(folder))
    weights = folder / "model.safetensors"
    assert weights.is_symlink()
    assert weights.resolve() == (saved / "model.safetensors").resolve()
    models = (AutoModelForCausalLM.from_pretrained(each, trust_remote_code=True) for each in (exported, folder))
    first, second = (_continued(model, ids)[0] for model in models)
    assert first == second


def test_weights_are_not_replaced_by_links_to_themselves(run, exported):
    code, _, err = run("export", str(exported), "--link", "--out", str(exported))
    assert code == 2
    assert "has the weights that are to be linked to" in err
    assert (exported / "model.safetensors").is_file()


def test_the_card_tells_what_runs_and_no_path(exported, saved):
    card = (exported / "README.md").read_text(encoding="utf-8")
    front, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "library_name: transformers" in front
    assert "base_model" not in front  # a folder of this machine is nobody else's
    assert str(saved.parent) not in card
    assert "KV cache" in text
    assert "trust_remote_code=True" in text
    assert "Not measured yet" in text


def test_an_export_is_replaced_and_nothing_else_is(run, exported, config_folder, saved, tmp_path):
    arguments = ("export", str(config_folder), "--model", str(saved), "--out")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    code, _, err = run(*arguments, str(other))
    assert code == 2
    assert "holds something else than an export" in err
    assert [file.name for file in other.iterdir()] == ["thesis.txt"]

    (exported / "left.txt").write_text("from before")
    assert run(*arguments, str(exported))[0] == 0
    assert not (exported / "left.txt").exists()
    assert (exported / "custom_generate" / "generate.py").is_file()
    assert not list(exported.parent.glob(f".{exported.name}*"))


def test_a_config_of_other_weights_is_refused_before_anything_is_written(run, config_folder, tiny_tokenizer, tmp_path):
    other = tiny.saved(tiny.build(*_llama_of_another_seed()), tiny_tokenizer, tmp_path / "other")
    code, _, err = run("export", str(config_folder), "--model", str(other), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "weights" in err
    assert not (tmp_path / "out").exists()


def test_an_encoder_generates_nothing_to_export(run, tiny_tokenizer, tmp_path):
    encoder = tiny.bert()
    folder = tiny.saved(encoder, tiny_tokenizer, tmp_path / "encoder")
    OrderConfig.uniform(describe(encoder, str(folder)), 2).save(tmp_path / "config" / "orders.json")
    code, _, err = run("export", str(tmp_path / "config"), "--out", str(tmp_path / "out"))
    assert code == 3
    assert "generates no text" in err


def _llama_of_another_seed():
    model = tiny.llama()
    return type(model), model.config, 1


def test_layer_wise_holds_what_the_neediest_kv_head_holds():
    model = describe(tiny.llama(), "tiny")
    drops = [HeadSpec(Dropped(), near) for near in (Near(6, 4, 5), Near(20, 2))]
    more = [HeadSpec(Dropped(), Near(3, 4)), HeadSpec(Taylor(2, "mean"), Near(8, 4))]
    layers = [
        LayerOrders(
            module=module.name, heads=tuple(HeadOrder(spec=spec) for spec in specs for _ in range(module.group))
        )
        for module, specs in zip(model.modules, (drops, more), strict=True)
    ]
    per_head = OrderConfig.uniform(model, "exact").model_copy(update={"layers": tuple(layers)})
    first, second = (layer.heads for layer in layer_wise(per_head, model).layers)
    assert {head.spec for head in first} == {HeadSpec(Dropped(), Near(18, 4))}
    assert {head.spec for head in second} == {HeadSpec(Exact())}


def test_layer_wise_export_says_what_both_forms_take(run, config_folder, saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved)
    per_head = OrderConfig.load(config_folder / "orders.json")
    folder = tmp_path / "layers"
    code, _, err = run("export", str(config_folder), "--model", str(saved), "--layer-wise", "--out", str(folder))
    assert code == 0, err
    config = OrderConfig.load(folder / "orders.json", model)
    assert config.criterion["policy"] == "layer-wise"
    assert config == layer_wise(per_head, describe(model, str(saved)))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for form in (config, per_head):
        assert size(config_bytes(form, describe(model), tiny.CONTEXT)) in card


@pytest.mark.skipif(find_spec("fastapi") is None, reason="transformers' server is not installed: transformers[serving]")
def test_transformers_serve_answers_with_the_config(exported, config_folder, saved, ids, tiny_tokenizer, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(saved)
    with adapted(plain, OrderConfig.load(config_folder / "orders.json")):
        expected = tiny_tokenizer.decode(_continued(plain, ids)[0][ids.shape[1] :], skip_special_tokens=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(exported), "--trust-remote-code"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    server = subprocess.Popen(
        [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    asked = {"model": str(exported), "prompt": PROMPT, "max_tokens": GREEDY["max_new_tokens"], "temperature": 0}
    try:
        answer = _posted(f"http://127.0.0.1:{port}/v1/completions", asked, server)
    finally:
        server.terminate()
        server.wait(timeout=30)
    text = answer["choices"][0]["text"]
    assert text
    assert expected.startswith(text) or text.startswith(expected)


def _posted(address, content, server):
    """Ask until the server listens."""
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    for _ in range(120):
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except ConnectionError:
            pass
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
        assert server.poll() is None, "the server ended"
        time.sleep(0.5)
    raise AssertionError("the server does not listen")
