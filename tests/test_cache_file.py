"""A cache kept in a file: what was saved comes back bit for bit, and what is not this cache is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from generating import LENGTH, MODELS, SIZES, padded_batch, run, uniform
from mixed_orders import mixed_config
from tiny import tokens

import taylorder
from taylorder.adapt import cache_file
from taylorder.adapt.cache import TaylorCache
from taylorder.errors import ConfigError, TaylorderError


@pytest.mark.parametrize("name", MODELS)
def test_one_prefix_serves_many_continuations(name, tmp_path):
    model = MODELS[name]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(LENGTH)
    prefix, _ = run(model, config, ids, mask)
    prefix.save(tmp_path / "prefix.safetensors")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for seed in range(2):
        more = tokens(2, 3, seed=10 + seed)
        inputs = {"inputs": torch.cat([ids, more], 1), "attention_mask": torch.cat([mask, torch.ones_like(more)], 1)}
        loaded = TaylorCache.load(tmp_path / "prefix.safetensors", model, config)
        assert loaded.nominal_bytes() == prefix.nominal_bytes()
        with taylorder.adapted(model, config):
            expected = model.generate(**inputs, **options)
            assert torch.equal(model.generate(**inputs, past_key_values=prefix.clone(), **options), expected)
            assert torch.equal(model.generate(**inputs, past_key_values=loaded, **options), expected)
    assert prefix.get_seq_length() == LENGTH


@pytest.mark.parametrize("kind", ["mixed", "mean", "zero"])
def test_a_loaded_cache_is_the_saved_one_bit_for_bit(kind, tmp_path):
    model = MODELS["gemma3"]()
    config = mixed_config(model, 1) if kind == "mixed" else uniform(model, 3, kind, 3, 1)
    ids, mask = padded_batch(LENGTH)
    cache, _ = run(model, config, ids, mask, SIZES[:5])
    path = tmp_path / "somewhere" / "cache.safetensors"
    cache.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["cache.safetensors"]
    loaded = TaylorCache.load(path, model, config)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    _, expected = run(model, config, ids, mask, SIZES[5:], cache)
    assert torch.equal(run(model, config, ids, mask, SIZES[5:], loaded)[1], expected)
    empty = TaylorCache(model, config)
    empty.save(path)
    assert TaylorCache.load(path, model, config).get_seq_length() == 0


def test_a_cache_of_one_sequence_is_saved_as_well(tmp_path):
    model = MODELS["llama"]()
    config = uniform(model, 2, "mean", 16, 4)
    cache, _ = run(model, config, tokens(1, 20), torch.ones(1, 20, dtype=torch.long), (20,))
    cache.save(tmp_path / "cache.safetensors")
    assert TaylorCache.load(tmp_path / "cache.safetensors", model, config).get_seq_length() == 20


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A cache of a mixed config, saved: model, config, path, header and tensors."""
    from safetensors import safe_open

    model = MODELS["llama"]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(LENGTH)
    cache, _ = run(model, config, ids, mask)
    path = tmp_path_factory.mktemp("saved") / "cache.safetensors"
    cache.save(path)
    with safe_open(path, "pt") as file:
        return model, config, path, file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_files_that_are_not_this_caches_are_refused(saved, tmp_path):
    from safetensors.torch import save_file

    model, config, path, *_ = saved
    with pytest.raises(ConfigError, match=r"was made with config sha256:\w+, expected sha256:\w+: use the model"):
        TaylorCache.load(path, model, mixed_config(model, 2))
    tuned = MODELS["llama"]()
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight += 0.01
    with pytest.raises(ConfigError, match=r"was made with weights sha256:\w+, expected sha256:\w+: use the mode"):
        TaylorCache.load(path, tuned, mixed_config(tuned, 1))
    with pytest.raises(TaylorderError, match=r"nothing\.safetensors does not exist; TaylorCache\.save writes one"):
        TaylorCache.load(tmp_path / "nothing.safetensors", model, config)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TaylorderError, match="cannot be read as a saved TaylorCache"):
        TaylorCache.load(broken, model, config)
    for schema in ("taylorder/cache@1", None):
        save_file({"a": torch.zeros(1)}, broken, {"taylorder": json.dumps({"schema": schema})})
        with pytest.raises(TaylorderError, match="has schema .*, this version reads 'taylorder/cache@3'; make"):
            TaylorCache.load(broken, model, config)


