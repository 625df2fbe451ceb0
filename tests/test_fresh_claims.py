"""The claims about fresh models, on made-up records where they hold and where they do not."""

from __future__ import annotations

import pytest
from fresh_models.claims import alpha_claim, degree_claim, sharpness_claim
from fresh_models.found import FoundRun
from fresh_models.found_summary import found
from fresh_models.recall_run import RecallRun


def trained(contender, share, seed=0, **changes):
    run = RecallRun(contender, seed=seed, **changes)
    return {"about": run.about, "share": share, "solved_at": None, "steps": 9, "state_bytes": 1, "guessing": 0.1}


def analysed(contender, spread, seed=0, rate=3e-3, alpha=2.0):
    heads = [
        {"score_std": spread * factor, "errors": {"mean": [0.9, 9.0, 0.05 * factor, 9.0, 0.01, 9.0, 0.0, 9.0]}}
        for factor in (1.0, 4.0)
    ]
    about = RecallRun(contender, seed=seed, rate=rate).about | {"task": FoundRun.task}
    return {"about": about, "run_as": {"softmax": 1.0}, "heads": heads, "alpha": {"a": alpha, "b": None}}


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ((0.98, 0.99, 1.0), (0.1, 0.2, 0.1), "supported"),
        ((0.2, 0.21, 0.2), (0.2, 0.2, 0.21), "contradicted"),
        ((0.2, 0.9, 0.1), (0.2, 0.1, 0.15), "undecided"),
        ((1.0,), (0.1,), "undecided"),
    ],
)
def test_degree_helps_where_the_whole_interval_of_paired_seeds_says_so(better, worse, verdict):
    records = [trained("order 3", share, seed) for seed, share in enumerate(better)]
    records += [trained("order 2", share, seed) for seed, share in enumerate(worse)]
    claim = degree_claim(records)
    assert claim.verdict == verdict
    assert claim.effects[0].estimate == pytest.approx(sum(better) / len(better) - sum(worse) / len(worse))
    assert f"order 3 {sum(better) / len(better):.2f} ({len(better)})" in claim.reason


def test_every_number_of_pairs_decides():
    records = [trained(name, share, seed) for seed in (0, 1) for name, share in (("order 3", 0.99), ("order 2", 0.95))]
    assert degree_claim(records).verdict == "contradicted"
    records += [
        trained(name, share, seed, pairs=32, first=8)
        for seed in (0, 1)
        for name, share in (("order 3", 0.9), ("order 2", 0.1))
    ]
    claim = degree_claim(records)
    assert claim.verdict == "undecided"
    assert [round(effect.estimate, 2) for effect in claim.effects] == [0.04, 0.8]
    assert "32 pairs: order 2 0.10 (2), order 3 0.90 (2)" in claim.reason


def test_a_gain_cannot_be_more_than_everything():
    records = [trained("order 3", 0.99, seed) for seed in (0, 1)]
    records += [trained("order 2", share, seed) for seed, share in enumerate((0.4, 0.9))]
    (gain,) = degree_claim(records).effects
    assert (gain.low, gain.high) == (-1.0, 1.0)


def test_other_heads_first_weights_and_kinds_of_training_do_not_decide():
    records = [trained("order 3", 1.0, head_dim=32), trained("order 3", 1.0, initial=0.02), trained("order 2", 0.1)]
    records += [trained("order 3", 1.0, pairs=16), trained("order 3", 1.0, first=4)]
    claim = degree_claim(records)
    assert claim.verdict == "not applicable"
    assert claim.reason == "Share of right answers, and of how many seeds. 8 pairs: order 2 0.10 (1)."


@pytest.mark.parametrize(
    ("spread", "verdict"), [((1.0, 1.1, 0.9), "supported"), ((9.0, 9.1, 8.9), "contradicted"), ((3, 9, 1), "undecided")]
)
def test_heads_are_mild_where_scores_spread_less_than_those_of_softmax(spread, verdict):
    records = []
    for seed, std in enumerate(spread):
        records += [trained("softmax", 1.0, seed), trained("order 3", 1.0, seed)]
        records += [analysed("softmax", 3.0 + 0.01 * seed, seed), analysed("order 3", std, seed)]
    assert sharpness_claim(records).verdict == verdict


@pytest.mark.parametrize(
    ("away", "verdict"),
    [((1, 2, 3, 4, 5), "supported"), ((5, 4, 3, 2, 1), "contradicted"), ((2, 1, 5, 3, 2), "undecided")],
)
def test_alpha_tells_terms_where_it_goes_with_the_order_of_the_training(away, verdict):
    records = []
    for seed in range(3):
        for order, distance in enumerate(away, 1):
            records += [trained(f"order {order}", 1.0, seed), trained("order 3 mean", 1.0, seed)]
            records += [analysed(f"order {order}", 1.0, seed, alpha=2 + distance)]
            records += [analysed("order 3 mean", 1.0, seed, alpha=9.0)]  # another series: takes no part
    claim = alpha_claim(records)
    assert claim.verdict == verdict
    assert "Over 15 layers of 3 seeds" in claim.reason


def test_alpha_is_not_judged_on_few_layers():
    claim = alpha_claim([trained("order 3", 1.0), analysed("order 3", 1.0)])
    assert claim.verdict == "not applicable" and not claim.effects


def test_the_largest_weights_of_a_model_are_those_of_its_layers():
    record = analysed("order 3", 1.0)
    weights = [("a", 0.2), ("a", 0.5), ("b", 0.1), ("b", 0.05)]
    record["heads"] = [
        head | {"module": module, "largest": largest, "denominator": None}
        for (module, largest), head in zip(weights, record["heads"] * 2, strict=True)
    ]
    (model,) = found([trained("order 3", 0.95), record])
    assert (model.largest, model.denominator, model.learnt) == ([0.5, 0.1], [], True)


def test_of_models_trained_with_two_rates_the_chosen_one_counts():
    records = [trained("order 3", 0.1), trained("order 3", 0.9, rate=1e-3)]
    records += [analysed("order 3", 5.0), analysed("order 3", 2.0, rate=1e-3)]
    (model,) = found(records)
    assert model.score_std == [2.0, 8.0]
    assert model.needed(0.07) == [3, 5]
    assert model.needed(1e-9) == [7, 7]
    assert model.alpha == [2.0]
