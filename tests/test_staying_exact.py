"""Layers that no state can replace stay exact and hold no one else back: chunks, shared keys, other head shapes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import plain
import pytest
import tiny
import torch
from descriptions import description, module
from generating import generate, in_pieces, padded_batch
from mixed_orders import mixed_config, reference_output

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.analysis.analyze import analyze
from taylorder.analysis.text import Text
from taylorder.errors import ConfigError, UnsupportedModelError
from taylorder.evaluation.rivals import at_equal_bytes
from taylorder.kernels.spec import HeadSpec, Taylor
from taylorder.models.attention import recording
from taylorder.models.describe import describe
from taylorder.reports.savings import attention_multiplications
from taylorder.selection.by_tolerance import select
from taylorder.selection.cache_size import CacheSize
from taylorder.selection.lever_table import refuse_unsupported

DECODERS = {"llama4": tiny.llama4, "gemma3n": tiny.gemma3n, "gemma4": tiny.gemma4}
WHY = {
    "llama4": ["chunked", None, "chunked", None],
    "gemma3n": ["sliding", None, "sliding", "shared", "sliding", "shared"],
    "gemma4": ["sliding", None, "sliding", None],
}
LENGTH = 40
TEXT = Text("a poem", "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 2)
SETTINGS = {"text": TEXT, "max_tokens": 64, "sequence_length": 32, "rows": 6, "max_order": 3}


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request):
    return request.param, DECODERS[request.param]()


def distance(found, expected):
    return float((found.detach().double() - expected.double()).norm() / expected.double().norm())


def test_what_stays_exact_and_why(decoder):
    name, model = decoder
    assert [one.stays_exact for one in describe(model).modules] == WHY[name]


@pytest.mark.parametrize("padded", [False, True])
def test_layers_beside_those_that_stay_exact_compute_the_formula(decoder, padded):
    _, model = decoder
    ids, mask = padded_batch(LENGTH)
    inputs = {"input_ids": ids, "attention_mask": mask} if padded else {"input_ids": ids}
    rows = mask.bool() if padded else torch.ones_like(mask).bool()
    for seed in range(2):
        config = mixed_config(model, seed)
        expected = reference_output(model, config, **inputs)
        with torch.no_grad(), taylorder.adapted(model, config):
            found = model(**inputs)[0]
        assert distance(found[rows], expected[rows]) < 1e-4
        assert distance(model(**inputs)[0][rows], expected[rows]) > 1e-3  # negative control


def test_a_config_of_exact_heads_changes_no_bit(decoder):
    _, model = decoder
    ids, mask = padded_batch(LENGTH)
    plain_logits = model(ids, attention_mask=mask).logits
    tokens = generate(model, ids, mask, do_sample=False).sequences
    with taylorder.adapted(model, OrderConfig.uniform(model, "exact")):
        assert torch.equal(model(ids, attention_mask=mask).logits, plain_logits)
        assert torch.equal(generate(model, ids, mask, do_sample=False).sequences, tokens)


def test_a_cache_of_states_gives_what_the_whole_sequence_gives(decoder, tmp_path):
    _, model = decoder
    config = OrderConfig.uniform(model, 2, "mean", window=4, sinks=1)
    ids, mask = tiny.tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    with torch.no_grad(), taylorder.adapted(model, config):
        whole = model(ids).logits
        cache = TaylorCache(model, config)
        first = in_pieces(model, cache, ids, mask, (17, 1, 6))
        cache.save(tmp_path / "cache.safetensors")
        again = TaylorCache.load(tmp_path / "cache.safetensors", model, config)
        for held in (cache, again, cache.clone()):
            rest = in_pieces(model, held, ids, mask, (1,) * 16)
            assert distance(torch.cat([first, rest], 1), whole) < 1e-4
            held.reset()


def test_bytes_are_those_of_caches_that_exist():
    """Chunks and windows end, and who reads another layer's keys holds none."""
    exact = [describe(factory()) for factory in DECODERS.values()]
    llama4, gemma3n, gemma4 = (config_bytes(OrderConfig.uniform(one, "exact"), one, 50) for one in exact)
    token = 2 * (8 + 8) * 2  # 2 KV heads of dimension 8
    assert llama4 == token * (8 + 50 + 8 + 50)
    assert gemma3n == token * (8 + 50 + 8 + 50)
    assert gemma4 == token * 8 * 2 + (16 + 16) * 2 * 50 * 2
    for one, total in zip(exact, (llama4, gemma3n, gemma4), strict=True):
        cache = CacheSize.of(one, 50)
        assert cache.exact_bytes + cache.closed_bytes == total
    model = DECODERS["gemma3n"]()
    with torch.no_grad():
        held = model(tiny.tokens(1, 50), use_cache=True).past_key_values
    assert sum(layer.keys is not None for layer in held.layers) == 4


