"""Layers whose weights depend on more than queries and keys: measured with what is added or picked, and left exact."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf
from generating import generate, in_pieces, padded_batch

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.analysis.analyze import analyze
from taylorder.analysis.capture import LayerTensors
from taylorder.analysis.text import Text
from taylorder.analysis.truncation import blocks, key_centres
from taylorder.errors import ConfigError, UnsupportedModelError, UsageError
from taylorder.kernels.spec import HeadSpec, Taylor
from taylorder.models.attention import recording
from taylorder.models.describe import describe
from taylorder.selection.by_tolerance import select

LENGTH = 24
TEXT = Text("a poem", "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 2)


def t5_encoder():
    """A bias of relative positions is added to scores."""
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=tiny.VOCAB)
    config.is_encoder_decoder, config.max_position_embeddings = False, tiny.CONTEXT
    model = tiny.build(hf.T5EncoderModel, config)
    torch.nn.init.normal_(model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=2.0)
    return model


def deepseek_v32():
    """An index picks four keys for each query."""
    config = hf.DeepseekV32Config(
        hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, kv_lora_rank=16,
        q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_topk=4, index_head_dim=16,
        index_n_heads=2, first_k_dense_replace=1, max_position_embeddings=tiny.CONTEXT, **tiny.common(),
    )  # fmt: skip
    return tiny.build(hf.DeepseekV32ForCausalLM, config)


def diffllama():
    """Differential attention: two calls of each module, with the same keys and other values."""
    return tiny.build(hf.DiffLlamaForCausalLM, hf.DiffLlamaConfig(**tiny.decoder()))


MODELS = {"biased": t5_encoder, "indexed": deepseek_v32, "repeated": diffllama}
WHOLE = {
    "biased": "every layer adds to its scores, such as a bias of positions",
    "indexed": "every layer picks the keys of each query by a learned index",
    "repeated": "every layer attends several times to the same keys",
}

SENTENCES = {
    "biased": "adds to its scores what does not factorise over query and key",
    "indexed": "picks the keys of each query by a learned index",
    "repeated": r"attends 2 times to the same keys \(differential attention\)",
}


@pytest.fixture(scope="module", params=MODELS)
def subject(request):
    return request.param, MODELS[request.param]()


def test_what_stays_exact_and_that_nothing_can_be_chosen(subject):
    why, model = subject
    description = describe(model)
    assert {module.stays_exact for module in description.modules} == {why}
    assert description.why_none_open == WHOLE[why]
    config = OrderConfig.uniform(description, 2)
    heads = (HeadOrder(spec=HeadSpec(Taylor(2))),) * 4
    layers = tuple(LayerOrders(module=layer.module, heads=heads) for layer in config.layers)
    with pytest.raises(ConfigError, match=rf"{SENTENCES[why]}.* and stays as it is, but the config gives it an order"):
        taylorder.attach(model, config.model_copy(update={"layers": layers}))


def test_what_is_measured_is_what_the_model_computes(subject):
    """With what is added left out, or with all keys, it is something else."""
    why, model = subject
    outputs, layers = [], []

    def note(call, output):
        layers.append(
            LayerTensors(
                call.q, call.k, call.v, call.mask.expand(2, -1, LENGTH, -1), call.scaling, call.is_causal,
                added=None if call.added is None else call.added.expand(2, -1, -1, -1), picked=call.picked,
            )
        )  # fmt: skip
        outputs.append(output)

    ids, mask = padded_batch(LENGTH)
    with torch.no_grad(), recording(model, None, observe=note):
        model(input_ids=ids, attention_mask=mask)
    assert [layer.added is not None for layer in layers] == [why == "biased"] * len(layers)
    row = torch.tensor([3, 17, 23])
    for layer, output in zip(layers, outputs, strict=True):
        (block,) = blocks(layer, key_centres(layer), 0, row)
        assert torch.allclose(block.exact().transpose(0, 1).float(), output[0, row], atol=1e-5)


def test_an_exact_config_changes_no_bit_and_analysis_shows_errors(subject, tiny_tokenizer):
    why, model = subject
    ids, mask = padded_batch(LENGTH)
    plain = model(input_ids=ids, attention_mask=mask)[0]
    with taylorder.adapted(model, OrderConfig.uniform(model, "exact")):
        assert torch.equal(model(input_ids=ids, attention_mask=mask)[0], plain)
    settings = {"text": TEXT, "max_tokens": 64, "sequence_length": 32, "rows": 6, "max_order": 3}
    analysis = analyze(model, tiny_tokenizer, **settings)
    assert len(analysis.candidates) == 2 * 4 * 3 * 3  # layers, heads, orders, expansion points
    config = select(analysis).config
    assert {head.reason for layer in config.layers for head in layer.heads} == {why}


@pytest.mark.parametrize("factory", [deepseek_v32, diffllama])
def test_generation_is_that_of_the_untouched_model_with_the_same_cache(factory):
    model = factory()
    ids, mask = padded_batch(LENGTH)
    tokens = generate(model, ids, mask, do_sample=False).sequences
    config, sizes = OrderConfig.uniform(model, 2, "mean", window=4), (9, 1, 14)
    with torch.no_grad():
        pieces = in_pieces(model, hf.DynamicCache(config=model.config), ids, mask, sizes)
        with taylorder.adapted(model, config):
            assert torch.equal(generate(model, ids, mask, do_sample=False).sequences, tokens)
            assert torch.equal(in_pieces(model, TaylorCache(model, config), ids, mask, sizes), pieces)


def test_it_matters_which_keys_are_picked():
    model = deepseek_v32()
    ids, _ = padded_batch(LENGTH)
    with torch.no_grad():
        whole = model(ids).logits
        for layer in model.model.layers:
            layer.self_attn.indexer.index_topk = LENGTH
        assert not torch.allclose(model(ids).logits, whole, atol=1e-2)


def test_a_mask_that_adds_to_scores_is_a_bias_and_closes_its_layers():
    model = tiny.llama()
    bias = torch.full((1, 1, LENGTH, LENGTH), -1e9).triu(1) + torch.linspace(-3, 0, LENGTH)
    calls = []
    with torch.no_grad(), recording(model, calls.append):
        model(input_ids=tiny.tokens(length=LENGTH), attention_mask=bias)
    assert [call.beyond_scores for call in calls] == ["biased", "biased"]
    assert torch.equal(calls[0].mask[0, 0], torch.ones(LENGTH, LENGTH).tril().bool())
    ahead = torch.full_like(bias, -1.5)
    with recording(model, None), pytest.raises(UnsupportedModelError, match="mask that looks ahead"):
        model(input_ids=tiny.tokens(length=LENGTH), attention_mask=ahead)


@pytest.mark.parametrize(
    ("argument", "value"), [("position_bias", torch.zeros(1, 4, 1, 1)), ("indices", torch.zeros(1, LENGTH, 1).long())]
)
def test_truncated_heads_refuse_what_comes_later(argument, value):
    model, ids = tiny.llama(), tiny.tokens(length=LENGTH)
    with torch.no_grad(), taylorder.adapted(model, OrderConfig.uniform(model, 2, "mean", window=4)):
        with pytest.raises(UsageError, match=rf"layers\.0\.self_attn was given {argument}"):
            model(input_ids=ids, **{argument: value})
        model(input_ids=ids)
