"""Models with learned sinks, from the calls that are recorded to what is generated: nothing forgets the sinks."""

from __future__ import annotations

import copy
import pydoc_data.topics
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
from generating import LENGTH, MODES, SIZES, generate, in_pieces, padded_batch, positions, run, uniform
from measured_levers import (
    CENTRE_3,
    DROPPED,
    EVEN,
    EXACT,
    FITTED_1,
    FITTED_2,
    KEEPING,
    KEPT,
    KEPT_1,
    KEPT_2,
    RANKED,
    TAYLOR_1,
    measured,
)
from measured_levers import LENGTH as LEVERS_LENGTH
from mixed_orders import keeping_config, mixed_config, ranked_config, reference_output
from tiny import WITH_SINKS, gpt_oss, tokens
from tolerances import relative_error

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.near_example import seen_near
from taylorder.analysis.capture import run_layers
from taylorder.analysis.future_attention import Reach, attention_by_part, log_use
from taylorder.analysis.losses import hidden_states
from taylorder.analysis.truncation import Sweep, blocks, key_centres, measure
from taylorder.claims.weights import truncated_weights
from taylorder.errors import UnsupportedModelError
from taylorder.models.attention import recording
from taylorder.models.describe import describe
from taylorder.models.own_attention import attend_unchanged
from taylorder.selection.config_of import config_of


@pytest.fixture(params=WITH_SINKS)
def model(request):
    return WITH_SINKS[request.param]()


def without_sinks(model):
    """The same with sinks that take nothing."""
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if name.endswith("sinks"):
            parameter.data.fill_(-60.0)
    return other


def first_open_layer(model):
    (name, *_) = (module.name for module in describe(model, "tiny").open_modules)
    layers = {}
    run_layers(model, tokens(2, 24), lambda module, layer: layers.update({module: layer}))
    return model.get_submodule(name), layers[name]


def test_recording_hands_sinks_over_and_changes_no_bit(model):
    ids, mask = padded_batch(40)
    calls = []
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        with recording(model, calls.append):
            found = model(ids, attention_mask=mask).logits
    assert torch.equal(found[mask.bool()], expected[mask.bool()])
    for call in calls:
        assert torch.equal(call.sink_logits, call.module.sinks)


def test_a_sequence_at_a_time_is_the_whole_batch_to_the_last_bit(model, monkeypatch):
    ids, mask = padded_batch(40)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        monkeypatch.setattr("taylorder.models.own_attention._SCORES", 1)
        with recording(model, None):
            found = model(ids, attention_mask=mask).logits
    assert torch.equal(found[mask.bool()], expected[mask.bool()])


def test_a_model_whose_file_has_no_function_for_sinks_is_refused_by_name():
    module = torch.nn.Linear(1, 1)
    vectors = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UnsupportedModelError, match=r"Linear has learned sinks.*no eager_attention_forward.*update"):
        attend_unchanged(module, vectors, vectors, vectors, None, causal=True, scaling=1.0, s_aux=torch.zeros(1))


@pytest.mark.parametrize("mode", MODES)
def test_a_config_of_exact_heads_generates_what_the_model_does_bit_for_bit(model, mode):
    ids, mask = padded_batch(30)
    config = uniform(model, "exact")
    expected = generate(model, ids, mask, **MODES[mode])
    with taylorder.adapted(model, config):
        found = generate(model, ids, mask, **MODES[mode])
        logits = model(ids, attention_mask=mask).logits
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.logits, expected.logits, strict=True))
    assert torch.equal(logits[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()])


