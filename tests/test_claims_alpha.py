"""The prediction about alpha, on made-up layers where it holds, where it does not, and where nobody could tell."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import synthetic

from taylorder.claims import association
from taylorder.claims.association import Association
from taylorder.claims.layers import Layers
from taylorder.claims.measurements.invariance import Invariance, Scaled
from taylorder.claims.predictors import left_out_errors
from taylorder.claims.verdicts import alpha
from taylorder.claims.verdicts.alpha import ORDER, alpha_claim
from taylorder.evaluation.intervals import Interval


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Enough for verdicts that are no close call."""
    monkeypatch.setattr(association, "_RESAMPLES", 500)
    monkeypatch.setattr(association, "_FEWER_RESAMPLES", 200)


def layers(count, error, alpha, name="model", **options):
    """A model whose heads of a layer all have the same error, and whose q and k have the same alpha."""
    made = synthetic.analysis(
        count, 2, 1, error=lambda layer, head, order, expansion: error(layer) ** order, name=name, **options
    )
    spectral = tuple(
        dataclasses.replace(
            row, alpha=alpha(int(row.module.split(".")[2])), status="success", spectral_norm=2.0, hill_alpha=2.5
        )
        for row in made.spectral
    )
    return Layers(dataclasses.replace(made, spectral=spectral))


def spread(layer):
    return 0.1 + 0.8 * random.Random(layer).random()


def follows(layer):
    """The farther alpha is from 2, the larger the error."""
    return 2 + 3 * spread(layer)


def unrelated(layer):
    return 2 + 3 * random.Random(1000 + layer).random()


def test_where_errors_follow_alpha_the_prediction_is_supported():
    found = alpha_claim([layers(30, spread, follows)])
    assert found.verdict == "supported"
    assert all(effect.estimate > 0.99 and effect.low > 0.8 for effect in found.effects)
    assert len(found.effects) == 3
    assert "Over 30 layers the correlation is +1.00 to +1.00" in found.reason


def test_alphas_below_two_count_by_their_distance():
    found = alpha_claim([layers(30, spread, lambda layer: 2 - 0.9 * spread(layer))])
    assert found.verdict == "supported"


def test_where_errors_fall_with_the_distance_it_is_contradicted():
    found = alpha_claim([layers(30, spread, lambda layer: 7 - follows(layer))])
    assert found.verdict == "contradicted"
    assert all(effect.high < 0 for effect in found.effects)


def test_many_layers_without_association_contradict_and_few_do_not():
    many = [layers(80, spread, unrelated, f"model {number}") for number in range(3)]
    assert alpha_claim(many).verdict == "contradicted"
    few = alpha_claim([layers(12, spread, unrelated)])
    assert few.verdict == "undecided"
    assert "four times in five" in few.reason


def test_without_alphas_it_does_not_apply():
    made = layers(30, spread, unrelated)
    none = tuple(dataclasses.replace(row, status="failed", alpha=None) for row in made.analysis.spectral)
    found = alpha_claim([Layers(dataclasses.replace(made.analysis, spectral=none))])
    assert found.verdict == "not applicable"
    assert not found.effects


def test_every_test_is_told_with_interval_and_corrected():
    found = alpha_claim([layers(30, spread, follows)])
    tested = found.tables[0]
    assert len(tested.rows) == 18
    assert {row[0] for row in tested.rows} == {
        f"{kind}, {which}" for kind in ("alpha", "|alpha - 2|") for which in ("q", "k", "mean")
    }
    for row in tested.rows:
        for estimate, low, high in (row[3:6], row[6:9], row[9:12]):
            assert low <= estimate <= high
        assert 0 < row[-1] <= 1


def test_a_run_of_few_orders_is_judged_at_the_largest_odd_one():
    found = alpha_claim([layers(30, spread, follows, max_order=4)])
    assert "at order 3" in found.effects[0].name
    assert any("orders up to 3 only" in note for note in found.notes)


def test_needed_orders_count_censored_heads():
    made = layers(30, lambda layer: 0.9, unrelated)
    needed, missed = made.needed_order(0.5, "mean")
    assert (needed == 7).all()  # 0.9 ** 7 = 0.478
    assert missed == 0
    needed, missed = made.needed_order(0.07, "mean")
    assert (needed == 9).all()
    assert missed == 1
    table = next(table for table in alpha_claim([made]).tables if "smallest order" in table.title)
    assert {row[1]: row[2] for row in table.rows if row[0] == "mean"} == {0.5: 0.0, 0.2: 1.0, 0.07: 1.0}


def test_predictors_are_ranked_on_layers_left_out():
    errors = left_out_errors([layers(30, spread, follows)], ORDER, "mean")
    assert list(errors.values()) == sorted(errors.values())
    # The log error is no straight line in alpha, but nearly.
    assert errors["|alpha - 2|, q"] < 0.5 * errors["nothing"]
    unrelated_errors = left_out_errors([layers(30, spread, unrelated)], ORDER, "mean")
    assert unrelated_errors["|alpha - 2|, q"] > 0.8 * unrelated_errors["nothing"]
    y = layers(30, spread, follows).log_error(ORDER, "mean")
    expected = np.sqrt(np.mean([(y[i] - np.delete(y, i).mean()) ** 2 for i in range(30)]))
    assert errors["nothing"] == pytest.approx(expected)


def test_heads_are_compared_with_the_heads_of_their_own_layer():
    """Within a layer the error falls with the distance of alpha from 2, and between layers it rises."""
    made = synthetic.analysis(
        6, 6, 1, error=lambda layer, head, order, expansion: 0.05 * (layer + 1) - 0.005 * head, per_head_alpha=True
    )
    spectral = tuple(
        dataclasses.replace(row, alpha=2.0 + int(row.module.split(".")[2]) + 0.1 * (row.head or 0), status="success")
        for row in made.spectral
    )
    found = alpha_claim([Layers(dataclasses.replace(made, spectral=spectral))])
    table = next(table for table in found.tables if table.title.startswith("heads of a layer"))
    layers_, spearman, low, high, kendall, *_ = table.rows[0]
    assert (layers_, spearman, low, high, kendall) == pytest.approx((6, -1, -1, -1, -1))
    assert "noisy" in table.title
    plain = alpha_claim([layers(30, spread, follows)])
    assert not any(table.title.startswith("heads of a layer") for table in plain.tables)


def test_a_sure_but_small_correlation_contradicts():
    """Nobody could choose by it, whatever its sign."""

    def verdict(*intervals):
        return alpha._verdict(
            [Association(Interval(0.5 * (low + high), low, high), 0.01, 99) for low, high in intervals]
        )

    assert verdict((0.02, 0.28), (0.05, 0.29), (-0.1, 0.1)) == "contradicted"
    assert verdict((0.02, 0.28), (0.05, 0.31), (0.1, 0.4)) == "supported"
    assert verdict((0.02, 0.28), (0.05, 0.31), (-0.1, 0.4)) == "undecided"


def test_scaling_is_shown():
    rows = tuple(Scaled(factor, 3.0, factor, factor / 10, 4.0) for factor in (0.5, 1.0))
    found = alpha_claim([layers(30, spread, follows)], {"model": Invariance("layer 3", 5, rows, "note")})
    table = next(table for table in found.tables if "W_Q multiplied" in table.title)
    assert [row[:2] for row in table.rows] == [(0.5, 3.0), (1.0, 3.0)]


def test_dequantised_weights_are_named():
    assert any("Q4_1" in note for note in alpha_claim([layers(30, spread, follows)]).notes)
