"""Models that are run on inputs of their own: what is measured of them, what they run adapted, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import seeing
import tiny
import torch
from mixed_orders import mixed_config
from plain import head_errors

import taylorder
from taylorder.adapt.prepared import prepare
from taylorder.analysis.capture import run_layers_on
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.kernels import reference_attention
from taylorder.models.describe import describe
from taylorder.models.inputs import Inputs

EVERY = list(seeing.FACTORIES)


@pytest.fixture(autouse=True)
def without_alphas(monkeypatch):
    monkeypatch.setattr("taylorder.analysis.analyze.fit_spectra", lambda *_, **__: [])


@pytest.mark.parametrize("name", EVERY)
def test_errors_are_those_of_the_formula(name):
    model, batch = seeing.FACTORIES[name](), seeing.batch(name, 2)
    analysis = taylorder.analyze(model, inputs=[batch], rows=None, max_order=3)
    seen = {}
    run_layers_on(model, batch, seen.__setitem__, analysis.model.cross)
    assert seen.keys() == {module.name for module in analysis.model.modules}
    for module in (analysis.model.modules[0], analysis.model.modules[-1]):
        layer, centre = seen[module.name], analysis.key_centres[module.name]
        q, k, v = (tensor.double().numpy() for tensor in (layer.q, layer.k, layer.v))
        B, _, T, _ = q.shape
        expected = head_errors(
            q[:, 1], k[:, 1], v[:, 1], centre[1].double().numpy(), [range(T)] * B,
            lambda _, i, causal=module.causal, T=T: range(i + 1 if causal else T), module.scaling, 3, "mean",
        )  # fmt: skip
        (row,) = (
            row
            for row in analysis.candidates
            if (row.module, row.head, row.order, row.expansion) == (module.name, 1, 3, "mean")
        )
        assert row.relative_l2 == pytest.approx(expected["relative_l2"], rel=1e-5)
        assert row.max_error == pytest.approx(expected["max_error"], rel=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_adapted_modules_compute_the_formula_and_the_others_what_they_did(name):
    model, batch = seeing.FACTORIES[name](), seeing.batch(name)
    inputs = [batch]
    description = describe(model, inputs=inputs)
    config = mixed_config(model, 1, description)
    specs = {layer.module: [head.spec for head in layer.heads] for layer in config.layers}
    prepared = prepare(model, config, description, inputs)
    numbers = {plan.name: plan.numbers for plan in prepared.plans.values()}
    compared = []

    def compare(call, output):
        q, k = call.q, call.k
        if call.name in specs:
            if numbers[call.name] is not None:
                q, k = numbers[call.name](q, k)
            expected, _ = reference_attention(
                q, k, call.v, specs[call.name], scaling=call.scaling, causal=call.is_causal
            )
        else:
            expected = torch.nn.functional.scaled_dot_product_attention(q, k, call.v, scale=call.scaling)
        assert (output.transpose(1, 2).double() - expected).norm() < 1e-5 * expected.norm()
        compared.append(call.name)

    with torch.no_grad():
        plain = model(**batch)[0]
        with taylorder.attach(model, prepared, observe=compare):
            changed = model(**batch)[0]
        assert {*compared} == {*specs, *description.cross}
        assert (changed - plain).norm() > 1e-3 * plain.norm()  # negative control
        with taylorder.adapted(model, taylorder.OrderConfig.uniform(description, "exact"), inputs=inputs):
            assert torch.equal(model(**batch)[0], plain)
        assert torch.equal(model(**batch)[0], plain)


def test_what_a_model_of_several_parts_is_said_to_be():
    clip = describe(seeing.clip(), inputs=[seeing.batch("clip")])
    assert {(module.causal, module.heads, module.tokens) for module in clip.modules} == {(True, 4, 32), (False, 2, 17)}
    assert (clip.max_context, clip.causal, clip.alike) == (32, False, False)
    assert clip.shape == "4 layers x 2 or 4 heads"
    whisper = describe(seeing.whisper(), inputs=[seeing.batch("whisper")])
    assert whisper.cross == tuple(f"model.decoder.layers.{layer}.encoder_attn" for layer in (0, 1))
    assert {module.tokens for module in whisper.modules} == {20, 40}
    assert whisper.direction == ("some layers causal, others bidirectional; 2 modules of cross attention stay exact")


def test_cross_attention_is_told_from_self_attention_where_both_texts_are_as_long():
    bart = describe(seeing.bart(), inputs=[seeing.batch("bart")])
    assert bart.cross == tuple(f"model.decoder.layers.{layer}.encoder_attn" for layer in (0, 1))
    assert len(bart.modules) == 4


def test_batches_are_measured_together():
    model = tiny.vit()
    six = seeing.batch("vit", 6)
    parts = [{"pixel_values": six["pixel_values"][start : start + 2]} for start in (0, 2, 4)]
    whole, cut = (taylorder.analyze(model, inputs=given, rows=None, max_order=2) for given in ([six], lambda: parts))
    assert cut.candidates == whole.candidates
    assert (cut.calibration.sequences, cut.calibration.sequence_length) == (6, 5)
    assert cut.calibration.text_sha256 != whole.calibration.text_sha256
    assert cut.calibration.inputs == "pixel_values 2 x 3 x 16 x 16"


def test_query_rows_are_drawn_for_each_length():
    analysis = taylorder.analyze(seeing.clip(), inputs=[seeing.batch("clip")], rows=6, max_order=2, seed=3)
    again = taylorder.analyze(seeing.clip(), inputs=[seeing.batch("clip")], rows=6, max_order=2, seed=3)
    other = taylorder.analyze(seeing.clip(), inputs=[seeing.batch("clip")], rows=6, max_order=2, seed=4)
    assert analysis.candidates == again.candidates != other.candidates


def test_an_order_has_to_pay_off_at_what_its_module_attends_to():
    analysis = taylorder.analyze(seeing.clip(), inputs=[seeing.batch("clip")], max_order=3)
    assert taylorder.select(analysis, tolerance=0.1).config.counts() == {"exact": 11, "order 2": 1}
    few = tuple(replace(module, tokens=2) for module in analysis.model.modules)
    short = replace(analysis, model=replace(analysis.model, modules=few))
    assert taylorder.select(short, tolerance=0.1, context=32).config.counts() == {"exact": 12}


@pytest.mark.filterwarnings("ignore")
def test_an_adapted_encoder_decoder_generates_as_a_full_pass_predicts():
    model, batch = seeing.bart(), seeing.batch("bart")
    description = describe(model, inputs=[batch])
    config = taylorder.OrderConfig.uniform(description, 2, "mean")
    with torch.no_grad(), taylorder.adapted(model, config, inputs=[batch]):
        made = model.generate(
            batch["input_ids"], max_new_tokens=5, do_sample=False, num_beams=1, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        whole = model(input_ids=batch["input_ids"], decoder_input_ids=made.sequences).logits
    logits = torch.stack(made.logits, 1)
    torch.testing.assert_close(logits, whole[:, -logits.shape[1] - 1 : -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no batch, expected at least one"),
        ({"pixel_values": torch.zeros(1, 3, 16, 16)}, r"one batch, expected a list of them.*inputs=\[batch\]"),
        ([torch.zeros(2)], "batch 0 is a Tensor, expected tensors by the names"),
        ([{"pixel_values": [1.0]}], "pixel_values of batch 0 is a list, expected a tensor.*return_tensors='pt'"),
        ([seeing.batch("vit"), seeing.batch("vit", 3)], "batch 1 is of pixel_values 3 x 3 x 16 x 16, expected .*2 x 3"),
        ([{"pixels": torch.zeros(1, 3, 16, 16)}], "ViTModel takes no pixels; expected some of pixel_values"),
    ],
)
def test_what_is_no_input_is_refused_by_name(given, words):
    with pytest.raises(UsageError, match=words):
        taylorder.analyze(tiny.vit(), inputs=given)


def test_foreign_ids_and_two_kinds_of_inputs_are_refused():
    large = {"input_ids": torch.full((1, 8), tiny.VOCAB), "decoder_input_ids": tiny.tokens(1, 8)}
    with pytest.raises(UsageError, match=f"token id {tiny.VOCAB}, the model {tiny.VOCAB} embeddings"):
        taylorder.analyze(seeing.bart(), inputs=[large])
    for given in ({}, {"inputs": [seeing.batch("vit")], "text": "a text"}):
        with pytest.raises(UsageError, match="takes a tokenizer, with a text or without, or inputs"):
            taylorder.analyze(tiny.vit(), **given)


def test_a_model_that_needs_inputs_says_how_to_give_them():
    config = taylorder.OrderConfig.uniform(describe(tiny.vit(), inputs=[seeing.batch("vit")]), 2)
    with pytest.raises(UnsupportedModelError, match=r"takes pixel_values, .*`taylorder analyze --inputs"):
        taylorder.attach(tiny.vit(), config)
    with pytest.raises(UnsupportedModelError, match=r"did not run on its inputs \(ValueError"):
        describe(seeing.whisper(), inputs=[{"input_features": torch.zeros(1, 8, 8)}])


def test_images_of_several_sizes_in_one_pass_are_refused():
    import transformers as hf

    config = hf.Qwen2VLConfig().vision_config
    config.depth, config.embed_dim, config.hidden_size, config.num_heads = 1, 32, 32, 2
    model = tiny.build(hf.models.qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel, config)
    pixels = torch.randn(16 + 24, 3 * 2 * 14**2, generator=torch.Generator().manual_seed(0))
    several = {"hidden_states": pixels, "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]])}
    with pytest.raises(UnsupportedModelError, match="on 16 and on 24 tokens in a forward pass: .*images of one size"):
        taylorder.analyze(model, inputs=[several])
    alike = {"hidden_states": pixels[:32], "grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    analysis = taylorder.analyze(model, inputs=[alike, alike], max_order=2)
    assert (analysis.calibration.sequences, analysis.calibration.sequence_length) == (4, 16)


def test_inputs_hash_what_they_hold():
    one, other = (Inputs.of([seeing.batch("vit", seed=seed)]) for seed in (0, 1))
    assert one.sha256 == Inputs.of([seeing.batch("vit")]).sha256 != other.sha256
