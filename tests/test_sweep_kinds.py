"""The sweep over all architectures, on one of each kind: the rest is ``benchmarks/architectures.py``."""

from __future__ import annotations

import json

import pytest
from architecture_sweep.building import all_runs
from architecture_sweep.stages import examine
from architecture_sweep.verdict import ADAPTED, GENERATED, REFUSED, Verdict, verdict

KINDS = {
    "llama head": (GENERATED, "grouped heads"),
    "gpt_neox head": (GENERATED, "one fused matrix"),
    "gemma3 head": (GENERATED, "sliding windows, and images that see one another"),
    "gemma4_text head": (GENERATED, "sliding layers with other heads"),
    "gemma3n_text head": (GENERATED, "layers that share keys"),
    "llama4_text head": (GENERATED, "chunks"),
    "deepseek_v3 head": (GENERATED, "latent attention"),
    "jamba head": (GENERATED, "softmax attention in some layers only"),
    "mllama head": (GENERATED, "no body without its head"),
    "bart head": (GENERATED, "a decoder that has an encoder elsewhere"),
    "bert base": (ADAPTED, "an encoder"),
    "albert base": (ADAPTED, "one layer called several times"),
    "layoutlm base": (ADAPTED, "a mask that is added"),
    "dpr base": (ADAPTED, "an output that is no token's"),
    "bart base": (ADAPTED, "encoder and decoder together"),
    "whisper head": (ADAPTED, "a decoder that hears"),
    "wav2vec2 base": (ADAPTED, "sound"),
    "clip base": (ADAPTED, "text and images side by side"),
    "qwen2_5_vl_vision base": (ADAPTED, "images of several sizes in one row"),
    "gemma2 head": (GENERATED, "capped scores"),
    "falcon head": (REFUSED, "attention in its own code"),
    "deepseek_v32 head": (GENERATED, "keys picked by an index"),
    "swin base": (ADAPTED, "a bias of positions"),
    "deepseek_v4 head": (REFUSED, "compressed keys"),
    "mamba head": (REFUSED, "no attention"),
    "vit base": (ADAPTED, "images"),
}


@pytest.fixture(scope="module")
def runs():
    return {f"{run.model_type} {run.variant}": run for run in all_runs()}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_an_architecture_of_this_kind_comes_out_as_expected(name, runs):
    record = examine(runs[name], lambda stage: None)
    assert verdict(record) == Verdict(KINDS[name][0])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
