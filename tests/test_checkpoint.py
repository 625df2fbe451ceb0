"""A checkpoint is loaded into the class that it names, head included, and refused where its weights do not fit it."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import taylorder
from taylorder.analysis.losses import has_language_model_head, language_model_head
from taylorder.errors import TaylorderError
from taylorder.models.fingerprint import fingerprint
from taylorder.models.loading import load

_TEXT = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": tiny.CONTEXT, "head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
_QWEN_VISION = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2, "out_hidden_size": 32}


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**_TEXT, "rope_parameters": rope}
    config = hf.Qwen2VLConfig(text_config=text, vision_config={**_QWEN_VISION, "hidden_size": 32})
    return hf.Qwen2VLForConditionalGeneration(config)


def gemma3():
    return hf.Gemma3ForConditionalGeneration(hf.Gemma3Config(text_config=_TEXT, vision_config=_SIGLIP))


def llava():
    text = {**_TEXT, "model_type": "llama"}
    return hf.LlavaForConditionalGeneration(hf.LlavaConfig(text_config=text, vision_config=_SIGLIP))


def mistral3():
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = hf.Mistral3Config(text_config={**_TEXT, "model_type": "mistral"}, vision_config=vision)
    return hf.Mistral3ForConditionalGeneration(config)


def aya_vision():
    """Its text part states a scale of the logits that it does not apply."""
    text = {**_TEXT, "model_type": "cohere2", "logit_scale": 0.25, "layer_types": ["full_attention"] * 2}
    return hf.AyaVisionForConditionalGeneration(hf.AyaVisionConfig(text_config=text, vision_config=_SIGLIP))


_SEEING = [gemma3, qwen2_vl, llava, mistral3, aya_vision]


@pytest.mark.parametrize("factory", _SEEING, ids=[factory.__name__ for factory in _SEEING])
def test_a_model_that_sees_is_loaded_with_the_head_that_its_user_generates_with(factory, tmp_path, tiny_tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        users = factory().eval()
    loaded = load(str(tiny.saved(users, tiny_tokenizer, tmp_path))).model
    assert type(loaded) is type(users)
    assert fingerprint(loaded) == fingerprint(users)
    assert has_language_model_head(loaded)
    assert language_model_head(loaded)
    config = taylorder.OrderConfig.uniform(loaded, 2, "mean", window=2, sinks=1)
    config.check(users)
    prompt, options = tiny.tokens(length=8), {"max_new_tokens": 3, "do_sample": False}
    with taylorder.adapted(users, taylorder.OrderConfig.uniform(users, "exact")):
        exact = users.generate(prompt, **options)
    assert torch.equal(exact, users.generate(prompt, **options))
    with taylorder.adapted(users, config):
        assert users.generate(prompt, **options).shape == exact.shape


def test_the_command_line_goes_from_a_folder_that_sees_to_text(tmp_path, tiny_tokenizer, run):
    path = str(tiny.saved(gemma3().eval(), tiny_tokenizer, tmp_path / "model"))
    out = tmp_path / "out"
    sizes = ("--max-tokens", 64, "--sequence-length", 32, "--rows", 2, "--max-order", 1)
    code, _, err = run("analyze", path, *sizes, "--out", out, "--no-eval")
    assert (code, err.count("error")) == (0, 0)
    config = taylorder.OrderConfig.load(out / "orders.json")
    assert config.model.architecture == "Gemma3ForConditionalGeneration"
    options = ("--config", out / "orders.json", "--model", path, "--max-new-tokens", 3)
    code, text, _ = run("generate", "abc", *options)
    assert code == 0
    assert text


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (lambda: hf.LlamaModel(tiny.llama().config), hf.LlamaModel),
        (lambda: gemma3().model, hf.Gemma3Model),
        (tiny.bert, hf.BertModel),
        (lambda: hf.BertForMaskedLM(tiny.bert().config), hf.BertModel),
        (lambda: hf.LlamaForSequenceClassification(tiny.llama().config), hf.LlamaModel),
    ],
    ids=["decoder", "seeing", "encoder", "masked", "classifier"],
)
def test_what_generates_no_text_is_loaded_without_a_head(saved, loaded, tmp_path, tiny_tokenizer):
    path = tiny.saved(saved().eval(), tiny_tokenizer, tmp_path)
    assert type(load(str(path)).model) is loaded


# Weights that do not fit.


def edit(folder, weights=lambda values: None, **settings):
    """Change the weights in place, and fields of the config."""
    values = load_file(folder / "model.safetensors")
    weights(values)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def refused(folder, words):
    with pytest.raises(TaylorderError, match=words) as caught:
        load(str(folder))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_weight_of_another_shape_is_named_with_both_shapes(folder):
    def shorten(values):
        values["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(16, 32)

    edit(folder, shorten)
    refused(folder, r"1 weights of another shape .*q_proj\.weight, \[16, 32\] where \[32, 32\] is expected.*config")


def test_a_config_of_another_width_names_the_first_weight(folder):
    edit(folder, hidden_size=48)
    refused(
        folder, r"weights of another shape than a LlamaForCausalLM .*lm_head\.weight, \[128, 32\] where \[128, 48\]"
    )


def test_layers_that_the_config_does_not_have_are_named(folder):
    edit(folder, num_hidden_layers=1)
    refused(folder, r"9 weights that a LlamaForCausalLM .*no place for .*first is model\.layers\.1\..*fewer layers")


def test_layers_are_missed_under_a_head_that_is_left_out_too(tmp_path, tiny_tokenizer):
    folder = tiny.saved(hf.BertForMaskedLM(tiny.bert().config), tiny_tokenizer, tmp_path)
    edit(folder, num_hidden_layers=1)
    refused(folder, r"16 weights that a BertModel .*first is bert\.encoder\.layer\.1\.")


@pytest.mark.parametrize("name", ["bias", "weight_scale_inv"])
def test_tensors_that_a_module_has_no_place_for_are_named(folder, name):
    """Biases that the config switches off, and scales without which the weights are others."""

    def add(values):
        values[f"model.layers.0.self_attn.q_proj.{name}"] = torch.ones(32)

    edit(folder, add)
    refused(folder, rf"1 weights .*no place for .*q_proj\.{name}\)")


def test_heads_buffers_and_layers_that_predict_ahead_may_be_left_out(folder):
    def add(values):
        values["score.weight"] = torch.ones(2, 32)
        values["mtp.layers.0.self_attn.q_proj.weight"] = torch.ones(32, 32)
        values["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        values["model.layers.0.self_attn.masked_bias"] = torch.ones(())
        values["model.layers.2.self_attn.q_proj.weight"] = torch.ones(32, 32)

    edit(folder, add, num_nextn_predict_layers=1)
    assert load(str(folder)).model.config.num_hidden_layers == 2
