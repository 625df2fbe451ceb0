"""Configs with ranks: adapted models against the formula in float64, with and without states, generating and saved."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from generating import LENGTH, MODELS, SIZES, in_pieces, padded_batch, run, score_space, uniform
from mixed_orders import FULL, HALF, NONE, ranked_config, reference_output
from tiny import TINY, tokens
from tolerances import relative_error
from transformers import DynamicCache

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.adapt.prepared import _rotated, plan_layer
from taylorder.errors import ConfigError
from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import Near, Taylor
from taylorder.models.describe import describe

GROUPED = ["llama", "qwen3", "gemma3"]


@pytest.mark.parametrize("name", [*GROUPED, "gpt2", "bert"])
def test_an_adapted_model_with_ranks_computes_the_formula(name):
    model = TINY[name]()
    rows = torch.ones(2, 40, dtype=torch.bool)
    rows[1, :6] = False
    inputs = {"input_ids": tokens(2, 40), "attention_mask": rows.long()}
    config = ranked_config(model)
    expected = reference_output(model, config, **inputs)
    found = {}
    for gradients in (torch.no_grad, torch.enable_grad):  # by the kernels, and with gradients
        with gradients(), taylorder.adapted(model, config):
            found[gradients] = model(**inputs)[0].detach()
        assert relative_error(found[gradients][rows], expected[rows]) < 1e-4
    without = reference_output(model, ranked_config(model, NONE), **inputs)
    assert relative_error(without[rows], expected[rows]) > 1e-3  # negative control: the ranks say something


def test_in_float64_what_records_gradients_is_the_formula():
    model = MODELS["llama"]()
    config = ranked_config(model)
    ids, mask = padded_batch(60)
    expected = reference_output(model, config, input_ids=ids, attention_mask=mask)
    with taylorder.adapted(model.double(), config):  # gradients are recorded: by other code than the kernels'
        found = model(ids, attention_mask=mask)[0].detach()
    assert relative_error(found[mask.bool()], expected[mask.bool()]) < 1e-9


@pytest.mark.parametrize("name", GROUPED)
def test_full_ranks_are_no_ranks(name):
    model = TINY[name]()
    ids = tokens(2, 48)
    rows = torch.ones(2, 48, dtype=torch.bool)
    outputs = []
    for share in (FULL, NONE, HALF):
        config = ranked_config(model, share)
        with torch.no_grad(), taylorder.adapted(model, config):
            outputs.append(model(ids).logits)
    full, none, half = outputs
    assert relative_error(full[rows], none[rows]) < 1e-4
    assert relative_error(half[rows], none[rows]) > 1e-3


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("backend", [None, "torch"])
def test_prefill_in_pieces_and_decoding_from_states_are_the_whole_sequence(name, backend):
    model = MODELS[name]()
    config = ranked_config(model)
    ids, mask = padded_batch(LENGTH)
    expected = score_space(model, config, ids, mask)
    cache = TaylorCache(model, config)
    with torch.no_grad(), taylorder.adapted(model, config, backend=backend):
        found = in_pieces(model, cache, ids, mask, SIZES)
        kept = in_pieces(model, DynamicCache(config=model.config), ids, mask, SIZES)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)
    torch.testing.assert_close(kept[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)


def test_ranks_make_the_state_smaller_and_are_counted():
    model = MODELS["qwen3"]()
    ids, mask = padded_batch(150)
    held = []
    for share in (HALF, NONE):
        config = ranked_config(model, share)
        cache = TaylorCache(model, config)
        with torch.no_grad(), taylorder.adapted(model, config):
            in_pieces(model, cache, ids, mask, (150,))
        held.append((cache.nominal_bytes(), config_bytes(config, describe(model, "tiny"), 150)))
    (ranked, ranked_cost), (plain, plain_cost) = held
    assert ranked < plain
    assert ranked_cost < plain_cost


def test_generate_keeps_states_and_says_what_kept_keys_say():
    model = MODELS["llama"]()
    config = ranked_config(model)
    ids, mask = padded_batch(60)
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    with torch.no_grad(), taylorder.adapted(model, config):
        from_states = model.generate(ids, **options)
        from_keys = model.generate(ids, past_key_values=DynamicCache(config=model.config), **options)
        beams = model.generate(ids, num_beams=3, **options)
    assert isinstance(from_states.past_key_values, TaylorCache)
    assert torch.equal(from_states.sequences, from_keys.sequences)
    assert isinstance(beams.past_key_values, TaylorCache)


def test_a_saved_cache_goes_on_under_the_same_rotations_only(tmp_path):
    model = MODELS["llama"]()
    config = ranked_config(model)
    config.save(tmp_path / "orders.json")
    config = OrderConfig.load(tmp_path / "orders.json", model)
    ids, mask = padded_batch(LENGTH)
    expected = score_space(model, config, ids, mask)
    cache = TaylorCache(model, config)
    with torch.no_grad(), taylorder.adapted(model, config):
        in_pieces(model, cache, ids[:, :90], mask, (90,))
        cache.save(tmp_path / "cache.safetensors")
        again = TaylorCache.load(tmp_path / "cache.safetensors", model, config)
        found = in_pieces(model, again, ids, mask, (1, LENGTH - 91))
    rows = mask[:, 90:].bool()
    torch.testing.assert_close(found[rows], expected[:, 90:][rows], rtol=0, atol=1e-4)
    swapped = {module: (key, query) for module, (query, key) in config.rotations.items()}
    with pytest.raises(ConfigError, match="was made with config"):
        TaylorCache.load(tmp_path / "cache.safetensors", model, config.with_rotations(swapped))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.03), (torch.float16, 0.01)])
@pytest.mark.parametrize("ranked", [False, True])
def test_half_precision_models_run_from_the_cache(dtype, tolerance, ranked):
    """Rounding of a whole model; the kernels' own errors are tested where they live."""
    model = MODELS["llama"]()
    config_for = uniform_ranked if ranked else partial(uniform, order=3, expansion="mean", window=6, sinks=2)
    ids, mask = padded_batch(LENGTH)
    expected = score_space(model, config_for(model), ids, mask)
    model = model.to(dtype)
    _, found = run(model, config_for(model), ids, mask)
    assert relative_error(found[mask.bool()], expected[mask.bool()]) < tolerance


