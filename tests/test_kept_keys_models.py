"""Models whose heads keep keys by priority: the same logits in one piece, in chunks, token by token, padded and forked.

Models in float64 round their keys alike in any chunks, so that no two priorities trade places.
"""

from __future__ import annotations

import pytest
import torch
from generating import LENGTH, MODELS, MODES, SIZES, generate, in_pieces, padded_batch, positions, run
from mixed_orders import PROBE_TEXT, keeping_config, reference_output
from tiny import TINY, tokens
from transformers import DynamicCache

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import OrderConfig
from taylorder.errors import ConfigError, NonFiniteError
from taylorder.kernels.dispatch import BACKEND_VARIABLE
from taylorder.kernels.spec import keeps_keys
from taylorder.models.describe import describe


@pytest.fixture(params=["score-space", "torch"])
def _backend(request, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, request.param)


anyhow = pytest.mark.usefixtures("_backend")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def double(name):
    return MODELS[name]().double()


def whole(model, config, ids, mask):
    """Logits of whole sequences, without a cache."""
    with torch.no_grad(), taylorder.adapted(model, config):
        return model(ids, attention_mask=mask, position_ids=positions(mask)).logits


def other_probes(config):
    """The same config with other probes."""
    return config.with_probes({name: -probe for name, probe in config.probes.items()}, PROBE_TEXT)


@anyhow
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "pythia", "opt", "gemma3", "phi3"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_a_model_that_keeps_keys_computes_the_formula(name, padding):
    model = TINY[name]().double()
    inputs = {"input_ids": tokens(2, 40)}
    rows = torch.ones(2, 40, dtype=torch.bool)
    if padding != "none":
        rows[1, slice(0, 6) if padding == "left" else slice(34, 40)] = False
        inputs["attention_mask"] = rows.long()
    config = keeping_config(model, 1)
    expected = reference_output(model, config, **inputs)
    with torch.no_grad():
        with taylorder.adapted(model, config):
            found = model(**inputs)[0]
        with taylorder.adapted(model, other_probes(config)):
            wrong = model(**inputs)[0]
    close(found[rows], expected[rows])
    assert (wrong[rows] - expected[rows]).norm() / expected[rows].norm() > 1e-3


@anyhow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [SIZES, (1,) * 60, (50, 50)], ids=["mixed", "decoded", "halves"])
def test_logits_from_the_cache_are_those_of_the_whole_sequence(name, sizes):
    model = double(name)
    config = keeping_config(model, 3)
    ids, mask = padded_batch(sum(sizes))
    _, found = run(model, config, ids, mask, sizes)
    rows = mask.bool()
    close(found[rows], whole(model, config, ids, mask)[rows])


@anyhow
def test_padding_on_the_left_changes_nothing():
    model = double("llama")
    config = keeping_config(model, 1)
    ids, mask = padded_batch(90)
    padding = int((1 - mask[1]).sum())
    alone = whole(model, config, ids[1:, padding:], mask[1:, padding:])
    close(whole(model, config, ids, mask)[1:, padding:], alone)
    close(run(model, config, ids, mask, (60, 1, 29))[1][1:, padding:], alone)


@anyhow
def test_gradients_flow_through_the_keys_that_are_kept():
    model = double("llama")
    config = keeping_config(model, 1)
    ids = tokens(2, 60)
    mask = torch.ones_like(ids)
    with taylorder.adapted(model, config):
        logits = model(ids).logits
        logits.square().sum().backward()
    close(logits.detach(), whole(model, config, ids, mask))
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


def test_raw_denominators_and_a_cache_of_all_keys_keep_the_same_keys():
    model = double("llama")
    config = keeping_config(model, 1)
    ids, mask = padded_batch(60)
    expected, rows = whole(model, config, ids, mask), mask.bool()
    with torch.no_grad(), taylorder.adapted(model, config):
        plain = DynamicCache(config=model.config)
        close(in_pieces(model, plain, ids[:1], mask[:1], (41, 1, 18)), expected[:1])
    odd = OrderConfig.uniform(
        describe(model, "tiny"), 3, "mean", 4, 2, kept=5, probes=config.probes, probe=config.probe
    )
    with torch.no_grad(), taylorder.adapted(model, odd, guard=False):  # odd orders around the mean need no guard
        raw = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    close(raw[rows], whole(model, odd, ids, mask)[rows])


