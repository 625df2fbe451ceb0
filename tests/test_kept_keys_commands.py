"""Kept keys in commands and reports: what is run, what it costs, and how it is told."""

from __future__ import annotations

import json
import re

import pytest
import synthetic
import tiny
from generating import generated
from mixed_orders import PROBE_TEXT, random_probes
from pages import Page
from synthetic import keeping_selection, lever_selection, replaced

from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.adapt.generate import stream
from taylorder.evaluation.timing import predicted_break_even
from taylorder.kernels.spec import Dropped, HeadSpec, Near
from taylorder.models.describe import describe
from taylorder.reports import grids, html, kv_data, near_words
from taylorder.reports.analysis import sections
from taylorder.reports.render import plain_text
from taylorder.selection.probe_report import ProbeReport, ProbeRow

PROMPT = "It was a dark and stormy night; "


@pytest.fixture
def keeping(orders):
    """The path of a config whose heads keep 6 keys beside a window of 4 and a sink, order 1 for the rest."""
    probes = random_probes(describe(tiny.llama(), "tiny"))
    return orders(1, expansion="mean", window=4, sinks=1, kept=6, probes=probes, probe=PROBE_TEXT)


def test_generate_streams_and_compares_a_config_that_keeps_keys(run, loads, keeping, tiny_tokenizer, monkeypatch):
    model = tiny.llama()
    loads(model, tiny_tokenizer)
    config = OrderConfig.load(keeping)
    expected = generated(stream(model, tiny_tokenizer, PROMPT, config, max_new_tokens=20))
    monkeypatch.setattr("taylorder.adapt.continuation.PROMPT_CHUNK", 5)
    code, out, err = run("generate", PROMPT, "--config", keeping, "--compare", "--max-new-tokens", 20)
    assert code == 0, err
    assert out.startswith(f"adapted:\n{expected.text}\n")
    assert "\nThe texts part after " in out
    bare = generated(stream(model, tiny_tokenizer, PROMPT, config.with_probes(
        {name: -probe for name, probe in config.probes.items()}, PROBE_TEXT
    ), max_new_tokens=20))  # fmt: skip
    assert bare.text != expected.text


def test_bench_counts_priorities(run, loads, tmp_path):
    model, path = tiny.llama(max_position_embeddings=256), tmp_path / "orders.json"
    description = describe(model, "tiny")
    head = HeadOrder(spec=HeadSpec(Dropped(), Near(4, 1, 20)))
    layers = tuple(LayerOrders(module=module.name, heads=(head,) * 4) for module in description.modules)
    plain = OrderConfig.uniform(description, "exact")
    config = plain.model_copy(update={"layers": layers}).with_probes(random_probes(description), PROBE_TEXT)
    config.save(path)
    loads(model)
    code, out, err = run(
        "bench", "some/model", "--config", path, "--lengths", "200", "--new-tokens", 3, "--format", "json"
    )
    assert code == 0, err
    document = json.loads(out)
    [row] = document["rows"]
    assert row["adapted"]["nominal_bytes"] == config_bytes(config, description, 200) == 4 * (25 * 32 + 20 * 4)
    assert document["break_even"]["predicted"] == 25 + 20 * 4 // 32 + 1


def test_the_break_even_is_where_a_config_stays_smaller():
    """Priorities of a near field that is still filling make what is saved shrink for a while."""
    description = describe(tiny.llama(), "tiny")
    small, large = (HeadOrder(spec=HeadSpec(Dropped(), near)) for near in (Near(1, 0, 1), Near(0, 0, 4096)))
    exact = OrderConfig.uniform(description, "exact")
    layers = [LayerOrders(module=m.name, heads=(small,) * 2 + (large,) * 2) for m in description.modules]
    for heads in (layers, [layers[0], exact.layers[1]]):
        config = exact.model_copy(update={"layers": tuple(heads)})
        found = predicted_break_even(config, description)
        smaller = [config_bytes(config, description, n) < config_bytes(exact, description, n) for n in range(6000)]
        assert found == max(n for n, less in enumerate(smaller) if not less) + 1


def test_eval_says_what_the_probes_were_fitted_on(run, loads, keeping, tiny_tokenizer, evaluates_on):
    from command_line import WORDS

    loads(tiny.llama(), tiny_tokenizer)
    evaluates_on(WORDS)
    code, out, err = run("eval", "--config", keeping, "--lengths", 48, "--tokens", 96, "--no-tasks")
    assert code == 0, err
    assert "fitted on 1 token of random numbers." in " ".join(out.split())
    code, out, _ = run("eval", "--config", keeping, "--lengths", 48, "--tokens", 96, "--no-tasks", "--format", "json")
    [comparison] = json.loads(out)["comparisons"]
    standings = {standing["name"]: standing for standing in comparison["standings"]}
    description = describe(tiny.llama(), "tiny")
    assert standings["config"]["nominal_bytes"] == config_bytes(OrderConfig.load(keeping), description, 48) // 4
    assert re.fullmatch(r"4 sinks and the last \d+ keys for every head, the rest dropped", standings["window"]["note"])


def test_the_report_shows_sinks_window_and_kept_keys_of_every_kv_head():
    measured = synthetic.analysis(layers=3)
    text = plain_text(sections(measured, keeping_selection(measured)))
    assert "sinks/window/keys kept by priority; +P1" in " ".join(text.split())
    assert re.search(r"4/28/0 \+P2r.*\n.*all +4/64/188 +4/64/188", text)
    assert "A linear probe of key and value gives each key its priority, fitted on 6,144 tokens of prose." in " ".join(
        text.split()
    )
    assert f"{near_words.MEANINGS['k']} (12 heads)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    plain = plain_text(sections(measured, lever_selection(measured)))
    assert "window and 4 sinks or more" in " ".join(plain.split())
    assert "4/" not in plain


def test_the_page_shows_how_many_keys_every_head_keeps():
    measured = synthetic.analysis(layers=3)
    chosen = keeping_selection(measured)
    data = kv_data.as_data(measured, chosen, ())
    heads = data["layers"][1]["heads"]
    assert [head["tokens"][:2] for head in heads] == [(None, "b"), (256, "256"), (256, "256")]
    assert heads[1]["tokens"][2] == "256 tokens: the last 64 keys, the first 4 and the 188 of highest priority"
    assert heads[1]["runs"][1] == "k"
    assert "188 of highest priority exact, all others dropped" in heads[1]["choice"]
    assert Page(html.render(measured, chosen)).data == json.loads(json.dumps(data))
    [key] = [key for key in grids.order_legend(chosen).keys if key.marks[0].text == "k"]
    assert key.meaning == f"{near_words.MEANINGS['k']} (12 heads)"


def test_counts_and_summary_name_heads_that_keep_keys():
    measured = synthetic.analysis(layers=3)
    config = keeping_selection(measured).config
    assert config.counts() == {"exact": 6, "order 2": 9, "window and kept keys": 12}


def test_the_page_says_of_every_head_how_good_its_probe_is():
    measured = synthetic.analysis(layers=3)
    chosen = keeping_selection(measured)
    first = measured.model.modules[0].name
    row = ProbeRow(first, 1, 0.875, 0.61, 0.5, 0.65, 2048)
    chosen = chosen.with_levers(chosen.config, replaced(chosen.levers, probes=ProbeReport((row,))))
    facts = [dict(head["facts"]).get("probe") for head in kv_data.as_data(measured, chosen, ())["layers"][0]["heads"]]
    words = "rank correlation 0.875; its best eighth receives 61% of later attention (H2O 50%, at most 65%)"
    assert facts == [None, words, None]
