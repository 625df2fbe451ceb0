"""``TaylorCache`` and the linear-time attention below it: against score space, as a cache, and as a file."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf
from generating import LENGTH, MODELS, SIZES, in_pieces, padded_batch, positions, run, score_space, structure, uniform
from mixed_orders import mixed_config
from tiny import TINY, tokens
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

import taylorder
from taylorder.adapt import cache_layer
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.cache_layer import TaylorCacheLayer
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.errors import ConfigError, TaylorderError, UnsupportedModelError, UsageError
from taylorder.kernels.spec import Dropped, HeadSpec, Near
from taylorder.models.describe import describe


@pytest.fixture
def linear_calls(monkeypatch):
    """How often attention went through the kernels in linear time."""
    calls = []

    def counting(*arguments, **options):
        calls.append(options.get("backend"))
        return attend(*arguments, **options)

    attend = cache_layer.taylor_attention
    monkeypatch.setattr(cache_layer, "taylor_attention", counting)
    return calls


# Linear time


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [1, 2])
def test_without_gradients_truncated_layers_run_in_linear_time_and_compute_the_same(name, seed, linear_calls):
    model = MODELS[name]()
    config = mixed_config(model, seed)
    ids, mask = padded_batch(150, seed)
    with taylorder.adapted(model, config) as slow_counts:
        expected = model(ids, attention_mask=mask).logits
    assert linear_calls == []
    assert expected.requires_grad
    with torch.no_grad(), taylorder.adapted(model, config) as counts:
        found = model(ids, attention_mask=mask).logits
    assert linear_calls == [None, None]
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)
    assert counts.guarded_rows.keys() == slow_counts.guarded_rows.keys()
    for module, rows in counts.guarded_rows.items():
        assert torch.equal(rows, slow_counts.guarded_rows[module])
    assert sum(int(rows.sum()) for rows in counts.guarded_rows.values()) > 0 or (name, seed) != ("gpt2", 1)


def test_raw_denominators_and_both_directions_stay_in_score_space(linear_calls):
    model, encoder = MODELS["llama"](), TINY["bert"]()
    with torch.no_grad():
        with taylorder.adapted(model, uniform(model, 4), guard=False):
            model(tokens(1, 80))
        with taylorder.adapted(encoder, uniform(encoder, 4)) as counts:
            encoder(tokens(1, 60))
    assert linear_calls == []
    assert sum(int(rows.sum()) for rows in counts.guarded_rows.values()) > 0


# As a transformers cache


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 3])
def test_logits_from_the_cache_are_those_of_the_whole_sequence(name, seed):
    model = MODELS[name]()
    config = mixed_config(model, seed)
    ids, mask = padded_batch(LENGTH, seed)
    cache, found = run(model, config, ids, mask)
    rows = mask.bool()
    torch.testing.assert_close(found[rows], score_space(model, config, ids, mask)[rows], rtol=0, atol=1e-4)
    assert cache.get_seq_length() == LENGTH
    kinds = {type(layer) for layer in cache.layers}
    assert kinds <= {TaylorCacheLayer, DynamicSlidingWindowLayer, DynamicLayer}
    assert TaylorCacheLayer in kinds


def test_the_layers_are_those_of_the_model_except_where_heads_are_truncated():
    model = MODELS["gemma3"]()
    kinds = [type(layer) for layer in TaylorCache(model, uniform(model, 3)).layers]
    assert kinds == [DynamicSlidingWindowLayer, TaylorCacheLayer] * 2
    kinds = [type(layer) for layer in TaylorCache(model, uniform(model, "exact")).layers]
    assert kinds == [DynamicSlidingWindowLayer, DynamicLayer] * 2


def test_heads_that_drop_their_far_field_are_evaluated_as_that():
    model = MODELS["llama"]()
    description = describe(model, "tiny")
    head = HeadOrder(spec=HeadSpec(Dropped(), Near(9, 2)))
    layers = tuple(LayerOrders(module=module.name, heads=(head,) * 4) for module in description.modules)
    config = OrderConfig(model=ModelIdentity.of(description), layers=layers)
    ids, mask = padded_batch(LENGTH)
    expected = score_space(model, config, ids, mask)
    with torch.no_grad(), taylorder.adapted(model, config) as counts:
        found = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        cache = TaylorCache(model, config)
        pieces = in_pieces(model, cache, ids, mask, SIZES)
        nominal = [cache.nominal_bytes()]
        for _ in range(2):
            model(ids, past_key_values=cache)
            nominal.append(cache.nominal_bytes())
    assert nominal[2] == nominal[1] < 3 * nominal[0]  # far tokens are forgotten
    rows = mask.bool()
    torch.testing.assert_close(found[rows], expected[rows], rtol=0, atol=1e-4)
    torch.testing.assert_close(pieces[rows], expected[rows], rtol=0, atol=1e-4)
    assert sum(int(rows.sum()) for rows in counts.guarded_rows.values()) == 0


def test_sequences_are_reordered_selected_and_repeated():
    model = MODELS["gemma3"]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(LENGTH)
    cache, _ = run(model, config, ids, mask)

    def go_on(change, rows):
        changed = cache.clone()
        change(changed)
        more = tokens(len(rows), 5, seed=7)
        longer = torch.cat([ids[rows], more], 1), torch.cat([mask[rows], torch.ones_like(more)], 1)
        _, found = run(model, config, *longer, (1, 4), changed)
        expected = run(model, config, *longer, (LENGTH, 5))[1][:, -5:]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    go_on(lambda c: c.reorder_cache(torch.tensor([1, 0])), [1, 0])
    go_on(lambda c: c.reorder_cache(torch.tensor([1, 1])), [1, 1])
    go_on(lambda c: c.batch_select_indices(torch.tensor([1])), [1])
    go_on(lambda c: c.batch_select_indices(torch.tensor([True, False])), [0])
    go_on(lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1])
    go_on(lambda c: [(layer.offload(), layer.prefetch()) for layer in c.layers], [0, 1])


def test_a_cache_that_was_reset_is_a_new_one():
    model = MODELS["gemma3"]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(LENGTH)
    cache, expected = run(model, config, ids, mask)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.nominal_bytes() == 0
    assert torch.equal(run(model, config, ids, mask, cache=cache)[1], expected)


def test_what_a_cache_cannot_do_says_so():
    model, other = MODELS["llama"](), MODELS["qwen3"]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(30)
    cache = TaylorCache(model, config)
    with torch.no_grad():
        with pytest.raises(UsageError, match=r"layers\.0\.self_attn was run with a TaylorCache outside `with adapted"):
            model(ids, past_key_values=cache)
        with (
            taylorder.adapted(model, mixed_config(model, 2)),
            pytest.raises(UsageError, match="made for another model"),
        ):
            model(ids, past_key_values=cache)
        with (
            taylorder.adapted(other, mixed_config(other, 1)),
            pytest.raises(UsageError, match="made for another model"),
        ):
            other(ids, past_key_values=cache)
        with taylorder.adapted(model, config):
            in_pieces(model, cache, ids, mask, (20,))
            with pytest.raises(UsageError, match="attention_mask has 10 columns, expected one per token so far, .* 30"):
                model(ids[:, 20:], attention_mask=mask[:, 20:], past_key_values=cache)
            in_pieces(model, cache, ids, mask, (10,))  # none of it did any harm
            with pytest.raises(
                UsageError, match="holds 2 sequences and the model is given 1: use batch_repeat_interlea"
            ):
                model(ids[:1], past_key_values=cache)
    with pytest.raises(UsageError, match=r"a Taylor state cannot forget: leave assistant_model .* keep a clone\(\)"):
        cache.crop(-1)
    with pytest.raises(UsageError, match="take tokens back"):
        cache.activate_past_recording()
    assert not cache.is_croppable
    assert not cache.is_compileable
    with (
        taylorder.adapted(model, config),
        pytest.raises(UsageError, match="while gradients are recorded, and none pass"),
    ):
        model(ids, past_key_values=TaylorCache(model, config))
    half = MODELS["llama"]()
    filled, _ = run(half, config, ids, mask, (20,))
    half.to(torch.bfloat16)
    with (
        torch.no_grad(),
        taylorder.adapted(half, config),
        pytest.raises(UsageError, match="filled in torch.float32 and"),
    ):
        half(ids[:, 20:], past_key_values=filled)
    with pytest.raises(ConfigError, match="made for tiny, with architecture"):
        TaylorCache(other, config)
    encoder = TINY["bert"]()
    with pytest.raises(UnsupportedModelError, match="attends in both directions: an encoder needs no cache"):
        TaylorCache(encoder, uniform(encoder, 3))


def test_a_forward_pass_that_fails_half_way_is_not_gone_on_from():
    model = MODELS["llama"]()
    config = uniform(model, 3, "mean", 4, 1)
    ids, mask = padded_batch(40)
    before = structure(model)
    cache, _ = run(model, config, ids, mask, (30,))
    twin = cache.clone()

    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), torch.no_grad(), taylorder.adapted(model, config):
        handle = model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(fail)
        in_pieces(model, cache, ids, mask, (10,))
    handle.remove()
    assert structure(model) == before
    with pytest.raises(
        TaylorderError, match=r"half-way .* given 30 or 40 tokens\): reset\(\) it and start again, or go"
    ):
        run(model, config, ids, mask, (10,), cache)
    with pytest.raises(TaylorderError, match="half-way"):
        cache.save("unwritten")
    run(model, config, ids, mask, (10,), twin)


# Size


def held(thing, seen):
    """Storages behind everything that this project's objects reach, by address."""
    match thing:
        case torch.Tensor():
            seen[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        case list() | tuple():
            for item in thing:
                held(item, seen)
        case TaylorCacheLayer() | DynamicLayer():
            held(list(vars(thing).values()), seen)
        case _ if type(thing).__module__ in ("taylorder.kernels.state", "taylorder.kernels.token_buffer"):
            held([item for name, item in vars(thing).items() if name != "guarded"], seen)
    return seen


def test_bytes_are_those_of_the_memory_behind_the_tensors_and_stop_growing():
    model = MODELS["llama"]()
    config = uniform(model, 3, "mean", 8, 2)
    ids = tokens(1, 1200)
    cache = TaylorCache(model, config)
    assert cache.nbytes() == cache.nominal_bytes() == 0
    real, nominal = [], []
    with torch.no_grad(), taylorder.adapted(model, config):
        for _ in range(4):
            model(ids[:, :300], past_key_values=cache)
            real.append(cache.nbytes())
            nominal.append(cache.nominal_bytes())
            assert cache.nbytes() == sum(held(cache.layers, {}).values())
    assert max(real) < 1.2 * min(real)
    predicted = config_bytes(config, describe(model, "tiny"), 1200)
    blocks = 2 * 2 * 2 * (8 + 8) * 128  # two layers and KV heads: up to 128 tokens wait to be folded, in 16 bits
    assert predicted <= min(nominal) <= max(nominal) <= predicted + blocks
    exact, _ = run(model, uniform(model, "exact"), ids[:, :300], torch.ones(1, 300), (300,))
    assert exact.nbytes() == 2 * 2 * (8 + 8) * 300 * 4
    assert exact.nominal_bytes() == exact.nbytes() // 2


def test_a_sliding_window_layer_counts_the_memory_it_holds_on_to():
    model = MODELS["gemma3"]()
    ids, mask = padded_batch(100)
    cache, _ = run(model, uniform(model, "exact"), ids, mask, (100,))
    sliding = cache.layers[0]
    assert sliding.keys.shape[2] == 7  # a view of what the prompt left
    assert cache.nbytes() == sum(held(cache.layers, {}).values()) > sliding.keys.nbytes * 8
    assert cache.nominal_bytes() == 2 * 2 * 2 * 2 * 2 * 16 * (7 + 100)


@pytest.mark.parametrize("encoder_layers", [2, 3, 5])
def test_a_decoder_that_was_trained_with_a_deeper_encoder_has_a_cache_for_its_own_layers(encoder_layers):
    """The config of BART and its kin counts the layers of the encoder, which no call of the decoder comes to."""
    config = hf.BartConfig(
        d_model=32, encoder_layers=encoder_layers, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=32,
        max_position_embeddings=64, vocab_size=tiny.VOCAB, init_std=0.3, is_encoder_decoder=False, is_decoder=True,
    )  # fmt: skip
    model = tiny.build(hf.BartForCausalLM, config)
    orders = OrderConfig.uniform(model, 2, "mean", 4, 1)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with taylorder.adapted(model, orders):
        assert len(TaylorCache(model, orders).layers) == 2
        cached, whole = (model.generate(tiny.tokens(2), use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, whole)
