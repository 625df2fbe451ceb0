"""One backward pass against finite differences and whole logits, and a model that is left as it was."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pytest
import tiny
import torch
from observing import IDS, adapted_to, left_behind, llama64, mixed, observe, states

import taylorder
from taylorder.analysis import losses
from taylorder.analysis.losses import hidden_states, kl_gradient, language_model_head, nll_gradient
from taylorder.errors import NonFiniteError
from taylorder.models.describe import describe
from taylorder.models.running import run_base


@contextmanager
def nudged(module, change):
    """Add to what a module's output projection is given: the output of attention ``[B, T, H * d_v]``."""
    hook = module.o_proj.register_forward_pre_hook(lambda _, args: (args[0] + change,))
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("state", ["exactly", "adapted"])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_gradient_of_the_loss_is_the_finite_difference(state, layer):
    model = llama64()
    running = states(model)[state]
    loss, observed = observe(model, partial(nll_gradient, model.lm_head, IDS), running)
    name = f"model.layers.{layer}.self_attn"
    gradient = observed[name].gradient
    H, T, d_v = gradient.shape

    def loss_at(change):
        with torch.no_grad(), running(model, lambda *_: None), nudged(model.model.layers[layer].self_attn, change):
            logits = model.lm_head(run_base(model, IDS[None]))[0]
        return float(torch.nn.functional.cross_entropy(logits[:-1], IDS[1:]))

    assert loss == pytest.approx(loss_at(0.0), rel=1e-12)
    generator = torch.Generator().manual_seed(layer)
    for _ in range(3):
        direction = torch.randn(H, T, d_v, generator=generator, dtype=torch.float64)
        change = 1e-5 * direction.transpose(0, 1).reshape(1, T, H * d_v)
        slope = (loss_at(change) - loss_at(-change)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)
        assert abs(slope) > 1e-3
        assert float((gradient.flip(0) * direction).sum()) != pytest.approx(slope, rel=1e-2)  # negative control


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode", "llama", "qwen3", "pythia", "opt", "gemma3", "phi3"])
def test_every_module_is_there_in_order_with_what_it_attended(name):
    model = tiny.TINY[name]()
    description = describe(model, name)
    head = language_model_head(model)
    loss, observed = observe(model, partial(nll_gradient, head, IDS))
    with torch.no_grad():
        own = model(IDS[None], labels=IDS[None], use_cache=False).loss
    assert loss == pytest.approx(float(own), abs=1e-5)
    assert list(observed) == [module.name for module in description.modules]
    for module in description.modules:
        found = observed[module.name]
        T, H, G = len(IDS), module.heads, module.kv_heads
        assert found.q.shape == (H, T, module.head_dim)
        assert found.k.shape == (G, T, module.head_dim)
        assert found.v.shape == (G, T, module.value_dim)
        assert found.output.shape == found.gradient.shape == (H, T, module.value_dim)
        assert found.scaling == pytest.approx(module.scaling)
        assert not any(each.requires_grad for each in (found.q, found.k, found.v, found.output, found.gradient))
        assert found.gradient.abs().max() > 0
        i, j = torch.arange(T)[:, None], torch.arange(T)
        mask = (j <= i) & (j > i - (module.sliding_window or T))
        expected = torch.nn.functional.scaled_dot_product_attention(
            found.q, found.k, found.v, attn_mask=mask, scale=found.scaling, enable_gqa=True
        )
        torch.testing.assert_close(found.output, expected, rtol=1e-4, atol=1e-5)


def test_an_adapted_models_own_outputs_are_observed():
    """Queries, keys and values of the second layer follow from the outputs of the first: they differ from exact."""
    model = tiny.llama()
    config, gradient = mixed(model), partial(nll_gradient, language_model_head(model), IDS)
    _, exact = observe(model, gradient)
    loss, found = observe(model, gradient, partial(adapted_to, config))
    with torch.no_grad(), taylorder.adapted(model, config):
        own = model(IDS[None], labels=IDS[None], use_cache=False).loss
    assert loss == pytest.approx(float(own), abs=1e-5)
    assert list(found) == list(exact)
    first, second = found.values()
    assert torch.equal(first.k, exact["model.layers.0.self_attn"].k)
    assert (first.output - exact["model.layers.0.self_attn"].output).abs().max() > 1e-3
    assert (second.k - exact["model.layers.1.self_attn"].k).abs().max() > 1e-3


def broken(_):
    raise RuntimeError("no loss today")


@pytest.mark.parametrize("state", ["exactly", "adapted"])
def test_afterwards_the_model_is_as_it_was(state):
    model = tiny.llama()
    model.model.norm.weight.requires_grad_(False)
    running = states(model)[state]
    gradient = partial(nll_gradient, language_model_head(model), IDS)
    before = left_behind(model)
    assert False in before[0] and True in before[0]
    observe(model, gradient, running)
    assert left_behind(model) == before
    with pytest.raises(RuntimeError, match="no loss today"):
        observe(model, broken, running)
    assert left_behind(model) == before
    assert all(before[1])


def test_gradients_flow_where_they_were_switched_off():
    model = tiny.llama()
    gradient = partial(nll_gradient, language_model_head(model), IDS)
    _, expected = observe(model, gradient)
    with torch.no_grad():
        _, found = observe(model.requires_grad_(False), gradient)
    for name, each in expected.items():
        assert torch.equal(found[name].gradient, each.gradient)


def test_a_gradient_that_is_not_finite_is_refused():
    model = tiny.llama()
    with pytest.raises(NonFiniteError, match=r"the gradient of the loss by the output of model\.layers\.1\.self_attn"):
        observe(model, lambda hidden: (0.0, torch.full_like(hidden, float("nan"))))


@pytest.fixture(params=[1, 5 * tiny.VOCAB, 1 << 23], ids=["row by row", "blocks", "whole"])
def block(request, monkeypatch):
    monkeypatch.setattr(losses, "_BLOCK_LOGITS", request.param)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_gradient_of_the_nll_is_that_of_whole_logits(name, block):
    model = tiny.TINY[name]()
    model.config.final_logit_softcapping = {"gemma3": 5.0, "llama": None}[name]
    head = language_model_head(model)
    hidden = hidden_states(model, IDS).clone()
    loss, gradient = nll_gradient(head, IDS, hidden)
    leaf = hidden.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(head(leaf)[:-1], IDS[1:])
    (by_hidden,) = torch.autograd.grad(expected, leaf)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(gradient, by_hidden, rtol=1e-4, atol=1e-7)
    assert gradient[-1].abs().max() == 0  # the last token predicts nothing
    assert gradient[:-1].abs().amax(-1).min() > 0


def test_the_gradient_of_the_kl_is_that_of_whole_logits(block):
    model = tiny.llama()
    head = language_model_head(model)
    exact = hidden_states(model, IDS).clone()
    hidden = exact + 0.3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(3))
    loss, gradient = kl_gradient(head, exact, hidden)
    leaf = hidden.double().requires_grad_()
    weight = model.lm_head.weight.detach().double()
    p, log_q = (exact.double() @ weight.T).softmax(-1), (leaf @ weight.T).log_softmax(-1)
    expected = (p * (p.log() - log_q)).sum(-1).mean()
    (by_hidden,) = torch.autograd.grad(expected, leaf)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(gradient.double(), by_hidden, rtol=1e-3, atol=1e-6)
    assert gradient.abs().amax(-1).min() > 0
    none, flat = kl_gradient(head, exact, exact)
    assert none == pytest.approx(0, abs=1e-6)
    assert flat.abs().max() < 1e-6
