"""``taylorder bench``: tables, JSON, break-even contexts, and what is refused."""

import json

import pytest
import tiny
import torch
from generating import structure

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import break_even_tokens, config_bytes
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.evaluation.timing import Bench, Reading, Row, bench, predicted_break_even
from taylorder.models.describe import describe
from taylorder.reports import generation


@pytest.fixture
def loaded(loads):
    """`load` gives a tiny random Llama of 64 tokens, and notes what was asked for."""
    return loads(tiny.llama(), note="weights dequantised from Q4_0")


def test_json_is_one_document_on_stdout(run, loads, tmp_path):
    model, path = tiny.llama(max_position_embeddings=256), tmp_path / "orders.json"
    description = describe(model, "tiny")
    config = OrderConfig.uniform(description, 1, "mean", 2)
    config.save(path)
    loaded = loads(model)
    options = ("--lengths", "200,8", "--new-tokens", 3, "--format", "json")
    code, out, err = run("bench", "some/model", "--config", path, *options)
    assert code == 0, err
    document = json.loads(out)
    assert loaded == ["some/model"]
    assert document["schema"] == "taylorder/bench@1"
    assert [row["context"] for row in document["rows"]] == [8, 200]
    assert (document["threads"], document["new_tokens"]) == (1, 3)
    assert document["config"]["path"] == str(path)
    last = document["rows"][-1]
    assert config_bytes(config, description, 200) <= last["adapted"]["nominal_bytes"] < last["adapted"]["cache_bytes"]
    assert last["exact"]["nominal_bytes"] == config_bytes(OrderConfig.uniform(description, "exact"), description, 200)
    assert last["exact"]["cache_bytes"] == 2 * last["exact"]["nominal_bytes"]  # float32
    assert all(
        row[state][name] > 0 for row in document["rows"] for state in ("exact", "adapted") for name in last[state]
    )
    assert document["break_even"]["predicted"] == predicted_break_even(config, description)
    assert (document["break_even"]["measured_nominal"], document["break_even"]["measured_held"]) == (200, 200)
    assert "Per token, adapted is" in document["verdict"]["text"]
    assert err.splitlines()[0] == "loading some/model"


def test_the_config_is_that_of_the_default_run_when_none_is_named(run, loaded, orders, tmp_path, monkeypatch):
    orders(2, expansion="mean", window=64, sinks=4).parent.rename(tmp_path / "taylorder-out")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("bench", "--lengths", "8,40", "--new-tokens", 2)
    assert code == 0, err
    assert out.startswith("taylorder bench: tiny\n")
    assert "config    taylorder-out/orders.json" in out
    assert loaded == ["tiny"], "the config names its model"
    assert "dequantised from Q4_0" in out
    assert "more than the 64 the model sees" in " ".join(out.split())
    assert "smaller at none in nominal bytes" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert "ms/token" in out
    assert "KiB" in out


def test_lengths_default_to_those_the_model_allows(run, loaded, orders):
    code, out, _ = run("bench", "--config", orders(2), "--new-tokens", 4, "--format", "json")
    assert code == 0
    assert [row["context"] for row in json.loads(out)["rows"]] == [60]


