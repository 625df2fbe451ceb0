"""Kept keys and probes in a config: what is written is read back, and what cannot give priorities is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from config_forms import EXACT, KEEPING, MODULES, PROBE_TEXT, WINDOW, config_of, edit, probes, save_changed
from descriptions import description, module
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from taylorder.adapt import cost
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.decisions import FlatOrder
from taylorder.adapt.prepared import execution_digest, plan_layer
from taylorder.adapt.probe import priorities
from taylorder.errors import ConfigError
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor

FIRST, SECOND = MODULES
MODEL = description(module(heads=6, kv_heads=2), module(SECOND, heads=6, kv_heads=2))


def keeping():
    """Keys are kept by one KV head of the second layer."""
    return config_of(EXACT, WINDOW, KEEPING, WINDOW)


def test_probes_and_kept_keys_are_read_back_equal(tmp_path):
    config = keeping().with_probes(probes(modules=[SECOND]), PROBE_TEXT)
    config.save(tmp_path / "orders.json")
    document = json.loads((tmp_path / "orders.json").read_text())
    assert document["probe"] == PROBE_TEXT
    assert list(document).index("probe") < list(document).index("layers")
    kept = [[kv_head.get("kept") for kv_head in layer["kv_heads"]] for layer in document["layers"]]
    assert kept == [[None, None], [12, None]]
    assert document["summary"].endswith("with 12 kept keys in 1 of them.")
    assert set(load_file(tmp_path / "orders.safetensors")) == {f"{SECOND}.probe"}
    back = OrderConfig.load(tmp_path / "orders.json")
    assert back == config
    assert back.probe.model_dump() == PROBE_TEXT
    assert torch.equal(back.probes[SECOND], probes(modules=[SECOND])[SECOND])
    assert back.to_frame().kept.tolist() == [0] * 6 + [12] * 3 + [0] * 3
    back.save(tmp_path / "again.json")
    assert OrderConfig.load(tmp_path / "again.json") == config


def test_configs_with_other_probes_are_not_equal_and_have_another_digest():
    plain = keeping()
    one, same, other = (plain.with_probes(probes(seed), PROBE_TEXT) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert one != plain
    assert len({execution_digest(config) for config in (plain, one, same, other)}) == 3
    assert one.with_probes({}, None) == plain


@pytest.mark.parametrize(
    "given, about, words",
    [
        ({"layers.7.attn": probes()[FIRST]}, PROBE_TEXT, "probes are given for layer layers.7.attn, which the config"),
        ({FIRST: torch.zeros(3, 21)}, PROBE_TEXT, f"probe of layer {FIRST} has shape (3, 21), expected (2, F): F"),
        ({FIRST: torch.zeros(2, 13)}, PROBE_TEXT, "has shape (2, 13), expected (2, F): F features, 14 or more"),
        ({FIRST: torch.zeros(21)}, PROBE_TEXT, "has shape (21,), expected (2, F)"),
        ({FIRST: torch.full((2, 21), torch.nan)}, PROBE_TEXT, f"probe of layer {FIRST} holds NaN or infinite values"),
        ({FIRST: torch.zeros(2, 21).int()}, PROBE_TEXT, "has dtype torch.int32, expected torch.float32"),
        (probes(), None, "there are probes of 2 layers, and the text that they were fitted on is None; expected both"),
        ({}, PROBE_TEXT, "there are probes of 0 layers, and the text that they were fitted on is {'text': 'prose'"),
        (probes(), PROBE_TEXT | {"tokens": "many"}, "probe: tokens: Input should be a valid integer, found 'many'"),
    ],
)
def test_probes_that_do_not_fit_are_refused(given, about, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        keeping().with_probes(given, about)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.update({f"{SECOND}.probe": t[f"{SECOND}.probe"].double()}), "has dtype torch.float64, expected"),
        (lambda t: t.update({f"{SECOND}.probe": t[f"{SECOND}.probe"] / 0}), "holds NaN or infinite values"),
        (lambda t: t.update({f"{SECOND}.probes": t.pop(f"{SECOND}.probe")}), "unknown tensor layers.1.attn.probes"),
        (lambda t: t.update({"x": t.pop(f"{SECOND}.probe")}), "unknown tensor x"),
        (
            lambda t: (
                t.update({f"{FIRST}.key_centre": torch.zeros(2, 8), f"{SECOND}.key_centre": torch.zeros(2, 8)})
                or t.pop(f"{SECOND}.probe")
            ),
            "there are probes of 0 layers, and the text",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, words):
    path = save_changed(keeping().with_probes(probes(modules=[SECOND]), PROBE_TEXT), tmp_path / "orders.json", change)
    with pytest.raises(ConfigError) as caught:
        OrderConfig.load(tmp_path / "orders.json")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_document_that_says_nothing_of_its_probes_is_refused(tmp_path):
    path = tmp_path / "orders.json"
    keeping().with_probes(probes(), PROBE_TEXT).save(path)
    edit(path, lambda document: document.pop("probe"))
    with pytest.raises(ConfigError, match="probes of 2 layers, and the text that they were fitted on is None"):
        OrderConfig.load(path)
    keeping().save(path)
    edit(path, lambda document: document.update(probe=PROBE_TEXT))
    with pytest.raises(ConfigError, match=r"orders\.json: there are probes of 0 layers"):
        OrderConfig.load(path)


def test_every_layer_that_keeps_keys_needs_a_probe_of_its_shape():
    config = keeping()
    for without in (config, config.with_probes(probes(modules=[FIRST]), PROBE_TEXT)):
        with pytest.raises(ConfigError) as caught:
            without.check(MODEL)
        message = str(caught.value)
        assert message.startswith(f"layer {SECOND} keeps keys and has no probe; ")
        assert "orders.safetensors" in message
        assert "with_probes" in message
    config.with_probes(probes(modules=[SECOND]), PROBE_TEXT).check(MODEL)
    wide = config.with_probes(probes(value_dim=9), PROBE_TEXT)
    with pytest.raises(ConfigError, match=f"layer {SECOND} has a probe of 22 features, expected 21 for keys of 8 and"):
        wide.check(MODEL)


def test_encoders_and_sliding_layers_keep_no_keys():
    config = config_of(*[KEEPING] * 4).with_probes(probes(), PROBE_TEXT)
    for changes, words in (
        ({"causal": False}, "is bidirectional and has no near field"),
        ({"sliding_window": 5}, "attends to a sliding window of 5 tokens and stays as it is"),
    ):
        model = description(module(heads=6, kv_heads=2, **changes), module(SECOND, heads=6, kv_heads=2))
        with pytest.raises(ConfigError, match=words):
            config.check(model)


def test_uniform_keeps_keys_by_the_probes_it_is_given():
    config = OrderConfig.uniform(MODEL, 1, "mean", 4, 2, kept=3, probes=probes(), probe=PROBE_TEXT)
    assert {head.spec for layer in config.layers for head in layer.heads} == {
        HeadSpec(Taylor(1, "mean"), Near(4, 2, 3))
    }
    config.check(MODEL)
    with pytest.raises(ConfigError, match="kept is 3 and there are no probes to say which keys; expected those of a"):
        OrderConfig.uniform(MODEL, 1, "mean", 4, 2, kept=3)
    with pytest.raises(ConfigError, match="kept: Input should be greater than or equal to 0, found -1"):
        OrderConfig.uniform(MODEL, 1, kept=-1, probes=probes(), probe=PROBE_TEXT)


def test_an_exact_head_keeps_no_keys():
    with pytest.raises(ValueError, match="an exact head carries no expansion, .*, and no kept keys; remove them"):
        FlatOrder(order="exact", kept=2)
    assert FlatOrder(order=1, coefficients=(0.0,), kept=2).decision().spec == HeadSpec(Dropped(), Near(0, 0, 2))


def test_only_layers_that_keep_keys_plan_a_probe():
    config = keeping().with_probes(probes(), PROBE_TEXT)
    first, second = (plan_layer(config, layer).numbers for layer in config.layers)
    k, v = torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    assert first.priority(k, v) is None
    assert torch.equal(second.priority(k, v), priorities(probes()[SECOND], k, v))
    for dtype in (torch.float64, torch.bfloat16):
        found = second.priority(k.to(dtype), v.to(dtype))
        assert found.dtype == torch.float32
        assert torch.equal(found, priorities(probes()[SECOND], k.to(dtype).float(), v.to(dtype).float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(second.priority(k, v), priorities(probes()[SECOND], k, v))
    assert not second.priority(k.requires_grad_(), v).requires_grad


@given(near=st.builds(Near, st.integers(0, 9), st.integers(0, 4), st.integers(0, 9)), tokens=st.integers(0, 40))
def test_a_kept_key_costs_a_token_of_cache_and_its_priority(near, tokens):
    key, held = MODEL.modules[0], min(tokens, near.tokens)
    ranked = sum(near.window + near.sinks <= token for token in range(held))
    expected = held * (8 + 8) * 2 + ranked * 4
    assert cost.kv_head_bytes([HeadSpec(Dropped(), near)] * 3, key, tokens) == expected


def test_kept_keys_postpone_the_break_even_by_their_priorities():
    near = Near(10, 4, 50)
    tokens = cost.break_even_tokens(8, 8, 2, near=near.tokens, kept=near.kept)
    key, spec = MODEL.modules[0], HeadSpec(Taylor(2, "mean"), near)
    whole = HeadSpec(Exact())
    for found, pays in ((tokens, True), (tokens - 1, False)):
        assert (cost.kv_head_bytes([spec], key, found) <= cost.kv_head_bytes([whole], key, found)) == pays
    assert tokens > cost.break_even_tokens(8, 8, 2, near=near.tokens)
