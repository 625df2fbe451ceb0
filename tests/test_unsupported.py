"""Models that cannot be measured truthfully are refused by name, with exit code 3."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
import transformers as hf
from torch import nn

from taylorder.analysis.projections import projection_weights
from taylorder.errors import UnsupportedModelError
from taylorder.models.describe import describe
from taylorder.models.refusals import refuse_terms

_IDS, _GROUPED = tiny.common(), tiny.decoder()
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def llama():
    return tiny.llama()


# What is refused.


def bloom():
    return hf.BloomForCausalLM(hf.BloomConfig(hidden_size=32, n_layer=1, n_head=4, **_IDS))


def mpnet():
    return hf.MPNetModel(hf.MPNetConfig(**_SMALL, **_IDS))


def t5():
    return hf.T5Model(hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=128))


def mamba():
    return hf.MambaForCausalLM(hf.MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=1, **_IDS,
                                              max_position_embeddings=64))  # fmt: skip


def splinter():
    """An encoder whose modules do not say so."""
    return hf.SplinterModel(hf.SplinterConfig(**_SMALL, **_IDS, max_position_embeddings=64))


def bigbird_pegasus():
    """A decoder whose modules say that they attend in both directions."""
    config = hf.BigBirdPegasusConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, max_position_embeddings=64,
        init_std=0.3, **_IDS,
    )  # fmt: skip
    return hf.BigBirdPegasusForCausalLM(config)


class Packed(nn.Module):
    """A linear layer on 8-bit integers."""

    def __init__(self, dense):
        super().__init__()
        self.scale = dense.weight.abs().max().item() / 127
        self.weight = nn.Parameter((dense.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.float() * self.scale).T


class PackedBuffer(Packed):
    """The same, kept in a buffer as GPTQ does."""

    def __init__(self, dense):
        super().__init__(dense)
        packed = self.weight.data
        del self.weight
        self.register_buffer("qweight", packed)

    def forward(self, x):
        return x @ (self.qweight.float() * self.scale).T


class Stacked(nn.Module):
    """A linear layer kept as a stack of blocks."""

    def __init__(self, dense):
        super().__init__()
        self.weight = nn.Parameter(dense.weight.detach().unflatten(0, (4, -1)))

    def forward(self, x):
        return x @ self.weight.flatten(0, 1).T


def packed(layer):
    def build():
        model = tiny.llama()
        model.model.layers[1].self_attn.k_proj = layer(model.model.layers[1].self_attn.k_proj)
        return model

    build.__name__ = f"packed_{layer.__name__}"
    return build


def meta():
    with torch.device("meta"):
        return hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED))


def offloaded():
    model = tiny.llama()
    model.model.layers[1].self_attn.k_proj.to("meta")
    return model


def boundless():
    model = tiny.llama()
    model.config.max_position_embeddings = 0
    return model


def no_transformer():
    return nn.Linear(4, 4)


_REFUSED = [
    (
        bloom,
        r"BloomForCausalLM computes attention in its own code.*AttentionInterface.*Choose .* Llama, .*, which generate",
    ),
    (mpnet, r"MPNetModel computes attention in its own code.*Choose .* BERT, .*, which are encoders of text"),
    (no_transformer, r"Linear is not a transformers PreTrainedModel.*taylorder\.models\.load"),
    (t5, r"subject is an encoder-decoder \(t5\).*give both halves their inputs.*take one half of it "),
    (mamba, r"made no call of self attention on 8 tokens.*at least one layer of softmax attention"),
    (tiny.vit, r"takes pixel_values, where token ids are expected.*`taylorder analyze --inputs FILE.safetensors`"),
    (
        splinter,
        r"attends to earlier tokens only \(.*layer\.0.*is_causal = True\), but another last token changes .*Choose a",
    ),
    (bigbird_pegasus, r"in both directions \(is_causal = False\) .*mask that hides from token 0 token 1.*choose a"),
    (tiny.paligemma, r"in both directions \(is_causal = False\) .*mask that hides from token 0 token 1.*choose a"),
    (packed(Packed), r"self_attn\.k_proj\.weight is a Tensor of int8.*without quantisation"),
    (packed(PackedBuffer), r"self_attn\.k_proj\.qweight is a Tensor of int8.*without quantisation"),
    (meta, r"\d+ parameters without data \(on the meta device, and no hook of accelerate's says.*load it whole"),
    (offloaded, r"1 parameters without data .*layers\.1\.self_attn\.k_proj\.weight.*load it whole"),
    (boundless, r"states no longest context: its LlamaConfig has none of max_position_embeddings.*Set config"),
]


@pytest.mark.parametrize(("factory", "words"), _REFUSED, ids=[factory.__name__ for factory, _ in _REFUSED])
def test_an_unsupported_model_is_refused_in_one_sentence(factory, words):
    model = factory().eval()
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        describe(model, "subject")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert getattr(model, "config", hf.LlamaConfig())._attn_implementation != "taylorder_record"


def test_the_text_part_of_a_model_that_needs_an_image_too_is_named():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, **_IDS, "max_position_embeddings": 64, "initializer_factor": 8.0}
    config = hf.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
    model = tiny.build(hf.CLIPModel, config)
    with pytest.raises(
        UnsupportedModelError, match=r"CLIPModel\) did not run on 8 token ids alone .*Take its CLIPText"
    ):
        describe(model)
    assert len(describe(model.get_decoder()).modules) == 2


def test_the_part_that_sees_text_is_named_where_another_part_stands_against_the_model(monkeypatch):
    model = tiny.llava()
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(
        UnsupportedModelError, match=r"own code.*Take its LlamaModel by itself \(model\.get_decoder\(\)\)"
    ):
        describe(model)
    assert describe(model.get_decoder()).architecture == "LlamaModel"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"sinks": torch.zeros(1)}, r"denominator what it makes of each query.*\(sinks\)"),
        ({"block_indices": torch.zeros(1)}, r"learned index.*\(block_indices\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_call_with_more_than_scaled_products_is_refused(call, words):
    with pytest.raises(UnsupportedModelError, match=rf"layer\.3 \(Linear\) .*{words}.*Choose a model"):
        refuse_terms("layer.3", nn.Linear(1, 1), call)
    refuse_terms("layer.3", nn.Linear(1, 1), dict.fromkeys(call))


@pytest.mark.parametrize("layer_type", ["compressed_sparse_attention", "heavily_compressed_attention"])
def test_compressed_layers_are_refused(layer_type, llama):
    llama.config.layer_types = ["full_attention", layer_type]
    with pytest.raises(UnsupportedModelError, match=f"layers of type {layer_type}: it"):
        describe(llama, "llama")


def test_a_forward_pass_that_fails_is_named(llama):
    llama.model.norm = nn.Linear(7, 7)
    with pytest.raises(UnsupportedModelError, match=r"did not run on 8 token ids alone \(RuntimeError: mat1"):
        describe(llama, "llama")
    assert llama.config._attn_implementation == "sdpa"


# Weights that nothing shows, and weights that look packed and are not.


def quantised(part):
    """A model whose linear layers, or those of one part, torch itself has packed."""

    def build():
        model = tiny.llama()
        place = model.get_submodule(part)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says what replaces this
            torch.ao.quantization.quantize_dynamic(place, {nn.Linear}, dtype=torch.qint8, inplace=True)
        return model

    return build


class Hidden(nn.Module):
    """A layer of another library: its weights are in no parameter."""

    def __init__(self, dense):
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.codes, self.bias = [dense.weight.detach()], nn.Parameter(torch.zeros(dense.out_features))

    def forward(self, x):
        return x @ self.codes[0].T + self.bias


class Claiming(torch.Tensor):
    """A packed tensor that claims the dtype of the matrix it stands for."""


def float8():
    model = tiny.llama()
    model.model.layers[1].mlp.up_proj.to(torch.float8_e4m3fn)
    return model


def claiming():
    model = tiny.llama()
    layer = model.model.layers[1].self_attn.k_proj
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Claiming))
    return model


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (quantised("model.layers.0.self_attn"), r"packed weights in model\.layers\.0\.self_attn\.q_proj \(torch\.ao\."),
        (quantised("model.layers.1.mlp"), r"packed weights in model\.layers\.1\.mlp\.gate_proj \(torch\.ao\."),
        (packed(Hidden), r"packed weights in model\.layers\.1\.self_attn\.k_proj \(test_unsupported\)"),
        (float8, r"weights of float8_e4m3fn \(the first is model\.layers\.1\.mlp\.up_proj\.weight\), where float32"),
        (claiming, r"layers\.1\.self_attn\.k_proj\.weight is a Claiming of float32, where a plain matrix"),
    ],
    ids=["attention", "mlp", "other library", "float8", "subclass"],
)
def test_weights_that_no_parameter_shows_are_refused(build, words):
    with pytest.raises(UnsupportedModelError, match=rf"{words}.*without quantisation, or dequantise"):
        describe(build().eval(), "subject")


def test_a_stack_of_matrices_is_no_packed_weight():
    """Experts and convolutions lie in such stacks; what is no matrix has no alpha, and that is all."""
    model = packed(Stacked)()
    assert len(describe(model).modules) == 2
    assert "k" not in projection_weights(model, "model.layers.1.self_attn")
    assert "q" in projection_weights(model, "model.layers.1.self_attn")
