"""An adapted model against a float64 evaluation of the formula inside the model, and everything it must not break."""

from __future__ import annotations

import copy
import pathlib
import pickle

import pytest
import torch
import transformers
from generating import structure
from mixed_orders import mixed_config, reference_output
from tiny import TINY, tokens

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.adapt.decisions import FlatOrder
from taylorder.errors import ConfigError, NonFiniteError, UsageError
from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import Taylor
from taylorder.models.describe import describe

ARCHITECTURES = ["gpt2", "llama", "qwen3", "pythia", "opt", "gemma3", "phi3", "bert"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_an_adapted_model_computes_the_formula(name, padding):
    model = TINY[name]()
    inputs = {"input_ids": tokens(2, 20)}
    rows = torch.ones(2, 20, dtype=torch.bool)
    if padding != "none":
        rows[1, slice(0, 6) if padding == "left" else slice(14, 20)] = False
        inputs["attention_mask"] = rows.long()
    for seed in range(2):
        config = mixed_config(model, seed)
        expected = reference_output(model, config, **inputs)
        with torch.no_grad():
            plain = model(**inputs)[0]
            with taylorder.adapted(model, config):
                found = model(**inputs)[0]
        error = (found[rows].double() - expected[rows]).norm() / expected[rows].norm()
        assert error < 1e-4
        assert (plain[rows].double() - expected[rows]).norm() / expected[rows].norm() > 1e-3  # negative control


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_afterwards_the_model_is_as_it_was(name):
    model = TINY[name]()
    ids = tokens(2, 16)
    config = mixed_config(model)
    before = model(ids)[0]
    state = structure(model)
    with taylorder.adapted(model, config):
        model(ids)
    with pytest.raises(ZeroDivisionError), taylorder.adapted(model, config):
        model(ids)
        raise ZeroDivisionError
    assert torch.equal(model(ids)[0], before)
    assert structure(model) == state


def test_long_inputs_are_computed_in_blocks_of_rows(monkeypatch):
    model = TINY["llama"]()
    ids = tokens(1, 60)
    config = mixed_config(model)
    with torch.no_grad(), taylorder.adapted(model, config):
        whole = model(ids).logits
        monkeypatch.setattr("taylorder.kernels.score_space._BLOCK_SCORES", 60 * 7)
        torch.testing.assert_close(model(ids).logits, whole, rtol=1e-4, atol=1e-4)


def test_guarded_rows_are_counted_and_raw_differs():
    model = TINY["llama"]()
    ids = tokens(1, 40)
    config = OrderConfig.uniform(describe(model, "a"), 4)
    with torch.no_grad():
        with taylorder.adapted(model, config) as counts:
            guarded = model(ids).logits
        with taylorder.adapted(model, config, guard=False) as raw_counts:
            raw = model(ids).logits
    assert set(counts.guarded_rows) == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    assert sum(int(rows.sum()) for rows in counts.guarded_rows.values()) > 0
    assert counts.guarded_rows["model.layers.0.self_attn"].shape == (4,)
    first = "model.layers.0.self_attn"
    assert torch.equal(counts.guarded_rows[first], raw_counts.guarded_rows[first])
    assert not torch.allclose(guarded, raw)


def test_what_an_adapted_model_cannot_give_is_refused_by_name():
    model = TINY["llama"]()
    ids = tokens(1, 8)
    config = OrderConfig.uniform(describe(model, "a"), 3)
    with taylorder.adapted(model, config):
        with pytest.raises(UsageError, match="output_attentions=True: an adapted model has no matrix"):
            model(ids, output_attentions=True)
        with pytest.raises(UsageError, match="the cache is a StaticCache, and an adapted model reads a DynamicCache"):
            model(ids, past_key_values=transformers.StaticCache(config=model.config, max_cache_len=16))
        with pytest.raises(ValueError, match="output_attentions"):
            model.config.output_attentions = True
        model(ids)
    dropping = TINY["gpt2"]()
    with taylorder.adapted(dropping, OrderConfig.uniform(describe(dropping, "b"), 3)):
        dropping.train()
        with pytest.raises(UsageError, match="attention dropout 0.1; an adapted model is for inference, call eval"):
            dropping(ids)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
def test_a_model_is_not_copied_inside_a_block(copied):
    model = TINY["llama"]()
    ids = tokens(1, 8)
    with taylorder.adapted(model, OrderConfig.uniform(model, 3)):
        for part in (model, model.model.layers[0]):
            with pytest.raises(UsageError, match="copied or pickled inside adapted, .*: copy it outside"):
                copied(part)
        state, shallow = copy.deepcopy(model.state_dict()), copy.copy(model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    for same in (twin, shallow):
        assert torch.equal(same(ids).logits, model(ids).logits)
        assert torch.equal(same.generate(ids, max_new_tokens=3), model.generate(ids, max_new_tokens=3))


def test_a_model_made_from_a_config_inside_a_block_says_so():
    model = TINY["llama"]()
    with taylorder.adapted(model, OrderConfig.uniform(model, 3)):
        twin = type(model)(copy.deepcopy(model.config))
    with pytest.raises(UsageError, match=r"LlamaAttention .* outside of a block .*set_attn_implementation\('sdpa'\)"):
        twin(tokens(1, 8))
    twin.set_attn_implementation("sdpa")
    twin(tokens(1, 8))


def test_another_attention_is_refused_inside_a_block():
    model = TINY["llama"]()
    ids = tokens(1, 8)
    config = OrderConfig.uniform(model, 3)
    with torch.no_grad(), taylorder.adapted(model, config):
        cache = TaylorCache(model, config)
        expected = model(ids).logits
        model(ids[:, :5], past_key_values=cache)
        model.set_attn_implementation("eager")
        for call in (model, model.model):
            for options in ({}, {"past_key_values": cache}):
                with pytest.raises(UsageError, match="was set to 'eager' inside adapted.*: leave the block before"):
                    call(ids[:, 5:], **options)
        model.set_attn_implementation("taylorder")
        rest = model(ids[:, 5:], past_key_values=cache).logits  # no harm was done
        torch.testing.assert_close(rest, expected[:, 5:], rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"


def test_broken_activations_are_named():
    model = TINY["llama"]()
    config = OrderConfig.uniform(describe(model, "a"), 3)
    with torch.no_grad(), taylorder.adapted(model, config):
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.inf
        with pytest.raises(NonFiniteError, match=r"the values of model\.layers\.1\.self_attn hold NaN or infinite"):
            model(tokens(1, 8))


@pytest.mark.builtin
def test_the_mixed_config_on_the_built_in_model_agrees_with_float64(builtin):
    """The committed mixed config: negative log-likelihood of other text, float32 against the float64 reference."""
    from taylorder.analysis.tokens import tokenise
    from taylorder.evaluation.evaluation_text import evaluation_text

    ids = tokenise(builtin.tokenizer, evaluation_text()).first(320, 320)
    config = OrderConfig.load(pathlib.Path(__file__).parents[1] / "benchmarks/configs/mixed.json", builtin.model)
    heads = [FlatOrder.of(head) for layer in config.layers for head in layer.heads]
    assert {head.order for head in heads} == {1, 2, 3, 4, "exact"}
    assert {head.expansion for head in heads} == {"zero", "centre", "mean"}
    assert {head.window for head in heads} == {0, 32, 64, 128, 256}

    def nll(logits):
        return float(torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:]))

    with torch.no_grad():
        plain = nll(builtin.model(ids, use_cache=False).logits)
        with taylorder.adapted(builtin.model, config):
            found = nll(builtin.model(ids, use_cache=False).logits)
    expected = nll(reference_output(builtin.model, config, input_ids=ids, use_cache=False))
    assert found == pytest.approx(expected, abs=1e-3)
    assert abs(plain - expected) > 0.05


def test_other_weights_and_hand_edited_configs_are_refused():
    model = TINY["llama"]()
    config = OrderConfig.uniform(describe(model, "a"), 3)
    tuned = TINY["llama"]()
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight += 0.01
    with pytest.raises(ConfigError, match="made for weights sha256"), taylorder.adapted(tuned, config):
        pass
    first, *rest = config.layers
    centred = LayerOrders(module=first.module, heads=(HeadOrder(spec=HeadSpec(Taylor(3, "centre"))),) * 4)
    edited = OrderConfig(model=config.model, layers=(centred, *rest))
    with pytest.raises(ConfigError, match="expansion 'centre' needs key centres"), taylorder.adapted(model, edited):
        pass
