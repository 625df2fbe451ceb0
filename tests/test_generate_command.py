"""``taylorder generate``: text on stdout, figures on stderr, and what is refused; what ``eval`` generates."""

import re
import statistics
from dataclasses import replace

import pytest
import tiny
import torch
from evaluations import REPORTS
from generating import MODELS, generated, structure
from mixed_orders import mixed_config

import taylorder
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.continuation import Generated
from taylorder.adapt.cost import config_bytes
from taylorder.adapt.generate import GeneratedPair, stream
from taylorder.adapt.left_out import LeftOut, left_out
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.errors import NonFiniteError
from taylorder.evaluation.continuations import Continuations, _repetition, drawn
from taylorder.kernels.spec import Dropped, Exact, Taylor
from taylorder.models.describe import describe
from taylorder.reports import evaluation, generation
from taylorder.reports import evaluation_words as words
from taylorder.reports.evaluation import as_document
from taylorder.reports.render import plain_text

PROMPT = "It was a dark and stormy night; "
SPEED = r"\d+ tokens?, [\d.e+]+ tokens per second, the first after [\d.e+-]+ s; cache [\d.]+ KiB held, "


@pytest.fixture
def model(loads, tiny_tokenizer):
    """`load` gives a tiny random Llama with room for 64 tokens."""
    made = MODELS["llama"]()
    made.loaded = loads(made, tiny_tokenizer)
    return made


def test_text_goes_to_stdout_and_figures_to_stderr(run, model, orders, tiny_tokenizer):
    path = orders(2, expansion="mean", window=4, sinks=1)
    before = structure(model)
    code, out, err = run("generate", PROMPT, "--config", path, "--model", "some/model", "--max-new-tokens", 12)
    assert code == 0, err
    assert model.loaded == ["some/model"]
    expected = generated(stream(model, tiny_tokenizer, PROMPT, OrderConfig.load(path), max_new_tokens=12))
    assert out == expected.text + "\n"
    plain = generated(stream(model, tiny_tokenizer, PROMPT, None, max_new_tokens=12))
    first, last = err.splitlines()
    assert first == "loading some/model"
    assert re.match(f"adapted: {SPEED}", last)
    would = generation.size(plain.nominal_bytes)
    assert f"{generation.size(expected.nominal_bytes)} nominal (exact: {would} nominal)" in last
    assert structure(model) == before


def test_pieces_are_written_as_they_come(run, model, orders, monkeypatch):
    """What has been made is out, on a line of its own, when a later token fails."""

    def failing(*_, **__):
        yield "Once"
        yield " upon"
        raise NonFiniteError("the scores overflow")

    monkeypatch.setattr("taylorder.adapt.generate.stream", failing)
    code, out, err = run("generate", PROMPT, "--config", orders(2), "--max-new-tokens", 12)
    assert (code, out) == (1, "Once upon\n")
    assert err.splitlines()[-1] == "error: the scores overflow"


def test_an_interrupted_text_is_130_and_keeps_what_was_made(run, model, orders, monkeypatch):
    def interrupted(*_, **__):
        yield "Once"
        raise KeyboardInterrupt

    monkeypatch.setattr("taylorder.adapt.generate.stream", interrupted)
    code, out, err = run("generate", PROMPT, "--config", orders(2), "--max-new-tokens", 12)
    assert (code, out) == (130, "Once\n")
    assert err.splitlines()[-1] == "error: interrupted"


def test_compare_shows_both_texts_and_where_they_part(run, model, orders):
    path = orders(1)
    code, out, err = run("generate", PROMPT, "--config", path, "--compare", "--max-new-tokens", 20)
    assert code == 0, err
    assert out.startswith("adapted:\n")
    assert "\n\nexact:\n" in out
    assert re.search(
        r"\n\nThe texts part after \d+ tokens?.*: exact goes on '.*', adapted '.*'\. "
        r"4 of 4 KV heads had left out tokens after 51 tokens, prompt included: 4 had a polynomial for some\.\n$",
        out,
    )
    *_, titles, more, _, adapted, exact = err.splitlines()
    assert titles.split() == ["tokens", "first", "cache"]
    assert more.split() == ["tokens", "per", "second", "after,", "s", "cache", "held", "nominal"]
    for line, name in ((adapted, "adapted"), (exact, "exact")):
        assert re.match(rf" *{name} +20 +[\d.e+]+ +[\d.e+-]+ +[\d.]+ KiB +[\d.]+ (KiB|B)$", line)