# Several shapes of heads.


def test_a_config_of_several_shapes_comes_back_as_it_was_saved(tmp_path):
    model = tiny.gemma4()
    described = describe(model)
    assert (described.typical.heads, described.typical.kv_heads, described.typical.head_dim) == (4, 1, 16)
    config = mixed_config(model)
    config.save(tmp_path / "orders.json")
    assert OrderConfig.load(tmp_path / "orders.json", model) == config
    layers = json.loads((tmp_path / "orders.json").read_text())["layers"]
    assert [layer.get("shape") for layer in layers] == [{"kv_heads": 2, "head_dim": 8}, None] * 2
    assert [len(layer["kv_heads"]) for layer in layers] == [2, 1, 2, 1]


def test_layers_of_another_shape_have_to_be_as_the_model_has_them():
    described = describe(tiny.gemma4())
    config = OrderConfig.uniform(described, 2)
    elsewhere = replace(described, modules=(replace(described.modules[0], head_dim=4), *described.modules[1:]))
    with pytest.raises(ConfigError, match=r"says that layer model\.layers\.0\.self_attn has kv_heads=2 head_dim=8, "):
        config.check(elsewhere)


@pytest.mark.parametrize(
    ("factory", "words"),
    [("llama4", r"attends within chunks of 8 tokens"), ("gemma3n", r"attends to keys that another layer attends to")],
)
def test_an_order_for_a_layer_that_stays_exact_is_refused(factory, words):
    described = describe(DECODERS[factory]())
    config = OrderConfig.uniform(described, 2)
    heads = (HeadOrder(spec=HeadSpec(Taylor(2))),) * 4
    place = next(i for i, one in enumerate(described.modules) if one.stays_exact in ("chunked", "shared"))
    layers = [*config.layers]
    layers[place] = LayerOrders(module=layers[place].module, heads=heads)
    with pytest.raises(ConfigError, match=rf"{words}.* and stays as it is, but the config gives it an order"):
        OrderConfig(model=config.model, layers=tuple(layers)).check(described)


def uneven():
    """A model whose two full layers differ in their KV heads."""
    model = tiny.gemma4()
    model.model.layers[1].self_attn.k_proj = torch.nn.Linear(32, 32, bias=False)
    model.model.layers[1].self_attn.num_key_value_groups = 2
    return model


def test_open_layers_of_several_shapes_are_measured_and_run_and_get_no_levers():
    model = uneven()
    described = describe(model)
    assert not described.alike
    config = OrderConfig.uniform(described, 2, "mean", 3, 1).with_key_centres(
        {module.name: torch.zeros(module.kv_heads, module.head_dim) for module in described.modules}
    )
    expected = reference_output(model, config, input_ids=tiny.tokens(1, 20))
    with torch.no_grad():
        plain = model(tiny.tokens(1, 20))[0]
        with taylorder.adapted(model, config):
            found = model(tiny.tokens(1, 20))[0]
    assert (found.double() - expected).norm() < 1e-4 * expected.norm() < (plain.double() - expected).norm()
    with pytest.raises(UnsupportedModelError, match="layers whose heads are of several shapes, and levers are offered"):
        refuse_unsupported(described)
    assert {contender.absent[:6] for contender in at_equal_bytes(described, config, {}, 64)} == {"layers"}