def test_half_precision_is_rotated_in_float32_and_rounded_once():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.randn(2, 16, 16, generator=generator)
    queries = torch.randn(3, 4, 5, 16, generator=generator).bfloat16()
    found = _rotated(queries, rotation)
    expected = torch.einsum("bhtj,hij->bhti", queries.double(), rotation.double()[[0, 0, 1, 1]])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)


def uniform_ranked(model):
    """Order 3 around the mean with a near field, half of the coordinates at degree 2, in every head."""
    config = ranked_config(model)
    d = config.model.head_dim
    head = HeadOrder(spec=HeadSpec(Taylor(3, "mean", (d, d, d // 2)), Near(6, 2)))
    layers = tuple(layer.model_copy(update={"heads": (head,) * len(layer.heads)}) for layer in config.layers)
    return OrderConfig(model=config.model, layers=layers).with_rotations(config.rotations)


def test_kv_heads_without_ranks_are_left_alone():
    model = TINY["llama"]()
    config = ranked_config(model)
    ranked_and_plain, exact_and_ranked = (plan_layer(config, layer) for layer in config.layers)
    identity = torch.eye(8)
    for plan, ranked, plain in ((ranked_and_plain, 0, 1), (exact_and_ranked, 1, 0)):
        rotations = plan.numbers.query_rotation, plan.numbers.key_rotation
        for planned, calibrated in zip(rotations, config.rotations[plan.name], strict=True):
            assert torch.equal(planned[plain], identity)
            assert torch.equal(planned[ranked], calibrated[ranked])
            assert not torch.equal(calibrated[plain], identity)
    without = ranked_config(model, NONE).with_rotations(config.rotations)
    assert [plan_layer(without, layer).numbers.query_rotation for layer in without.layers] == [None, None]


def test_ranks_without_rotations_are_refused_with_the_way_out():
    model = TINY["llama"]()
    config = ranked_config(model).with_rotations({})
    with pytest.raises(ConfigError, match="has ranks and no rotations; copy"), taylorder.adapted(model, config):
        pass
    with pytest.raises(ConfigError, match="has ranks and no rotations; copy"):
        TaylorCache(model, config)
