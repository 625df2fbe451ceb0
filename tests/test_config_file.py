"""Schema ``taylorder/orders@2``: the form of the file, there and back, beside files of ``@1``, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from config_forms import DIM, EXACT, PROBE_TEXT, centres, config_of, edit, example, first_form, probes, save_first
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.adapt.config_file import as_text, document_of
from taylorder.adapt.decisions import FlatOrder
from taylorder.adapt.prepared import execution_digest
from taylorder.errors import ConfigError
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor

MIXED = Path(__file__).parents[1] / "benchmarks/configs/mixed.json"


@pytest.fixture
def path(tmp_path):
    """The example with key centres, saved."""
    example().with_key_centres(centres()).save(tmp_path / "orders.json")
    return tmp_path / "orders.json"


# The form


def test_the_file_is_as_documented(path):
    document = json.loads(path.read_text())
    assert list(document) == [
        "schema", "summary", "context", "model", "files", "calibration", "criterion", "software", "layers",
    ]  # fmt: skip
    assert document["schema"] == "taylorder/orders@2"
    assert document["context"] == 8192
    assert list(document["files"]) == ["orders.safetensors"]
    assert document["layers"][0] == {
        "module": "layers.0.attn",
        "kv_heads": [
            {"runs": "exact", "bytes": 512, "reason": "cost", "heads": [{"order": "exact", "error": 0.0}] * 3},
            {"runs": "window", "window": 16, "sinks": 4, "heads": [{"order": None}] * 3},
        ],
    }
    plain, ranked = document["layers"][1]["kv_heads"]
    assert plain == {
        "runs": "taylor",
        "window": 0,
        "sinks": 0,
        "heads": [{"order": 3, "error": 0.25}, {"order": 1, "error": 0.5}, {"order": None}],
    }
    assert ranked == {
        "runs": "taylor",
        "window": 4,
        "sinks": 0,
        "ranks": [8, 8, 5],
        "bytes": 99,
        "heads": [
            {"order": 3, "expansion": "mean", "reason": "x"},
            {"order": 2, "expansion": "mean", "reason": "y"},
            {"order": 1, "expansion": "mean"},
        ],
    }


def test_a_kv_head_has_a_line_of_its_own(path):
    lines = [line for line in path.read_text().splitlines() if '"runs"' in line]
    assert len(lines) == 4
    assert all(json.loads(line.rstrip(","))["heads"] for line in lines)


def test_the_summary_is_one_sentence_that_counts(path):
    assert json.loads(path.read_text())["summary"] == (
        "4 KV heads of tiny: 1 run exact attention, 1 keep a near field and drop all other keys, 2 read all other keys "
        "than their near field from a Taylor polynomial (query heads: 2 at order 1, 1 at order 2, 2 at order 3), "
        "chosen for a context of 8,192 tokens."
    )
    exact = document_of(dict(config_of(EXACT, EXACT, EXACT, EXACT)), {})
    assert exact["summary"] == "4 KV heads of tiny: 4 run exact attention."
    assert "context" not in exact


# There and back

numbers = st.floats(-1e308, 1e308) | st.sampled_from([0.0, -0.0, 5e-324, 1 / 3, 0.1 + 0.2])
provenance = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=2,
)
sizes = st.none() | st.integers(0, 10**24)


@st.composite
def groups(draw):
    """Decisions for the three query heads of a KV head: any that a config takes."""
    about = {
        "error": st.none() | st.floats(0, 1e308),
        "reason": st.none() | st.sampled_from(["cost", "group", "é\n"]),
        "nominal_bytes": sizes,
        "break_even": sizes,
    }
    drawn = [{name: draw(values) for name, values in about.items()} for _ in range(3)]
    if draw(st.booleans()):
        drawn = [{**own, "reason": drawn[0]["reason"], "nominal_bytes": drawn[0]["nominal_bytes"]} for own in drawn]
    if draw(st.integers(0, 3)) == 0:
        return [HeadOrder(spec=HeadSpec(Exact()), **own) for own in drawn]
    near = Near(draw(st.integers(0, 2**24)), draw(st.integers(0, 2**16)), draw(st.just(0) | st.integers(0, 2**24)))
    expansions = draw(st.sampled_from([("zero",), ("centre", "mean")]))
    ranks = None
    if expansions != ("zero",) and draw(st.booleans()):
        falling = sorted(draw(st.lists(st.integers(0, DIM), min_size=6, max_size=6)), reverse=True)
        ranks = (draw(st.integers(0, DIM)), DIM, *falling)
    heads = []
    for own in drawn:
        order = draw(st.integers(1, 8))
        kind = draw(st.sampled_from(["plain", "fitted", "dropped"]))
        coefficients = tuple(draw(st.lists(numbers, min_size=order, max_size=order).filter(any)))
        far = Taylor(
            order,
            draw(st.sampled_from(expansions)),
            None if ranks is None else ranks[:order],
            coefficients if kind == "fitted" else None,
        )
        heads.append(HeadOrder(spec=HeadSpec(Dropped() if kind == "dropped" else far, near), **own))
    return heads


@settings(max_examples=60, deadline=None)
@given(
    st.lists(groups(), min_size=4, max_size=4),
    st.fixed_dictionaries({"calibration": provenance, "criterion": provenance, "software": provenance}),
    st.none() | st.integers(1, 2**31),
)
def test_every_config_comes_back_bit_for_bit(tmp_path_factory, drawn, about, context):
    if context is not None:
        about["criterion"]["context"] = context
    config = config_of(*drawn, **about)
    path = tmp_path_factory.mktemp("config") / "orders.json"
    config.save(path)
    back = OrderConfig.load(path)
    assert repr(back.model_dump()) == repr(config.model_dump())
    assert execution_digest(back) == execution_digest(config)
    probed = config.with_probes(probes(value_dim=3), PROBE_TEXT)
    probed.save(path)
    assert OrderConfig.load(path) == probed
    save_first(config, path)
    assert repr(OrderConfig.load(path).model_dump()) == repr(config.model_dump())


def test_tuples_in_provenance_become_the_lists_that_a_file_gives_back():
    assert example(calibration={"a": ((1, 2), {"b": (3,)})}).calibration == {"a": [[1, 2], {"b": [3]}]}


@pytest.mark.parametrize("value", [{1: 2}, {"a": Path("x")}, {"a": float("nan")}, {"a": {1, 2}}])
def test_provenance_that_no_file_holds_is_refused(value):
    with pytest.raises(ValueError, match=r"found (a PosixPath|a set|nan)|valid string"):
        example(calibration=value)


def test_a_file_of_the_first_schema_means_what_it_says():
    document = json.loads(MIXED.read_text())
    config = OrderConfig.load(MIXED)
    assert document["schema"] == "taylorder/orders@1"
    defaults = {"expansion": "zero", "window": 0, "sinks": 0, "kept": 0}
    seen = 0
    for layer, listed in zip(config.layers, document["layers"], strict=True):
        assert layer.module == listed["module"]
        for head, entry in zip(layer.heads, listed["heads"], strict=True):
            assert FlatOrder.of(head).model_dump(exclude_none=True) == defaults | entry
            seen += 1
    assert seen == 270
    assert len(config.key_centres) == 30
    stored = load_file(MIXED.with_suffix(".safetensors"))
    assert all(torch.equal(stored[f"{name}.key_centre"], centre) for name, centre in config.key_centres.items())
    assert first_form(config) == document


@pytest.mark.parametrize("coefficients", [[0.0], [0, -0.0, 0]])
def test_coefficients_of_zero_are_read_as_no_far_field(path, coefficients):
    window = HeadSpec(Dropped(), Near(16, 4))

    def zeros(document):
        for entry in document["layers"][0]["kv_heads"][1]["heads"]:
            entry["coefficients"] = coefficients

    assert OrderConfig.load(edit(path, zeros)).layers[0].heads[3].spec == window
    first = {"order": len(coefficients), "window": 16, "sinks": 4, "coefficients": coefficients}
    save_first(example(), path, lambda document: document["layers"][0]["heads"].__setitem__(slice(3, 6), [first] * 3))
    config = OrderConfig.load(path)
    assert config.layers[0].heads[3].spec == window
    config.save(path)
    assert json.loads(path.read_text())["layers"][0]["kv_heads"][1]["heads"] == [{"order": None}] * 3


def test_a_file_of_the_first_schema_saved_anew_is_the_same_config(tmp_path):
    config = OrderConfig.load(MIXED)
    config.save(tmp_path / "anew.json")
    assert OrderConfig.load(tmp_path / "anew.json") == config
    assert json.loads((tmp_path / "anew.json").read_text())["schema"] == "taylorder/orders@2"


# What does not agree


def kv_head(place, **changes):
    """Change an entry of the example: 0 exact, 1 window, 2 plain, 3 ranked."""
    return lambda d: d["layers"][place // 2]["kv_heads"][place % 2].update(changes)


def head(place, number, **changes):
    return lambda d: d["layers"][place // 2]["kv_heads"][place % 2]["heads"][number].update(changes)


def without(place, name):
    return lambda d: d["layers"][place // 2]["kv_heads"][place % 2].pop(name)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            kv_head(0, runs="window"),
            "layers.0.kv_heads.0: runs is 'window', and the orders of its heads ask for 'exact'",
        ),
        (kv_head(1, runs="taylor"), "runs is 'taylor', and the orders of its heads ask for 'window'"),
        (kv_head(2, runs="window"), "runs is 'window', and the orders of its heads ask for 'taylor'"),
        (
            kv_head(2, runs="far"),
            "layers.1.kv_heads.0.runs: Input should be 'exact', 'window' or 'taylor', found 'far'",
        ),
        (head(0, 1, order=None), "some heads are exact and some are not; the cache is shared, so all must be exact"),
        (head(1, 0, order=2), "runs is 'window', and the orders of its heads ask for 'taylor'"),
        (head(1, 0, coefficients=[0.5]), "order is null and coefficients are [0.5]; order is null where all of them"),
        (
            head(2, 0, coefficients=[0, 0, 0]),
            "order is 3 and coefficients are [0.0, 0.0, 0.0]; order is null where all",
        ),
        (head(2, 0, coefficients=[1.0]), "coefficients has 1 entries, expected one per degree: 3"),
        (head(0, 0, expansion="mean"), "an exact head carries no expansion, window, sinks, ranks or coefficients"),
        (head(2, 0, expansion="mean"), "expansion 'zero' is mixed with 'centre' or 'mean'"),
        (head(2, 1, order=True), "layers.1.kv_heads.0.heads.1.order: Input should be a valid integer, found True"),
        (head(2, 1, order=9), "Input should be less than or equal to 8, found 9"),
        (head(2, 1, order=3.0), "Input should be a valid integer, found 3.0"),
        (head(2, 1, error=-0.5), "heads.1.error: Input should be greater than or equal to 0, found -0.5"),
        (head(2, 1, error=True), "heads.1.error: Input should be a valid number, found True"),
        (head(2, 1, window=4), "layers.1.kv_heads.0.heads.1.window: unknown key"),
        (head(3, 1, ranks=[8, 8]), "layers.1.kv_heads.1.heads.1.ranks: unknown key"),
        (kv_head(0, window=4), "layers.0.kv_heads.0: window is 4; an exact KV head has none; remove it"),
        (kv_head(0, sinks=0), "sinks is 0; an exact KV head has none; remove it"),
        (kv_head(0, ranks=[8]), "an exact head carries no expansion, window, sinks, ranks or coefficients"),
        (without(2, "window"), "layers.1.kv_heads.0: window is None; expected a number of tokens"),
        (without(2, "sinks"), "sinks is None; expected a number of tokens"),
        (without(2, "runs"), "layers.1.kv_heads.0.runs: the key is missing"),
        (without(2, "heads"), "layers.1.kv_heads.0.heads: the key is missing"),
        (lambda d: d["layers"][1]["kv_heads"][0]["heads"][0].pop("order"), "heads.0.order: the key is missing"),
        (kv_head(2, window=-1), "kv_heads.0.window: Input should be greater than or equal to 0, found -1"),
        (
            kv_head(2, window=10**30),
            "kv_heads.0.window: Input should be less than or equal to 16777216, found 100000000",
        ),
        (kv_head(2, window=False), "kv_heads.0.window: Input should be a valid integer, found False"),
        (kv_head(2, window=-0.0), "kv_heads.0.window: Input should be a valid integer, found -0.0"),
        (kv_head(2, sinks=10**18), "kv_heads.0.sinks: Input should be less than or equal to 65536, found 10000000000"),
        (kv_head(2, bytes=-1), "kv_heads.0.bytes: Input should be greater than or equal to 0, found -1"),
        (kv_head(2, bytes=10**400), "kv_heads.0.bytes: Input should be less than or equal to"),
        (kv_head(0, kept=0), "layers.0.kv_heads.0: kept is 0; an exact KV head has none; remove it"),
        (kv_head(2, kept=-1), "kv_heads.0.kept: Input should be greater than or equal to 0, found -1"),
        (kv_head(2, kept=2**24 + 1), "kv_heads.0.kept: Input should be less than or equal to 16777216, found 16777217"),
        (kv_head(2, kept=4.0), "kv_heads.0.kept: Input should be a valid integer, found 4.0"),
        (head(2, 1, kept=4), "layers.1.kv_heads.0.heads.1.kept: unknown key"),
        (lambda d: d.update(probe={"text": "x", "tokens": 1}), "probe.sha256: the key is missing"),
        (lambda d: d.update(probe=PROBE_TEXT | {"seed": 0}), "probe.seed: unknown key"),
        (lambda d: d.update(probe=PROBE_TEXT | {"tokens": 0}), "probe.tokens: Input should be greater than or equal"),
        (lambda d: d.update(schema_="taylorder/orders@2"), "schema_: unknown key"),
        (kv_head(2, heads=[]), "layers.1.kv_heads.0.heads: Tuple should have at least 1 item after validation"),
        (kv_head(2, heads={}), "layers.1.kv_heads.0.heads: Input should be a valid tuple, found {}"),
        (kv_head(2, heads=[{"order": 1}] * 2), "layer layers.1.attn, KV head 0 lists 2 heads, expected 3"),
        (kv_head(2, ranks=[8, 8, 5]), "ranks are not defined for expansion 'zero'"),
        (kv_head(3, ranks=[8, 8]), "ranks has 2 entries, expected one per degree: 3"),
        (kv_head(3, ranks=[8, 8, 5, 5]), "ranks has 4 entries, expected one per degree of the highest order: 3"),
        (kv_head(3, ranks=[8, 8, 10**30]), "ranks that do not increase from degree 1 on"),
        (kv_head(3, reason="z"), "reason stands at the KV head and at one of its heads; one of the two is expected"),
        (head(3, 2, bytes=4), "bytes stands at the KV head and at one of its heads"),
        (lambda d: d["layers"][0]["kv_heads"].pop(), "layer layers.0.attn lists 1 KV heads, expected 2"),
        (lambda d: d["layers"].pop(), "1 layers are listed, expected 2"),
        (lambda d: d["layers"].append(d["layers"][0]), "3 layers are listed, expected 2"),
        (lambda d: d["layers"][1].update(module="layers.0.attn"), "layer layers.0.attn is listed twice"),
        (lambda d: d["layers"][0].update(heads=[]), "layers.0.heads: unknown key"),
        (
            lambda d: d["model"].update(kv_heads=10**30),
            "model.kv_heads: Input should be less than or equal to 2147483648",
        ),
        (lambda d: d["model"].update(heads=12), "KV head 0 lists 3 heads, expected 6"),
        (lambda d: d.update(context=4096), "context is 4096 and criterion.context is 8192; expected the same twice"),
        (lambda d: d.update(context=True), "context: Input should be a valid integer, found True"),
        (lambda d: d.pop("files"), "files: the key is missing"),
        (lambda d: d.pop("criterion"), "criterion: the key is missing"),
        (lambda d: d.update(files={"../x.safetensors": "0" * 64}), "String should match pattern"),
        (lambda d: d.update(files={"orders.safetensors": "nope"}), "files.orders.safetensors: String should match"),
        (lambda d: d["files"].update({"b.safetensors": "0" * 64}), "files: Dictionary should have at most 1 item"),
        (lambda d: d.update(calibration=[1]), "calibration: Input should be a valid dictionary, found [1]"),
        (lambda d: d.update(summary=7), "summary: Input should be a valid string, found 7"),
        (lambda d: d.update(schema=["taylorder/orders@2"]), "has schema ['taylorder/orders@2'], this version reads"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused_with_the_reason(path, change, words):
    edit(path, change)
    with pytest.raises(ConfigError) as caught:
        OrderConfig.load(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('"window": 16', '"window": 16, "window": 8', "the key 'window' stands twice in one object"),
        ('"calibration": {}', '"calibration": {"a": ' + "[" * 80 + "]" * 80 + "}", "provenance is nested more than 64"),
        ('"tiny"', '"tiny\x00"', "Invalid control character"),
    ],
)
def test_text_that_no_document_is_written_as_is_refused(path, old, new, words):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        OrderConfig.load(path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_byte_order_mark_changes_nothing(path):
    config = OrderConfig.load(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert OrderConfig.load(path) == config


def test_the_text_is_that_of_the_document():
    document = document_of(dict(example()), {})
    assert json.loads(as_text(document)) == document