def test_compare_with_every_head_exact_finds_no_difference(run, model, orders):
    code, out, err = run("generate", PROMPT, "--config", orders("exact"), "--compare", "--max-new-tokens", 9)
    assert code == 0, err
    assert out.endswith(
        "\nThe texts are the same: 9 tokens. The config keeps every KV head exact, so that both are the same "
        "computation.\n"
    )
    adapted, exact = out.split("\n\nThe texts")[0].removeprefix("adapted:\n").split("\n\nexact:\n")
    assert adapted == exact


def test_compare_says_where_the_config_was_not_put_to_the_test(run, model, orders):
    """32 tokens of the prompt and 8 steps fill a near field of 40, and one of 39 leaves a token out."""
    for window, said in (
        (36, "No KV head of 4 had left out any token after 40 tokens, prompt included: the config was not put to the "
             "test, and a text of 41 tokens or more does that.\n"),
        (35, "4 of 4 KV heads had left out tokens after 40 tokens, prompt included: 4 had a polynomial for some.\n"),
    ):  # fmt: skip
        path = orders(2, expansion="mean", window=window, sinks=4)
        code, out, err = run("generate", PROMPT, "--config", path, "--compare", "--max-new-tokens", 9)
        assert code == 0, err
        assert out.endswith(said)


def test_what_was_left_out_is_counted_by_kv_head():
    model = MODELS["gemma3"]()
    description = describe(model, "tiny")
    kv_heads = sum(module.kv_heads for module in description.modules)
    config = OrderConfig.uniform(description, "exact")
    assert left_out(config, description, 99) == LeftOut(99, kv_heads, 0, 0, None)
    config = mixed_config(model, 1)
    specs = [
        group[0].spec
        for layer, module in zip(config.layers, description.modules, strict=True)
        for group in module.groups(layer.heads)
    ]
    assert any(isinstance(spec.far, Taylor) for spec in specs)
    for tokens in (1, 5, 12, 64):
        beyond = [spec for spec in specs if not isinstance(spec.far, Exact) and tokens > spec.near.tokens]
        found = left_out(config, description, tokens)
        assert found.dropping == sum(isinstance(spec.far, Dropped) for spec in beyond)
        assert found.approximating == sum(isinstance(spec.far, Taylor) for spec in beyond)
        assert found.nothing == (tokens < found.first)


def test_a_prompt_comes_from_a_file_as_it_is(run, model, orders, tmp_path):
    path, file = orders(2), tmp_path / "prompt.txt"
    file.write_text(f"{PROMPT}\n", encoding="utf-8")
    options = ("--config", path, "--max-new-tokens", 8)
    code, out, err = run("generate", "--prompt-file", file, *options)
    assert code == 0, err
    assert out == run("generate", f"{PROMPT}\n", *options)[1]
    file.write_bytes(b"\xff\xfe")
    for arguments, message in (
        (("--prompt-file", file), f"--prompt-file {file} is no UTF-8 text; convert it"),
        (("--prompt-file", tmp_path / "none"), f"--prompt-file {tmp_path}/none cannot be read (No such file"),
        (("x", "--prompt-file", file), "there is both PROMPT and --prompt-file; give one of them, or -"),
        ((), "there is neither PROMPT nor --prompt-file; give one of them, or -"),
    ):
        code, out, err = run("generate", *arguments, *options)
        assert (code, out) == (2, "")
        assert f"error: {message}" in err


