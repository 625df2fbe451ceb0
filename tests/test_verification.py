"""A model attends as its calls say and computes the same when every head is exact, or it is refused by name."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import taylorder
from taylorder.adapt import attention as runtime
from taylorder.adapt.config import OrderConfig
from taylorder.errors import UnsupportedModelError
from taylorder.models.describe import describe


def enter(model, config):
    with taylorder.adapted(model, config):
        pass


def look_ahead(_module, _args, output):
    """A hook that mixes all tokens, which no attention call shows."""
    return output + output.mean(1, keepdim=True)


def test_a_decoder_that_looks_ahead_past_attention_is_refused():
    model = tiny.llama()
    model.model.layers[0].mlp.register_forward_hook(look_ahead)
    with pytest.raises(
        UnsupportedModelError, match=r"earlier tokens only .*is_causal = True\), but another last token"
    ):
        describe(model)


def test_an_encoder_that_does_not_look_ahead_is_refused():
    def alone(module, query, key, value, mask, **options):
        return value.transpose(1, 2).contiguous(), None

    hf.AttentionInterface.register("tested_alone", alone)
    model = tiny.bert()
    model.set_attn_implementation("tested_alone")
    with pytest.raises(UnsupportedModelError, match=r"both directions .*last token changes no earlier hidden state"):
        describe(model)


def test_attention_that_sdpa_does_not_compute_is_refused():
    def halved(module, query, key, value, mask, scaling=None, **options):
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling / 2, **options)

    hf.AttentionInterface.register("tested_halved", halved)
    model = tiny.llama()
    model.set_attn_implementation("tested_halved")
    with pytest.raises(UnsupportedModelError, match=r"through SDPA.*own attention \(tested_halved\).*differ by 0\.\d+"):
        describe(model)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [(torch.float32, r"as it is measured\.$"), (torch.bfloat16, r"measured, or load it in float32, if experts are")],
)
def test_the_way_out_of_other_numbers_is_the_attention_that_is_measured(dtype, words):
    """A router turns the rounding of another attention function into other experts."""

    def shifted(module, query, key, value, mask, **options):
        output, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
        return output * 1.5, weights

    hf.AttentionInterface.register("tested_shifted", shifted)
    model = tiny.llama().to(dtype)
    model.set_attn_implementation("tested_shifted")
    with pytest.raises(UnsupportedModelError, match=r"Call set_attn_implementation\('sdpa'\) first, .*" + words):
        describe(model)
    model.set_attn_implementation("sdpa")
    assert describe(model).modules


def test_a_model_that_does_not_run_by_its_own_attention_is_refused_with_the_way_out():
    def broken(*arguments, **options):
        raise OSError("no such kernel\nsecond line")

    hf.AttentionInterface.register("tested_broken", broken)
    model = tiny.llama()
    model.set_attn_implementation("tested_broken")
    words = r"own attention \(tested_broken\) .*OSError: no such kernel\).*set_attn_implementation\('sdpa'\)"
    with pytest.raises(UnsupportedModelError, match=words):
        describe(model)
    model.set_attn_implementation("sdpa")
    describe(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "pythia", "gemma3", "bert", "modernbert"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rounding_is_no_difference(name, dtype, attention):
    model = tiny.TINY[name]().to(dtype)
    model.set_attn_implementation(attention)
    enter(model, OrderConfig.uniform(model, 2, "mean"))


@pytest.mark.parametrize(
    ("name", "way_out"), [("sdpa", "mend the model"), ("eager", r"set_attn_implementation\('sdpa'")]
)
def test_a_model_that_does_not_run_with_its_own_cache_is_refused_by_name(name, way_out, monkeypatch):
    """As FlexAttention where it compiles for whole sequences only, or a decoder whose config counts too few layers."""
    model = tiny.llama()
    model.set_attn_implementation(name)
    config = OrderConfig.uniform(model, 2, "mean")

    def update(*_arguments, **_options):
        raise IndexError("list index out of range")

    monkeypatch.setattr(hf.DynamicCache, "update", update)
    words = rf"does not run by its own attention \({name}\) .*IndexError: list index out of range\).*: {way_out}"
    with pytest.raises(UnsupportedModelError, match=words):
        enter(model, config)


def test_an_encoder_that_draws_random_numbers_draws_the_same_in_every_run():
    """There is no cache, so that the untouched model runs twice as often."""
    model = tiny.bert()
    model.encoder.register_forward_pre_hook(lambda _, args: (args[0] + torch.randn(args[0].shape[1:]), *args[1:]))
    enter(model, OrderConfig.uniform(model, "exact"))


WRONG = {
    "on whole sequences": lambda query, mask: mask is None and query.shape[2] > 1,
    "on padded sequences": lambda query, mask: mask is not None and query.shape[2] > 1,
    "on one more token": lambda query, mask: query.shape[2] == 1,
}


@pytest.mark.parametrize("where", WRONG)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_exact_config_that_computes_something_else_is_refused(where, attention, monkeypatch):
    exact = runtime.attend_unchanged

    def wrong(module, query, key, value, mask, **rest):
        return exact(module, query, key, value, mask, **rest) * (1.01 if WRONG[where](query, mask) else 1.0)

    model = tiny.llama()
    model.set_attn_implementation(attention)
    config = OrderConfig.uniform(model, 2, "mean")
    monkeypatch.setattr(runtime, "attend_unchanged", wrong)
    with pytest.raises(UnsupportedModelError, match=f"with every head exact: {where}, its hidden states differ by 0.0"):
        enter(model, config)
    monkeypatch.undo()
    enter(model, config)


def test_a_bit_is_a_difference_on_a_cpu(monkeypatch):
    exact = runtime.attend_unchanged
    model = tiny.llama()
    config = OrderConfig.uniform(model, 2, "mean")
    monkeypatch.setattr(runtime, "attend_unchanged", lambda *given, **more: exact(*given, **more) * (1 + 2e-7))
    with pytest.raises(UnsupportedModelError, match="where 0e[+]00 is allowed"):
        enter(model, config)


def test_looking_leaves_no_trace():
    """Neither in what a module counts, in a buffer or beside one, nor in the generators, flags, hooks or configs."""
    model = tiny.llama()
    model.model.register_buffer("calls", torch.zeros(()))
    model.model.seen = 0
    drawn = []

    def count(module, _args, _output):
        module.calls += 1
        module.seen += 1
        drawn.append(torch.rand(3))

    model.model.register_forward_hook(count)
    model.train()
    model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    generator = torch.get_rng_state()
    describe(model)
    enter(model, OrderConfig.uniform(model, 2))
    assert len(drawn) > 3
    assert torch.equal(drawn[0], drawn[1])  # the same random numbers in every run
    assert (float(model.model.calls), model.model.seen) == (0, 0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == flags
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert len(model.model._forward_hooks) == 1
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_made_in_inference_mode_is_looked_at_like_any_other():
    """Its buffers cannot be written outside of that mode."""
    with torch.inference_mode():
        model = tiny.llama()
    config = OrderConfig.uniform(model, 2, "mean", 4, 1)
    with torch.no_grad(), taylorder.adapted(model, config):
        assert model(tiny.tokens()).logits.isfinite().all()


def test_a_model_is_looked_at_once_in_each_dtype():
    model = tiny.llama()
    config = OrderConfig.uniform(model, 2)
    runs = []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    counts = []
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16):
        model.to(dtype)
        runs.clear()
        enter(model, config)
        counts.append(len(runs))
    assert counts[1] == counts[3] == 1  # the description
    assert min(counts[0], counts[2]) > 3
