"""The pieces of the healing benchmark: configs that run, and a row for every state."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import healing
import healing_orders
import numpy as np
import pytest
from command_line import WORDS
from tiny import llama

import taylorder
from taylorder.adapt import cost
from taylorder.analysis.text import Text
from taylorder.healing.settings import HealSettings
from taylorder.kernels.spec import Near
from taylorder.models.describe import describe
from taylorder.models.loading import LoadedModel


@pytest.fixture
def loaded(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(healing, "calibration_text", lambda: Text("words", WORDS))
    return LoadedModel(llama(), tiny_tokenizer, "tiny")


def test_order_3_at_rank_8_has_the_bytes_of_103_tokens_at_head_dim_64():
    state = cost.state_bytes(64, 64, 3, (64, 64, healing.RANK))
    near, window = (cost.near_bytes(Near(keys, 4), 64, 64, 4096) for keys in (healing.WINDOW, 167))
    token = cost.kv_bytes(64, 64, 1)
    assert abs(state + near - window) < token


def test_polynomials_at_a_rank_are_calibrated(loaded):
    model = describe(loaded.model, "tiny")
    config = healing.polynomial(3, 4)(loaded, model)
    config.check(model)
    assert config.layers[0].heads[0].spec.ranks == (8, 8, 4)
    assert config.rotations.keys() == config.key_centres.keys() == {module.name for module in model.modules}


def test_a_piece_is_healed_and_has_a_row_for_every_state(loaded, monkeypatch, tmp_path, capsys):
    module = "taylorder.evaluation.evaluation_text"
    monkeypatch.setattr(f"{module}.evaluation_text", lambda files=(): Text("a few words", WORDS))
    monkeypatch.setattr(f"{module}.evaluation_code", lambda: Text("a few lines", WORDS[::-1]))
    monkeypatch.setattr("taylorder.healing.heal.training_text", lambda: Text("words", WORDS * 3))
    monkeypatch.setattr(healing, "load", lambda name: loaded)
    monkeypatch.setattr(healing, "WINDOW", 8)
    piece = healing.Piece("small", "order 2", healing.polynomial(2), {"contexts": (32,), "tokens": 256})
    monkeypatch.setattr(healing, "PIECES", (piece,))
    out = tmp_path / "healing.json"
    analyze = taylorder.analyze
    monkeypatch.setattr(taylorder, "analyze", partial(analyze, text=WORDS, max_tokens=128, sequence_length=64))
    monkeypatch.setattr(healing_orders, "load", lambda name: LoadedModel(llama(), loaded.tokenizer, "tiny"))
    arguments = ["healing.py", "--orders", "--records", str(tmp_path), "--out", str(out), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    healing.main()
    assert capsys.readouterr().out.startswith("small: On unseen prose the mean KL")
    document = json.loads(out.read_text())
    assert [row["state"] for row in document["rows"]] == [
        "exact", "before", "after", "state off", "near field off", "window", "window, healed", "exact, trained"
    ]  # fmt: skip
    assert document["pieces"][0]["trainings"]["config"]["steps"] == 8
    after = next(row for row in document["rows"] if row["state"] == "after")
    assert len(after["prose kl"]) == len(after["code nll"]) == 3
    before, *trained = document["orders"]
    assert [row["state"] for row in trained] == [f"trained for {name}" for name in ("config", "window", "exact")]
    for row in trained:
        change = row["change"]["log spread"]
        assert change[0] != 0 and change[1] <= change[0] <= change[2]
        assert row["spread"] / before["spread"] == pytest.approx(math.exp(change[0]), rel=1e-6)
        assert set(row["change"]) == {"log spread", *(f"log error {order}" for order in (2, 3, 5, 7)), "alpha"}


@pytest.mark.parametrize("train", ["config", "probes"])
def test_weights_that_stay_are_analysed_once(loaded, monkeypatch, train):
    monkeypatch.setattr(healing_orders, "_found", lambda of: FOUND)
    kept = SimpleNamespace(settings=HealSettings(contexts=(32,), train=train), outcomes={"config": None})
    (row,) = healing_orders.orders({"piece": "small"}, loaded, kept)
    assert row["state"] == "exact" and row["spread"] == pytest.approx(2.0)


FOUND = {"spread": np.full(4, 2.0), "errors": np.full((4, 8), 0.5), "alpha": np.array([2.0, 3.0])}