def test_sampling_is_seeded(run, model, orders):
    def text(seed):
        options = ("--max-new-tokens", 20, "--temperature", 1.5, "--seed", seed)
        return run("generate", PROMPT, "--config", path, *options)[1]

    path = orders(2)
    assert text(3) == text(3) != text(4)


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("x" * 64, [], "error: the prompt has 64 tokens, but the model sees 64 at most; shorten it"),
        (
            "x" * 60,
            ["--max-new-tokens", "5"],
            "error: --max-new-tokens is 5, with 60 of the prompt 65, but the model sees 64 at most; ask for 4 or fewer",
        ),
        ("", ["--max-new-tokens", "5"], "error: the prompt has no tokens; write at least one word"),
        ("x", ["--max-new-tokens", "0"], "error: invalid value for '--max-new-tokens'"),
        ("x", ["--temperature", "-1"], "error: --temperature is -1.0, expected 0"),
        ("x", ["--temperature", "nan"], "error: --temperature is nan, expected 0"),
    ],
)
def test_what_cannot_be_generated_is_refused(run, model, orders, prompt, arguments, message):
    code, out, err = run("generate", prompt, "--config", orders(2), *arguments)
    assert code == 2
    assert message in err
    assert out == ""


def test_a_prompt_may_fill_the_context(run, model, orders):
    code, out, err = run("generate", "x" * 60, "--config", orders(2), "--max-new-tokens", 4)
    assert code == 0, err
    assert out.endswith("\n")


def test_configs_that_are_missing_or_of_other_models_are_refused(run, model, loads, tmp_path, tiny_tokenizer):
    code, out, err = run("generate", "x", "--config", tmp_path / "none.json")
    assert (code, out) == (2, "")
    assert "none.json does not exist" in err
    assert model.loaded == []
    OrderConfig.uniform(describe(tiny.qwen3(), "other"), 2).save(tmp_path / "other.json")
    code, out, err = run("generate", "x", "--config", tmp_path / "other.json")
    assert (code, out) == (1, "")
    assert "the config was made for" in err
    bert = tiny.bert()
    OrderConfig.uniform(describe(bert, "bert"), 2).save(tmp_path / "bert.json")
    loads(bert, tiny_tokenizer, name="bert")
    code, out, err = run("generate", "x", "--config", tmp_path / "bert.json")
    assert (code, out) == (3, "")
    assert "error: BertModel generates no text" in err


def continuation(text, **changes):
    made = {
        "text": text, "tokens": tuple(map(ord, text)), "prompt_tokens": 3, "stopped": "length", "prompt_seconds": 0.5,
        "seconds": 2.0, "steps": 4, "cache_bytes": 2048, "nominal_bytes": 1024, "guarded_rows": 0,
    }  # fmt: skip
    return Generated(**made | changes)


def test_the_words():
    assert generation.figures("adapted", continuation("abcde", guarded_rows=2), 4096) == (
        "adapted: 5 tokens, 2 tokens per second, the first after 0.5 s; cache 2 KiB held, 1 KiB nominal (exact: "
        "4 KiB nominal); 2 rows fell back to order 1"
    )
    assert generation.figures("exact", continuation("a", steps=0, seconds=0.0)) == (
        "exact: 1 token, the first after 0.5 s; cache 2 KiB held, 1 KiB nominal"
    )
    one, other = continuation("abc\nd"), continuation("abc\nxyz")
    assert generation.parting(GeneratedPair(one, other, 4, "abc\n")) == (
        "The texts part after 4 tokens ...'abc\\n': exact goes on 'd', adapted 'xyz'."
    )
    assert generation.parting(GeneratedPair(continuation("ab"), continuation("abc"), 2, "ab")) == (
        "The texts part after 2 tokens ...'ab': exact goes on no further, adapted 'c'."
    )
    split = GeneratedPair(continuation("aé"), continuation("aè"), 2, "a\N{REPLACEMENT CHARACTER}")
    assert generation.parting(split) == "The texts part after 2 tokens ...'a': exact goes on 'é', adapted 'è'."


