"""``orders.json``: what is written is read back, and everything that does not fit is refused in one sentence."""

from __future__ import annotations

import re

import pytest
import torch
from config_forms import save_first
from descriptions import centres, description, module
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorder.adapt.config import LayerOrders, ModelIdentity, OrderConfig
from taylorder.adapt.decisions import FlatOrder
from taylorder.errors import ConfigError
from taylorder.kernels.spec import Exact, HeadSpec, Near, Taylor


def write(tmp_path, change=lambda document: None):
    """A valid file of the first schema, ``change`` applied to its document."""
    return save_first(OrderConfig.uniform(description(), 3, "mean", 4, 1), tmp_path / "orders.json", change)


head_orders = st.one_of(
    st.builds(
        lambda reason: {"order": "exact", "error": 0.0, "reason": reason}, st.sampled_from(["tolerance", "cost"])
    ),
    st.builds(
        lambda order, error, expansion: {"order": order, "error": error, "expansion": expansion},
        st.integers(1, 8),
        st.floats(0, 10),
        st.sampled_from(["centre", "mean"]),
    ),
)


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(head_orders, min_size=4, max_size=4), window=st.integers(0, 9))
def test_a_saved_config_is_read_back_equal(tmp_path_factory, pairs, window):
    heads = []
    for pair in pairs:  # the same choice for both heads of a group
        near = {} if pair["order"] == "exact" else {"window": window, "sinks": 2}
        heads += [FlatOrder(**pair, **near).decision()] * 2
    model = description()
    layers = tuple(
        LayerOrders(module=m.name, heads=tuple(heads[i * 4 : i * 4 + 4])) for i, m in enumerate(model.modules)
    )
    config = OrderConfig(model=ModelIdentity.of(model), calibration={"seed": 1}, layers=layers)
    config = config.with_key_centres(centres(model))
    path = tmp_path_factory.mktemp("config") / "orders.json"
    config.save(path)
    back = OrderConfig.load(path, model)
    assert back == config
    assert all(torch.equal(back.key_centres[name], centre) for name, centre in config.key_centres.items())
    assert [file.name for file in path.parent.iterdir()].count("orders.json") == 1
    assert not list(path.parent.glob(".*"))


def test_absent_options_mean_plain_taylor(tmp_path):
    def strip(document):
        for layer in document["layers"]:
            layer["heads"] = [{"order": 3, "error": 0.04}] * 4

    config = OrderConfig.load(write(tmp_path, strip))
    assert config.layers[0].heads[0].spec == HeadSpec(Taylor(3, "zero"), Near(0, 0))


