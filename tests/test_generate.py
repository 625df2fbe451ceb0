"""``model.generate`` on an adapted model: tokens and logits against keeping everything, and what is refused."""

from __future__ import annotations

import pathlib
from contextlib import nullcontext

import pytest
import torch
from generating import MODELS, MODES, PADDED, generate, generated, padded_batch, score_space, structure
from mixed_orders import mixed_config
from tiny import TINY, tokens
from transformers import DynamicCache, StoppingCriteria

import taylorder
from taylorder.adapt.cache import TaylorCache, nominal_cache_bytes
from taylorder.adapt.cache_layer import TaylorCacheLayer
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.continuation import _chosen
from taylorder.adapt.generate import compared, stream
from taylorder.adapt.text_pieces import TextPieces
from taylorder.analysis.text import calibration_text
from taylorder.errors import TaylorderError, UnsupportedModelError, UsageError
from taylorder.models.describe import describe


def scored(model, config, output, mask):
    """Logits that score space gives at every step of what was generated, ``[B, steps, V]``."""
    steps = len(output.logits)
    whole = torch.cat([mask, mask.new_ones(len(mask), steps)], 1)
    return score_space(model, config, output.sequences, whole)[:, -steps - 1 : -1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_with_every_head_exact_the_tokens_are_those_of_the_untouched_model(name, mode):
    model = MODELS[name]()
    ids, mask = padded_batch(40)
    expected = generate(model, ids, mask, **MODES[mode])
    with taylorder.adapted(model, OrderConfig.uniform(describe(model, "tiny"), "exact")):
        found = generate(model, ids, mask, **MODES[mode])
    assert isinstance(found.past_key_values, TaylorCache)
    assert torch.equal(found.sequences, expected.sequences)


@pytest.mark.parametrize(
    "name, mode", [*(("llama", mode) for mode in MODES), ("gemma3", "beams"), ("gpt2", "sampling")]
)
def test_the_state_gives_the_tokens_that_keeping_every_key_gives(name, mode):
    """The same adapted model with a DynamicCache evaluates the same formula in score space, over all keys."""
    model = MODELS[name]()
    ids, mask = padded_batch(90)
    with taylorder.adapted(model, mixed_config(model, 1)):
        found = generate(model, ids, mask, **MODES[mode])
        keeping = DynamicCache(config=model.config)
        expected = generate(model, ids, mask, past_key_values=keeping, **MODES[mode])
    plain = generate(model, ids, mask, **MODES[mode])
    assert any(isinstance(layer, TaylorCacheLayer) for layer in found.past_key_values.layers)
    assert torch.equal(found.sequences, expected.sequences)
    assert (found.logits[0] - plain.logits[0]).abs().max() > 1e-2  # negative control: the config changes something


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["mixed", "zero 3", "mean 4 near"])
def test_logits_at_every_step_are_those_of_the_whole_sequence(name, kind):
    model = MODELS[name]()
    description = describe(model, "tiny")
    config = {
        "mixed": lambda: mixed_config(model, 3),
        "zero 3": lambda: OrderConfig.uniform(description, 3),
        "mean 4 near": lambda: OrderConfig.uniform(description, 4, "mean", 5, 2),
    }[kind]()
    ids, mask = padded_batch(110, seed=2)
    with taylorder.adapted(model, config):
        found = generate(model, ids, mask, new=12, do_sample=True)
    expected = scored(model, config, found, mask)
    torch.testing.assert_close(torch.stack(found.logits, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_padded_row_gives_what_the_row_alone_gives(name):
    model = MODELS[name]()
    ids, mask = padded_batch(100)
    with taylorder.adapted(model, mixed_config(model, 2)):
        both = generate(model, ids, mask)
        alone = generate(model, ids[1:, PADDED:], mask[1:, PADDED:])
    assert torch.equal(both.sequences[1, PADDED:], alone.sequences[0])
    torch.testing.assert_close(torch.cat(alone.logits), torch.stack(both.logits, 1)[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_conversation_goes_on_from_its_cache(name):
    model = MODELS[name]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(80)
    cache = TaylorCache(model, config)
    with taylorder.adapted(model, config):
        first = generate(model, ids, mask, past_key_values=cache, do_sample=False)
        assert cache.get_seq_length() == 87  # the last token was never fed
        longer = torch.cat([first.sequences, tokens(2, 9, seed=5)], 1)
        ones = torch.cat([mask, mask.new_ones(2, 17)], 1)
        second = generate(model, longer, ones, past_key_values=cache, do_sample=False)
        afresh = generate(model, longer, ones, do_sample=False)
    assert torch.equal(second.sequences, afresh.sequences)
    torch.testing.assert_close(torch.cat(second.logits), torch.cat(afresh.logits), rtol=0, atol=1e-4)


def test_without_a_cache_or_a_guard_generation_recomputes_or_keeps_keys():
    model = MODELS["llama"]()
    ids, mask = padded_batch(60)
    config = mixed_config(model, 1)
    with taylorder.adapted(model, config):
        expected = generate(model, ids, mask)
        assert torch.equal(generate(model, ids, mask, use_cache=False).sequences, expected.sequences)
        kept = generate(model, ids, mask, cache_implementation="dynamic")
    assert type(kept.past_key_values) is DynamicCache
    assert torch.equal(kept.sequences, expected.sequences)
    with taylorder.adapted(model, config, guard=False):
        raw = generate(model, ids, mask)
        with pytest.raises(UsageError, match="guard=False was asked for with a TaylorCache, whose states are always"):
            generate(model, ids, mask, past_key_values=TaylorCache(model, config))
    assert type(raw.past_key_values) is DynamicCache


class StopAfter(StoppingCriteria):
    """Raises when that many tokens are there, as a user's interrupt would."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores, **kwargs):
        if input_ids.shape[1] >= self.tokens:
            raise KeyboardInterrupt
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_interrupted_generation_leaves_the_model_as_found_and_the_cache_good():
    model = MODELS["llama"]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(60)
    before = structure(model)
    untouched = generate(model, ids, mask).sequences
    cache = TaylorCache(model, config)
    with pytest.raises(KeyboardInterrupt), taylorder.adapted(model, config):
        generate(model, ids, mask, past_key_values=cache, stopping_criteria=[StopAfter(64)])
    assert structure(model) == before
    assert torch.equal(generate(model, ids, mask).sequences, untouched)
    with taylorder.adapted(model, config):
        expected = generate(model, ids, mask)
        so_far = expected.sequences[:, :64]
        ones = torch.cat([mask, mask.new_ones(2, 4)], 1)
        resumed = generate(model, so_far, ones, new=4, past_key_values=cache)
    assert torch.equal(resumed.sequences, expected.sequences)


def test_what_cannot_be_generated_is_refused_before_anything_is():
    model, assistant = MODELS["llama"](), TINY["llama"]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(30)
    calls = []
    model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    with taylorder.adapted(model, config):
        calls.clear()  # taking the description of the model ran it
        for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistant}):
            with pytest.raises(
                UsageError, match="assisted decoding and prompt lookup take tokens back, and a Taylor s"
            ):
                generate(model, ids[:1], mask[:1], **options)
        for implementation in ("static", "offloaded", "quantized"):
            with pytest.raises(UsageError, match=f"cache_implementation is '{implementation}', and an adapted model k"):
                generate(model, ids, mask, cache_implementation=implementation)
        with pytest.raises(ValueError, match="taylorder is not supported for continuous batching"):
            model.generate(ids[:1], max_new_tokens=2, cache_implementation="paged")
        with pytest.raises(ValueError, match="must be 2D"):
            generate(model, ids, torch.ones(2, 1, 30, 30))
        assert calls == []


def test_assisted_decoding_works_with_a_cache_that_keeps_every_key():
    """The way out that the error names, for the model that is helped and for the one that helps."""
    model = MODELS["llama"]()
    config = mixed_config(model, 1)
    ids, mask = padded_batch(60)
    with taylorder.adapted(model, config):
        expected = generate(model, ids[:1], mask[:1], do_sample=False).sequences
        keeping = DynamicCache(config=model.config)
        found = generate(model, ids[:1], mask[:1], do_sample=False, past_key_values=keeping, prompt_lookup_num_tokens=3)
    assert torch.equal(found.sequences, expected)
    helped = TINY["llama"]()
    plain = generate(helped, ids[:1], mask[:1], do_sample=False).sequences
    with taylorder.adapted(model, config):
        assert torch.equal(generate(helped, ids[:1], mask[:1], do_sample=False, assistant_model=model).sequences, plain)


@pytest.mark.builtin
def test_the_mixed_config_generates_on_the_built_in_model(builtin):
    path = pathlib.Path(__file__).parents[1] / "benchmarks/configs/mixed.json"
    config = OrderConfig.load(path, builtin.model)
    text = calibration_text().content[:5000]
    ids = builtin.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[:, :300]
    mask = torch.ones_like(ids)
    with taylorder.adapted(builtin.model, config):
        found = generate(builtin.model, ids, mask, new=5, do_sample=False)
    expected = scored(builtin.model, config, found, mask)
    torch.testing.assert_close(torch.stack(found.logits, 1), expected, rtol=0, atol=1e-4)


# Streaming


def test_streamed_text_is_what_generate_makes(tiny_tokenizer):
    model = MODELS["llama"]()
    config = mixed_config(model, 1)
    model.generation_config.eos_token_id = None
    prompt = "It was a dark and stormy night; " * 20
    ids = tiny_tokenizer(prompt, return_tensors="pt").input_ids
    for chosen in (config, None):
        pieces = []
        source = stream(model, tiny_tokenizer, prompt, chosen, max_new_tokens=12)
        while True:
            try:
                pieces.append(next(source))
            except StopIteration as end:
                result = end.value
                break
        with taylorder.adapted(model, chosen or OrderConfig.uniform(describe(model, "tiny"), "exact")):
            expected = generate(model, ids, torch.ones_like(ids), new=12, do_sample=False)
        assert list(result.tokens) == expected.sequences[0, ids.shape[1] :].tolist()
        assert "".join(pieces) == result.text == tiny_tokenizer.decode(result.tokens, skip_special_tokens=True)
        assert (result.stopped, result.prompt_tokens, result.steps) == ("length", ids.shape[1], 11)
        assert result.tokens_per_second == result.steps / result.seconds > 0
        assert result.nominal_bytes == nominal_cache_bytes(expected.past_key_values) < result.cache_bytes
        assert (result.guarded_rows > 0) == (chosen is config)


def test_the_stream_ends_where_the_model_ends_it_and_sampling_is_seeded(tiny_tokenizer):
    model = MODELS["llama"]()
    config = mixed_config(model, 1)
    options = {"max_new_tokens": 10, "temperature": 1.5}
    model.generation_config.eos_token_id = None
    first = generated(stream(model, tiny_tokenizer, "Once upon", config, seed=3, **options))
    assert generated(stream(model, tiny_tokenizer, "Once upon", config, seed=3, **options)).tokens == first.tokens
    assert generated(stream(model, tiny_tokenizer, "Once upon", config, seed=4, **options)).tokens != first.tokens
    assert len(set(first.tokens)) > 3
    model.generation_config.eos_token_id = [first.tokens[4]]
    ended = generated(stream(model, tiny_tokenizer, "Once upon", config, seed=3, **options))
    assert ended.stopped == "end"
    assert ended.tokens == first.tokens[: first.tokens.index(first.tokens[4])]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_no_temperature_breaks_the_draw(temperature):
    logits = torch.tensor([-40.0, 3.0, 90.0, -torch.inf])
    token = _chosen(logits, temperature, torch.Generator().manual_seed(0))
    assert token in ((2,) if temperature < 1 else (0, 1, 2))


def test_characters_of_several_tokens_come_out_whole():
    """A byte-level vocabulary: token n is byte n."""

    class Bytes:
        eos_token_id = None

        def decode(self, tokens, **_):
            return bytes(tokens).decode("utf-8", errors="replace")

    text = TextPieces(Bytes())
    pieces = [text.add(byte) for byte in "aé€𝄞b".encode()]
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "𝄞", "b"]
    assert text.add("é".encode()[0]) == ""
    assert text.rest() == "\N{REPLACEMENT CHARACTER}"


def test_a_stream_that_is_closed_leaves_the_model_as_found(tiny_tokenizer):
    model = MODELS["llama"]()
    before = structure(model)
    source = stream(model, tiny_tokenizer, "Once upon", mixed_config(model, 1))
    next(source)
    assert torch.is_grad_enabled()  # nothing leaks to whoever reads
    assert structure(model) != before
    source.close()
    assert structure(model) == before


def test_a_comparison_says_where_the_texts_part(tiny_tokenizer):
    model = MODELS["llama"]()
    model.generation_config.eos_token_id = None
    prompt = "It was a dark and stormy night; " * 5

    def compare(config, **options):
        exact, adapted = (generated(stream(model, tiny_tokenizer, prompt, each, **options)) for each in (None, config))
        return compared(tiny_tokenizer, exact, adapted)

    same = compare(OrderConfig.uniform(describe(model, "tiny"), "exact"))
    assert not same.parted
    assert same.common_tokens == len(same.exact.tokens) == 128
    assert same.common_text == same.exact.text
    assert same.exact.nominal_bytes == same.adapted.nominal_bytes
    other = compare(mixed_config(model, 1), max_new_tokens=20)
    assert other.parted
    assert other.exact.tokens[: other.common_tokens] == other.adapted.tokens[: other.common_tokens]
    assert other.exact.tokens[other.common_tokens] != other.adapted.tokens[other.common_tokens]


def test_what_cannot_be_streamed_is_refused(tiny_tokenizer):
    model, encoder = MODELS["llama"](), TINY["bert"]()
    config = mixed_config(model, 1)
    for model_, prompt, options, match in (
        (model, "", {}, "the prompt has no tokens"),
        (model, "a", {"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        (model, "a", {"temperature": -1.0}, "temperature is -1.0, expected 0"),
        (encoder, "a", {}, "BertModel generates no text"),
    ):
        with pytest.raises(TaylorderError, match=match):
            next(stream(model_, tiny_tokenizer, prompt, config, **options))


WAYS = {
    "forward": lambda model: setattr(model, "forward", torch.compile(model.forward, backend="eager")),
    "layers": lambda model: [layer.compile(backend="eager") for layer in model.model.layers],
}


@pytest.mark.parametrize("way", ["forward", pytest.param("layers", marks=pytest.mark.slow)])
def test_a_compiled_model_runs_adapted(way):
    """Blocks of two configs, one after the other and between runs of the untouched model."""
    model = TINY["llama"]()
    ids = tokens(1, 12)
    three, one = OrderConfig.uniform(model, 3, "mean", 4, 1), OrderConfig.uniform(model, 1, "mean", 2, 1)

    def runs():
        for config in (None, three, one):
            with torch.no_grad(), nullcontext() if config is None else taylorder.adapted(model, config):
                cache = DynamicCache(config=model.config) if config is None else TaylorCache(model, config)
                yield [model(part, past_key_values=cache).logits for part in (ids[:, :11], ids[:, 11:])]

    expected = list(runs())
    torch.compiler.reset()
    WAYS[way](model)
    for found, logits in zip(runs(), expected, strict=True):
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_what_torch_compile_makes_of_a_model_is_refused_with_the_way_out():
    compiled = torch.compile(TINY["llama"](), backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"torch.compile made of a LlamaForCausalLM: pass the model itself"):
        describe(compiled)