def test_the_table_of_a_comparison_names_the_guard_where_it_was_needed():
    pair = GeneratedPair(continuation("ab", steps=0), continuation("abc", guarded_rows=2), 2, "ab")
    adapted, exact = generation.beside(pair).splitlines()[-2:]
    assert adapted.split() == ["adapted", "3", "2", "0.5", "2", "KiB", "1", "KiB", "2"]
    assert exact.split() == ["exact", "2", "-", "0.5", "2", "KiB", "1", "KiB", "0"]
    assert generation.what_was_left_out(LeftOut(600, 90, 60, 7, 65)) == (
        "67 of 90 KV heads had left out tokens after 600 tokens, prompt included: 60 had dropped some, 7 had a "
        "polynomial for some."
    )


def test_eval_continues_prompts_greedily(model, tiny_tokenizer):
    text = Text("a night", PROMPT * 40)
    config = mixed_config(model, 1)
    description = describe(model, "tiny")

    def measured(config):
        options = {"text": text, "lengths": [32], "tokens": 64, "alphas": {}}
        return taylorder.evaluate(model, tiny_tokenizer, config, description=description, **options).continuations

    before = structure(model)
    found = measured(config)
    assert structure(model) == before
    assert measured(OrderConfig.uniform(description, "exact")) is None
    assert (found.prompts, found.prompt_tokens, found.new_tokens, found.failure) == (8, 32, 32, None)
    prompts = drawn(tokenise(tiny_tokenizer, text), 32, 8, 0)
    exact, adapted = [], []
    for prompt in prompts[:, None]:
        exact.append(greedily(model, prompt))
        with taylorder.adapted(model, config):
            adapted.append(greedily(model, prompt))
    agreed = [common(one, other) for one, other in zip(exact, adapted, strict=True)]
    assert found.agreed == statistics.median(agreed)
    assert found.same == agreed.count(32)
    assert found.exact_repetition == pytest.approx(statistics.fmean(map(_repetition, exact)))
    assert found.config_repetition == pytest.approx(statistics.fmean(map(_repetition, adapted)))


def greedily(model, ids):
    """32 tokens after a prompt ``[1, T]``, where nothing ends the text."""
    options = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()


def common(one, other):
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def test_repetition_is_the_share_of_4_grams_seen_before():
    assert _repetition([1, 2, 3]) == 0
    assert _repetition(range(20)) == 0
    assert _repetition([7] * 13) == 0.9
    assert _repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_the_words_of_continuations():
    assert words.continued(Continuations(8, 512, 64, 6.5, 1, 0.125, 0.5)) == (
        "8 prompts of 512 tokens from the text, 64 tokens made after each: the config makes the same 6.5 tokens "
        "(median) before the first that differs; 1 of 8 does not differ. Repeated 4-grams: exact 12%, config 50%."
    )
    assert words.continued(Continuations(8, 512, 64, failure="queries hold NaN")).endswith(
        "made after each: no figures, queries hold NaN."
    )


def test_lookups_stand_against_their_bytes():
    made = REPORTS["whole"]()
    made = replace(made, evaluation=replace(made.evaluation, continuations=Continuations(8, 512, 64, 6.5, 0, 0.1, 0.5)))
    found = evaluation.lookups(made)
    assert [(each.kind, each.length) for each in found] == [("lookup", 256), ("lookup", 1024)]
    for each in found:
        assert each.config_bytes == config_bytes(made.config, made.model, each.length)
        assert each.exact_bytes == config_bytes(OrderConfig.uniform(made.model, "exact"), made.model, each.length)
    text = plain_text(evaluation.sections(made))
    assert "Greedy generation" in text
    assert re.search(r"lookup +256 +95% +[\d.]+ .iB +75% +[\d.]+ .iB", text)
    assert "lookup (exact cannot)" in text
    assert max(map(len, text.splitlines())) <= 80
    document = as_document(made)
    assert document["generation"]["agreed"] == 6.5
    assert [each["length"] for each in document["lookup_bytes"]] == [256, 1024]
    assert as_document(REPORTS["exact"]())["lookup_bytes"] == []