CONFIGS = {
    "mixed": mixed_config,
    "keeping keys": keeping_config,
    "ranks": ranked_config,
    "a window": lambda model: uniform(model, 1, window=6, sinks=2),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapted_model_is_the_float64_reference(model, kind):
    config = CONFIGS[kind](model)
    ids, mask = padded_batch(50)
    inputs = {"attention_mask": mask, "position_ids": positions(mask)}
    expected = reference_output(model, config, input_ids=ids, **inputs)[mask.bool()]
    with torch.no_grad(), taylorder.adapted(model, config):
        found = model(ids, **inputs).logits[mask.bool()]
    forgotten = reference_output(without_sinks(model), config, input_ids=ids, **inputs)[mask.bool()]
    assert relative_error(found, expected) < 1e-4
    assert relative_error(forgotten, expected) > 0.01  # negative control


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_cache_is_one_full_pass(model, kind):
    config = CONFIGS[kind](model)
    ids, mask = padded_batch(LENGTH)
    _, pieces = run(model, config, ids, mask, SIZES)
    with torch.no_grad(), taylorder.adapted(model, config):
        whole = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        spoiled = without_sinks(model)
    with torch.no_grad(), taylorder.adapted(spoiled, config):
        other = in_pieces(spoiled, TaylorCache(spoiled, config), ids, mask, SIZES)
    assert relative_error(pieces[mask.bool()], whole[mask.bool()]) < 1e-4
    assert relative_error(other[mask.bool()], whole[mask.bool()]) > 0.01  # negative control


def test_gradients_pass_in_training_and_reach_the_sinks(model):
    config = mixed_config(model)
    ids = tokens(2, 20)
    with taylorder.adapted(model, config):
        output = model(ids).logits
        output.square().sum().backward()
    expected = reference_output(model, config, input_ids=ids)
    assert relative_error(output.detach(), expected) < 1e-4
    for module in describe(model, "tiny").open_modules:
        assert model.get_submodule(module.name).sinks.grad.abs().max() > 0


@pytest.mark.parametrize("expansion", ["zero", "centre", "mean"])
@pytest.mark.parametrize("window, sinks", [(0, 0), (5, 2)])
def test_truncation_errors_are_those_of_the_plain_loop(model, expansion, window, sinks):
    module, layer = first_open_layer(model)
    centres = key_centres(layer)
    rows = [torch.tensor([0, 3, 11, 23]), torch.tensor([7, 22])]
    statistics, (errors,) = measure(layer, centres, rows, (Sweep(3, window, sinks, (expansion,)),))
    group = layer.q.shape[1] // layer.k.shape[1]
    for head in range(layer.q.shape[1]):
        q, k, v = (x.double().numpy() for x in (layer.q[:, head], layer.k[:, head // group], layer.v[:, head // group]))
        positions = [part.tolist() for part in rows]
        expected = plain.head_errors(
            q, k, v, centres[head // group].numpy(), positions, lambda _b, i: range(i + 1), layer.scaling, 3, expansion,
            window=window, sinks=sinks, learned=float(module.sinks[head]),
        )  # fmt: skip
        found = float((errors.squared["guarded"][0, 2, head] / statistics.output_squared[head]).sqrt())
        assert found == pytest.approx(expected["relative_l2"], rel=1e-6)
        assert float(errors.largest["guarded"][0, 2, head]) == pytest.approx(expected["max_error"], rel=1e-6)


def test_attention_of_keys_is_what_sinks_leave(model):
    _, layer = first_open_layer(model)
    q, k = layer.q[0], layer.k[0]
    group = len(q) // len(k)
    T = q.shape[1]
    received = attention_by_part(q, k, layer.scaling, 2, layer.sink_logits)
    expected, use = np.zeros((2, len(k), T)), np.zeros((len(k), T))
    reach = Reach.of(T)
    for head in range(len(q)):
        scores = (layer.scaling * q[head].double() @ k[head // group].double().T).detach().numpy()
        for row in range(T):
            weights = np.exp(scores[row, : row + 1])
            weights /= weights.sum() + np.exp(float(layer.sink_logits[head]))
            expected[row // (T // 2), head // group, : row + 1] += weights
            later = np.arange(row + 1) < row - reach.recent
            use[head // group, : row + 1] += np.minimum(1, weights * (row + 1) / 8) * later / group
    assert received.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    rows_later = np.arange(T - 1 - reach.recent, 0, -1)[reach.keys]
    found = log_use(q, k, layer.scaling, reach, layer.sink_logits).exp().numpy()
    assert found == pytest.approx(np.maximum(use[:, reach.keys] / rows_later, 1e-8), rel=1e-4)


def test_shares_of_attention_leave_out_what_the_sinks_take(model):
    config = keeping_config(model)
    ids = tokens(1, 40)[0]
    shares = {(one.module, one.head): one for one in seen_near(model, config, ids)[1]}
    calls = {}
    with torch.no_grad(), taylorder.adapted(model, config, observe=lambda call, _: calls.update({call.name: call})):
        model(ids[None])
    assert shares
    for (name, head), one in shares.items():
        call = calls[name]
        key = call.k[0, head * call.k.shape[1] // call.q.shape[1]].double()
        scores = (call.scaling * call.q[0, head].double() @ key.T).masked_fill(
            torch.ones(40, 40).triu(1) > 0, -torch.inf
        )
        taken = (call.sink_logits[head].double() - torch.logaddexp(scores.logsumexp(-1), call.sink_logits[head])).exp()
        assert one.sinks + one.window + one.kept + one.rest == pytest.approx(float(1 - taken.mean()), abs=1e-5)


def test_truncated_weights_of_claims_tend_to_the_exact_ones(model):
    _, layer = first_open_layer(model)
    small = replace(layer, q=layer.q / 50)
    (block,) = blocks(small, key_centres(small), 0, torch.tensor([5, 20, 23]))
    exact = block.exact_weights()
    *_, eighth = truncated_weights(block, 8)
    torch.testing.assert_close(eighth, exact, rtol=1e-6, atol=1e-8)
    assert (exact.sum(-1) < 0.999).all()


CHOICES = [(EXACT, DROPPED, FITTED_1, RANKED), (EVEN, FITTED_2, CENTRE_3, KEPT), (KEPT_2, TAYLOR_1, KEPT_1, DROPPED)]


def test_a_config_has_the_errors_that_were_measured(model, tmp_path):
    """Centred, rotated, fitted and kept: the first layer that is not sliding sees the same inputs either way."""
    table, ids = measured(model, tmp_path, KEEPING)
    name = table.modules[0].name
    for choice in CHOICES:
        choice = choice[: sum(module.kv_heads for module in table.modules)]
        outputs = []

        def observe(call, output, outputs=outputs):
            if call.name == name:
                outputs.append(output[0].double())  # [T, H, d_v]

        with recording(model, None, observe=observe):
            hidden_states(model, ids[0])
        with taylorder.adapted(model, config_of(table, choice, context=LEVERS_LENGTH), observe=observe):
            hidden_states(model, ids[0])
        exact, changed = outputs
        for kv_head in range(2):
            heads = slice(2 * kv_head, 2 * kv_head + 2)
            error = float((changed - exact)[:, heads].norm() / exact[:, heads].norm())
            assert error == pytest.approx(table.rows()[kv_head][choice[kv_head]].relative_l2, rel=1e-4, abs=1e-6)


def test_analyze_measures_and_says_nothing_of_a_refusal(tiny_tokenizer):
    model = gpt_oss()
    text = " ".join(pydoc_data.topics.topics.values())[:4000]
    settings = {"text": text, "max_tokens": 96, "sequence_length": 32, "max_order": 3}
    errors = {row.relative_l2 for row in taylorder.analyze(model, tiny_tokenizer, **settings).candidates}
    others = {row.relative_l2 for row in taylorder.analyze(without_sinks(model), tiny_tokenizer, **settings).candidates}
    assert errors
    assert not errors & others - {0.0}
