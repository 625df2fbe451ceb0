"""The prediction about alpha, on made-up layers where it holds, where it does not, and where nobody could tell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from claims_cases import follows, layers, spread, unrelated

from taylorder.claims.association import Association
from taylorder.claims.evidence import Evidence, ModelEvidence
from taylorder.claims.layers import Layers
from taylorder.claims.left_out import ALPHA, NOTHING, SCORE_STD, left_out_errors
from taylorder.claims.verdicts import alpha
from taylorder.claims.verdicts.alpha import ORDER
from taylorder.evaluation.intervals import Interval


def alpha_claim(models):
    return alpha.alpha_claim(Evidence([ModelEvidence(model, {}) for model in models]))


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


def test_a_run_of_few_orders_is_judged_at_the_largest_odd_one():
    found = alpha_claim([layers(30, spread, follows, max_order=4)])
    assert "at order 3" in found.effects[0].name
    assert any("orders up to 3 only" in note for note in found.notes)


def test_alpha_is_judged_on_layers_left_out():
    errors = left_out_errors([layers(30, spread, follows)], ORDER, "mean")
    assert list(errors.values()) == sorted(errors.values())
    # The log error is no straight line in alpha, but nearly.
    assert errors[ALPHA] < 0.5 * errors[NOTHING]
    unrelated_errors = left_out_errors([layers(30, spread, unrelated)], ORDER, "mean")
    assert unrelated_errors[ALPHA] > 0.8 * unrelated_errors[NOTHING]
    y = layers(30, spread, follows).log_error(ORDER, "mean")
    expected = np.sqrt(np.mean([(y[i] - np.delete(y, i).mean()) ** 2 for i in range(30)]))
    assert errors[NOTHING] == pytest.approx(expected)


def test_layers_left_out_are_told_beside_the_verdict():
    found = alpha_claim([layers(30, spread, follows)])
    (table,) = found.tables
    assert {row[0] for row in table.rows} == {ALPHA, NOTHING, SCORE_STD}
    errors = dict(table.rows)
    assert (
        f"|alpha - 2| is off by {errors[ALPHA]:.2f} decades, knowing nothing by {errors[NOTHING]:.2f}" in found.reason
    )


def test_models_of_few_layers_are_not_left_out_of():
    assert left_out_errors([layers(4, spread, follows)], ORDER, "mean") == {}
    both = left_out_errors([layers(30, spread, follows), layers(4, spread, unrelated)], ORDER, "mean")
    assert both == left_out_errors([layers(30, spread, follows)], ORDER, "mean")


def test_a_sure_but_small_correlation_contradicts():
    """Nobody could choose by it, whatever its sign."""

    def verdict(*intervals):
        return alpha._verdict([Association(Interval(0.5 * (low + high), low, high), 99) for low, high in intervals])

    assert verdict((0.02, 0.28), (0.05, 0.29), (-0.1, 0.1)) == "contradicted"
    assert verdict((0.02, 0.28), (0.05, 0.31), (0.1, 0.4)) == "supported"
    assert verdict((0.02, 0.28), (0.05, 0.31), (-0.1, 0.4)) == "undecided"


def test_dequantised_weights_are_named():
    assert any("Q4_1" in note for note in alpha_claim([layers(30, spread, follows)]).notes)
