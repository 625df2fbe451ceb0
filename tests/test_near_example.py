"""Which tokens of an example text a KV head keeps: as the model that runs has it, and as the page draws it."""

from __future__ import annotations

import re

import pytest
import synthetic
import torch
from generating import MODELS
from mixed_orders import PROBE_TEXT, keeping_config
from pages import Page
from synthetic import lever_selection, replaced
from tiny import tokens

import taylorder
from taylorder.adapt.near_example import NearExample, NearTokens, near_example, seen_near
from taylorder.adapt.probe import priorities
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.kernels.spec import grouped
from taylorder.reports import example_text, html

LENGTH = 50


def expected_tokens(model, config, ids):
    """The same from what a run hands over, by sorting."""
    seen = {}

    def note(call, _output):
        seen[call.name] = priorities(config.probes[call.name], call.k, call.v)[0]

    with torch.no_grad(), taylorder.adapted(model, config, observe=note):
        model(ids[None])
    found = []
    for layer in config.layers:
        for kv_head, group in enumerate(grouped(layer.heads, config.model.kv_heads)):
            near = group[0].spec.near
            if near.kept:
                others = range(near.sinks, len(ids) - near.window)
                best = sorted(others, key=lambda j, ranking=seen[layer.module][kv_head]: (-float(ranking[j]), -j))
                kept = tuple(sorted(best[: near.kept]))
                found.append(NearTokens(layer.module, kv_head, near.sinks, near.window, kept))
    return tuple(found)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_tokens_are_those_that_the_running_model_keeps(seed):
    model = MODELS["llama"]().double()
    config = keeping_config(model, seed)
    ids = tokens(1, LENGTH)[0]
    found = seen_near(model, config, ids)[0]
    assert found == expected_tokens(model, config, ids)
    assert any(held.kept != tuple(range(held.sinks, held.sinks + len(held.kept))) for held in found)
    other = config.with_probes({name: -probe for name, probe in config.probes.items()}, PROBE_TEXT)
    assert seen_near(model, other, ids)[0] != found


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_of_attention_are_those_of_exact_weights(seed):
    model = MODELS["llama"]().double()
    config = keeping_config(model, seed)
    ids, seen = tokens(1, LENGTH)[0], {}
    with torch.no_grad(), taylorder.adapted(model, config, observe=lambda call, _: seen.update({call.name: call})):
        model(ids[None])
    shares = {(one.module, one.head): one for one in seen_near(model, config, ids)[1]}
    specs = {(layer.module, head): made.spec for layer in config.layers for head, made in enumerate(layer.heads)}
    assert set(shares) == {key for key, spec in specs.items() if spec.runs != "exact"}
    assert any(one.kept > 0.01 for one in shares.values())
    for (name, head), one in shares.items():
        query, key, value, scaling = seen[name].q, seen[name].k, seen[name].v, seen[name].scaling
        near, kv_head = specs[name, head].near, head * key.shape[1] // query.shape[1]
        ranking = priorities(config.probes[name], key, value)[0, kv_head]
        sums = dict.fromkeys(("sinks", "window", "kept", "rest"), 0.0)
        for row in range(LENGTH):
            weights = (key[0, kv_head, : row + 1] @ query[0, head, row] * scaling).softmax(0)
            beyond = range(near.sinks, row + 1 - near.window)
            best = sorted(beyond, key=lambda place: (-float(ranking[place]), -place))[: near.kept]
            for place, weight in enumerate(weights.tolist()):
                part = (
                    "sinks" if place < near.sinks
                    else "window" if place > row - near.window
                    else "kept" if place in best
                    else "rest"
                )  # fmt: skip
                sums[part] += weight / LENGTH
        assert [one.sinks, one.window, one.kept, one.rest] == pytest.approx(list(sums.values()), abs=1e-6)


def test_an_example_is_the_end_of_a_text_by_token(tiny_tokenizer):
    model = MODELS["llama"]()
    config = keeping_config(model, 1)
    words = "The quick brown fox jumps over the lazy dog. " * 3
    example = near_example(model, tiny_tokenizer, config, tokenise(tiny_tokenizer, Text("a fable", words)), LENGTH)
    assert "".join(example.pieces) == words[-LENGTH:]
    assert len(example.pieces) == LENGTH
    assert example.source == "the end of a fable"
    ids = torch.tensor(tiny_tokenizer(words[-LENGTH:], add_special_tokens=False).input_ids)
    assert (example.kv_heads, example.shares) == seen_near(model, config, ids)
    short = near_example(model, tiny_tokenizer, config, tokenise(tiny_tokenizer, Text("a word", "abcdefghijklmnop")))
    assert "".join(short.pieces) == "abcdefghijklmnop"


def drawn_page(*kv_heads):
    measured = synthetic.analysis(layers=3)
    chosen = lever_selection(measured)
    name = measured.model.modules[1].name
    pieces = ("A", " <b>", " c", "\n", "d", " e", " f", " g")
    held = tuple(NearTokens(name, kv_head, *of_head) for kv_head, of_head in enumerate(kv_heads))
    summary = replaced(chosen.levers, example=NearExample("the end of a fable", pieces, held))
    chosen = chosen.with_levers(chosen.config, summary)
    return example_text.drawn_texts(measured, chosen), html.render(measured, chosen)


def test_the_page_draws_what_a_kv_head_keeps_over_the_text():
    [drawn], source = drawn_page((1, 1, (2, 4)))
    assert drawn.stretches == (
        ("sink", "A"), ("far", " <b>"), ("kept", " c"), ("far", "\n"), ("kept", "d"), ("far", " e f"), ("window", " g"),
    )  # fmt: skip
    assert drawn.title == "layer 1, KV head 0: 1 sink, window 1, and 2 of the other 6 tokens"
    spans = re.findall(r'<span class="(\w+)">([^<]*)</span>', source[source.index('<div class="tokens"') :])
    assert [kind for kind, _ in spans[:7]] == [kind for kind, _ in drawn.stretches]
    assert spans[1][1] == " &lt;b&gt;"
    page = Page(source)
    assert drawn.title in page.text
    assert "the end of a fable, 8 tokens" in page.text
    assert all(words in page.text for words in example_text.KINDS.values())
    assert next(attributes.get("open", "no") for tag, attributes in page.tags if tag == "details") is None


def test_heads_that_keep_most_are_drawn_and_those_that_keep_most_of_the_text_are_not():
    def shown(*kv_heads):
        return [int(re.search(r"KV head (\d+)", text.title)[1]) for text in drawn_page(*kv_heads)[0]]

    kept = [(0, 1, (1,) * count) for count in (1, 2, 3)]
    assert shown(*kept, *kept, *kept, (0, 1, (1, 2, 3, 4))) == [1, 2, 4, 5, 7, 8]
    assert shown(*[(0, 1, (1,))] * 12) == [0, 2, 4, 6, 8, 10]
    none, source = drawn_page((4, 1, ()))
    assert none == ()
    assert 'id="kept"' not in source


def test_bars_have_the_shares_of_what_a_kv_head_keeps():
    _, source = drawn_page((1, 1, (2,)))
    shares = re.findall(r'<span class="stack" aria-hidden="true">((?:<i style="--share: [\d.]+"></i>)+)</span>', source)
    assert len(shares) == 9
    assert re.findall(r"[\d.]+", shares[0]) == ["0.0625", "0.4375", "0.0"]
    assert re.findall(r"[\d.]+", shares[-1]) == ["0.0625", "0.9375", "0.0"]