def load_changed(saved, path, header=lambda header: None, tensors=lambda tensors: None, vouched=False):
    """Load the saved cache after changes; ``vouched`` makes the checksum fit them."""
    from safetensors.torch import save_file

    model, config, _, metadata, held = saved
    changed, about = dict(held), json.loads(metadata["taylorder"])
    header(about)
    tensors(changed)
    if vouched:
        about["sha256"] = cache_file.checksum(about, changed)
    save_file(changed, path, {"taylorder": json.dumps(about)})
    return TaylorCache.load(path, model, config)


@pytest.mark.parametrize("tokens", [7, -3, True, "93", 10**30, None, 93.0, LENGTH + 1])
def test_a_token_count_changed_in_every_layer_is_refused(saved, tmp_path, tokens):
    def change(header):
        for layer in header["layers"]:
            layer["tokens"] = tokens

    assert load_changed(saved, tmp_path / "same.safetensors").get_seq_length() == LENGTH
    with pytest.raises(TaylorderError, match="is damaged: what it holds is not what its checksum was made of; make it"):
        load_changed(saved, tmp_path / "changed.safetensors", change)


KEYS, SEEN = "layers.1.parts.0.recent.keys", "layers.1.parts.0.seen"


@pytest.mark.parametrize(
    "header, tensors, words",
    [
        (lambda h: h["layers"][1].update(dtype="nope"), lambda t: None, "KeyError: 'nope'"),
        (lambda h: h["layers"][1].update(tokens=-3), lambda t: None, "a layer has -3 tokens, expected a count"),
        (lambda h: h["layers"][1].update(tokens=True), lambda t: None, "a layer has True tokens, expected a count"),
        (lambda h: h["layers"][1].update(kind="DynamicLayer"), lambda t: None, "kind DynamicLayer, expected state"),
        (lambda h: h.update(layers={}), lambda t: None, "zip"),
        (lambda h: h.update(layers=3), lambda t: None, "TypeError"),
        (lambda h: h["layers"][1].pop("backend"), lambda t: None, "KeyError: 'backend'"),
        (lambda h: None, lambda t: t.pop(SEEN), "seen"),
        (lambda h: None, lambda t: t.pop(KEYS), "expected recent.keys [B, G, T, d]"),
        (lambda h: None, lambda t: t.update({KEYS: t[KEYS].flatten()}), "expected recent.keys [B, G, T, d]"),
        (lambda h: None, lambda t: t.update({KEYS: t[KEYS].half()}), "recent.keys is torch.float16"),
        (lambda h: None, lambda t: t.update({KEYS: t[KEYS][:1].clone()}), "recent.keys is torch.float32 (1, "),
        (lambda h: None, lambda t: t.update({KEYS: t[KEYS][:, :, 1:].clone()}), "recent.values is torch.float32 (2, "),
        (lambda h: None, lambda t: t.update({SEEN: torch.zeros(5, dtype=torch.int64)}), "seen"),
        (lambda h: None, lambda t: t.update({SEEN: t[SEEN].float()}), "seen"),
    ],
)
def test_a_file_that_vouches_for_what_no_cache_holds_is_refused(saved, tmp_path, header, tensors, words):
    with pytest.raises(TaylorderError, match="does not hold what a cache of this model consists of") as caught:
        load_changed(saved, tmp_path / "changed.safetensors", header, tensors, vouched=True)
    assert words in str(caught.value)
