"""Models with learned sinks or capped scores, from the calls that are recorded to what is generated."""

from __future__ import annotations

import copy
import pydoc_data.topics
from dataclasses import replace

import plain
import pytest
import torch
from generating import LENGTH, MODES, generate, padded_batch, positions, run, uniform
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
from tiny import WITH_TERMS, gemma2, gpt_oss, tokens
from tolerances import relative_error

import taylorder
from taylorder.adapt.near_example import seen_near
from taylorder.analysis.candidate_rows import candidate_rows
from taylorder.analysis.capture import run_layers
from taylorder.analysis.future_attention import Reach, attention_by_part, log_use
from taylorder.analysis.losses import hidden_states
from taylorder.analysis.truncation import Sweep, blocks, key_centres, measure
from taylorder.claims.weights import truncated_weights
from taylorder.errors import UnsupportedModelError
from taylorder.kernels.score_terms import PLAIN
from taylorder.models.attention import recording
from taylorder.models.describe import describe
from taylorder.models.own_attention import attend_unchanged
from taylorder.selection.config_of import config_of


@pytest.fixture(params=WITH_TERMS)
def model(request):
    return WITH_TERMS[request.param]()


def without_terms(model):
    """The same with sinks that take nothing, and no caps."""
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if name.endswith("sinks"):
            parameter.data.fill_(-60.0)
    for module in other.modules():
        if getattr(module, "attn_logit_softcapping", None) is not None:
            module.attn_logit_softcapping = None
    return other


def first_open_layer(model):
    (name, *_) = (module.name for module in describe(model, "tiny").open_modules)
    layers = {}
    run_layers(model, tokens(2, 24), lambda module, layer: layers.update({module: layer}))
    return layers[name]


def test_recording_hands_terms_over_and_changes_no_bit(model):
    ids, mask = padded_batch(40)
    calls = []
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        with recording(model, calls.append):
            found = model(ids, attention_mask=mask).logits
    assert torch.equal(found[mask.bool()], expected[mask.bool()])
    for call in calls:
        sinks, cap = (getattr(call.module, name, None) for name in ("sinks", "attn_logit_softcapping"))
        assert (sinks is None) != (cap is None)
        assert call.terms.softcap == cap
        assert sinks is None or torch.equal(call.terms.sink_logits, sinks)


