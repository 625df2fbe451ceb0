"""What attention is given: the same masks in the untouched model and inside ``adapted``, or a named refusal."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf
from generating import padded_batch
from torch.nn.attention.flex_attention import create_block_mask

import taylorder
from taylorder.adapt import attention as runtime
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import OrderConfig
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.attention import recording
from taylorder.models.masks import key_validity, short_mask

LENGTH = 30
IDS, MASK = padded_batch(LENGTH)
IMAGES = torch.zeros_like(IDS)
IMAGES[0, 3:8] = IMAGES[0, 12:20] = IMAGES[1, 24:28] = 1
PACKED = torch.cat([torch.arange(20), torch.arange(10)]).expand(2, -1)
HOLES = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) > 0.3
HOLES |= torch.eye(LENGTH, dtype=torch.bool)
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()

CASES = {f"{name} {what}": (factory, given) for name, factory in tiny.TINY.items() for what, given in (
    ("whole", {}), ("padded", {"attention_mask": MASK}))}  # fmt: skip
CASES |= {
    "images": (tiny.gemma3_vlm, {"token_type_ids": IMAGES}),
    "images and padding": (tiny.gemma3_vlm, {"token_type_ids": IMAGES, "attention_mask": MASK}),
    "no images": (tiny.gemma3_vlm, {"token_type_ids": torch.zeros_like(IDS)}),
    "packed": (tiny.llama, {"position_ids": PACKED, "use_cache": False}),
    "packed and sliding": (tiny.gemma3, {"position_ids": PACKED, "use_cache": False}),
    "packed beside a cache": (tiny.llama, {"position_ids": PACKED}),
    "holes": (tiny.llama, {"attention_mask": HOLES}),
    "added": (tiny.llama, {"attention_mask": torch.where(HOLES, 0.0, -1.5)}),
}


@pytest.fixture
def given(monkeypatch):
    """What SDPA is given from now on: masks, and whether it is to be causal."""
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, is_causal=False, **options):
        calls.append((attn_mask, bool(is_causal), query.shape, key.shape))
        return attend(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return calls


def same(one, other):
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def assert_same_calls(found, expected):
    assert len(found) == len(expected)
    assert len(found) > 0
    for (mask, *rest), (other, *others) in zip(found, expected, strict=True):
        assert rest == others
        assert same(mask, other)


@pytest.mark.parametrize("case", CASES)
def test_exact_heads_see_what_the_models_own_mask_admits(case, given):
    factory, inputs = CASES[case]
    model = factory()
    config = OrderConfig.uniform(model, "exact")
    with torch.no_grad():
        given.clear()
        expected = model(IDS, **inputs)[0]
        untouched = list(given)
        with taylorder.adapted(model, config):
            given.clear()
            found = model(IDS, **inputs)[0]
    assert_same_calls(given, untouched)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("factory", "inputs"),
    [
        (tiny.llama, {"attention_mask": MASK}),
        (tiny.pythia, {"attention_mask": MASK}),
        (tiny.gemma3_vlm, {"attention_mask": MASK, "token_type_ids": IMAGES}),
    ],
    ids=["llama", "pythia", "images"],
)
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 9}], ids=["whole", "in chunks"])
def test_generate_gives_attention_the_same_masks(factory, inputs, options, given):
    if options and "token_type_ids" in inputs:
        inputs = {"attention_mask": MASK}  # transformers does not cut token types into chunks
    model = factory()
    config = OrderConfig.uniform(model, "exact")
    with torch.no_grad():
        given.clear()
        expected = model.generate(IDS, **inputs, **GREEDY, **options)
        untouched = list(given)
        with taylorder.adapted(model, config):
            given.clear()
            found = model.generate(IDS, **inputs, **GREEDY, **options)
    assert_same_calls(given, untouched)
    assert torch.equal(found, expected)


def seeing(start=3):
    """Two rows with an image in each."""
    ids = IDS.where(IDS != tiny.IMAGE, 8)
    ids[:, start : start + 4] = tiny.IMAGE
    return ids, {"pixel_values": torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("factory", [tiny.gemma3_vlm, tiny.llava])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_what_sees_an_image_goes_on_with_its_own_attention(factory, mask):
    model = factory()
    ids, pixels = seeing(start=12)
    inputs = {"input_ids": ids, "attention_mask": mask, **pixels}
    with torch.no_grad():
        expected, text = model(**inputs).logits, model(ids, attention_mask=mask).logits
        generated = model.generate(**inputs, **GREEDY)
        with taylorder.adapted(model, OrderConfig.uniform(model, "exact")):
            assert torch.equal(model(**inputs).logits, expected)
            assert torch.equal(model.generate(**inputs, **GREEDY), generated)
        assert torch.equal(model(**inputs).logits, expected)
    assert not torch.equal(expected, text)


def test_truncated_heads_take_images_whose_mask_is_plain():
    model = tiny.llava()
    ids, pixels = seeing()
    near, far = (OrderConfig.uniform(model, 2, "mean", window, 1) for window in (LENGTH + 8, 4))
    with torch.no_grad():
        expected = model(ids, **pixels).logits
        with taylorder.adapted(model, near):
            torch.testing.assert_close(model(ids, **pixels).logits, expected, rtol=1e-4, atol=1e-4)
        with taylorder.adapted(model, far):
            assert not torch.allclose(model(ids, **pixels).logits, expected, atol=1e-2)
            cached, whole = (model.generate(ids, **pixels, **GREEDY, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)


def test_positions_of_images_are_not_taken_for_packed_sequences():
    """Time, height and width: an image's tokens share some of them. A fourth row in front is the text's."""
    image = torch.tensor([0, 1, 2, 2, 2, 2, 4, 5]).expand(3, 1, -1)
    text, packed = torch.arange(8).expand(1, 1, -1), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]).expand(1, 1, -1)
    runtime.refuse_packed("model", None, {"position_ids": image})
    runtime.refuse_packed("model", None, {"position_ids": torch.cat([text, image])})
    with pytest.raises(UsageError, match=r"position_ids that do not count up by one \(packed sequences\?\)"):
        runtime.refuse_packed("model", None, {"position_ids": torch.cat([packed, image])})


def test_a_mask_that_knows_fewer_tokens_than_there_are_keys_is_refused():
    """MiniMax' own cache begins with a recurrence, so that transformers takes it for empty."""
    model = tiny.minimax()
    with taylorder.adapted(model, OrderConfig.uniform(model, 2, "mean", 4, 1)):
        model.generate(IDS[:1], **GREEDY)
        model.generate(IDS, attention_mask=MASK, use_cache=False, **GREEDY)
        with pytest.raises(
            UsageError, match=r"has 31 keys and is given a mask for 1, .*: run rows without padding, or"
        ):
            model.generate(IDS, attention_mask=MASK, **GREEDY)


