"""Adapters that are not merged are refused by one sentence, wherever they are and whatever is installed."""

from __future__ import annotations

import json
import re

import gguf
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import taylorder
from taylorder.errors import UnsupportedModelError
from taylorder.models.describe import describe
from taylorder.models.loading import load

_SENTENCE = (
    r"subject has an adapter that is not merged into its weights \(.*{}.*\), so alphas .*"
    r"merge_and_unload\(\).*save_pretrained.*get_base_model\(\)\.$"
)


class Wrapped(nn.Module):
    """A layer as peft's tuners wrap it: the old one inside, and something beside it."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return self.base_layer(x) + self.beside(x)


class LowRank(Wrapped):
    def __init__(self, layer):
        super().__init__(layer)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})

    def beside(self, x):
        return self.lora_B["default"](self.lora_A["default"](x))


class Rescaled(Wrapped):
    """As IA3 does it; its parameter has no name that others know."""

    def __init__(self, layer):
        super().__init__(layer)
        self.ia3_l = nn.Parameter(torch.ones(layer.out_features))

    def beside(self, x):
        return self.base_layer(x) * (self.ia3_l - 1)


class InTheLayer(nn.Linear):
    """As loralib does it: no layer inside."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.lora_A = nn.Parameter(torch.zeros(2, layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, 2))


class PeftLike(nn.Module):
    """A model handed over inside what holds its prefix, say."""

    def __init__(self, model):
        super().__init__()
        self.base_model, self.peft_config = model, {"default": object()}

    def forward(self, *args, **options):
        return self.base_model(*args, **options)


def adapted(wrap, part="self_attn", projection="q_proj"):
    model = tiny.llama()
    parent = getattr(model.model.layers[1], part)
    setattr(parent, projection, wrap(getattr(parent, projection)))
    return model


def of_peft(layer):
    """A layer that nothing gives away but where its class comes from."""
    kind = type("AdaptedAttention", (type(layer),), {"__module__": "peft.tuners.adaption_prompt.layer"})
    layer.__class__ = kind
    return layer


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda: adapted(LowRank), r"layers\.1\.self_attn\.q_proj is a LowRank around a base_layer"),
        (lambda: adapted(Rescaled), r"layers\.1\.self_attn\.q_proj is a Rescaled around a base_layer"),
        (lambda: adapted(LowRank, "mlp", "up_proj"), r"layers\.1\.mlp\.up_proj is a LowRank"),
        (lambda: adapted(InTheLayer), r"it has weights model\.layers\.1\.self_attn\.q_proj\.lora_A"),
        (lambda: adapted(of_peft), r"layers\.1\.self_attn\.q_proj is a AdaptedAttention of peft"),
        (lambda: PeftLike(tiny.llama()), r"it is a PeftLike with a peft_config"),
        (lambda: PeftLike(adapted(LowRank)), r"base_model\.model\.layers\.1\.self_attn\.q_proj is a LowRank"),
    ],
    ids=["lora", "ia3", "mlp", "loralib", "peft class", "prefix", "peft model"],
)
def test_an_adapter_in_memory_is_refused(model, found, tiny_tokenizer):
    model = model().eval()
    with pytest.raises(UnsupportedModelError, match=_SENTENCE.format(found)) as caught:
        describe(model, "subject")
    assert caught.value.exit_code == 3
    with pytest.raises(UnsupportedModelError, match=r"merge_and_unload\(\)"):
        taylorder.analyze(model, tiny_tokenizer)


def test_a_merged_adapter_leaves_nothing_to_refuse():
    model = adapted(LowRank)
    layer = model.model.layers[1].self_attn.q_proj
    merged = layer.base_layer
    with torch.no_grad():
        merged.weight += layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    model.model.layers[1].self_attn.q_proj = merged
    model.peft_config = {}
    assert describe(model).modules


def refused(path, found):
    sentence = _SENTENCE.replace("subject", re.escape(str(path))).format(found)
    with pytest.raises(UnsupportedModelError, match=sentence):
        load(str(path))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_a_folder_with_weights_and_an_adapter_is_refused(folder, file):
    (folder / file).write_text("{}")
    refused(folder, f"it holds {re.escape(file)}")


def test_a_folder_with_nothing_but_an_adapter_is_refused_alike(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}))
    (tmp_path / "adapter_model.safetensors").touch()
    refused(tmp_path, r"it holds adapter_config\.json")


def test_a_model_saved_with_the_adapter_in_it_is_refused_alike(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.base_layer.weight"] = weights.pop("model.layers.0.self_attn.q_proj.weight")
    weights["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"it has weights model\.layers\.0\.self_attn\.q_proj\.base_layer\.weight")


def test_a_gguf_file_of_an_adapter_is_refused_alike(tmp_path):
    path = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(path, r"the file's general\.type is adapter")
