"""What ``generate`` keeps for models that call their cache otherwise, or have one of their own."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from generating import MODES, generate, padded_batch
from tiny import TINY, build, decoder, minimax, tokens
from transformers import DynamicCache

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.cache_layer import TaylorCacheLayer
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.hybrid_layer import HybridCacheLayer
from taylorder.errors import UnsupportedModelError
from taylorder.models.describe import describe


def ctrl():
    config = hf.CTRLConfig(n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=128, vocab_size=128)
    return build(hf.CTRLLMHeadModel, config)


def falcon_h1():
    """Attention and a state space side by side in every layer."""
    config = hf.FalconH1Config(
        head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, **decoder()
    )
    return build(hf.FalconH1ForCausalLM, config)


def moshi():
    """Sliding caches under layers that say nothing of a window."""
    config = hf.MoshiConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, audio_vocab_size=32,
        max_position_embeddings=128, sliding_window=64,
    )  # fmt: skip
    return build(hf.MoshiForCausalLM, config)


@pytest.mark.parametrize("factory", [TINY["pythia"], TINY["gpt_bigcode"], ctrl], ids=lambda factory: factory.__name__)
def test_a_cache_is_found_whatever_the_model_calls_it(factory):
    model = factory()
    config = OrderConfig.uniform(describe(model, "tiny"), 3, "mean", 4, 1)
    ids = tokens(2, 40)
    with taylorder.adapted(model, config):
        found = generate(model, ids, torch.ones_like(ids), do_sample=False)
        whole = model(found.sequences).logits[:, -9:-1]
    cache = found.past_key_values
    assert isinstance(cache, TaylorCache)
    assert [type(layer) for layer in cache.layers] == [TaylorCacheLayer] * 2
    assert cache.get_seq_length() == 47
    torch.testing.assert_close(torch.stack(found.logits, 1), whole, rtol=1e-4, atol=1e-4)


def test_a_model_with_a_cache_class_of_its_own_keeps_it():
    model = minimax()
    config = OrderConfig.uniform(describe(model, "tiny"), 3, "mean", 4, 1)
    ids = tokens(2, 40)
    with torch.no_grad(), taylorder.adapted(model, config):
        found = generate(model, ids, torch.ones_like(ids), do_sample=False)
        whole = model(found.sequences).logits[:, -9:-1]
        assert type(found.past_key_values).__name__ == "MiniMaxCache"
        torch.testing.assert_close(torch.stack(found.logits, 1), whole, rtol=1e-4, atol=1e-4)
        with pytest.raises(UnsupportedModelError, match="MiniMaxForCausalLM takes no cache but of a class of its own"):
            TaylorCache(model, config)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_beside_a_recurrence_gives_the_tokens_that_keeping_every_key_gives(mode):
    model = falcon_h1()
    config = OrderConfig.uniform(describe(model, "tiny"), 3, "mean", 4, 1)
    ids, mask = padded_batch(40)
    with torch.no_grad(), taylorder.adapted(model, config):
        found = generate(model, ids, mask, **MODES[mode])
        kept = generate(model, ids, mask, **MODES[mode], past_key_values=DynamicCache(config=model.config))
    assert [type(layer) for layer in found.past_key_values.layers] == [HybridCacheLayer] * 2
    assert torch.equal(found.sequences, kept.sequences)


def test_a_state_beside_a_recurrence_is_cloned_selected_reset_and_not_saved(tmp_path):
    model = falcon_h1()
    config = OrderConfig.uniform(describe(model, "tiny"), 3, "mean", 4, 1)
    ids = tokens(2, 40)
    with torch.no_grad(), taylorder.adapted(model, config):
        whole = model(ids, use_cache=False).logits[:, 30:]
        cache = TaylorCache(model, config)
        assert (cache.nbytes(), cache.nominal_bytes()) == (0, 0)
        model(ids[:, :30], past_key_values=cache)
        twins, second = cache.clone(), cache.clone()
        held = cache.nbytes()
        first = model(ids[:, 30:], past_key_values=cache).logits
        torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-4)
        second.batch_select_indices(torch.tensor([1]))
        assert held == twins.nbytes() == 2 * second.nbytes()
        torch.testing.assert_close(model(ids[1:, 30:], past_key_values=second).logits, whole[1:], rtol=1e-4, atol=1e-4)
        twins.reorder_cache(torch.tensor([1, 0]))
        flipped = model(ids[:, 30:].flip(0), past_key_values=twins).logits
        torch.testing.assert_close(flipped, whole.flip(0), rtol=1e-4, atol=1e-4)
        with pytest.raises(UnsupportedModelError, match="a layer of type HybridCacheLayer, which cannot be saved"):
            cache.save(tmp_path / "cache.safetensors")
        cache.reset()
        model(ids[:, :30], past_key_values=cache)
        assert torch.equal(model(ids[:, 30:], past_key_values=cache).logits, first)


def test_a_cache_layer_that_no_state_replaces_is_refused_before_anything_runs():
    model = moshi()
    config = OrderConfig.uniform(describe(model, "tiny"), 3, "mean", 4, 1)
    ids = tokens(1, 40)
    runs = []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    words = r"layers\.0\.self_attn in a DynamicSlidingWindowLayer.*: make its heads exact, or pass past_key_values=Dyn"
    with torch.no_grad(), taylorder.adapted(model, config):
        runs.clear()
        with pytest.raises(UnsupportedModelError, match=words):
            generate(model, ids, torch.ones_like(ids))
        assert runs == []
        kept = generate(
            model, ids, torch.ones_like(ids), do_sample=False, past_key_values=DynamicCache(config=model.config)
        )
    assert len(kept.logits) == 8
