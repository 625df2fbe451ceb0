"""What a config is for: a model with mixed orders on Triton's kernels, against float64, reading and generating."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from generating import MODELS, in_pieces, padded_batch, positions
from mixed_orders import mixed_config, reference_output
from tiny import tokens
from tolerances import relative_error
from triton_cases import EAGER, sized

import taylorder
from taylorder.adapt.cache import TaylorCache
from taylorder.errors import UsageError
from taylorder.kernels import fold_rule
from taylorder.kernels.triton_backend import attention, fold, plan
from taylorder.kernels.triton_backend.launch import KERNELS
from taylorder.kernels.triton_backend.tiles import Layout

pytestmark = pytest.mark.interpreter
FAST = {**EAGER, (attention, "SEGMENT"): 32, (fold_rule, "BLOCK"): 8, (plan, "PIECE_TOKENS"): 512}
WIDE = Layout("gather", 128)
"""Few and large tiles: the interpreter's time is its operations, whatever their size."""


@pytest.fixture
def launches(monkeypatch):
    """How often each kernel was launched."""
    counts = Counter()
    for module in (attention, fold):
        original = module.launch

        def launch(name, programs, *rest, original=original):
            counts[name] += bool(programs)
            original(name, programs, *rest)

        monkeypatch.setattr(module, "launch", launch)
    return counts


def mixed(name, tmp_path, seed=1):
    """A tiny grouped model, and a config with orders 1 to 4 that went through its file."""
    model = MODELS[name]()
    mixed_config(model, seed).save(tmp_path / "orders.json")
    config = taylorder.OrderConfig.load(tmp_path / "orders.json", model)
    assert len({head.spec.far for layer in config.layers for head in layer.heads}) >= 3
    assert config.model.heads > config.model.kv_heads
    return model, config


@pytest.mark.parametrize("name, layout", [("llama", None), pytest.param("qwen3", WIDE, marks=pytest.mark.slow)])
def test_prefill_pieces_and_decode_are_the_float64_reference(name, layout, tmp_path, launches):
    model, config = mixed(name, tmp_path)
    ids, mask = padded_batch(56)
    rows = mask.bool()
    inputs = {"attention_mask": mask, "position_ids": positions(mask)}
    expected = reference_output(model, config, input_ids=ids, **inputs)
    with torch.no_grad(), sized(FAST, layout), taylorder.adapted(model, config, backend="triton"):
        whole = model(ids, **inputs).logits
        cache = TaylorCache(model, config)
        pieces = in_pieces(model, cache, ids, mask, (30, 1, 1, 20, 1, 1, 1, 1))
    assert relative_error(whole[rows], expected[rows]) < 1e-4
    assert relative_error(pieces[rows], expected[rows]) < 1e-4
    assert set(launches) == {name for name, kernel in KERNELS.items() if kernel.file != "gradient_kernels"}
    assert min(launches.values()) > 0
    with torch.no_grad():
        plain = model(ids, **inputs).logits
    assert relative_error(plain[rows], expected[rows]) > 1e-3  # negative control: the config matters


def test_generate_takes_the_tokens_of_the_float64_reference(tmp_path, launches):
    model, config = mixed("llama", tmp_path)
    prompt = tokens(1, 40)
    with torch.no_grad(), sized(FAST, WIDE), taylorder.adapted(model, config, backend="triton"):
        made = model.generate(prompt, max_new_tokens=12, do_sample=False, min_new_tokens=12)
    assert made.shape[1] == 52
    assert launches["read_state"] > 12
    logits = reference_output(model, config, input_ids=made[:, :-1])[0, 39:]
    logits[:, model.generation_config.eos_token_id] = -torch.inf  # as min_new_tokens has it
    assert logits.argmax(-1).tolist() == made[0, 40:].tolist()
    with torch.no_grad():
        exact = model.generate(prompt, max_new_tokens=12, do_sample=False, min_new_tokens=12)
    assert exact.tolist() != made.tolist()  # negative control


def test_beams_on_triton_are_those_of_the_torch_backend(tmp_path):
    model, config = mixed("llama", tmp_path)
    ids, mask = padded_batch(34)
    found = {}
    for backend in ("torch", "triton"):
        with torch.no_grad(), sized(FAST, WIDE), taylorder.adapted(model, config, backend=backend):
            found[backend] = model.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=4, do_sample=False)
    assert found["triton"].tolist() == found["torch"].tolist()


def test_a_saved_cache_goes_on_bit_for_bit(tmp_path):
    model, config = mixed("llama", tmp_path)
    ids, mask = padded_batch(50)
    with torch.no_grad(), sized(FAST, WIDE), taylorder.adapted(model, config, backend="triton"):
        cache = TaylorCache(model, config)
        in_pieces(model, cache, ids, mask, (40,))
        cache.save(tmp_path / "cache.safetensors")
        loaded = TaylorCache.load(tmp_path / "cache.safetensors", model, config)
        fork = cache.clone()
        expected = in_pieces(model, cache, ids, mask, (6, 1, 1))
        for other in (loaded, fork):
            assert torch.equal(in_pieces(model, other, ids, mask, (6, 1, 1)), expected)


def test_a_cache_of_one_backend_is_refused_by_another(tmp_path):
    model, config = mixed("llama", tmp_path)
    cache = TaylorCache(model, config)
    with torch.no_grad(), taylorder.adapted(model, config, backend="torch"):
        model(tokens(1, 20), past_key_values=cache)
    with (
        torch.no_grad(),
        taylorder.adapted(model, config, backend="triton"),
        pytest.raises(UsageError, match="was filled by the backend 'torch', and `adapted` runs with 'triton'"),
    ):
        model(tokens(1, 20), past_key_values=cache)


def test_memory_stops_growing_and_is_counted(tmp_path):
    model = MODELS["llama"]()
    config = taylorder.OrderConfig.uniform(model, 2, "mean", window=6, sinks=2)
    cache, held, nominal = TaylorCache(model, config), [], []
    ids = tokens(1, 380)
    with (
        torch.no_grad(),
        sized({**FAST, (attention, "SEGMENT"): 256, (fold_rule, "BLOCK"): 64}, WIDE),
        taylorder.adapted(model, config, backend="triton"),
    ):
        for start, stop in [(0, 250), *((n, n + 13) for n in range(250, 380, 13))]:
            model(ids[:, start:stop], past_key_values=cache)
            held.append(cache.nbytes())
            nominal.append(cache.nominal_bytes())
    assert max(held) < 1.1 * held[0]  # keeping 130 more tokens as they are would add 60 %
    kept = 2 * (2 + 2 * 64 + 6)  # KV heads times sinks, what waits to be folded, window
    assert max(nominal) <= 2 * (2 * kept * (8 + 8) + 4 * 2 * (128 + 1) * 9)