def test_truncated_heads_refuse_images_by_name_and_run_text_with_token_types():
    model = tiny.gemma3_vlm()
    config = OrderConfig.uniform(model, 2, "mean", 4, 1)
    words = (
        r"^model\.language_model\.layers\.1\.self_attn was given a mask that lets token 3 see token 4, which comes "
        "later, and its truncated heads honour padding only .*: make all heads of this layer exact, or run text alone"
    )
    with torch.no_grad(), taylorder.adapted(model, config):
        text = model(IDS, attention_mask=MASK).logits
        typed = model(IDS, attention_mask=MASK, token_type_ids=torch.zeros_like(IDS)).logits
        assert torch.equal(text[MASK.bool()], typed[MASK.bool()])
        with pytest.raises(UsageError, match=words):
            model(IDS, attention_mask=MASK, token_type_ids=IMAGES)
        cache = TaylorCache(model, config)
        with pytest.raises(UsageError, match=words):
            model(IDS, token_type_ids=IMAGES, past_key_values=cache)
        with pytest.raises(taylorder.errors.TaylorderError, match="half-way through a forward pass that failed"):
            model(IDS, past_key_values=cache)
        with pytest.raises(UsageError, match=words):
            model.generate(IDS, token_type_ids=IMAGES, max_new_tokens=2)
        generated = model.generate(
            IDS, attention_mask=MASK, token_type_ids=torch.zeros_like(IDS), max_new_tokens=4, do_sample=False
        )
        assert torch.equal(generated, model.generate(IDS, attention_mask=MASK, max_new_tokens=4, do_sample=False))


