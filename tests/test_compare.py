"""``taylorder compare``: what differs per KV head, bytes, losses paired by sequence, and what may not be compared."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import synthetic
import tiny
from command_line import WORDS, heavy_imports, options
from config_pairs import CONTEXT, EXACT, KEEPS, LARGE, LARGER, ORDER, SMALL, config, pair
from evaluations import comparison, interval, standing
from pages import Page
from synthetic import replaced

from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.analysis.losses import language_model_head
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.commands._shared import write_run
from taylorder.evaluation.comparison import Comparison, losses_of_states
from taylorder.evaluation.continuations import drawn
from taylorder.evaluation.evaluate import Evaluation
from taylorder.evaluation.intervals import paired_difference
from taylorder.kernels.spec import Dropped, HeadSpec, Near
from taylorder.models.describe import describe
from taylorder.reports import run_pair, run_pair_words
from taylorder.reports.render import plain_text

A = (SMALL, EXACT, KEEPS, SMALL)
B = (LARGE, SMALL, KEEPS, ORDER)


@pytest.fixture
def saved_pair(tmp_path):
    """Save two configs: ``saved_pair(a, b)`` gives their folders."""

    def save(*configs):
        for name, made in zip("ab", configs, strict=True):
            made.save(tmp_path / name / "orders.json")
        return tmp_path / "a", tmp_path / "b"

    return save


def test_help_imports_nothing_heavy_and_explains_every_option():
    assert heavy_imports("compare", "--help")[0] == []
    assert set(options("compare")) == {
        "--context", "--eval", "--sequences", "--text", "--model", "--out", "--seed", "--device", "--dtype", "--format",
        "--device-map",
    }  # fmt: skip


def test_what_differs_is_told_per_kv_head_and_nothing_is_loaded(run, saved_pair, nothing_loads):
    a, b = config(*A), config(*B)
    code, out, err = run("compare", *saved_pair(a, b), "--format", "json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "taylorder/comparison@1"
    assert [kv_head["mark"] for kv_head in document["kv_heads"]] == ["B", "A", "=", "~"]
    assert [kv_head["tokens"] for kv_head in document["kv_heads"]] == [14, 10 - CONTEXT, 0, 0]
    assert [kv_head["b"]["orders"] for kv_head in document["kv_heads"]] == [[None, None]] * 3 + [[2, 2]]
    described = describe(tiny.llama(), "tiny")
    for side, made in (("a", a), ("b", b)):
        assert document[side]["bytes"] == config_bytes(made, described, CONTEXT)
        assert document[side]["bytes"] == sum(kv_head[side]["bytes"] for kv_head in document["kv_heads"])
    assert document["exact_bytes"] == config_bytes(OrderConfig.uniform(described, "exact"), described, CONTEXT)
    assert (document["context"], document["measured"], document["b_less_a"]) == (CONTEXT, None, None)


def test_the_report_says_it_in_five_lines_first(run, saved_pair, nothing_loads):
    folders = saved_pair(config(*A), config(*B))
    code, out, _ = run("compare", *folders)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    names = ["model", "KV", "cache", "loss", "verdict"]
    places = [next(place for place, words in enumerate(lines) if words and words[0] == name) for name in names]
    assert places == sorted(places)
    assert places[-1] < 14
    told = " ".join(out.split())
    assert "3 of 4 differ: A holds more tokens on 1, B holds more tokens on 1, on 1 both hold as many" in told
    assert "Which is better cannot be told without losses on the same sequences" in told
    assert re.search(r"0 +B A .*\n +1 += ~ ", out)
    assert "0.1 all 4/6/0 -50" in told
    assert f"taylorder compare {folders[0]} {folders[1]} --eval" in told.replace(" \\", "")


@pytest.mark.parametrize("width", [50, 80, 120])
def test_it_is_readable_at_every_width(width):
    made = pair(config(*A), config(*B), measured=measured(interval(-0.1)))
    text = plain_text(run_pair.sections(made, ""), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("4/6/0 +P2 mean", "B is better", "A holds at least twice as many tokens (1 KV head)"):
        assert part in " ".join(text.split())


def test_a_command_with_long_paths_can_still_be_copied():
    words = ["taylorder", "compare", "a/folder/of/some/depth", "another folder/of some/depth and more", "--eval"]
    text = plain_text(run_pair.sections(pair(config(*A), config(*B)), shlex.join(words)), 50)
    assert max(map(len, text.splitlines())) <= 50
    assert shlex.split(text[text.index("taylorder compare a/folder") :].replace("\\\n", "")) == words


def test_probes_that_differ_make_kv_heads_differ(run, saved_pair, nothing_loads):
    same, other = (config(SMALL, KEEPS, SMALL, SMALL, seed=seed) for seed in (0, 1))
    document = json.loads(run("compare", *saved_pair(same, other), "--format", "json")[1])
    assert [kv_head["tensors"] for kv_head in document["kv_heads"]] == [[], ["probe"], [], []]
    assert [kv_head["same"] for kv_head in document["kv_heads"]] == [True, False, True, True]
    told = " ".join(run("compare", *saved_pair(same, other))[1].split())
    assert "1 of 4 differs: on 1 both hold as many" in told
    assert "4/6/5 (other probe)" in told
    told = " ".join(run("compare", *saved_pair(same, same))[1].split())
    assert "none of 4 differs" in told
    assert "The two compute the same." in told
    assert "--eval" not in told


def test_an_edited_copy_is_counted_by_what_it_runs(run, saved_pair, nothing_loads):
    """Its recorded bytes are those of before; the untouched one says how wide keys and values are."""
    first = config(LARGE, LARGE, LARGE, LARGE)
    a, b = saved_pair(first, first)
    path = b / "orders.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"window": 20', '"window": 10', 1), encoding="utf-8")
    document = json.loads(run("compare", a, path, "--format", "json")[1])
    assert [kv_head["bytes"] for kv_head in document["kv_heads"]] == [-10 * 32, 0, 0, 0]


def test_the_model_is_loaded_where_no_file_says_its_shape(run, loads, saved_pair):
    asked = loads(tiny.gemma3())
    described = describe(tiny.gemma3(), "tiny")
    a, b = (OrderConfig.uniform(described, order, "mean", 4) for order in (1, 2))
    document = json.loads(run("compare", *saved_pair(a, b), "--context", 40, "--format", "json")[1])
    assert asked == ["tiny"]
    assert [document[side]["bytes"] for side in "ab"] == [config_bytes(made, described, 40) for made in (a, b)]
    sliding = {module.name for module in described.modules if module.sliding_window is not None}
    assert {kv_head["module"] for kv_head in document["kv_heads"] if kv_head["same"]} == sliding
    assert run("compare", *saved_pair(a, b), "--model", "elsewhere")[0] == 0
    assert asked[1:] == ["elsewhere"]


def test_a_model_that_is_not_found_is_named_with_the_way_out(run, saved_pair):
    uniform = OrderConfig.uniform(describe(tiny.llama(), "./gone/tiny"), 2)
    a, b = saved_pair(uniform, uniform)
    code, _, err = run("compare", a, b)
    assert code == 2
    assert f"; {a} names it so, perhaps as seen from another folder: name the model with --model" in err


def test_configs_of_two_models_are_refused_and_both_named(run, saved_pair, nothing_loads):
    other = OrderConfig.uniform(describe(tiny.gpt2(), "another"), 2)
    a, b = saved_pair(config(*A), other)
    code, out, err = run("compare", a, b)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{a}/orders.json is a config of tiny (LlamaForCausalLM, 2 layers, weights " in err
    assert f"{b}/orders.json one of another (GPT2LMHeadModel, 2 layers, weights " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sequences", "3"], "--sequences says what to measure on, and nothing is measured without --eval; add it"),
        (["--text", Path(__file__)], "--text says what to measure on, and nothing is measured without --eval; add it"),
        (["--eval", "--context", "999"], "--context is 999, but the model sees 64 tokens at most; lower it"),
    ],
)
def test_what_cannot_be_done_is_refused(run, loads, saved_pair, arguments, message):
    loads(tiny.llama())
    code, out, err = run("compare", *saved_pair(config(*A), config(*B)), *arguments)
    assert (code, out, err.splitlines()[-1]) == (2, "", f"error: {message}")


def test_losses_are_paired_by_sequence(run, loads, saved_pair, tiny_tokenizer, evaluates_on):
    model, a, b = tiny.llama(), config(*A), config(*B)
    loads(model, tiny_tokenizer)
    evaluates_on(WORDS)
    code, out, err = run("compare", *saved_pair(a, b), "--eval", "--sequences", 5, "--format", "json")
    assert code == 0, err
    assert "to run: exact, A, B; each on sequences of the text, 5 of " in err
    assert re.search(r"^that takes about \d+ s in all, by the first sequence$", err, re.MULTILINE)
    document = json.loads(out)
    tokens = tokenise(tiny_tokenizer, Text("a few words", WORDS))
    losses = [
        losses_of_states(model, language_model_head(model), sequence, {"A": a, "B": b})
        for sequence in drawn(tokens, CONTEXT, 5, 0)
    ]
    means = {name: [one[name].nll.mean(dtype="float64") for one in losses] for name in ("exact", "A", "B")}
    expected = paired_difference(means["B"], means["A"])
    found = document["b_less_a"]
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx(
        (expected.estimate, expected.low, expected.high)
    )
    rows = {row["name"]: row for row in document["measured"]["standings"]}
    assert {name: rows[name]["nll"] for name in means} == pytest.approx({name: sum(m) / 5 for name, m in means.items()})
    told = " ".join(run("compare", *saved_pair(a, b), "--eval", "--sequences", 5)[1].split())
    assert f"B less A {expected.estimate:+.3f} [{expected.low:+.3f}, {expected.high:+.3f}] on 5 sequences" in told
    assert "Next" not in told


def measured(difference, sequences=8, **of_b):
    """Losses of exact, A and B, and the paired difference of B to A."""
    a = replaced(standing("A", 2000, 3.7), config_less=difference)
    b = replaced(standing("B", 3000, 3.7 + (0.0 if difference is None else difference.estimate)), **of_b)
    return Comparison(1024, sequences, "words", "ab" * 32, 0, (standing("exact", 9000, 3.5), a, b))


@pytest.mark.parametrize(
    ("b", "losses", "expected"),
    [
        (
            LARGE,
            measured(interval(-0.1)),
            "B loses less, for more bytes (B less A -0.100 [-0.120, -0.080]); B takes 448 B more",
        ),
        (
            LARGE,
            measured(interval(0.1)),
            "A is better: it loses less (B less A +0.100 [+0.080, +0.120]); B takes 448 B more",
        ),
        (LARGE, measured(interval(0.01)), "Their losses cannot be told apart here; B takes 448 B more in all."),
        (EXACT, measured(interval(-0.1), 4), "So few sequences all agree by chance one time in 8."),
        (LARGE, measured(None, failure="its logits overflow"), "B breaks down: its logits overflow."),
        (SMALL, None, "The two compute the same."),
    ],
)
def test_the_verdict_is_that_of_the_interval(b, losses, expected):
    made = pair(config(SMALL, SMALL, SMALL, SMALL), config(b, SMALL, SMALL, SMALL), measured=losses)
    assert expected in run_pair_words.verdict(made)


def write(directory, window, nll, **changes):
    """Write the run of a budget that gave all KV heads one window, and lost so much."""
    analysis = synthetic.analysis(layers=3)
    chosen = synthetic.lever_selection(analysis)
    heads = (HeadOrder(spec=HeadSpec(Dropped(), Near(window, 4))),) * 9
    layers = tuple(layer.model_copy(update={"heads": heads}) for layer in chosen.config.layers)
    chosen = chosen.with_levers(chosen.config.model_copy(update={"layers": layers}), chosen.levers)
    evaluation = Evaluation(False, (comparison(nll, length=1024, sequences=4, **changes),))
    write_run(directory, analysis, chosen, evaluation)
    return directory


def test_losses_that_runs_recorded_have_no_interval(run, tmp_path, nothing_loads):
    a = write(tmp_path / "a", 60, 3.75)
    b = write(tmp_path / "b", 80, 3.625)
    code, out, err = run("compare", a / "report.json", b)
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    assert "A 3.750, B 3.625 on 4 sequences of 1,024 tokens" in told
    assert "on the same sequences B less A is -0.125, but runs keep no losses of single sequences" in told
    assert re.search(r"A +4 x 1,024 +3.500 +3.750 +\+0.250 \[\+0.230, \+0.270\]", out)
    assert "each was chosen by, in nats per token: A 0.125, B 0.125." in told
    document = json.loads(run("compare", a, b, "--format", "json")[1])
    assert document["recorded_on_the_same_sequences"]
    assert document["measured"] is None
    write(tmp_path / "b", 80, 3.625, seed=1)
    told = " ".join(run("compare", a, b)[1].split())
    assert "They are of different sequences, so that their difference says nothing of the configs." in told
    assert "Which is better cannot be told without losses on the same sequences" in told


def test_records_are_not_those_of_an_edited_config(run, tmp_path, nothing_loads):
    a = write(tmp_path / "a", 60, 3.75)
    b = write(tmp_path / "b", 60, 3.75)
    path = b / "orders.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"window": 60', '"window": 59', 1), encoding="utf-8")
    told = " ".join(run("compare", a, b)[1].split())
    assert "B: the records of its run are not read, since they are of another config" in told
    assert "1 of 9 differs: A holds more tokens on 1" in told
    assert "nothing of B" in told


def test_the_page_has_the_same_content_and_needs_nothing_else(run, saved_pair, nothing_loads, tmp_path):
    folders = saved_pair(config(*A), config(LARGE, LARGER, KEEPS, ORDER))
    code, out, err = run("compare", *folders, "--out", tmp_path / "out" / "pair.html")
    assert (code, err) == (0, f"wrote {tmp_path}/out/pair.html\n")
    source = (tmp_path / "out" / "pair.html").read_text(encoding="utf-8")
    page = Page(source)
    told = " ".join(out.split())
    for part in (
        "3 of 4 differ: A holds more tokens on 1, B holds more tokens on 1, on 1 both hold as many",
        "A holds at least twice as many tokens (1 KV head)",
        "Which is better cannot be told without losses on the same sequences",
        "4/6/0 +P2 mean",
    ):
        assert part in page.text
        assert part in told
    cells = [attributes for tag, attributes in page.tags if tag == "td" and "title" in attributes]
    assert [cell["title"] for cell in cells][1] == "layer 0, KV head 1: A all, B 4/12/0"
    assert ["style" in cell for cell in cells] == [True, True, False, False]
    assert "-44" in page.text
    assert "http" not in source.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    code, out, err = run("compare", *folders, "--out", tmp_path / "out", "--format", "json")
    assert (code, err) == (0, f"wrote {tmp_path}/out/comparison.html\n")
    assert (tmp_path / "out" / "comparison.json").read_text(encoding="utf-8") == out
    assert (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8") == source