def test_a_config_that_is_exact_everywhere_is_called_that(run, loaded, orders):
    code, out, _ = run("bench", "--config", orders("exact"), "--lengths", 16, "--new-tokens", 2)
    assert code == 0
    assert "The config keeps every head exact" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "0"], "error: --lengths is '0', expected whole numbers from 1 on with commas between them"),
        (["--lengths", "16,,32"], "error: --lengths is '16,,32', expected whole numbers"),
        (["--new-tokens", "0"], "error: invalid value for '--new-tokens'"),
        (["--format", "xml"], "error: invalid value for '--format'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(run, loaded, arguments, message):
    code, out, err = run("bench", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert loaded == []


def test_what_the_model_does_not_allow_is_refused(run, loaded, loads, orders, tmp_path, monkeypatch):
    orders(2).parent.rename(tmp_path / "taylorder-out")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("bench", "--lengths", "64", "--new-tokens", 1)
    assert (code, out) == (2, "")
    assert "--lengths has 64, with 1 new tokens 65, but the model sees 64 at most; lower it to 63 or less" in err
    assert run("bench", "--new-tokens", 64)[0] == 2
    code, out, err = run("bench", "--config", tmp_path / "none.json")
    assert (code, out) == (2, "")
    assert "none.json does not exist" in err
    loads(tiny.bert(), name="bert")
    OrderConfig.uniform(describe(tiny.bert(), "bert"), 2).save(tmp_path / "bert" / "orders.json")
    code, out, err = run("bench", "bert", "--lengths", "8")
    assert (code, out) == (3, "")
    assert "error: bert generates no text" in err


def test_threads_and_model_are_left_as_found():
    model = tiny.llama()
    description = describe(model, "tiny")
    config = OrderConfig.uniform(description, 2, "mean", 4, 1)
    before, threads, seen = structure(model), torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        hook = model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        measured = bench(model, description, config, lengths=[24, 8, 24], new_tokens=2)
        hook.remove()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen.count(1) > len(seen) / 2
    assert [row.context for row in measured.rows] == [8, 24]
    assert structure(model) == before
    for lengths in ([], [0], [63]):
        with pytest.raises(UsageError, match="contexts are"):
            bench(model, description, config, lengths=lengths, new_tokens=2)
    encoder = tiny.bert()
    with pytest.raises(UnsupportedModelError, match="bert generates no text"):
        bench(encoder, describe(encoder, "bert"), config, lengths=[8])


def test_the_predicted_break_even_is_where_bytes_cross():
    for name in ("llama", "gemma3"):
        description = describe(tiny.TINY[name](), name)
        exact = OrderConfig.uniform(description, "exact")
        for order, near in ((1, 0), (2, 5), (3, 68)):
            config = OrderConfig.uniform(description, order, "mean", near)
            found = predicted_break_even(config, description)
            assert config_bytes(config, description, found) < config_bytes(exact, description, found)
            assert config_bytes(config, description, found - 1) >= config_bytes(exact, description, found - 1)
            module = description.modules[1]
            assert 0 <= found - break_even_tokens(module.head_dim, module.value_dim, order, near=near) <= 1
        assert predicted_break_even(exact, description) is None


def row(context, exact, adapted, smaller=False):
    return Row(
        context, Reading(1.0, exact, 4000, 2000), Reading(3.0, adapted, 3000 if smaller else 5000, 2000 - smaller)
    )


def test_the_words_admit_what_is_slower():
    description = describe(tiny.llama(), "tiny")
    config = OrderConfig.uniform(description, 2)

    def text(*rows, predicted=70):
        report = generation.BenchReport(description, config, "orders.json", Bench(rows, 16, predicted))
        return " ".join(generation.sentences(report))

    slow = text(row(8, 1.0, 3.0), row(16, 2.0, 3.0))
    assert slow == (
        "Nominally the adapted cache is predicted to be smaller from 70 tokens on, more than the 64 the model sees. Of "
        "the lengths measured it is smaller at none in nominal bytes and at none in memory held. Per token, adapted is "
        "slower at every length measured (1.50 to 3.00 times the time). Reading the context, adapted is slower at "
        "every length measured (3.00 times the time)."
    )
    mixed = text(row(8, 1.0, 3.0), row(16, 2.0, 3.0), row(24, 3.0, 3.1), row(32, 4.0, 3.0, smaller=True), predicted=20)
    assert "from 20 tokens on. Of" in mixed
    assert "smaller first at 32 in nominal bytes and first at 32 in memory held" in mixed
    assert (
        "Per token, adapted is slower at 8 and 16 tokens (1.50 to 3.00 times the time), about as fast at 24 tokens "
        "(1.03 times the time), faster at 32 tokens (0.75 times the time)."
    ) in mixed
    assert "Per token, adapted is faster at every length measured (0.75 times the time)." in text(row(32, 4.0, 3.0))
