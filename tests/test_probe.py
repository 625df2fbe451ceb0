"""The probe asks a model for no more than it needs: an output per token, a mask that only hides, one half."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf
from generating import padded_batch

import taylorder
from taylorder.adapt.config import OrderConfig
from taylorder.errors import UnsupportedModelError
from taylorder.kernels import HeadSpec, reference_attention
from taylorder.kernels.spec import Taylor
from taylorder.models.attention import recording
from taylorder.models.describe import describe
from taylorder.models.masks import admitting

_ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def dpr():
    """What it names is one vector a text; its hidden states come in a plain tuple."""
    return tiny.build(hf.DPRQuestionEncoder, hf.DPRConfig(max_position_embeddings=64, **_ENCODER, **tiny.common()))


def mllama():
    """Its body cannot be run without its head."""
    config = hf.MllamaTextConfig(
        cross_attention_layers=[], rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **tiny.decoder()
    )
    return tiny.build(hf.MllamaForCausalLM, config)


def layoutlm():
    """Adds a mask of zeros and minima to its scores."""
    return tiny.build(hf.LayoutLMModel, hf.LayoutLMConfig(max_position_embeddings=64, **_ENCODER, **tiny.common()))


def bart():
    config = hf.BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=tiny.STD, **tiny.common(),
    )  # fmt: skip
    return tiny.build(hf.BartModel, config)


@pytest.mark.parametrize(("factory", "causal"), [(dpr, False), (mllama, True), (layoutlm, False)])
def test_what_a_model_names_its_output_does_not_matter(factory, causal):
    model = factory()
    description = describe(model)
    assert [description.causal, len(description.modules)] == [causal, 2]
    ids, mask = padded_batch(20)
    plain = model(ids, attention_mask=mask)[0]
    with taylorder.adapted(model, OrderConfig.uniform(description, "exact")):
        assert torch.equal(model(ids, attention_mask=mask)[0], plain)
    with taylorder.adapted(model, OrderConfig.uniform(description, 2)):
        assert not torch.allclose(model(ids, attention_mask=mask)[0], plain)


def test_inputs_beside_text_are_named_where_there_is_a_part_for_them():
    assert describe(tiny.gemma3_vlm()).unmeasured == ("image",)
    assert describe(tiny.gemma3()).unmeasured == ()  # although its class has it from one that sees
    assert describe(tiny.llama()).unmeasured == ()


def test_a_model_that_puts_out_nothing_per_token_is_refused():
    model = tiny.llama()
    model.model.register_forward_hook(lambda module, args, output: (output.last_hidden_state.mean(1),))
    with pytest.raises(UnsupportedModelError, match="a tuple of 8 tokens holds nothing per token"):
        describe(model)


@pytest.mark.parametrize(
    ("mask", "is_boolean"),
    [
        (torch.tensor([0.0, torch.finfo(torch.float32).min, -torch.inf]), True),
        (torch.tensor([0.0, torch.finfo(torch.float16).min], dtype=torch.float16), True),
        (torch.tensor([0.0, -1e4]), True),
        (torch.tensor([0.0, -100.0]), False),
        (torch.tensor([-1.0, -1e4]), False),
    ],
)
def test_a_mask_of_zeros_and_minima_only_admits(mask, is_boolean):
    found = admitting(mask)
    assert torch.equal(found, mask == 0 if is_boolean else mask)


def test_heads_under_an_added_mask_are_measured_and_run_as_under_a_boolean_one():
    """LayoutLM against BERT with the same weights, which differ in nothing else while boxes are not given."""
    model = layoutlm()
    (ids, mask), calls = padded_batch(20), []
    with recording(model, calls.append), torch.no_grad():
        model(ids, attention_mask=mask)
    assert torch.equal(calls[0].mask[:, 0, 0], mask.bool())
    found = []
    with (
        taylorder.adapted(model, OrderConfig.uniform(model, 3, "mean"), observe=lambda *seen: found.append(seen)),
        torch.no_grad(),
    ):
        model(ids, attention_mask=mask)
    call, output = found[0]
    expected, _ = reference_attention(
        call.q, call.k, call.v, [HeadSpec(Taylor(3, "mean"))] * 4, scaling=call.scaling, causal=False, valid=mask.bool()
    )
    assert torch.allclose(output.double(), expected.transpose(1, 2), atol=1e-5)


def test_one_half_of_an_encoder_decoder_is_a_model_of_its_own():
    model = bart()
    with pytest.raises(UnsupportedModelError, match=r"is an encoder-decoder \(bart\).*model\.get_encoder\(\)"):
        describe(model)
    encoder, decoder = describe(model.get_encoder()), describe(model.get_decoder())
    assert [(one.causal, len(one.modules), one.modules[0].heads) for one in (encoder, decoder)] == [
        (False, 2, 4),
        (True, 3, 2),
    ]
    ids = tiny.tokens()
    for half in (model.get_encoder(), model.get_decoder()):
        plain = half(ids)[0]
        with taylorder.adapted(half, OrderConfig.uniform(half, "exact")):
            assert torch.equal(half(ids)[0], plain)
