"""The longest context is what a model can take, whatever its config states."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf

import taylorder
from taylorder.models.describe import describe
from taylorder.models.positions import longest_context, lookups
from taylorder.models.running import run_base

_SIZES = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 32,
}  # fmt: skip
_DECODER = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
_DECODER |= {"vocab_size": tiny.VOCAB, "is_encoder_decoder": False, "is_decoder": True}


def encoder(kind, positions=66, **options):
    config = hf.AutoConfig.for_model(kind, **_SIZES, max_position_embeddings=positions, pad_token_id=1, **options)
    return hf.AutoModel.from_config(config).eval()


_BEHIND_PADDING = {
    "roberta": {}, "xlm-roberta": {}, "xlm-roberta-xl": {}, "camembert": {}, "data2vec-text": {},
    "roberta-prelayernorm": {}, "xmod": {"languages": ["en"], "default_language": "en"},
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 4},
}  # fmt: skip


def runs(model, length):
    """Whether a model takes so many tokens; the reason for which it does not is the architecture's own."""
    try:
        run_base(model, tiny.tokens(length=length))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("kind", _BEHIND_PADDING)
def test_positions_that_begin_behind_the_padding_leave_fewer_tokens(kind):
    model = encoder(kind, **_BEHIND_PADDING[kind])
    longest = describe(model).max_context
    assert longest == 64
    assert runs(model, longest)
    assert not runs(model, longest + 1)


@pytest.mark.parametrize("padding", [0, 1, 20])
def test_the_padding_may_have_any_id_even_one_of_the_probe(padding):
    config = hf.RobertaConfig(**_SIZES, max_position_embeddings=66, pad_token_id=padding)
    assert describe(hf.RobertaModel(config).eval()).max_context == 66 - padding - 1


@pytest.mark.parametrize(
    "model",
    [
        lambda: encoder("bert"), lambda: encoder("electra", embedding_size=32),
        lambda: hf.OPTForCausalLM(hf.OPTConfig(
            vocab_size=tiny.VOCAB, hidden_size=32, word_embed_proj_dim=32, ffn_dim=32, num_hidden_layers=1,
            num_attention_heads=4, max_position_embeddings=66)),
        lambda: hf.BartForCausalLM(hf.BartConfig(**_DECODER, max_position_embeddings=66)),
        lambda: hf.PegasusForCausalLM(hf.PegasusConfig(**_DECODER, max_position_embeddings=66)),
    ],
    ids=["bert", "electra", "opt", "bart", "pegasus"],
)  # fmt: skip
def test_positions_that_a_table_adds_by_itself_are_not_taken_off(model):
    """OPT's table has two rows more than it states, and the first two are never read."""
    model = model().eval()
    assert describe(model).max_context == 66
    assert runs(model, 66)
    assert not runs(model, 67)


def test_a_table_that_is_shorter_than_stated_counts():
    model = tiny.gpt2()
    model.config.n_positions = 4 * tiny.CONTEXT
    assert describe(model).max_context == tiny.CONTEXT


def test_a_context_that_is_not_stated_is_that_of_the_table():
    model = tiny.gpt2()
    model.config.n_positions = 0
    assert describe(model).max_context == tiny.CONTEXT


def test_a_vocabulary_is_no_table_of_positions():
    """The probe's token ids are consecutive, as positions are, and a model of bytes has more context than words."""
    model = tiny.llama()
    model.config.max_position_embeddings = 50 * tiny.VOCAB
    assert describe(model).max_context == 50 * tiny.VOCAB


def test_a_model_whose_attention_is_its_own_is_seen_too():
    model = encoder("mpnet")
    with lookups(model) as seen, torch.no_grad():
        before = model(tiny.tokens(length=6)).last_hidden_state
    assert torch.equal(model(tiny.tokens(length=6)).last_hidden_state, before)
    assert longest_context(model, "mpnet", seen) == 64


def test_analysing_at_the_default_length_takes_what_the_model_takes(tiny_tokenizer):
    model = encoder("roberta", positions=514)
    analysis = taylorder.analyze(model, tiny_tokenizer, max_tokens=1024, rows=2, max_order=1)
    assert analysis.calibration.sequence_length == 512
