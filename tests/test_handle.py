"""A handle: attached once, closed once, in any order; and nothing of it stays on or in the model."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections import Counter
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from generating import structure, uniform
from measured_levers import CANDIDATES, measured
from mixed_orders import mixed_config, ranked_config
from policy_rules.criteria import screen
from tiny import TINY, llama, tokens
from torch import nn
from transformers import DynamicCache

import taylorder
from taylorder.adapt.attention import RUNS
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.handle import _ATTACHED
from taylorder.adapt.prepared import LayerNumbers, prepare
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens
from taylorder.claims.measurements.order_losses import measure_order_losses
from taylorder.errors import ConfigError, UsageError
from taylorder.evaluation.comparison import compare
from taylorder.evaluation.rivals import Contender
from taylorder.models.attention import recording
from taylorder.models.describe import describe
from taylorder.models.fingerprint import fingerprint
from taylorder.models.running import device_of, input_device, next_logits
from taylorder.selection.config_of import table_bytes
from taylorder.selection.refine import measure_slopes
from taylorder.selection.whole_model import WholeModel
from taylorder.storage.records import Records


def quiet(*_):
    pass


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


# Attaching and closing


def test_a_handle_is_attached_until_it_is_closed():
    model, ids = llama(), tokens(2, 20)
    config, plain, before = uniform(model, 3, "mean", 2, 1), logits(model, ids), structure(model)
    with taylorder.adapted(model, config) as counts:
        expected = logits(model, ids)
    handle = taylorder.attach(model, config)
    assert not handle.closed
    assert (handle.model, handle.config) == (model, config)
    assert torch.equal(logits(model, ids), expected)
    assert handle.counts.guarded_rows.keys() == counts.guarded_rows.keys()
    assert repr(handle) == f"<Handle of LlamaForCausalLM, config {handle.digest[:19]}, attached>"
    handle.close()
    handle.close()
    assert handle.closed
    assert repr(handle).endswith(", closed>")
    assert torch.equal(logits(model, ids), plain)
    assert structure(model) == before
    with taylorder.attach(model, config) as handle:
        assert torch.equal(logits(model, ids), expected)
        handle.close()  # leaving the block does not mind
        assert torch.equal(logits(model, ids), plain)
    with pytest.raises(ZeroDivisionError), taylorder.attach(model, config) as handle:
        raise ZeroDivisionError
    assert handle.closed
    assert structure(model) == before


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_handle_that_nobody_keeps_stays_attached_and_keeps_no_model_alive(name):
    model, ids = TINY[name](), tokens(1, 12)
    with torch.no_grad():
        plain = model(ids)[0]
        taylorder.attach(model, uniform(model, 2))
        gc.collect()
        assert not torch.equal(model(ids)[0], plain)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
    assert not [module for module in RUNS if type(module).__module__.endswith(name)]


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_handles_are_closed_in_any_order(order):
    """The last one still attached holds; the text model inside a causal one is the same modules."""
    model, ids = llama(), tokens(1, 16)
    configs = [uniform(model, 3, "mean"), uniform(model, 1), uniform(model, 2, "mean", 2, 1)]
    before, results = structure(model), [logits(model, ids)]
    for config in configs:
        with taylorder.adapted(model, config):
            results.append(logits(model, ids))
    assert len({tuple(result.flatten().tolist()) for result in results}) == 4
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    handles = [taylorder.attach(model, config) for config in configs]
    for closing in order:
        handles[closing].close()
        left = [place for place, handle in enumerate(handles) if not handle.closed]
        assert torch.equal(logits(model, ids), results[left[-1] + 1 if left else 0])
        cache = model.generate(ids, **options).past_key_values
        assert isinstance(cache, TaylorCache) == bool(left)
        assert getattr(cache, "digest", None) == (handles[left[-1]].digest if left else None)
    assert structure(model) == before
    assert not [handle for handle in _ATTACHED.values() if handle.model is model]


def test_blocks_and_handles_of_two_models_do_not_mind_each_other():
    first, second, ids = llama(), TINY["qwen3"](), tokens(1, 16)
    before = logits(first, ids), logits(second, ids)
    one = taylorder.attach(first, uniform(first, 2))
    with taylorder.adapted(second, uniform(second, 2)), taylorder.adapted(first, uniform(first, 3)):
        one.close()
        assert not torch.equal(logits(first, ids), before[0])
        assert not torch.equal(logits(second, ids), before[1])
    assert torch.equal(logits(first, ids), before[0])
    assert torch.equal(logits(second, ids), before[1])


def test_a_handle_is_not_closed_inside_a_recording_that_began_later():
    model, ids, calls = llama(), tokens(1, 8), []
    before, handle = structure(model), taylorder.attach(model, uniform(model, 2))
    with recording(model, calls.append):
        with pytest.raises(UsageError, match="LlamaForCausalLM was to be closed while its attention is recorded: clos"):
            handle.close()
        with taylorder.attach(model, handle.prepared):  # what begins inside the recording ends there
            logits(model, ids)
        assert not calls
        logits(model, ids)
    assert len(calls) == 2
    handle.close()
    assert structure(model) == before


def test_nothing_is_left_where_attaching_fails(monkeypatch):
    model, other = llama(), TINY["qwen3"]()
    config, before = uniform(model, 3), structure(model)
    with pytest.raises(ConfigError, match="made for tiny, with architecture"):
        taylorder.attach(model, uniform(other, 2))
    with pytest.raises(UsageError, match="backend is 'cuda', expected one of"):
        taylorder.attach(model, config, backend="cuda")

    def fail(*_arguments, **_options):
        raise ZeroDivisionError

    with taylorder.attach(model, config) as handle:
        prepared = handle.prepared
    for broken in ("register_forward_pre_hook", "set_attn_implementation"):
        monkeypatch.setattr(model, broken, fail)
        shadowed = structure(model)
        with pytest.raises(ZeroDivisionError):
            taylorder.attach(model, prepared)
        assert structure(model) == shadowed
        monkeypatch.undo()
    assert structure(model) == before
    assert not [handle for handle in _ATTACHED.values() if handle.model is model]
    with taylorder.attach(model, config):
        logits(model, tokens(1, 8))


# Prepared once


@pytest.fixture
def looks(monkeypatch):
    """How often a model was described and its weights were hashed."""
    from taylorder.adapt import config, prepared
    from taylorder.models import describe as module

    counts = Counter()

    def counting(name, function):
        def counted(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return counted

    monkeypatch.setattr(module, "fingerprint", counting("fingerprint", fingerprint))
    monkeypatch.setattr(config, "describe", counting("describe", describe))
    for name in ("plan_layer", "execution_digest"):
        monkeypatch.setattr(prepared, name, counting(name, getattr(prepared, name)))
    return counts


def test_attaching_looks_at_the_model_once_and_its_caches_not_again(looks):
    model, ids = llama(), tokens(1, 12)
    config = taylorder.OrderConfig.uniform(describe(model), 2, "mean", 2, 1)
    looks.clear()
    with taylorder.attach(model, config) as handle, torch.no_grad():
        assert looks == {"describe": 1, "fingerprint": 1, "plan_layer": 2, "execution_digest": 1}
        model(ids, past_key_values=handle.new_cache())
        model.generate(ids, max_new_tokens=2, do_sample=False)
        with taylorder.attach(model, handle.prepared) as inner:
            assert inner.new_cache().digest == handle.digest
            assert inner.counts is not handle.counts
        TaylorCache(model, handle.prepared)
    assert looks == {"describe": 1, "fingerprint": 1, "plan_layer": 2, "execution_digest": 1}
    other = llama()
    for wrong in (taylorder.attach, TaylorCache):
        with pytest.raises(UsageError, match="the config is a str, expected an OrderConfig"):
            taylorder.attach(model, "orders.json")
        with pytest.raises(UsageError, match="prepared for another LlamaForCausalLM than the LlamaForCausalLM given"):
            wrong(other, handle.prepared)


def test_no_loop_looks_at_the_model_again(looks, tmp_path):
    """What runs many configs on many sequences is given the description, and checks every config against that."""
    model = llama()
    table, ids = measured(model, tmp_path / "levers", CANDIDATES, 3, 48)
    description, text = table.model, Tokens(Text("prose", ""), [], None)
    whole = WholeModel(model, ids)
    contenders = [Contender(str(order), taylorder.OrderConfig.uniform(description, order)) for order in (1, 3)]
    sizes, choice = table_bytes(table, 48), [1] * len(table.kv_heads)
    for loop, plans in (
        (lambda: compare(model, description, ids, contenders, tokens=text, seed=0), 2),
        (lambda: screen(model, table, ids, records=Records(tmp_path / "screen", {}), progress=quiet), 4),
        (lambda: measure_slopes(whole, table, sizes, choice), 1),
        (lambda: whole.kl(table, choice), 1),
        (
            lambda: measure_order_losses(
                model, description, ids, records=Records(tmp_path / "losses", {}), progress=quiet
            ),
            12,
        ),
    ):
        looks.clear()
        loop()
        assert looks == {"plan_layer": 2 * plans, "execution_digest": plans}
    with pytest.raises(ConfigError, match="with architecture"):
        wrong = taylorder.OrderConfig.uniform(TINY["qwen3"](), 2)
        compare(model, description, ids, [Contender("wrong", wrong)], tokens=text, seed=0)


# Numbers of the config


def test_numbers_are_no_part_of_the_model_and_stay_in_float32():
    """Inside, too: what a model is saved, trained and recognised by does not know of them."""
    model = llama()
    config = ranked_config(model)
    names, mark = list(model.state_dict()), fingerprint(model)
    parts = [*model.parameters(), *model.buffers(), *model.modules()]
    with taylorder.attach(model, config) as handle:
        assert list(model.state_dict()) == names
        now = [*model.parameters(), *model.buffers(), *model.modules()]
        assert all(one is other for one, other in zip(now, parts, strict=True))
        assert fingerprint(model) == mark
        with pytest.raises(UsageError, match="copied or pickled inside adapted"):
            copy.deepcopy(model)
        numbers = [plan.numbers for plan in handle.prepared.plans.values()]
        assert sum(len(list(held.buffers())) for held in numbers) == 6
        model.to(torch.bfloat16)
        logits(model, tokens(1, 12))
        assert {number.dtype for held in numbers for number in held.buffers()} == {torch.float32}
    model.to(torch.float32)
    assert structure(model) == structure(copy.deepcopy(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_follow_the_keys_to_another_device(dtype):
    """A device without memory: what is computed there has shapes alone."""
    numbers = LayerNumbers(torch.randn(2, 8), (torch.eye(8).repeat(2, 1, 1), torch.eye(8).repeat(2, 1, 1)))
    query, key = (torch.randn(1, heads, 5, 8, dtype=dtype) for heads in (4, 2))
    turned, centred = numbers(query, key)
    assert torch.equal(turned, query)
    assert torch.equal(centred, key - numbers.centre.to(dtype)[:, None])
    assert {number.device.type for number in numbers.buffers()} == {"cpu"}
    with torch.inference_mode():
        turned, centred = numbers(query.to("meta"), key.to("meta"))
    assert turned.device.type == centred.device.type == "meta"
    assert (turned.dtype, centred.dtype) == (dtype, dtype)
    assert {(number.device.type, number.dtype) for number in numbers.buffers()} == {("meta", torch.float32)}
    assert not any(number.is_inference() for number in numbers.buffers())


def test_what_is_prepared_without_gradients_may_be_run_with_them():
    model, ids = llama(), tokens(1, 12)
    config = ranked_config(model)
    with torch.inference_mode():
        prepared = prepare(model, config)
        with taylorder.attach(model, prepared):
            model(ids)
    with taylorder.attach(model, prepared):
        model(ids).logits.square().sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.norm() > 0


# Where things are


def test_token_ids_go_to_the_embeddings_and_layers_are_where_their_weights_are():
    model = llama()
    model.model.embed_tokens.to("meta")
    assert input_device(model).type == "meta"
    attention = model.model.layers[1].self_attn
    assert device_of(attention, model).type == "cpu"
    attention.to("meta")
    assert device_of(attention, model).type == "meta"
    assert device_of(nn.ReLU(), model).type == "meta"
    assert input_device(SimpleNamespace(device="meta")).type == "meta"  # without a table of embeddings


def test_nobody_else_takes_the_first_weight_for_the_place_of_all():
    package = Path(taylorder.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"next\([^()]*parameters\(\)|model\.device\b|model, .device.", path.read_text())
    }
    assert found - {"claims/measure.py"} == {"models/running.py"}  # the former notes what a model was measured on


def test_a_loaded_cache_lies_where_its_layers_are(monkeypatch, tmp_path):
    """As if the second layer were on another device, which nothing can be computed on here."""
    model, ids = llama(), tokens(1, 200)
    config = mixed_config(model, 1)
    with torch.no_grad(), taylorder.attach(model, config) as handle:
        cache = handle.new_cache()
        model(ids, past_key_values=cache)
    cache.save(tmp_path / "cache.safetensors")
    seen = []
    monkeypatch.setattr("taylorder.adapt.cache.device_of", lambda module, _: ("place of", module.layer_idx))
    monkeypatch.setattr("taylorder.adapt.cache.cache_file.read", lambda *arguments: seen.append(arguments[-1]))
    TaylorCache.load(tmp_path / "cache.safetensors", model, config)
    assert seen == [[("place of", 0), ("place of", 1)]]


# One step


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_step_gives_the_logits_after_the_last_token_and_feeds_the_cache(name):
    model, ids = TINY[name](), tokens(2, 12)
    cache, whole = DynamicCache(config=model.config), logits(model, ids)
    torch.testing.assert_close(next_logits(model, ids, cache), whole[:, -1], rtol=1e-5, atol=1e-5)
    assert cache.get_seq_length() == 12
