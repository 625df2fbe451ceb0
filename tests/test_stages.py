"""The stages of the iterative scheme: plain windows first, then all candidates from what these reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measured_levers import (
    CANDIDATES,
    DROPPED,
    EXACT,
    FITTED_1,
    FITTED_2,
    HALF_KEPT,
    KEEPING,
    KEPT,
    LENGTH,
    LONG,
    SINKS_16,
    TAYLOR_1,
)
from policy_rules.criteria import gradient_errors

from taylorder.kernels.spec import Exact, HeadSpec, Near, Taylor
from taylorder.selection import refine as module
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import table_bytes
from taylorder.selection.criteria import Criterion
from taylorder.selection.refine import MORE_ROUNDS, ROUNDS, Round, measure_slopes, sensitivities
from taylorder.selection.settings import Limit
from taylorder.selection.under_limit import (
    STARTS,
    TRIAL_ROUNDS,
    _from_where_it_leads,
    _Steps,
    choose,
    most_rounds,
    near_fields_alone,
    uniform_starts,
    windows_alone,
)
from taylorder.selection.whole_model import WholeModel
from taylorder.storage.records import Records

PLAIN = [EXACT, DROPPED, LONG]


@pytest.fixture
def measurements(monkeypatch):
    """Configs measured, as places of the table that was measured; changes cost a hundredth of what they seem to."""
    found = []

    def noted(table, choice):
        config = len(table.candidates), tuple(choice)
        if config not in found:
            found.append(config)

    measure_kl = WholeModel.kl

    def measured(whole, table, choice):
        noted(table, choice)
        return measure_kl(whole, table, choice)

    def sloping(whole, table, sizes, choice):
        noted(table, choice)
        return measure_slopes(whole, table, sizes, choice)

    monkeypatch.setattr(WholeModel, "kl", measured)
    monkeypatch.setattr(module, "measure_slopes", sloping)
    monkeypatch.setattr(module, "sensitivities", lambda table: [each / 100 for each in sensitivities(table)])
    return found


def chosen(model, table, ids, directory, budget, criterion=None):
    return choose(
        model, table, Limit(LENGTH, budget), criterion, sequences=ids,
        records=Records(directory, {}), progress=lambda *_: None,
    )  # fmt: skip


def dropped_bytes(table):
    """What lets every KV head have the plain window of 12 tokens, and some a little more."""
    return table_bytes(table, LENGTH)[0][DROPPED] + 60


def test_windows_alone_are_exact_attention_and_windows_with_the_usual_sinks():
    assert windows_alone(CANDIDATES) == PLAIN
    assert SINKS_16 not in windows_alone(CANDIDATES)
    assert windows_alone([Candidate(HeadSpec(Exact())), Candidate(HeadSpec(Taylor(3, "mean"), Near(4, 4)))]) == [0]


def test_near_fields_alone_are_these_and_what_keeps_keys_beside_them():
    assert near_fields_alone(KEEPING) == [*PLAIN, KEPT, HALF_KEPT]
    assert near_fields_alone(CANDIDATES) == windows_alone(KEEPING) == PLAIN


def test_every_share_of_kept_keys_that_fits_is_measured_and_the_start_that_leads_further_down_goes_on(
    keeping_llama, measurements, tmp_path, monkeypatch
):
    model, table, ids = keeping_llama
    near = near_fields_alone(KEEPING)
    sizes = table_bytes(table, LENGTH)
    budget = dropped_bytes(table)
    starts = [near[index] for index in map(near.index, (DROPPED, KEPT, HALF_KEPT))]
    kls = [WholeModel(model, ids).kl(table, [place] * 4) for place in starts]
    for place, kl in zip(starts, kls, strict=True):
        whole, _ = measure_slopes(WholeModel(model, ids), table, sizes, [place] * 4)
        assert kl == pytest.approx(whole, rel=1e-4)
    measurements.clear()
    found = chosen(model, table, ids, tmp_path, budget)
    uniform = [each for each in found.rounds if each.among == "uniform"]
    assert [(each.choice, each.promised) for each in uniform] == [((place,) * 4, None) for place in starts]
    assert [each.kl for each in uniform] == pytest.approx(kls)
    tried = sorted(starts, key=lambda place: kls[starts.index(place)])[:STARTS]
    moved = [each for each in found.rounds if each.among == "near fields"]
    begins = [number for number, each in enumerate(moved) if each.promised is None]
    other, last = moved[: begins[1]], moved[begins[1] :]
    assert {each[0].choice for each in (other, last)} == {(place,) * 4 for place in tried}
    assert len(other) <= TRIAL_ROUNDS
    assert min(each.kl for each in last[:TRIAL_ROUNDS]) <= min(each.kl for each in other)
    assert measurements[: len(starts)] == [(len(near), (near.index(place),) * 4) for place in starts]
    stages = [each.among for each in found.rounds]
    assert stages == sorted(stages, key=["uniform", "near fields", "all"].index)
    monkeypatch.setattr(WholeModel, "kl", lambda *_: pytest.fail("measured again"))
    assert chosen(model, table, ids, tmp_path, budget) == found


@pytest.mark.parametrize("better", [0, 1])
def test_a_start_is_judged_by_its_best_round_and_no_round_is_measured_twice(better):
    kls = [[0.3, 0.2, 0.25, 0.1], [0.4, 0.3, 0.15, 0.05]]
    kls[better][2] = 0.01
    asked = []

    def run(start, name, progress, rounds=ROUNDS):
        asked.append((name, rounds))
        for done in range(rounds + 1):
            progress("moving", done, rounds)
        return tuple(Round(tuple(start), kl) for kl in kls[start[0]][:rounds])

    told = []
    found = _from_where_it_leads(run, [[0], [1]], "near", _Steps(lambda *about: told.append(about), 12))
    assert told[-1] == ("moving", most_rounds(2, more=False), 12)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told), "never set back"
    assert asked == [("near-0", TRIAL_ROUNDS), ("near-1", TRIAL_ROUNDS), (f"near-{better}", ROUNDS)]
    assert [(each.choice[0], each.kl) for each in found] == [
        *((1 - better, kl) for kl in kls[1 - better][:TRIAL_ROUNDS]),
        *((better, kl) for kl in kls[better]),
    ]


def test_a_share_of_which_no_size_fits_begins_nothing(keeping_llama):
    _, table, _ = keeping_llama
    near = near_fields_alone(KEEPING)
    part, sizes = table.restricted_to(near), [[size[place] for place in near] for size in table_bytes(table, LENGTH)]
    budget = sizes[0][near.index(DROPPED)]
    expected = [[near.index(place)] * 4 for place in (DROPPED, KEPT, HALF_KEPT)]
    assert uniform_starts(part, sizes, budget) == expected
    sizes = [[2 * size if index == near.index(KEPT) else size for index, size in enumerate(own)] for own in sizes]
    assert uniform_starts(part, sizes, budget) == [expected[0], expected[2]]
    assert uniform_starts(part, sizes, 100) == []


def test_a_part_of_the_table_has_the_rows_and_fits_of_its_candidates(measured_llama):
    _, table, _ = measured_llama
    places = [FITTED_2, EXACT, FITTED_1]
    part = table.restricted_to(places)
    assert part.candidates == tuple(CANDIDATES[place] for place in places)
    assert part.kv_heads == table.kv_heads
    for own, whole in zip(part.rows(), table.rows(), strict=True):
        assert [row.candidate for row in own] == [0, 1, 2]
        assert [(row.kv_head, row.relative_l2) for row in own] == [
            (whole[place].kv_head, whole[place].relative_l2) for place in places
        ]
    for own, whole in zip(part.layers, table.layers, strict=True):
        assert own.fitted == {0: whole.fitted[FITTED_2], 2: whole.fitted[FITTED_1]}
        assert torch.equal(own.prepared.centres, whole.prepared.centres)


def test_polynomials_join_after_windows_and_start_from_the_best_of_them(measured_llama, measurements, tmp_path):
    model, table, ids = measured_llama
    found = chosen(model, table, ids, tmp_path, dropped_bytes(table))
    windows = [choice for size, choice in measurements if size == len(PLAIN)]
    everything = [choice for size, choice in measurements if size == len(CANDIDATES)]
    assert 1 <= len(windows) <= ROUNDS
    assert 2 <= len(everything) <= MORE_ROUNDS + 1
    assert measurements == [(len(PLAIN), each) for each in windows] + [(len(CANDIDATES), each) for each in everything]
    first, later = found.rounds[: len(windows)], found.rounds[len(windows) :]
    assert [each.choice for each in first] == [tuple(PLAIN[place] for place in choice) for choice in windows]
    assert everything[0] == min(first, key=lambda each: each.kl).choice
    assert [each.choice for each in later] == everything[1:]
    assert {each.among for each in first} == {"windows"}
    assert {each.among for each in later} == {"all"}
    assert any(CANDIDATES[place].truncates for choice in everything[1:] for place in choice)
    best = min(found.rounds, key=lambda each: each.kl)
    assert found.choice == best.choice
    assert (found.objective, found.bound) == (best.promised or 0.0, best.bound)


def test_windows_alone_are_the_first_stage_and_no_better(measured_llama, measurements, tmp_path):
    model, table, ids = measured_llama
    whole = chosen(model, table, ids, tmp_path, dropped_bytes(table))
    measurements.clear()
    alone = chosen(model, table.restricted_to(PLAIN), ids, tmp_path, dropped_bytes(table))
    assert measurements == [], "the records of the first stage are found again"
    assert [each.kl for each in alone.rounds] == [each.kl for each in whole.rounds[: len(alone.rounds)]]
    assert min(each.kl for each in whole.rounds) <= min(each.kl for each in alone.rounds)


def test_where_no_window_fits_all_candidates_join_at_once(measured_llama, measurements, tmp_path):
    model, table, ids = measured_llama
    part, sizes = table.restricted_to([EXACT, DROPPED, TAYLOR_1]), table_bytes(table, LENGTH)[0]
    assert sizes[TAYLOR_1] < sizes[DROPPED] < sizes[EXACT]
    found = chosen(model, part, ids, tmp_path / "less", sizes[TAYLOR_1])
    assert found.choice == (2,) * len(table.kv_heads)
    assert measurements[0] == (3, (2,) * len(table.kv_heads))
    measurements.clear()
    chosen(model, part, ids, tmp_path / "enough", sizes[DROPPED])
    assert measurements[0] == (2, (1,) * len(table.kv_heads)), "a plain window fits, and comes first"


def test_a_window_with_more_sinks_does_not_take_the_place_of_the_first_stage(measured_llama, measurements, tmp_path):
    model, table, ids = measured_llama
    part, sizes = table.restricted_to([EXACT, DROPPED, SINKS_16]), table_bytes(table, LENGTH)[0]
    budget = max(sizes[DROPPED], sizes[SINKS_16])
    best = [replace(row, gradient_error=0.0) if row.candidate == 2 else row for row in part.layers[0].rows]
    part = replace(part, layers=(replace(part.layers[0], rows=tuple(best)), *part.layers[1:]))
    others = sum(row.gradient_error for rows in part.rows() for row in rows if row.candidate == 1)
    assert sum(row.gradient_error for rows in part.rows() for row in rows if row.candidate == 2) < others
    chosen(model, part, ids, tmp_path, budget)
    assert measurements[0] == (2, (1,) * len(table.kv_heads))


def test_another_criterion_is_the_sum_of_its_losses_and_measures_no_config(measured_llama, measurements, tmp_path):
    model, table, ids = measured_llama
    found = chosen(model, table, ids, tmp_path, dropped_bytes(table), Criterion("gradient", gradient_errors))
    assert measurements == []
    assert found.rounds == ()
    assert found.config.criterion["criterion"] == found.criterion == "gradient"
    losses = [rows[index].gradient_error for rows, index in zip(table.rows(), found.choice, strict=True)]
    assert found.objective == pytest.approx(sum(losses))
    assert found.bound <= found.objective
    assert found.gap == 0.0
