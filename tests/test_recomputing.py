"""Layers that run twice: the same numbers bit for bit, less remembered, and a model that is left as it was."""

from __future__ import annotations

from functools import partial

import pytest
import tiny
import torch
from observing import IDS, left_behind, observe, states

from taylorder.analysis.losses import language_model_head, nll_gradient
from taylorder.selection import recomputing


@pytest.fixture
def little_memory(monkeypatch):
    """As on a machine where nothing may be remembered."""
    monkeypatch.setattr(recomputing, "_available", lambda _: 0)


@pytest.mark.parametrize("state", ["exactly", "adapted"])
def test_layers_that_run_twice_give_the_same_bits(state, monkeypatch):
    model = tiny.llama()
    gradient, running = partial(nll_gradient, language_model_head(model), IDS), states(model)[state]
    loss, expected = observe(model, gradient, running)
    runs = []
    hook = model.model.layers[0].register_forward_hook(lambda *_: runs.append(0))
    inner = model.model.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    monkeypatch.setattr(recomputing, "_available", lambda _: 0)
    again, found = observe(model, gradient, running)
    hook.remove(), inner.remove()
    assert runs.count(1) == runs.count(0) + 1  # what the layer is made of runs once more on the way back
    assert again == loss
    assert list(found) == list(expected)
    for name, observed in expected.items():
        for field in ("q", "k", "v", "output", "gradient"):
            assert torch.equal(getattr(found[name], field), getattr(observed, field))
            assert getattr(found[name], field).stride() == getattr(observed, field).stride()


@pytest.mark.parametrize("name", ["gpt2", "pythia", "opt", "gemma3", "phi3", "qwen3"])
def test_every_architecture_can_run_its_layers_twice(name, monkeypatch):
    model = tiny.TINY[name]()
    gradient = partial(nll_gradient, language_model_head(model), IDS)
    _, expected = observe(model, gradient)
    monkeypatch.setattr(recomputing, "_available", lambda _: 0)
    assert recomputing.goes_by_layer(model, len(IDS))
    _, found = observe(model, gradient)
    assert list(found) == list(expected)
    assert all(torch.equal(found[module].gradient, expected[module].gradient) for module in expected)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("state", ["exactly", "adapted"])
def test_afterwards_the_model_is_as_it_was(state):
    model = tiny.llama()
    gradient, running = partial(nll_gradient, language_model_head(model), IDS), states(model)[state]
    before = left_behind(model)
    observe(model, gradient, running)
    assert left_behind(model) == before
    with pytest.raises(RuntimeError, match="no loss today"):
        observe(model, lambda _: exec('raise RuntimeError("no loss today")'), running)
    assert left_behind(model) == before


def test_less_is_remembered_where_layers_run_twice(monkeypatch):
    """Counted by what autograd is told to keep between the two ways."""
    model = tiny.llama(num_hidden_layers=6)
    head = language_model_head(model)

    def most_kept():
        kept, most = set(), [0]

        def pack(tensor):
            kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        def gradient(hidden):
            most[0] = len(kept)
            return nll_gradient(head, IDS, hidden)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            observe(model, gradient)
        return most[0]

    whole = most_kept()
    monkeypatch.setattr(recomputing, "_available", lambda _: 0)
    assert most_kept() < whole / 5


def test_it_is_a_matter_of_memory(monkeypatch):
    model = tiny.llama()
    remembered = recomputing.remembered_bytes(model, 100)
    for available, by_layer in ((None, False), (2 * remembered, False), (2 * remembered - 2, True)):
        monkeypatch.setattr(recomputing, "_available", lambda _, available=available: available)
        assert recomputing.goes_by_layer(model, 100) == by_layer
    assert recomputing.remembered_bytes(model, 100, by_layer=True) < remembered