def test_a_model_in_which_nothing_is_open_is_told_so():
    chunks = description(module(chunk=8), module("layers.1.attn", chunk=8))
    assert chunks.why_none_open == "every layer attends within chunks"
    assert OrderConfig.uniform(chunks, 3).counts() == {"exact": 8}


# Modules that attend several times.


def test_a_module_called_several_times_has_one_order_measured_on_all_calls(tiny_tokenizer):
    model = tiny.albert()
    analysis = analyze(model, tiny_tokenizer, **SETTINGS)
    (attention,) = analysis.model.modules
    assert (attention.calls, analysis.model.causal) == (3, False)
    calls = []
    first = torch.tensor(tiny_tokenizer(TEXT.content, add_special_tokens=False).input_ids[:64]).view(2, 32)
    with recording(model, calls.append), torch.no_grad():
        model(first)
    q, k, v = (torch.cat([getattr(call, name) for call in calls]).double().numpy() for name in "qkv")
    positions = [list(found) for found in analysis.calibration.query_rows] * 3
    for head in (0, 3):
        centre = k[:, head].mean((0, 1))
        expected = plain.head_errors(
            q[:, head], k[:, head], v[:, head], centre, positions, lambda b, i: range(32), calls[0].scaling, 3, "mean"
        )
        row = next(r for r in analysis.candidates if (r.head, r.order, r.expansion) == (head, 3, "mean"))
        assert {figure: getattr(row, figure) for figure in expected} == pytest.approx(expected, 1e-6, 1e-9)


def test_every_call_of_a_module_runs_the_config():
    model = tiny.albert()
    ids, mask = padded_batch(LENGTH)
    config = mixed_config(model, 1)
    expected = reference_output(model, config, input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        with taylorder.adapted(model, config):
            found = model(ids, attention_mask=mask)[0]
        assert distance(found[mask.bool()], expected[mask.bool()]) < 1e-4
        untouched = model(ids, attention_mask=mask)[0]
        assert distance(untouched[mask.bool()], expected[mask.bool()]) > 1e-3
        with taylorder.adapted(model, OrderConfig.uniform(model, "exact")):
            assert torch.equal(model(ids, attention_mask=mask)[0], untouched)


def test_multiplications_count_every_call(tiny_tokenizer):
    analysis = analyze(tiny.albert(), tiny_tokenizer, **SETTINGS)
    exact, _ = attention_multiplications(analysis, select(analysis, context=64))
    assert exact == 3 * 4 * 64 * 64 * (8 + 8)


def test_a_causal_module_that_is_called_twice_is_refused():
    model = tiny.llama()
    model.model.layers.append(model.model.layers[0])
    model.config.num_hidden_layers = 3
    with pytest.raises(UnsupportedModelError, match=r"calls model\.layers\.0\.self_attn 2 times in a forward pass"):
        describe(model)


# As a user sees them.


def test_a_run_shows_layers_of_several_shapes(run, tmp_path, tiny_tokenizer):
    folder = tiny.saved(tiny.gemma4(), tiny_tokenizer, tmp_path / "model")
    options = ("--max-tokens", 128, "--rows", 4, "--sequence-length", 64, "--max-order", 2, "--no-eval")
    plain_run, budget_run = tmp_path / "plain", tmp_path / "budget"
    code, _, err = run("analyze", folder, *options, "--out", plain_run)
    assert code == 0, err
    code, out, err = run("analyze", folder, *options, "--budget", "25%", "--context", 64, "--out", budget_run)
    assert code == 0, err
    words = " ".join(out.split())
    assert "The 8 heads of 2 sliding-window layers stay as they are and are not counted here" in words
    assert re.search(r"layer +KV 0 +KV 1", out)
    assert run("show", budget_run)[0] == 0
    _, out, _ = run("compare", plain_run, budget_run, "--out", tmp_path / "pair.html")
    assert "2 of 6 differ" in " ".join(out.split())
    page = (tmp_path / "pair.html").read_text(encoding="utf-8")
    assert page.count('<th scope="col">KV ') == 2
    assert page.count("<td></td>") == 2  # of the two layers with one KV head
    data = (budget_run / "report.html").read_text(encoding="utf-8")
    assert "sliding window of 8 tokens" in data
