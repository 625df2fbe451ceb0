"""Verdicts on made-up evidence: each claim where it holds, where it does not, and where nothing can be told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from claims_cases import evidence, losses, model, normal_heads, score

from taylorder.claims.evidence import above, below, over_layers, overall
from taylorder.claims.layers import Layers
from taylorder.claims.measurements import heads
from taylorder.claims.measurements.heads import ORDERS
from taylorder.claims.measurements.score_ranges import RangesByLength
from taylorder.claims.measurements.state_times import StateTimes
from taylorder.claims.rounding import PRECISIONS
from taylorder.claims.verdicts.constant_cost import constant_cost_claim
from taylorder.claims.verdicts.degree import degree_claim
from taylorder.claims.verdicts.distance import distance_claim
from taylorder.claims.verdicts.lookup import lookup_claim
from taylorder.claims.verdicts.precision import precision_claim
from taylorder.claims.verdicts.ranges import ranges_claim, tolerated_std
from taylorder.claims.verdicts.similar import similar_claim
from taylorder.evaluation.intervals import Interval


def test_verdicts_follow_from_whole_intervals():
    assert above(Interval(1, 0.5, 2), 0.4) == below(Interval(1, 0.5, 2), 3) == "supported"
    assert above(Interval(1, 0.5, 2), 3) == below(Interval(1, 0.5, 2), 0.4) == "contradicted"
    assert above(Interval(1, 0.5, 2), 1) == below(Interval(1, 0.5, 2), 1) == "undecided"
    assert above(None, 1) == below(None, 1) == "not applicable"


def test_models_have_to_agree():
    assert overall(["supported", "supported", "not applicable"]) == "supported"
    assert overall(["contradicted"]) == "contradicted"
    assert overall(["supported", "contradicted"]) == overall(["supported", "undecided"]) == "undecided"
    assert overall([]) == overall(["not applicable"]) == "not applicable"


def test_layers_without_a_figure_take_no_part():
    assert over_layers([float("nan")]) is None
    assert over_layers([1.0, float("nan"), 3.0]).estimate == 2


class TestPrecision:
    def test_large_relative_errors_contradict_though_absolute_ones_are_small(self):
        found = precision_claim(evidence(model()))
        assert found.verdict == "contradicted"
        assert "0.0007" in found.reason
        assert "29%" in found.reason
        ratio = next(effect for effect in found.effects if effect.name.startswith("model"))
        assert ratio.estimate == pytest.approx((0.04 / 1e-7) ** 0.5, rel=0.05)

    def test_errors_of_float16_support(self):
        small = evidence(model(truncation=1e-7), normal=normal_heads(relative=5e-4))
        assert precision_claim(small).verdict == "supported"

    def test_models_that_differ_from_the_set_up_leave_it_undecided(self):
        assert precision_claim(evidence(model(truncation=1e-7))).verdict == "undecided"

    def test_every_precision_and_order_has_a_row(self):
        setup, of_model = precision_claim(evidence(model())).tables
        assert len(setup.rows) == 2 * (4 + len(PRECISIONS))
        assert [row[0] for row in of_model.rows] == [*(f"order {order}" for order in ORDERS), *PRECISIONS]
        assert all(row[2] > 0 for row in setup.rows)
        for _, _, relative, _, absolute, rms in of_model.rows:
            assert rms == pytest.approx(0.1)
            assert absolute == pytest.approx(relative * rms)

    def test_absolute_errors_of_rounding_stand_beside_those_of_truncation(self):
        found = precision_claim(evidence(model()))
        effects = {effect.name: effect.estimate for effect in found.effects}
        assert effects["normal inputs, d = 64: median absolute error of an element"] == pytest.approx(7e-4)
        assert effects["normal inputs, d = 64: the same of rounding to float16"] == pytest.approx(1e-6)
        assert "rounding to float16 is off by 1e-06" in found.reason


class TestSimilar:
    def test_weight_that_is_lost_supports(self):
        found = similar_claim(evidence(model(kept=0.3)))
        assert found.verdict == "supported"
        assert found.effects[0].estimate == pytest.approx(0.3, rel=0.05)

    def test_weight_that_is_kept_contradicts(self):
        assert similar_claim(evidence(model(kept=0.98))).verdict == "contradicted"

    def test_a_best_key_alone_is_the_control(self):
        worse = similar_claim(evidence(model(kept=0.3, alone=0.6)))
        better = similar_claim(evidence(model(kept=0.3, alone=0.15)))
        for found, sign in ((worse, -1), (better, 1)):
            (control,) = (effect for effect in found.effects if "over what a single" in effect.name)
            assert control.estimate == pytest.approx(sign * np.log(2), rel=0.15)
            assert control.low < control.estimate < control.high
        assert "no harm" not in worse.reason
        assert "alone keeps 15% in model: their number does no harm" in better.reason

    def test_models_that_differ(self):
        assert similar_claim(evidence(model(kept=0.3), model("other", kept=0.98))).verdict == "undecided"

    def test_made_up_scores_say_what_they_must(self):
        """The wider the scores the less is left; high orders leave more; within a window they get too much instead."""
        table = similar_claim(evidence(model())).tables[0]
        rows = {(row[0], row[1]): row for row in table.rows}
        assert rows[0.5, 1][7] > 0.95 > rows[3.0, 1][7]
        for row in rows.values():
            assert row[3] < row[7] <= 1.01
            assert row[5] - 1e-9 < row[-3]
        for row in (row for (std, _), row in rows.items() if std > 1):  # a larger window comes nearer to the truth
            assert abs(row[-3] - 1) > abs(row[-2] - 1) > abs(row[-1] - 1)


class TestDistance:
    def test_more_weight_on_the_past_supports(self):
        found = distance_claim(evidence(model(past=2.0)))
        assert found.verdict == "supported"
        assert found.effects[0].estimate == pytest.approx(np.log(2), rel=0.1)
        assert any(f"keys of the text is multiplied by 0.{share} in model" in found.reason for share in (49, 50, 51))

    def test_errors_are_told_by_distance(self):
        _, errors, _ = distance_claim(evidence(model())).tables
        assert errors.title == "model: error by distance"
        assert errors.rows[-1][0] == "the first 4 keys"
        assert all(each == pytest.approx(0.1, rel=0.05) for row in errors.rows for each in row[1:])

    def test_less_contradicts(self):
        assert distance_claim(evidence(model(past=0.5))).verdict == "contradicted"

    def test_encoders_have_no_past(self):
        assert distance_claim(evidence(model(causal=False))).verdict == "not applicable"


class TestRanges:
    def test_wild_scores_contradict_and_mild_ones_support(self):
        assert ranges_claim(evidence(model(std=3.0))).verdict == "contradicted"
        assert ranges_claim(evidence(model(std=0.2))).verdict == "supported"

    def test_no_head_of_a_few_layers_is_not_certainty(self):
        (effect,) = ranges_claim(evidence(model(std=3.0))).effects
        assert (effect.estimate, effect.low) == (0, 0)
        assert 0.2 < effect.high < 0.5

    def test_what_an_order_tolerates_meets_the_tolerance(self):
        from taylorder.analysis.statistics import gaussian_prediction

        assert gaussian_prediction(tolerated_std(4, 0.07), 4) == pytest.approx(0.07)
        assert tolerated_std(8, 0.07) > tolerated_std(4, 0.07)

    def test_growth_with_context_is_told(self):
        lengths = (256, 1024)
        largest = {f"model.layers.{layer}.self_attn": [[5.0, 5.0], [8.0, 8.0]] for layer in range(8)}
        found = ranges_claim(evidence(model(std=3.0, measured={"ranges": RangesByLength(lengths, largest)})))
        assert f"{5 / np.log(256):.1f} to {8 / np.log(1024):.1f} times ln n" in found.reason
        assert found.plots[0].series[-1].name == "ln n"


class TestDegree:
    def test_losses_that_fall_support_and_those_that_rise_contradict(self):
        assert degree_claim(evidence(model(measured={"losses": losses(-0.1)}))).verdict == "supported"
        assert degree_claim(evidence(model(measured={"losses": losses(0.1)}))).verdict == "contradicted"
        assert degree_claim(evidence(model(measured={"losses": losses(0.0)}))).verdict == "undecided"

    def test_steps_are_paired_by_sequence(self):
        found = degree_claim(evidence(model(measured={"losses": losses(-0.1)})))
        assert len(found.effects) == 3
        for effect in found.effects:
            assert effect.estimate == pytest.approx(-0.1, abs=0.02)
            assert effect.high - effect.low < 0.1, "sequences of different difficulty would spread over a nat"

    def test_every_order_has_its_loss_and_perplexity(self):
        found = degree_claim(evidence(model(measured={"losses": losses(-0.1)})))
        table = next(table for table in found.tables if "loss with every head" in table.title)
        assert [row[0] for row in table.rows] == [1, 2, 3, 5, 7]
        for row in table.rows:
            for nll, perplexity, delta, low, high in (row[1:6], row[6:]):
                assert perplexity == pytest.approx(np.exp(nll))
                assert nll - 2.5 == pytest.approx(delta)  # exact: the mean of 1, 2, 3 and 4
                assert low < delta < high

    def test_layers_that_stay_exact_are_told(self):
        layered = model(measured={"losses": losses(-0.1)})
        modules = tuple(
            dataclasses.replace(module, sliding_window=16 if place else None)
            for place, module in enumerate(layered.model.modules)
        )
        description = dataclasses.replace(layered.model, modules=modules)
        analysis = dataclasses.replace(layered.layers.analysis, model=description)
        found = degree_claim(evidence(dataclasses.replace(layered, layers=Layers(analysis))))
        assert found.effects[0].name.startswith("model (1 of 8 layers): ")

    def test_without_losses_errors_are_told_and_nothing_is_decided(self):
        found = degree_claim(evidence(model(causal=False)))
        assert found.verdict == "not applicable"
        assert "from order 1 to 7" in found.reason


class TestCost:
    def times(self, adapted, held=(4, 4, 4), replaced=None):
        exact = tuple((10.0 + repeat, 20.0, 60.0) for repeat in (0.0, 0.1, 0.2))
        own = tuple((20.0 + repeat, 20.0, adapted) for repeat in (0.0, 0.1, 0.2))
        milliseconds = {"exact": exact, "order 3": own}
        whole = {"exact": (1, 4, 16), "order 3": held}
        return {"times": StateTimes((256, 1024, 4096), milliseconds, whole, {"order 3": replaced or held})}

    def test_constant_times_support_and_growing_ones_contradict(self):
        assert constant_cost_claim(evidence(model(measured=self.times(20.5)))).verdict == "supported"
        assert constant_cost_claim(evidence(model(measured=self.times(40.0)))).verdict == "contradicted"

    def test_contexts_whose_keys_are_still_kept_are_no_evidence(self):
        """After 256 tokens keys take less than a state: what grows from there to a state is no growth of its time."""
        found = constant_cost_claim(evidence(model(measured=self.times(20.5, held=(1, 4, 4)))))
        assert found.effects[0].estimate == pytest.approx(20.5 / 20)
        assert "from 1,024 to 4,096 tokens" in found.effects[0].name
        assert found.effects[1].estimate == pytest.approx(3)
        filling = constant_cost_claim(evidence(model(measured=self.times(20.5, held=(1, 4, 4), replaced=(1, 1, 1)))))
        assert "from 256 to 4,096 tokens" in filling.effects[0].name, "only a sliding window filled up"
        never = constant_cost_claim(evidence(model(measured=self.times(20.5, held=(1, 4, 16)))))
        assert never.verdict == "not applicable"
        assert not never.effects

    def test_measured_crossovers_are_told(self):
        found = constant_cost_claim(evidence(model(measured=self.times(20.5))))
        assert "order 3 from 4,096 tokens on smaller and from 4,096 tokens on faster" in found.reason
        slow = constant_cost_claim(evidence(model(measured=self.times(70.0, held=(99, 99, 99)))))
        assert "order 3 up to 4,096 tokens not smaller and up to 4,096 tokens not faster" in slow.reason

    def test_the_crossovers_are_told_whatever_the_clock_says(self):
        found = constant_cost_claim(evidence(model(measured=self.times(20.5))))
        assert "2,179 tokens on at order 3" in found.reason
        assert "48,654 at order 4" in found.reason
        assert found.tables[0].rows[3][:2] == (4, 47905)

    def test_encoders_are_counted_in_multiplications(self):
        found = constant_cost_claim(evidence(model(causal=False)))
        assert found.verdict == "not applicable"
        assert "fewer multiplications" in found.reason


class TestLookup:
    def judged(self, *scores):
        return lookup_claim(evidence(model(measured={"tasks": scores})))

    def test_states_that_fail_everywhere_support(self):
        found = self.judged(
            score("order 2", "state", "lookup", -0.7), score("order 3", "state", "list", -0.6),
            score("window 64", "window", "list", 0.0),
        )  # fmt: skip
        assert found.verdict == "supported"
        assert "exact attention has 90% right" in found.reason
        assert len(found.effects) == 2

    def test_an_order_that_manages_contradicts(self):
        assert self.judged(score("order 5", "state", "list", 0.0)).verdict == "contradicted"

    def test_a_mixture_is_undecided(self):
        found = self.judged(score("order 2", "state", "list", -0.7), score("order 2", "state", "copy", 0.0))
        assert found.verdict == "undecided"

    def test_what_exact_attention_cannot_do_is_no_evidence(self):
        found = self.judged(score("order 2", "state", "list", -0.7, can=False))
        assert found.verdict == "not applicable"
        assert "itself cannot" in found.reason

    def test_needles_decide_nothing(self):
        assert self.judged(score("order 2", "state", "needle", -0.7)).verdict == "not applicable"


def test_orders_asked_about_are_measured():
    from taylorder.claims.verdicts import distance, precision, similar

    assert {distance.ORDER, precision.ORDER, similar.ORDER} <= set(heads.ORDERS)
