"""``analyze`` on many architectures: every figure of ``heads.csv`` from the model and the text alone."""

from __future__ import annotations

import re

import numpy as np
import plain
import pytest
import torch
from tiny import CONTEXT, TINY, VOCAB, beginning_with
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from taylorder.analysis.analyze import analyze
from taylorder.analysis.capture import run_layers
from taylorder.analysis.text import Text, calibration_text, query_rows
from taylorder.analysis.tokens import tokenise
from taylorder.analysis.truncation import key_centres
from taylorder.errors import NonFiniteError, UsageError

TEXT = Text("a poem", "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 2)
SETTINGS = dict(text=TEXT, max_tokens=64, sequence_length=32, rows=6, max_order=5, seed=3)


def captured(model, input_ids):
    """q, k, v, mask and scaling of every module by an attention function of the test's own."""
    names = {module: name for name, module in model.named_modules()}
    calls = {}

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        calls[names[module]] = (
            query,
            key,
            value,
            attention_mask,
            query.shape[-1] ** -0.5 if scaling is None else scaling,
        )
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    AttentionInterface.register("test_capture", attend)
    AttentionMaskInterface.register("test_capture", sdpa_mask)
    previous = model.config._attn_implementation
    model.set_attn_implementation("test_capture")
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        model.set_attn_implementation(previous)
    return calls


DECODERS = ["gpt2", "llama", "qwen3", "pythia", "opt", "gemma3", "phi3"]


@pytest.mark.parametrize(
    "name, window, sinks", [(name, *near) for name in DECODERS for near in ((0, 0), (5, 2))] + [("bert", 0, 0)]
)
def test_heads_equal_the_plain_loop(name, window, sinks, tiny_tokenizer):
    model = TINY[name]()
    analysis = analyze(model, tiny_tokenizer, window=window, sinks=sinks, **SETTINGS)
    ids = torch.tensor(tiny_tokenizer(TEXT.content, add_special_tokens=False).input_ids[:64]).view(2, 32)
    generator = np.random.default_rng(3)
    rows = [np.sort(generator.choice(32, size=6, replace=False)).tolist() for _ in range(2)]
    assert [list(r) for r in analysis.calibration.query_rows] == rows
    found = {(r.module, r.head, r.order, r.expansion): r for r in analysis.candidates}
    calls = captured(model, ids)
    assert [m.name for m in analysis.model.modules] == list(calls)
    for module, (q, k, v, mask, scaling) in calls.items():
        B, H, T, _ = q.shape
        q, k, v = (t.double().numpy() for t in (q, k, v))
        group = H // k.shape[1]

        def attends(b, i, mask=mask, T=T):
            if mask is not None:
                return np.flatnonzero(mask.expand(B, 1, T, T)[b, 0, i].numpy()).tolist()  # noqa: B023
            return list(range(T if name == "bert" else i + 1))

        for head in range(0, H, 3):
            kv = head // group
            centre = k[:, kv].mean((0, 1))
            for expansion in ("zero", "centre", "mean"):
                for order in (1, 2, 3, 5):
                    expected = plain.head_errors(
                        q[:, head], k[:, kv], v[:, kv], centre, rows, attends, scaling, order, expansion, window, sinks
                    )
                    row = found[module, head, order, expansion]
                    assert (row.kv_head, row.window, row.sinks) == (kv, window, sinks)
                    assert {figure: getattr(row, figure) for figure in expected} == pytest.approx(expected, 1e-6, 1e-9)


def test_the_model_is_left_as_it_was(tiny_tokenizer):
    model = TINY["llama"]()
    ids = torch.arange(20)[None] + 5
    before = model(ids).logits
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    analyze(model, tiny_tokenizer, **SETTINGS)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes


def test_same_seed_same_numbers_other_seed_other_rows(tiny_tokenizer):
    model = TINY["llama"]()
    first = analyze(model, tiny_tokenizer, **SETTINGS)
    assert analyze(model, tiny_tokenizer, **SETTINGS).candidates == first.candidates
    other = analyze(model, tiny_tokenizer, **{**SETTINGS, "seed": 4})
    assert other.calibration.query_rows != first.calibration.query_rows


def test_the_preview_is_what_a_run_with_that_near_field_measures(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("taylorder.analysis.analyze.PREVIEW_WINDOW", 6)
    monkeypatch.setattr("taylorder.analysis.analyze.SINKS", 2)
    model = TINY["llama"]()
    preview = analyze(model, tiny_tokenizer, **SETTINGS).preview
    real = analyze(model, tiny_tokenizer, window=6, sinks=2, **SETTINGS)
    assert real.preview is None
    measured = {
        (row.module, row.head, row.order): row.relative_l2 for row in real.candidates if row.expansion == "mean"
    }
    for module, heads in preview.relative_l2.items():
        for head, errors in enumerate(heads):
            assert errors == pytest.approx([measured[module, head, order] for order in preview.orders], rel=1e-12)


def test_padded_rows_measure_like_the_row_alone(tiny_tokenizer):
    """Left padding reaches the measurement as a mask, and leaves no trace in a centre.

    OPT counts positions from the mask, so that a padded row is the row alone in every layer.
    """
    model = TINY["opt"]()
    ids = torch.tensor(tiny_tokenizer(TEXT.content, add_special_tokens=False).input_ids[:20])[None]
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(1, 7, dtype=torch.int64), torch.ones(1, 20, dtype=torch.int64)], 1)
    alone, beside, valid = {}, {}, {}
    run_layers(model, ids, lambda name, layer: alone.__setitem__(name, key_centres(layer)))

    def note(name, layer):
        beside[name] = key_centres(layer)
        valid[name] = layer.valid.tolist()

    run_layers(model, padded, note, attention_mask=mask)
    assert list(valid.values()) == [[[False] * 7 + [True] * 20]] * 2
    for name, centre in alone.items():
        torch.testing.assert_close(beside[name], centre, rtol=1e-4, atol=1e-5)