def test_a_sequence_at_a_time_is_the_whole_batch_to_the_last_bit(model, monkeypatch):
    ids, mask = padded_batch(40)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        monkeypatch.setattr("taylorder.models.own_attention._SCORES", 1)
        with recording(model, None):
            found = model(ids, attention_mask=mask).logits
    assert torch.equal(found[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("term", [{"s_aux": torch.zeros(1)}, {"softcap": 2.0}])
def test_a_model_whose_file_has_no_function_for_terms_is_refused_by_name(term):
    module = torch.nn.Linear(1, 1)
    vectors = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UnsupportedModelError, match=r"Linear has learned sinks or.*no eager_attention_forward.*update"):
        attend_unchanged(module, vectors, vectors, vectors, None, causal=True, scaling=1.0, **term)


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
    forgotten = reference_output(without_terms(model), config, input_ids=ids, **inputs)[mask.bool()]
    assert relative_error(found, expected) < 1e-4
    assert relative_error(forgotten, expected) > 0.01  # negative control


@pytest.mark.parametrize("kind", ["mixed", "keeping keys"])
def test_a_cache_is_one_full_pass(model, kind, monkeypatch):
    config = CONFIGS[kind](model)
    ids, mask = padded_batch(LENGTH)
    _, pieces = run(model, config, ids, mask)
    with torch.no_grad(), taylorder.adapted(model, config):
        whole = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        monkeypatch.setattr("taylorder.adapt.attention.score_terms", lambda _kwargs: PLAIN)
        forgotten = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    assert relative_error(pieces[mask.bool()], whole[mask.bool()]) < 1e-4
    assert relative_error(forgotten[mask.bool()], whole[mask.bool()]) > 0.01  # negative control


def test_gradients_pass_and_reach_the_sinks(model):
    config = mixed_config(model)
    ids = tokens(2, 20)
    with taylorder.adapted(model, config):
        output = model(ids).logits
        output.square().sum().backward()
    expected = reference_output(model, config, input_ids=ids)
    assert relative_error(output.detach(), expected) < 1e-4
    for module in describe(model, "tiny").open_modules:
        sinks = getattr(model.get_submodule(module.name), "sinks", None)
        assert sinks is None or sinks.grad.abs().max() > 0
        assert model.get_submodule(module.name).q_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("expansion", ["zero", "centre", "mean"])
@pytest.mark.parametrize("window, sinks", [(0, 0), (5, 2)])
def test_truncation_errors_are_those_of_the_plain_loop(model, expansion, window, sinks):
    layer = first_open_layer(model)
    centres = key_centres(layer)
    rows = [torch.tensor([0, 3, 11, 23]), torch.tensor([7, 22])]
    statistics, (errors,) = measure(layer, centres, rows, (Sweep(3, window, sinks, (expansion,)),))
    group, learned = layer.q.shape[1] // layer.k.shape[1], layer.terms.sink_logits
    for head in range(layer.q.shape[1]):
        q, k, v = (x.double().numpy() for x in (layer.q[:, head], layer.k[:, head // group], layer.v[:, head // group]))
        positions = [part.tolist() for part in rows]
        expected = plain.head_errors(
            q, k, v, centres[head // group].numpy(), positions, lambda _b, i: range(i + 1), layer.scaling, 3, expansion,
            window=window, sinks=sinks, learned=None if learned is None else learned[head].item(),
            softcap=layer.terms.softcap,
        )  # fmt: skip
        found = float((errors.squared["guarded"][0, 2, head] / statistics.output_squared[head]).sqrt())
        assert found == pytest.approx(expected["relative_l2"], rel=1e-6)
        assert float(errors.largest["guarded"][0, 2, head]) == pytest.approx(expected["max_error"], rel=1e-6)


def weights_of_rows(q, k, scaling, terms, head):
    """Exact weights of one head ``[T, T]`` in float64."""
    q, k = q[head].double(), k[head * len(k) // len(q)].double()
    scores = scaling * q @ k.T
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    weights = scores.exp().tril()
    sink = 0.0 if terms.sink_logits is None else terms.sink_logits[head].exp().item()
    return weights / (weights.sum(-1, keepdim=True) + sink)


def test_attention_that_keys_receive(model):
    layer = first_open_layer(model)
    q, k = layer.q[0], layer.k[0]
    group, T = len(q) // len(k), q.shape[1]
    reach = Reach.of(T)
    received, use = torch.zeros(2, len(k), T, dtype=torch.float64), torch.zeros(len(k), T, dtype=torch.float64)
    for head in range(len(q)):
        weights = weights_of_rows(q, k, layer.scaling, layer.terms, head)
        received[:, head // group] += weights.view(2, T // 2, T).sum(1)
        fair = (weights * torch.arange(1, T + 1)[:, None] / 8).clamp(max=1)
        use[head // group] += fair.tril(-reach.recent - 1).sum(0) / group
    found = attention_by_part(q, k, layer.scaling, 2, layer.terms)
    torch.testing.assert_close(found.double(), received, rtol=1e-4, atol=1e-6)
    later = torch.arange(T - 1 - reach.recent, 0, -1)[reach.keys]
    found = log_use(q, k, layer.scaling, reach, layer.terms).exp()
    torch.testing.assert_close(found.double(), (use[:, reach.keys] / later).clamp(min=1e-8), rtol=1e-4, atol=1e-9)


def test_shares_of_attention_are_those_of_exact_weights(model):
    config = keeping_config(model)
    ids = tokens(1, 40)[0]
    shares = {(one.module, one.head): one for one in seen_near(model, config, ids)[1]}
    calls = {}
    with torch.no_grad(), taylorder.adapted(model, config, observe=lambda call, _: calls.update({call.name: call})):
        model(ids[None])
    assert shares
    for (name, head), one in shares.items():
        call = calls[name]
        weights = weights_of_rows(call.q[0], call.k[0], call.scaling, call.terms, head)
        first = config_near(config, name, head).sinks
        assert one.sinks == pytest.approx(float(weights[:, :first].sum(-1).mean()), abs=1e-5)
        assert one.sinks + one.window + one.kept + one.rest == pytest.approx(float(weights.sum(-1).mean()), abs=1e-5)


def config_near(config, name, head):
    (layer,) = (layer for layer in config.layers if layer.module == name)
    return layer.heads[head].spec.near


def test_truncated_weights_of_claims_tend_to_the_exact_ones(model):
    layer = first_open_layer(model)
    small = replace(layer, q=layer.q / 50)  # scores so small that no cap shows
    (block,) = blocks(small, key_centres(small), 0, torch.tensor([5, 20, 23]))
    exact = block.exact_weights()
    *_, eighth = truncated_weights(block, 8)
    cap = layer.terms.softcap
    torch.testing.assert_close(eighth, exact, rtol=1e-6 if cap is None else 1e-3, atol=1e-8)
    assert (exact.sum(-1) < 0.999).all() == (cap is None)


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


def test_analyze_measures_by_the_terms(tiny_tokenizer):
    text = " ".join(pydoc_data.topics.topics.values())[:4000]
    settings = {"text": text, "max_tokens": 64, "sequence_length": 32, "max_order": 3}
    model = gpt_oss()
    errors = {row.relative_l2 for row in taylorder.analyze(model, tiny_tokenizer, **settings).candidates}
    others = {row.relative_l2 for row in taylorder.analyze(without_terms(model), tiny_tokenizer, **settings).candidates}
    assert errors
    assert not errors & others - {0.0}


def test_a_bound_that_knows_nothing_of_caps_is_not_given():
    model = gemma2()
    module, layer = describe(model, "tiny").open_modules[0], first_open_layer(model)
    small = replace(layer, q=layer.q / 50)
    figures = []
    for of_layer in (small, replace(small, terms=PLAIN)):
        scores, (sums,) = measure(of_layer, key_centres(small), [torch.tensor([5, 20])] * 2, (Sweep(3),))
        figures.append({row.certified_bound for row in candidate_rows(module, of_layer, scores, sums)})
    assert figures[0] == {None}
    assert None not in figures[1]
