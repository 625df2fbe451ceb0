"""Screening: the KL of one KV head at a time, with what lies below it taken from the exact run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from measured_levers import CANDIDATES, LENGTH, measured
from policy_rules import criteria
from policy_rules.criteria import screen, screening_reference
from tiny import gemma3, llama

from taylorder.adapt.handle import adapted
from taylorder.analysis.losses import hidden_states, language_model_head, token_losses
from taylorder.kernels.spec import Dropped, HeadSpec, Near
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import config_of
from taylorder.storage.records import Records

SEQUENCES = 2


@pytest.fixture(scope="module", params=[llama, gemma3], ids=["llama", "gemma3"])
def table_of(request, tmp_path_factory):
    model = request.param()
    candidates = (*CANDIDATES[:2], Candidate(HeadSpec(Dropped(), Near(20, 4))))
    table, ids = measured(model, tmp_path_factory.mktemp("records"), candidates, SEQUENCES)
    return model, table, ids


def screened(model, table, ids, directory, progress=lambda *_: None):
    return screen(model, table, ids, records=Records(directory, {}), progress=progress)


@pytest.fixture
def ran(table_of):
    """How often the MLP of every block ran on a whole sequence, by the number of the block."""
    model, counts = table_of[0], Counter()

    def count(args, place):
        if args[0].shape[1] == LENGTH:  # checks of the model run a few tokens
            counts.update([place])

    hooks = [
        block.mlp.register_forward_pre_hook(lambda _, args, place=place: count(args, place))
        for place, block in enumerate(model.model.layers)
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def plain(table_of):
    """The same, one whole forward pass for every KV head."""
    model, table, ids = table_of
    head, found = language_model_head(model), {}
    for name in table.kv_heads:
        choice = [screening_reference(table) if each == name else 0 for each in table.kv_heads]
        config, kls = config_of(table, choice, context=ids.shape[1]), []
        for sequence in ids:
            exact = hidden_states(model, sequence)
            with adapted(model, config):
                states = {"exact": exact, "changed": hidden_states(model, sequence)}
            kls.append(float(token_losses(head, sequence, states)["changed"].kl.mean()))
        found[name] = sum(kls) / len(kls)
    return found


def test_the_reference_is_the_dropped_candidate_nearest_to_64_tokens(table_of):
    assert screening_reference(table_of[1]) == 2


def test_it_is_what_a_plain_run_gives(table_of, tmp_path):
    found, expected = screened(*table_of, tmp_path), plain(table_of)
    assert list(found) == table_of[1].kv_heads
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(found.values()) > 1e-5
    assert len(set(found.values())) == len(found)


def test_blocks_below_the_changed_one_are_not_run(table_of, ran, tmp_path):
    model, table, ids = table_of
    screened(model, table, ids, tmp_path)
    names = [f"model.layers.{place}.self_attn" for place in range(len(model.model.layers))]
    open_places = [names.index(module.name) for module in table.modules]
    for place in range(len(names)):
        # The exact run, and one for each KV head of the modules at or below the block; a sliding block has none of its
        # own to replay, and runs each time.
        turns = sum(1 for each in open_places if each <= place or place not in open_places) * 2
        assert ran[place] == SEQUENCES * (1 + turns)


def test_finished_layers_are_not_measured_again(table_of, ran, tmp_path, monkeypatch):
    whole = screened(*table_of, tmp_path / "whole")

    def interrupt(_stage, done, _total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screened(*table_of, tmp_path / "parts", interrupt)
    ran.clear()
    assert screened(*table_of, tmp_path / "parts") == whole
    assert ran[max(ran)] == SEQUENCES * (1 + 2), "the exact run, and the two KV heads of the second module"
    monkeypatch.setattr(criteria, "hidden_states", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(criteria, "language_model_head", lambda *_: pytest.fail("measured again"))
    assert screened(*table_of, tmp_path / "parts") == whole


def test_it_leaves_nothing_behind(table_of, tmp_path, monkeypatch):
    model, table, ids = table_of
    blocks = list(model.model.layers)
    before = hidden_states(model, ids[0])
    screened(model, table, ids, tmp_path / "one")
    calls = []

    def breaking(model, sequence):
        calls.append(sequence)
        if len(calls) == 2 * SEQUENCES + 3:  # both exact runs, those of the first module, and one more
            raise RuntimeError("broken")
        return hidden_states(model, sequence)

    monkeypatch.setattr(criteria, "hidden_states", breaking)
    with pytest.raises(RuntimeError, match="broken"):
        screened(model, table, ids, tmp_path / "two")
    for block in blocks:
        assert "forward" not in vars(block)
        assert not block._forward_hooks
    assert torch.equal(hidden_states(model, ids[0]), before)


def test_a_forward_of_the_blocks_own_is_put_back(table_of, tmp_path):
    model, table, ids = table_of
    block = model.get_submodule(table.modules[0].name.removesuffix(".self_attn"))
    original = block.forward

    def own(*args, **kwargs):
        return original(*args, **kwargs)

    block.forward = own
    try:
        screened(model, table, ids, tmp_path)
        assert vars(block)["forward"] is own
    finally:
        del block.forward