def test_encoders_have_no_near_field(tiny_tokenizer):
    with pytest.raises(UsageError, match="has no near field; found window 5 and sinks 0"):
        analyze(TINY["bert"](), tiny_tokenizer, window=5, **SETTINGS)


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"max_order": 9}, "max_order is 9, expected 1 to 8"),
        ({"max_order": 0}, "max_order is 0, expected 1 to 8"),
        ({"window": -1}, "window is -1, expected at least 0"),
        ({"sinks": -2}, "sinks is -2, expected at least 0"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"rows": 0}, "rows is 0, expected at least 1"),
        ({"sequence_length": 1}, "sequence length is 1, expected at least 2"),
        ({"max_tokens": 31}, "gives 172 tokens, of which at most 31 are used: fewer than one sequence of 32"),
    ],
)
def test_settings_out_of_range_are_refused(setting, words, tiny_tokenizer):
    with pytest.raises(UsageError, match=re.escape(words)):
        analyze(TINY["llama"](), tiny_tokenizer, **{**SETTINGS, **setting})


def test_a_model_that_overflows_is_named(tiny_tokenizer):
    model = TINY["llama"]()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3] = 3e38
    with pytest.raises(NonFiniteError, match=r"the keys of model\.layers\.1\.self_attn hold NaN or infinite values"):
        analyze(model, tiny_tokenizer, **SETTINGS)
    assert model.config._attn_implementation == "sdpa"


def test_longer_sequences_than_the_model_has_positions_are_cut_to_it(tiny_tokenizer):
    analysis = analyze(TINY["gpt2"](), tiny_tokenizer, **{**SETTINGS, "sequence_length": 1024, "max_tokens": 128})
    assert (analysis.calibration.sequence_length, analysis.calibration.sequences) == (CONTEXT, 2)


def test_per_head_alphas_on_request(tiny_tokenizer):
    model = TINY["llama"]()
    plain_run = analyze(model, tiny_tokenizer, **SETTINGS)
    assert {(row.projection, row.head) for row in plain_run.spectral} == {(p, None) for p in "qkvo"}
    per_head = analyze(model, tiny_tokenizer, per_head_alpha=True, **SETTINGS)
    assert {row.head for row in per_head.spectral if row.projection == "q"} == {None, 0, 1, 2, 3}
    assert {row.head for row in per_head.spectral if row.projection == "k"} == {None, 0, 1}


def test_default_text_and_rows_are_the_documented_ones():
    from pydoc_data import topics

    assert calibration_text().content == "\n".join(topics.topics.values())
    assert [r.tolist() for r in query_rows(1, 5, None, 0)] == [[0, 1, 2, 3, 4]]