def head(document, **changes):
    document["layers"][1]["heads"][2].update(changes)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda d: d.update(schema="taylorder/orders@3"),
            "schema 'taylorder/orders@3', this version reads 'taylorder/orders@2' and 'taylorder/orders@1'",
        ),
        (lambda d: d.pop("schema"), "schema None, this version reads"),
        (lambda d: head(d, order=0), "layers.1.heads.2.order: Input should be greater than or equal to 1, found 0"),
        (lambda d: head(d, order=2.5), "found 2.5"),
        (lambda d: head(d, order="four"), "found 'four'"),
        (lambda d: d["calibration"].update(x=float("inf")), "found Infinity, expected a finite number"),
        (lambda d: head(d, oder=3), "layers.1.heads.2.oder: unknown key"),
        (lambda d: d.update(extra=1), "extra: unknown key"),
        (lambda d: head(d, window=7), "layer layers.1.attn, KV head 1: window differs within the group ([4, 7])"),
        (lambda d: head(d, sinks=0), "KV head 1: sinks differs within the group ([0, 1])"),
        (lambda d: head(d, error="0.5"), "layers.1.heads.2.error: Input should be a valid number, found '0.5'"),
        (lambda d: head(d, coefficients=[1, True, 1]), "Input should be a valid number, found True"),
        (lambda d: head(d, kept=4), "layer layers.1.attn, KV head 1: kept differs within the group ([0, 4])"),
        (lambda d: head(d, kept=-1), "layers.1.heads.2.kept: Input should be greater than or equal to 0, found -1"),
        (lambda d: head(d, keeps=4), "layers.1.heads.2.keeps: unknown key"),
        (lambda d: d["model"].update(heads=True), "model.heads: Input should be a valid integer, found True"),
        (lambda d: d["model"].update(layers="2"), "model.layers: Input should be a valid integer, found '2'"),
        (lambda d: d["layers"][0].update(module="a b"), "layers.0.module: String should match pattern"),
        (lambda d: d["layers"][0].update(module="a" * 10**5), "layers.0.module: String should have at most 500"),
        (lambda d: d.pop("model"), "model: the key is missing"),
        (lambda d: d.update({"a\nb" * 99: 1}), "unknown key"),
        (lambda d: head(d, expansion="median"), "found 'median'"),
        (lambda d: head(d, ranks=[8, 8, 4]), "some heads have ranks and some have none"),
        (
            lambda d: d["layers"][1]["heads"].__setitem__(2, {"order": "exact"}),
            "some heads are exact and some are not; the cache is shared",
        ),
        (lambda d: d["layers"][0]["heads"].pop(), "layer layers.0.attn lists 3 heads, expected 4"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(tmp_path, change, words):
    path = write(tmp_path, change)
    with pytest.raises(ConfigError) as caught:
        OrderConfig.load(path)
    message = str(caught.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("content", ["", "[]", "{", "3", '"orders"'])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    (tmp_path / "orders.json").write_text(content)
    with pytest.raises(ConfigError, match="orders.json"):
        OrderConfig.load(tmp_path / "orders.json")


def test_a_missing_file_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; `taylorder analyze` writes one"):
        OrderConfig.load(tmp_path / "orders.json")


@pytest.mark.parametrize(
    "other, words",
    [
        (
            description(architecture="OtherForCausalLM"),
            "made for tiny, with architecture = TinyForCausalLM, and the model is tiny, with architecture = Other",
        ),
        (description(module()), "with layers = 2, and the model is tiny, with layers = 1; name"),
        (
            description(module(heads=2), module("layers.1.attn", heads=2)),
            "with heads = 4, and the model is tiny, with he",
        ),
        (description(module(kv_heads=4), module("layers.1.attn", kv_heads=4)), "with kv_heads = 2"),
        (description(module(head_dim=16), module("layers.1.attn", head_dim=16)), "with head_dim = 8"),
        (description(module(), module("layers.7.attn")), "lists layer layers.1.attn where the model has layers.7.attn"),
        (description(fingerprint="sha256:def"), "made for weights sha256:abc (tiny), the model has sha256:def"),
        (
            description(module(sliding_window=5), module("layers.1.attn")),
            "attends to a sliding window of 5 tokens and stays as it is",
        ),
        (description(module(causal=False), module("layers.1.attn")), "is bidirectional and has no near field"),
    ],
)
def test_the_wrong_model_is_refused_with_what_differs(tmp_path, other, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        OrderConfig.load(write(tmp_path), other)
    OrderConfig.load(write(tmp_path), description())


def test_a_model_itself_serves_as_well_as_its_description(tmp_path):
    from tiny import TINY

    from taylorder.models.describe import describe

    model = TINY["llama"]()
    config = OrderConfig.uniform(model, 3, "mean", 4, 1)
    assert config == OrderConfig.uniform(describe(model), 3, "mean", 4, 1)
    config.save(tmp_path / "orders.json")
    assert OrderConfig.load(tmp_path / "orders.json", model) == config
    with pytest.raises(ConfigError, match="with architecture = "):
        OrderConfig.load(tmp_path / "orders.json", TINY["qwen3"]())


def test_uniform_leaves_sliding_window_layers_exact_and_needs_centres_for_centre():
    model = description(module(sliding_window=5), module("layers.1.attn"))
    config = OrderConfig.uniform(model, 3, "mean", 4, 1)
    assert {h.spec for h in config.layers[0].heads} == {HeadSpec(Exact())}
    assert {h.spec for h in config.layers[1].heads} == {HeadSpec(Taylor(3, "mean"), Near(4, 1))}
    config.check(model)
    with pytest.raises(ConfigError, match="needs key_centres"):
        OrderConfig.uniform(model, 3, "centre")
    with pytest.raises(ConfigError, match="less than or equal to 8, found 9"):
        OrderConfig.uniform(model, 9)
    exact = OrderConfig.uniform(model, "exact")
    assert {h.spec for layer in exact.layers for h in layer.heads} == {HeadSpec(Exact())}