@anyhow
def test_caches_are_reordered_forked_saved_and_continued(tmp_path):
    model = double("gemma3")
    config = keeping_config(model, 1)
    ids, mask = padded_batch(LENGTH)
    cache, _ = run(model, config, ids, mask)
    cache.save(tmp_path / "prefix.safetensors")

    def go_on(changed, rows):
        more = tokens(len(rows), 30, seed=7)
        longer = torch.cat([ids[rows], more], 1), torch.cat([mask[rows], torch.ones_like(more)], 1)
        _, found = run(model, config, *longer, (1, 29), changed)
        close(found, whole(model, config, *longer)[:, -30:])

    go_on(cache.clone(), [0, 1])
    go_on(TaylorCache.load(tmp_path / "prefix.safetensors", model, config), [0, 1])
    beams = cache.clone()
    beams.reorder_cache(torch.tensor([1, 1]))
    go_on(beams, [1, 1])
    several = cache.clone()
    several.batch_repeat_interleave(2)
    go_on(several, [0, 0, 1, 1])
    go_on(cache, [0, 1])  # what was forked has changed nothing


@anyhow
def test_a_loaded_cache_is_the_saved_one_bit_for_bit_and_of_no_other_probe(tmp_path):
    model = double("llama")
    config = keeping_config(model, 1)
    ids, mask = padded_batch(LENGTH)
    cache, _ = run(model, config, ids, mask)
    path = tmp_path / "cache.safetensors"
    cache.save(path)
    loaded = TaylorCache.load(path, model, config)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert loaded.nominal_bytes() == cache.nominal_bytes()
    with pytest.raises(ConfigError, match=r"was made with config sha256:\w+, expected sha256:\w+: use the model"):
        TaylorCache.load(path, model, other_probes(config))


@anyhow
@pytest.mark.parametrize("mode", MODES)
def test_generate_gives_the_tokens_that_keeping_every_key_gives(mode):
    model = double("llama")
    config = keeping_config(model, 2)
    ids, mask = padded_batch(60)
    with torch.no_grad(), taylorder.adapted(model, config):
        found = generate(model, ids, mask, **MODES[mode])
        every = generate(model, ids, mask, **MODES[mode], past_key_values=DynamicCache(config=model.config))
    assert type(found.past_key_values) is TaylorCache
    assert torch.equal(found.sequences, every.sequences)
    torch.testing.assert_close(found.logits, every.logits, rtol=1e-5, atol=1e-5)  # generate rounds them to float32


def test_a_model_whose_layers_have_no_probe_is_not_attached():
    model = double("llama")
    config = keeping_config(model, 1)
    layers = [layer for layer in config.layers if keeps_keys([head.spec for head in layer.heads])]
    bare = config.with_probes({}, None)
    with pytest.raises(ConfigError, match=f"layer {layers[0].module} keeps keys and has no probe"):
        taylorder.attach(model, bare)


def test_priorities_that_overflow_are_refused_by_layer():
    model = double("llama")
    config = keeping_config(model, 1)
    probes = {name: torch.full_like(probe, 3e38) for name, probe in config.probes.items()}
    with (
        torch.no_grad(),
        taylorder.adapted(model, config.with_probes(probes, PROBE_TEXT)),
        pytest.raises(
            NonFiniteError, match=r"model.layers.\d.self_attn cannot rank its keys .*; fit it on this model, or set"
        ),
    ):
        model(tokens(1, 20))


def test_priorities_are_single_whatever_torch_makes_by_default(tmp_path):
    model = MODELS["llama"]()
    config = keeping_config(model, 1)
    with torch.no_grad(), taylorder.adapted(model, config):
        cache = TaylorCache(model, config)
        model(tokens(1, 20), past_key_values=cache)
        cache.save(tmp_path / "cache.safetensors")
        with torch.autocast("cpu", torch.bfloat16):
            assert model(tokens(1, 20)).logits.isfinite().all()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            loaded = TaylorCache.load(tmp_path / "cache.safetensors", model, config)
        finally:
            torch.set_default_dtype(before)
    assert loaded.nominal_bytes() == cache.nominal_bytes()
