"""Token losses against transformers' own loss and against plain float64 arithmetic."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tiny
import torch
import transformers as hf

import taylorder
from taylorder.analysis import losses
from taylorder.analysis.losses import (
    EXACT,
    has_language_model_head,
    hidden_distance,
    hidden_states,
    language_model_head,
    looks_untrained,
    token_losses,
)
from taylorder.errors import UnsupportedModelError


def capped():
    """Gemma 3 with a soft cap low enough to bend most logits."""
    model = tiny.gemma3()
    model.config.final_logit_softcapping = 1.5
    return model


def cohere():
    return tiny.build(hf.CohereForCausalLM, hf.CohereConfig(logit_scale=0.25, **tiny.decoder()))


def granite():
    return tiny.build(hf.GraniteForCausalLM, hf.GraniteConfig(logits_scaling=3.0, **tiny.decoder()))


CAUSAL = {name: factory for name, factory in tiny.TINY.items() if name not in ("bert", "modernbert")}
CAUSAL |= {"capped": capped, "cohere": cohere, "granite": granite}


def losses_of(model, ids, shifted=None):
    hidden = {EXACT: hidden_states(model, ids)}
    if shifted is not None:
        hidden["shifted"] = hidden[EXACT] + shifted
    return token_losses(language_model_head(model), ids, hidden), hidden


def shift(model, length=24):
    generator = torch.Generator().manual_seed(3)
    return 0.3 * torch.randn(length, model.config.get_text_config().hidden_size, generator=generator)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_mean_loss_is_the_models_own(name):
    model, ids = CAUSAL[name](), tiny.tokens(seed=5)[0]
    found, _ = losses_of(model, ids)
    with torch.no_grad():
        own = model(ids[None], labels=ids[None], use_cache=False).loss
    assert len(found[EXACT].nll) == len(ids) - 1
    assert found[EXACT].nll.mean(dtype=np.float64) == pytest.approx(float(own), abs=1e-5)
    assert not found[EXACT].kl.any()
    assert found[EXACT].agrees.all()


def test_a_soft_cap_that_is_ignored_would_show():
    model, ids = capped(), tiny.tokens(seed=5)[0]
    with_cap = losses_of(model, ids)[0][EXACT].nll.mean()
    model.config.final_logit_softcapping = None
    assert abs(with_cap - losses_of(model, ids)[0][EXACT].nll.mean()) > 0.1


def test_kl_and_agreement_are_those_of_plain_arithmetic():
    model, ids = tiny.llama(), tiny.tokens()[0]
    found, hidden = losses_of(model, ids, shift(model))
    weight = model.lm_head.weight.detach().double()
    p, q = (torch.softmax(hidden[name].double() @ weight.T, -1)[:-1] for name in (EXACT, "shifted"))
    kl = (p * (p / q).log()).sum(-1).numpy()
    assert kl.min() > 1e-3
    assert np.abs(found["shifted"].kl - kl).max() < 1e-5
    assert np.abs(found["shifted"].nll + q.log().gather(-1, ids[1:, None])[:, 0].numpy()).max() < 1e-5
    agrees = (p.argmax(-1) == q.argmax(-1)).numpy()
    assert 0 < agrees.sum() < len(agrees)
    assert (found["shifted"].agrees == agrees).all()


def test_kl_is_never_negative():
    model, ids = tiny.llama(), tiny.tokens()[0]
    found, _ = losses_of(model, ids, 1e-6 * shift(model))
    assert found["shifted"].kl.min() >= 0


@pytest.mark.parametrize("logits", [1, tiny.VOCAB, 5 * tiny.VOCAB])
def test_blocks_of_rows_change_nothing(monkeypatch, logits):
    model, ids = tiny.llama(), tiny.tokens()[0]
    whole, _ = losses_of(model, ids, shift(model))
    monkeypatch.setattr(losses, "_BLOCK_LOGITS", logits)
    cut, _ = losses_of(model, ids, shift(model))
    for name in whole:
        for field in ("nll", "kl", "agrees"):
            assert (
                np.abs(getattr(whole[name], field) - getattr(cut[name], field)).max() < 1e-5
            )  # float32 of values near 8


class Doubled(hf.LlamaForCausalLM):
    """Does to its logits what nobody expects."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 1.01 * output.logits
        return output


def test_unknown_treatment_of_logits_is_refused():
    model = tiny.build(Doubled, hf.LlamaConfig(**tiny.decoder()))
    with pytest.raises(UnsupportedModelError, match="Doubled does to its logits more than a linear head"):
        language_model_head(model)


def electra(width):
    """Predicts from vectors as wide as its embeddings."""
    config = hf.ElectraConfig(
        vocab_size=tiny.VOCAB, embedding_size=width, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=64, is_decoder=True,
    )  # fmt: skip
    return tiny.build(hf.ElectraForCausalLM, config)


def musicgen():
    """Has a head and a table of tokens per codebook."""
    config = hf.MusicgenDecoderConfig(
        vocab_size=tiny.VOCAB, num_codebooks=1, num_hidden_layers=1, num_attention_heads=4, hidden_size=32, ffn_dim=32,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    return tiny.build(hf.MusicgenForCausalLM, config)


@pytest.mark.parametrize("build", [partial(electra, 32), partial(electra, 16), musicgen])
def test_what_stands_between_hidden_states_and_a_head_is_refused_and_nothing_else_suffers(build, tiny_tokenizer):
    model = build()
    with pytest.raises(UnsupportedModelError, match="does to its logits more than a linear head"):
        language_model_head(model)
    analysis = taylorder.analyze(model, tiny_tokenizer, max_tokens=64, sequence_length=32, rows=2, max_order=1)
    assert analysis.calibration.nll is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_taken_for_an_unknown_treatment(dtype):
    model = capped().to(dtype)
    assert language_model_head(model)(hidden_states(model, tiny.tokens()[0])).dtype == torch.float32


def test_a_model_without_a_head_is_refused_with_the_way_out():
    model = tiny.llama().base_model
    assert not has_language_model_head(model)
    assert has_language_model_head(tiny.llama())
    with pytest.raises(UnsupportedModelError, match="LlamaModel has no language-model head.*; load the model with"):
        language_model_head(model)


def test_distance_of_hidden_states():
    exact, other = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[3.0, 4.0], [5.0, 0.0]])
    distance = hidden_distance(exact, other)
    assert distance.relative_l2 == pytest.approx(1.0)
    assert distance.cosine == pytest.approx(0.5)
    assert hidden_distance(exact, exact).relative_l2 == 0


@pytest.mark.parametrize(
    ("nll", "vocabulary", "expected"),
    [(9.71, 49152, False), (9.73, 49152, True), (10.8, 49152, True), (None, 49152, False), (9.9, None, False)],
)
def test_a_loss_within_a_tenth_of_guessing_looks_untrained(nll, vocabulary, expected):
    assert looks_untrained(nll, vocabulary) is expected