def test_images_are_refused_by_the_first_layer_with_truncated_heads():
    """Layer 1 is exact and follows the images; layer 3 is not."""
    model = tiny.gemma3_vlm()
    truncated, exact = OrderConfig.uniform(model, 2, "mean", 4, 1), OrderConfig.uniform(model, "exact")
    mixed = OrderConfig(model=exact.model, layers=(*exact.layers[:3], truncated.layers[3]))
    with torch.no_grad(), taylorder.adapted(model, mixed), pytest.raises(UsageError, match=r"layers\.3\.self_attn"):
        model(IDS, token_type_ids=IMAGES)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"position_ids": PACKED, "use_cache": False}, r"hides from token 20 token 0, .* one sequence a row"),
        ({"position_ids": PACKED}, "position_ids that do not count up by one"),
        ({"attention_mask": HOLES}, r"lets token 0 see token 1, which comes later"),
        ({"attention_mask": HOLES & CAUSAL}, r"hides from token \d+ token \d+"),
        ({"attention_mask": torch.full((1, 1, LENGTH, LENGTH), -1.5)}, r"is of float32 \(1, 1, 30, 30\)"),
    ],
    ids=["packed", "packed beside a cache", "holes", "causal holes", "float"],
)
def test_truncated_heads_refuse_other_masks(inputs, words):
    model = tiny.llama()
    config = OrderConfig.uniform(model, 3, "mean")
    with torch.no_grad(), taylorder.adapted(model, config), pytest.raises(UsageError, match=words):
        model(IDS, **inputs)


@pytest.mark.parametrize("order", ["exact", 3])
def test_a_mask_of_flex_attention_is_refused_by_name(order):
    """SDPA takes none either."""
    block = create_block_mask(lambda _b, _h, query, key: query >= key, 2, None, LENGTH, LENGTH, device="cpu")
    model = tiny.llama()
    config = OrderConfig.uniform(model, order)
    words = "is given a BlockMask, where a tensor or None is expected: pass the usual"
    with taylorder.adapted(model, config), pytest.raises(UsageError, match="^LlamaForCausalLM " + words):
        model(IDS, attention_mask=block)
    with taylorder.adapted(model, config), pytest.raises(UsageError, match="self_attn " + words):
        model.model.layers[0](
            model.model.embed_tokens(IDS), attention_mask=block,
            position_embeddings=(torch.ones(1, LENGTH, 8), torch.zeros(1, LENGTH, 8)),
        )  # fmt: skip


def test_a_ready_made_mask_that_is_plain_is_as_good_as_the_usual_one():
    model = tiny.llama()
    config = OrderConfig.uniform(model, 3, "mean", 4, 1)
    ready = CAUSAL & MASK[:, None, None].bool()
    with torch.no_grad(), taylorder.adapted(model, config):
        expected = model(IDS, attention_mask=MASK).logits[MASK.bool()]
        assert torch.equal(model(IDS, attention_mask=ready).logits[MASK.bool()], expected)
        cache = TaylorCache(model, config)
        parts = [
            model(IDS[:, a:b], attention_mask=ready[:, :, a:b, :b], past_key_values=cache).logits
            for a, b in ((0, 25), (25, 29), (29, 30))
        ]
    torch.testing.assert_close(torch.cat(parts, 1)[MASK.bool()], expected, rtol=1e-4, atol=1e-4)


def test_measuring_refuses_masks_that_it_would_not_measure():
    model = tiny.gemma3_vlm()
    words = r"layers\.0\.self_attn \(Gemma3Attention\) .*is_causal = True.* given a mask that looks ahead, where only"
    with recording(model, lambda call: None), torch.no_grad():
        model(IDS, attention_mask=MASK)
        with pytest.raises(UnsupportedModelError, match=words):
            model(IDS, token_type_ids=IMAGES)
    llama = tiny.llama()
    with (
        recording(llama, lambda call: None),
        pytest.raises(UnsupportedModelError, match=r"layers\.0.*a mask that hides from token 20 token 0"),
    ):
        llama(IDS, position_ids=PACKED, use_cache=False)


def test_plain_masks_stay_small():
    """What truncated heads are given has no size tokens x tokens, in either direction."""
    sizes = {"batch_size": 2, "q_length": 5000, "kv_length": 5000}
    valid = torch.ones(2, 5000, dtype=torch.bool)
    assert short_mask(**sizes) is None
    assert short_mask(**sizes, attention_mask=valid) is None
    valid[1, :7] = False
    assert torch.equal(short_mask(**sizes, attention_mask=valid), valid)
    both = short_mask(
        **sizes, attention_mask=valid, allow_is_causal_skip=False,
        mask_function=hf.masking_utils.bidirectional_mask_function,
    )  # fmt: skip
    assert both.shape == (2, 1, 5000, 5000)
    assert both.untyped_storage().nbytes() <= valid.nbytes
    assert torch.equal(key_validity(both, 5000, causal=False), valid)
