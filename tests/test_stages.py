"""The stages of the iterative scheme: plain windows first, then all candidates from what these reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measured_levers import (
    CANDIDATES,
    CENTRE_3,
    DROPPED,
    EVEN,
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
    hand_table,
)

from taylorder.errors import UsageError
from taylorder.kernels.spec import Exact, HeadSpec, Near, Taylor
from taylorder.selection import refine as module
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import table_bytes
from taylorder.selection.criteria import Criterion, gradient_errors
from taylorder.selection.refine import ROUNDS, sensitivities
from taylorder.selection.settings import Limit
from taylorder.selection.under_limit import by_errors, choose, near_fields_alone, windows_alone
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

    monkeypatch.setattr(WholeModel, "kl", measured)
    monkeypatch.setattr(module, "sensitivities", lambda table: [each / 100 for each in sensitivities(table)])
    return found


def chosen(model, table, ids, directory, budget, criterion=None, progress=lambda *_: None):
    return choose(
        model, table, Limit(LENGTH, budget), criterion, sequences=ids,
        records=Records(directory, {}), progress=progress,
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


def test_it_begins_from_the_best_of_one_near_field_for_all_and_what_errors_choose(
    keeping_llama, measurements, tmp_path, monkeypatch
):
    model, table, ids = keeping_llama
    near, budget = near_fields_alone(KEEPING), dropped_bytes(table)
    part, sizes = table.restricted_to(near), [[size[place] for place in near] for size in table_bytes(table, LENGTH)]
    alike = min((DROPPED, KEPT, HALF_KEPT), key=lambda place: sum(rows[place].gradient_error for rows in table.rows()))
    errors = tuple(near[place] for place in by_errors(part, sizes, budget))
    starts = [(alike,) * 4, errors, by_errors(table, table_bytes(table, LENGTH), budget)]
    assert len(set(starts)) == 3
    kls = [WholeModel(model, ids).kl(table, start) for start in starts]
    measurements.clear()
    told = []
    found = chosen(model, table, ids, tmp_path, budget, progress=lambda *about: told.append(about))
    assert [(step.choice, step.kl, step.promised) for step in found.rounds[:3]] == [
        (start, pytest.approx(kl), None) for start, kl in zip(starts, kls, strict=True)
    ]
    assert [step.among for step in found.rounds[:3]] == ["uniform", "errors", "all errors"]
    best = kls.index(min(kls))
    assert (found.rounds[3].choice, found.rounds[3].among) == (starts[best], "all" if best == 2 else "near fields")
    assert measurements[:3] == [(len(table.candidates), start) for start in starts]
    assert told[:4] == [("where to begin", done, 3) for done in range(4)]
    assert told[-1] == ("moving bytes", ROUNDS, ROUNDS)
    monkeypatch.setattr(WholeModel, "kl", lambda *_: pytest.fail("measured again"))
    assert chosen(model, table, ids, tmp_path, budget) == found


def test_errors_choose_what_costs_least_in_all_within_the_budget():
    table = hand_table([[0.0, 0.5, 0.5, 0.5]] * 2, [[0.0, 1.0, 8.0, 4.0], [0.0, 9.0, 8.0, 4.0]])
    sizes = [[400, 200, 100, 150]] * 2
    assert by_errors(table, sizes, 400) == (0, 0)
    assert by_errors(table, sizes, 300) == (1, 0)
    assert by_errors(table, sizes, 175) == (1, 3)
    with pytest.raises(UsageError, match="the budget is 180 bytes"):
        by_errors(table, sizes, 90)


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


def with_errors(table, errors):
    """The table with these gradient errors of some candidates of every KV head."""
    layers = []
    for layer in table.layers:
        rows = [replace(row, gradient_error=errors.get(row.candidate, row.gradient_error)) for row in layer.rows]
        layers.append(replace(layer, rows=tuple(rows)))
    return replace(table, layers=tuple(layers))


def test_polynomials_join_where_the_errors_of_single_kv_heads_lead_further_down_with_them(
    measured_llama, measurements, tmp_path
):
    model, table, ids = measured_llama
    kls = {place: WholeModel(model, ids).kl(table, [place] * 4) for place in (DROPPED, FITTED_1, EVEN, CENTRE_3)}
    better, worse = min(kls, key=kls.__getitem__), max(kls, key=kls.__getitem__)
    assert better != DROPPED != worse
    sizes = table_bytes(table, LENGTH)[0]
    budget = max(sizes[place] for place in kls)
    for place, joins in ((better, True), (worse, False)):
        part = with_errors(table.restricted_to([DROPPED, place]), {0: 1.0, 1: 0.0})
        measurements.clear()
        found = chosen(model, part, ids, tmp_path / str(place), budget)
        assert [step.choice for step in found.rounds[:3]] == [(0,) * 4, (0,) * 4, (1,) * 4]
        assert [step.kl for step in found.rounds[:3]] == pytest.approx([kls[DROPPED]] * 2 + [kls[place]])
        assert {step.among for step in found.rounds[3:]} == {"all" if joins else "windows"}
        assert found.rounds[3].choice == ((1,) * 4 if joins else (0,) * 4)
        assert found.choice == min(found.rounds, key=lambda step: step.kl).choice


def test_where_no_window_fits_all_candidates_join_at_once(measured_llama, measurements, tmp_path):
    model, table, ids = measured_llama
    part, sizes = table.restricted_to([EXACT, DROPPED, TAYLOR_1]), table_bytes(table, LENGTH)[0]
    assert sizes[TAYLOR_1] < sizes[DROPPED] < sizes[EXACT]
    found = chosen(model, part, ids, tmp_path / "less", sizes[TAYLOR_1])
    assert found.choice == (2,) * len(table.kv_heads)
    assert [step.among for step in found.rounds] == ["all"]
    found = chosen(model, part, ids, tmp_path / "enough", sizes[DROPPED])
    assert (found.rounds[0].choice, found.rounds[0].among) == ((1,) * 4, "uniform"), "a plain window fits"


def test_a_window_with_more_sinks_is_no_near_field_of_all(measured_llama, measurements, tmp_path):
    model, table, ids = measured_llama
    part, sizes = table.restricted_to([EXACT, DROPPED, SINKS_16]), table_bytes(table, LENGTH)[0]
    budget = max(sizes[DROPPED], sizes[SINKS_16])
    part = with_errors(part, {1: 1.0, 2: 0.0})
    found = chosen(model, part, ids, tmp_path, budget)
    assert [step.choice for step in found.rounds[:3]] == [(1,) * 4, (1,) * 4, (2,) * 4]
    assert [step.among for step in found.rounds[:3]] == ["uniform", "errors", "all errors"]


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
