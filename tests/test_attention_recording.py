from __future__ import annotations

import gc
import weakref

import pytest
import tiny
import torch
import transformers as hf

from taylorder.errors import UnsupportedModelError
from taylorder.models import attention as _attention
from taylorder.models.attention import ATTENTION_NAME, recording


@pytest.fixture(params=tiny.TINY)
def model(request):
    return tiny.TINY[request.param]()


@pytest.fixture
def llama():
    return tiny.llama()


def padded_batch():
    """Three rows of 24 tokens: whole, padded on the left by 5, padded on the left by 17."""
    ids = tiny.tokens(batch=3)
    mask = torch.ones_like(ids)
    for row, padding in ((1, 5), (2, 17)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def state(model):
    """All that recording could leave behind: attention implementations, attributes, hooks, training flags."""
    return [
        (name, sorted(vars(module)), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ], [name for _, name in _attention.selections(model)]


def attend(call):
    """The attention output ``[B, T, H, d_v]`` from the recorded tensors, as written in a textbook."""
    groups = call.q.shape[1] // call.k.shape[1]
    k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (call.k, call.v))
    scores = call.scaling * call.q @ k.mT
    T, S = scores.shape[-2:]
    if call.mask is not None:
        scores = scores.masked_fill(~call.mask, float("-inf"))
    elif call.is_causal:
        scores = scores.masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("inputs", [{"input_ids": tiny.tokens(2)}, padded_batch()], ids=["whole", "padded"])
def test_outputs_are_bit_identical_inside_and_after(model, inputs):
    before = run(model, inputs)
    calls = []
    with recording(model, calls.append):
        inside = run(model, inputs)
    assert torch.equal(inside, before)
    assert torch.equal(run(model, inputs), before)
    assert len(calls) == model.config.num_hidden_layers


def test_calls_carry_what_enters_the_softmax(model):
    """The attention recomputed from each call is what the function returned to the module."""
    calls, outputs = [], []
    delegate = _attention._record

    def spy(*args, **kwargs):
        outputs.append(delegate(*args, **kwargs)[0])
        return outputs[-1], None

    with recording(model, calls.append):
        hf.AttentionInterface.register(ATTENTION_NAME, spy)
        run(model, padded_batch())
    for call, output in zip(calls, outputs, strict=True):
        # Rows of padding tokens see nothing and may hold anything.
        valid = padded_batch()["attention_mask"].bool()
        torch.testing.assert_close(attend(call)[valid], output[valid], rtol=1e-4, atol=1e-5)
        assert call.module is model.get_submodule(call.name)
        assert call.mask is None or call.mask.dtype == torch.bool


def test_a_padded_row_masks_its_padding(model):
    calls = []
    with recording(model, calls.append):
        run(model, padded_batch())
    for call in calls:
        assert not call.mask[1, ..., 5:, :5].any()
        assert call.mask[1, ..., 23, 23].all()


def test_sliding_window_and_scaling_are_those_of_the_layer():
    calls = []
    gemma = tiny.gemma3()
    with recording(gemma, calls.append):
        run(gemma, {"input_ids": tiny.tokens()})
    assert [call.sliding_window for call in calls] == [8, None, 8, None]
    assert [call.scaling for call in calls] == [24**-0.5] * 4
    local = calls[0].mask
    assert local[0, 0, 20].nonzero().flatten().tolist() == list(range(13, 21))


def test_names_are_those_of_the_whole_model_when_only_its_base_runs(llama):
    names = []
    with recording(llama, lambda call: names.append(call.name)):
        run(llama.model, {"input_ids": tiny.tokens()})
    assert names == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_model_is_left_as_it_was(llama, implementation):
    llama.set_attn_implementation(implementation)
    llama.train()
    before = state(llama)
    with recording(llama, lambda call: None):
        assert llama.config._attn_implementation == ATTENTION_NAME
    assert state(llama) == before
    assert llama.config._attn_implementation == implementation


def test_the_model_is_left_as_it_was_after_an_exception(llama):
    before = state(llama)

    def fail(call):
        raise KeyError(call.name)

    with pytest.raises(KeyError, match=r"layers\.0"), recording(llama, fail):
        run(llama, {"input_ids": tiny.tokens()})
    assert state(llama) == before
    assert not _attention._SINKS


def test_nested_blocks_suspend_the_outer_sink(llama):
    outer, inner = [], []
    inputs = {"input_ids": tiny.tokens()}
    with recording(llama, outer.append):
        with pytest.raises(RuntimeError), recording(llama, inner.append):
            run(llama, inputs)
            raise RuntimeError
        assert (len(outer), len(inner)) == (0, 2)
        run(llama, inputs)
    assert (len(outer), len(inner)) == (2, 2)
    assert llama.config._attn_implementation == "sdpa"


def test_two_models_at_once_keep_their_calls_apart(llama):
    gpt2 = tiny.gpt2()
    first, second = [], []
    with recording(llama, first.append), recording(gpt2, second.append):
        run(gpt2, {"input_ids": tiny.tokens()})
        run(llama, {"input_ids": tiny.tokens()})
    assert {call.name.split(".")[0] for call in first} == {"model"}
    assert {call.name.split(".")[0] for call in second} == {"transformer"}


def test_an_unrecorded_model_is_not_touched(llama):
    other, calls = tiny.llama(), []
    with recording(llama, calls.append):
        run(other, {"input_ids": tiny.tokens()})
    assert calls == []


def test_nothing_keeps_the_model_alive():
    model = tiny.llama()
    reference = weakref.ref(model)
    with recording(model, lambda call: None):
        run(model, {"input_ids": tiny.tokens()})
    del model
    gc.collect()
    assert reference() is None


def test_generation_with_a_cache_records_every_step(llama):
    calls = []
    with torch.no_grad():
        before = llama.generate(tiny.tokens(length=5), max_new_tokens=4, do_sample=False)
        with recording(llama, calls.append):
            inside = llama.generate(tiny.tokens(length=5), max_new_tokens=4, do_sample=False)
    assert torch.equal(before, inside)
    assert [(call.q.shape[2], call.k.shape[2]) for call in calls[::2]] == [(5, 5), (1, 6), (1, 7), (1, 8)]


def test_a_selection_that_does_not_take_is_refused(llama, monkeypatch):
    """transformers only warns when it keeps the old implementation."""
    monkeypatch.setattr(llama, "set_attn_implementation", lambda name: None)
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        recording(llama, lambda call: None).__enter__()
    assert llama.config._attn_implementation == "sdpa"


def test_selecting_the_attention_is_silent(llama, capfd):
    with recording(llama, lambda call: None):
        run(llama, {"input_ids": tiny.tokens()})
    assert capfd.readouterr() == ("", "")
