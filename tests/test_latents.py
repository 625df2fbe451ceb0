"""Latent attention: its cache is counted as latents too, beside keys and values, in bytes and break-even contexts."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
import transformers as hf

from taylorder.adapt import cost
from taylorder.adapt.config import OrderConfig
from taylorder.analysis.analyze import analyze
from taylorder.models.describe import describe
from taylorder.reports import savings, summary, verdict
from taylorder.selection.by_tolerance import select
from taylorder.selection.cache_size import CacheSize

TOKEN = 4 * (12 + 6) * 2  # keys and values of 4 heads, in 16 bits
LATENT = (8 + 4) * 2
ROW = (6 + 1) * 4  # a feature of a state


def deepseek():
    config = hf.DeepseekV3Config(
        moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=6, first_k_dense_replace=2, n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1,
        **(tiny.decoder() | {"num_key_value_heads": 4}),
    )  # fmt: skip
    return tiny.build(hf.DeepseekV3ForCausalLM, config)


@pytest.fixture(scope="module")
def measured(tiny_tokenizer):
    analysis = analyze(
        deepseek(), tiny_tokenizer, max_tokens=128, sequence_length=32, rows=6, max_order=3, per_head_alpha=True
    )
    return analysis, select(analysis, tolerance=3.0, context=64)


def test_a_latent_is_what_transformers_caches():
    model = deepseek()
    described = describe(model)
    assert [module.latent_dim for module in described.modules] == [12, 12]
    with torch.no_grad():
        layer = model(tiny.tokens(1, 10), use_cache=True).past_key_values.layers[0]
    assert layer.keys.shape[-1] + layer.values.shape[-1] == 12
    assert layer.keys.shape[1] == 1
    assert describe(tiny.llama()).keeps_latents is False


def test_bytes_are_counted_both_ways():
    described = describe(deepseek())
    exact = OrderConfig.uniform(described, "exact")
    assert cost.config_bytes(exact, described, 50) == 2 * 50 * TOKEN
    assert cost.latent_bytes(exact, described, 50) == 2 * 50 * LATENT
    orders = OrderConfig.uniform(described, 2, "mean")
    one = exact.model_copy(update={"layers": (exact.layers[0], orders.layers[1])})
    assert cost.latent_bytes(one, described, 50) == 50 * LATENT + 4 * 13 * ROW
    cache = CacheSize.of(described, 50)
    assert (cache.token_bytes, cache.latent_token_bytes) == (2 * TOKEN, 2 * LATENT)
    plain = describe(tiny.llama())
    assert cost.latent_bytes(OrderConfig.uniform(plain, 2), plain, 50) == cost.config_bytes(
        OrderConfig.uniform(plain, 2), plain, 50
    )


def test_an_order_breaks_even_later_beside_latents(measured):
    analysis, selection = measured
    lines = summary.by_order(analysis, selection)
    assert [line.break_even for line in lines[:2]] == [1, 11]
    assert [line.latent_break_even for line in lines[:2]] == [5, 61]  # 4 states of 1 and 13 features, 24 bytes a token


def test_a_report_says_what_latents_take(measured):
    analysis, selection = measured
    exact, adapted = savings.latent_bytes(analysis, selection)
    assert exact == 2 * 64 * LATENT
    assert adapted < savings.saved(analysis, selection)[0]
    text = " ".join(verdict.sentences(analysis, selection))
    assert "where exact layers keep latents" in text


def test_alphas_are_those_of_the_matrices_behind_the_latents(measured):
    analysis, _ = measured
    whole = [row for row in analysis.spectral if row.head is None]
    assert [row.projection for row in whole[:4]] == ["o", "q_b", "k_b", "v_b"]
    assert [row.role for row in whole[:4]] == ["o", "q", "k", "v"]
    assert all(row.status != "unavailable" for row in whole)
    assert {row.head for row in analysis.spectral if row.projection == "k_b"} == {None, 0, 1, 2, 3}


def test_check_says_what_latents_take(run, tmp_path, tiny_tokenizer, monkeypatch):
    speed = ("token", "step", "pair", "loss", "spectrum", "term", "use", "near", "polynomial")
    monkeypatch.setattr("taylorder.selection.speed.speed", lambda *_: dict.fromkeys(speed, 1e-6))
    folder = tiny.saved(deepseek(), tiny_tokenizer, tmp_path / "model")
    _, out, _ = run("check", folder, "--context", 50)
    assert "as latents 48 B per token, 2.34 KiB at 50 tokens, which a server keeps" in " ".join(out.split())
    _, out, _ = run("check", folder, "--context", 50, "--format", "json")
    assert json.loads(out)["cache"]["latent_bytes_per_token"] == 2 * LATENT