def test_text_files_are_joined_by_a_newline(tmp_path, tiny_tokenizer):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second")
    text = calibration_text([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert text.content == "first\nsecond"
    assert tokenise(tiny_tokenizer, text).first(6, 100).shape == (2, 6)
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        calibration_text([tmp_path / "c.txt"])
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        calibration_text([tmp_path / "d.txt"])


@pytest.mark.builtin
def test_the_built_in_model_reproduces_from_model_and_text_alone(builtin):
    """One sequence, all layers: the plain loop agrees to 1e-6 on the real model, where scores are wide."""
    analysis = analyze(builtin.model, builtin.tokenizer, max_tokens=256, sequence_length=256, rows=3)
    text = calibration_text().content
    ids = torch.tensor(builtin.tokenizer(text, add_special_tokens=False).input_ids[:256])[None]
    (rows,) = analysis.calibration.query_rows
    found = {(r.module, r.head, r.order, r.expansion): r for r in analysis.candidates}
    for module, (q, k, v, mask, scaling) in list(captured(builtin.model, ids).items())[::7]:
        assert mask is None
        q, k, v = (t.double().numpy() for t in (q, k, v))
        for head in (0, 5):
            kv = head // 3
            for expansion in ("zero", "centre", "mean"):
                for order in (1, 3, 4, 8):
                    expected = plain.head_errors(
                        q[:, head], k[:, kv], v[:, kv], k[:, kv].mean((0, 1)), [rows],
                        lambda b, i: list(range(i + 1)), scaling, order, expansion,
                    )  # fmt: skip
                    row = found[module, head, order, expansion]
                    assert {figure: getattr(row, figure) for figure in expected} == pytest.approx(expected, 1e-6, 1e-9)


@pytest.mark.parametrize(("window", "sinks", "far_rows"), [(0, 0, 64), (0, 1, 62), (5, 2, 50), (16, 0, 32), (30, 1, 2)])
def test_the_rows_with_far_keys_are_counted(window, sinks, far_rows, tiny_tokenizer):
    settings = {**SETTINGS, "rows": None}
    calibration = analyze(TINY["llama"](), tiny_tokenizer, window=window, sinks=sinks, **settings).calibration
    assert (calibration.far_rows, calibration.rows) == (far_rows, 64)


@pytest.mark.parametrize(("window", "sinks"), [(32, 0), (0, 32), (28, 4), (1024, 4), (10**30, 0)])
def test_a_near_field_that_leaves_nothing_far_is_refused(window, sinks, tiny_tokenizer):
    with pytest.raises(UsageError, match=r"leave none of the 12 measured query rows a far key in sequences of 32"):
        analyze(TINY["llama"](), tiny_tokenizer, window=window, sinks=sinks, **SETTINGS)


def test_no_preview_is_given_where_its_near_field_holds_most_rows(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("taylorder.analysis.analyze.PREVIEW_WINDOW", 24)
    assert analyze(TINY["llama"](), tiny_tokenizer, **SETTINGS).preview is None


def test_every_sequence_begins_with_bos_where_the_tokenizer_says_so(tiny_tokenizer):
    model, begun = TINY["llama"](), beginning_with(tiny_tokenizer, "<s>")
    analysis = analyze(model, begun, **SETTINGS)
    assert (analysis.calibration.bos, analyze(model, tiny_tokenizer, **SETTINGS).calibration.bos) == (1, None)
    ids = torch.tensor(tiny_tokenizer(TEXT.content, add_special_tokens=False).input_ids[:64]).view(2, 32)
    ids[:, 0] = 1
    centres = {}
    run_layers(model, ids, lambda name, layer: centres.__setitem__(name, key_centres(layer).float()))
    for name, centre in analysis.key_centres.items():
        assert torch.equal(centre, centres[name])


def test_ids_without_an_embedding_are_refused_before_anything_is_measured(tiny_tokenizer):
    model = TINY["llama"](vocab_size=40)
    stages = []
    with pytest.raises(UsageError, match=r"token id 98, the model 40 embeddings .* the tokenizer is another model's"):
        analyze(model, tiny_tokenizer, progress=lambda *stage: stages.append(stage), **SETTINGS)
    assert stages == []


def test_the_loss_of_the_model_tells_whether_it_was_trained(tiny_tokenizer):
    calibration = analyze(TINY["llama"](), tiny_tokenizer, **SETTINGS).calibration
    ids = torch.tensor(tiny_tokenizer(TEXT.content, add_special_tokens=False).input_ids[:32])[None]
    with torch.no_grad():
        logits = TINY["llama"]()(ids).logits[0, :-1].double()
    assert calibration.nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])), rel=1e-5)
    assert calibration.vocabulary == VOCAB
    assert analyze(TINY["bert"](), tiny_tokenizer, **SETTINGS).calibration.nll is None


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.o_proj.weight", "lm_head.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_weight_is_named_before_anything_is_measured(tiny_tokenizer, monkeypatch, name, value):
    model = TINY["llama"]()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[5] = value
    monkeypatch.setattr("taylorder.analysis.analyze._spectra", lambda *_: pytest.fail("measured"))
    with pytest.raises(NonFiniteError, match=f"^tiny has 1 NaN or infinite of .* values in the weight {name}: .*fetch"):
        analyze(model, tiny_tokenizer, name="tiny")


def test_what_stands_for_a_token_that_never_occurs_may_be_anything(tiny_tokenizer):
    model = TINY["llama"]()
    with torch.no_grad():
        model.model.embed_tokens.weight[127] = torch.nan
    analyze(model, tiny_tokenizer, max_tokens=64, sequence_length=32, rows=2, max_order=1)
