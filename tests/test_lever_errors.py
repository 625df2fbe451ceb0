"""Errors of candidates against a plain float64 computation with the reference, on tensors made up."""

from __future__ import annotations

import math

import pytest
import torch

from taylorder.adapt.probe import priorities
from taylorder.kernels import HeadSpec, reference_attention
from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor
from taylorder.selection.candidates import Candidate
from taylorder.selection.gradients import Observed
from taylorder.selection.lever_errors import FIT_ROWS, Prepared, Runner, group_specs, measure_levers

H, G, T, D, DV, SCALING = 4, 2, 40, 6, 5, 0.4
SEQUENCES = 2
CANDIDATES = (
    Candidate(HeadSpec(Exact())),
    Candidate(HeadSpec(Dropped(), Near(5, 2))),
    Candidate(HeadSpec(Taylor(1, "centre"), Near(5, 2)), fitted=True),
    Candidate(HeadSpec(Taylor(2, "centre"), Near(3, 1))),
    Candidate(HeadSpec(Taylor(4, "mean", (6, 6, 3, 3)), Near(3, 1))),
    Candidate(HeadSpec(Dropped(), Near(3, 2, 6))),
    Candidate(HeadSpec(Taylor(1, "centre"), Near(2, 1, 5)), fitted=True),
    Candidate(HeadSpec(Taylor(3, "mean", (6, 6, 3)), Near(2, 1, 3))),
)
WINDOW = Candidate(HeadSpec(Dropped(), Near(9, 2)))
KEPT = Candidate(HeadSpec(Dropped(), Near(4, 1, 8)))
INSTEAD = (None, None, WINDOW, Candidate(HeadSpec(Dropped(), Near(20, 2))), WINDOW, None, KEPT, KEPT)
PROBE = torch.randn(G, D + DV + 5, generator=torch.Generator().manual_seed(5))


TERMS = ScoreTerms(torch.tensor([0.3, 4.0, -1.0, 2.0]), 2.5)


def observed(seed, spread=1.0, terms=PLAIN):
    generator = torch.Generator().manual_seed(seed)
    q = spread * torch.randn(H, T, D, generator=generator)
    k = torch.randn(G, T, D, generator=generator) + 1.5
    v = torch.randn(G, T, DV, generator=generator)
    gradient = torch.randn(H, T, DV, generator=generator) / T
    exact = [HeadSpec(Exact())] * H
    output, _ = reference_attention(
        q[None], k[None], v[None], exact, scaling=SCALING, sink_logits=terms.sink_logits, softcap=terms.softcap
    )
    return Observed(q, k, v, output[0].float(), gradient, SCALING, terms)


def measured(candidates=CANDIDATES, instead=INSTEAD, seed=0, spread=1.0, terms=PLAIN):
    sequences = [observed(each, spread, terms) for each in range(SEQUENCES)]
    return sequences, measure_levers("layer", sequences, candidates, instead, probe=PROBE, seed=seed)


def reference(each, centres, rotations, specs):
    """Output ``[H, T, d_v]`` and the rows below the guard ``[H, T]``, float64."""
    q, k = each.q.double(), each.k.double() - centres[:, None]
    lost = torch.stack([SCALING * q[h] @ centres[h * G // H] for h in range(H)])
    if any(spec.ranks is not None for spec in specs):
        query, key = (rotation.double() for rotation in rotations)
        q = torch.stack([q[h] @ query[h * G // H].T for h in range(H)])
        k = torch.stack([k[g] @ key[g].T for g in range(G)])
    priority = priorities(PROBE, each.k[None], each.v[None])  # of keys as they were, neither centred nor rotated
    output, _ = reference_attention(
        q[None], k[None], each.v.double()[None], specs, scaling=SCALING, priority=priority,
        sink_logits=each.terms.sink_logits, softcap=each.terms.softcap, shift=lost[None],
    )  # fmt: skip
    return output[0]


def plain_errors(sequences, layer, specs, kv_head):
    """Relative L2 error of the group's outputs, and its error weighed by the gradient, token by token."""
    centres = torch.stack([torch.cat([each.k[g].double() for each in sequences]).mean(0) for g in range(G)])
    group = range(kv_head * H // G, (kv_head + 1) * H // G)
    squared = size = weighted = 0.0
    for each in sequences:
        found = reference(each, centres, layer.prepared.rotations, specs)
        exact = reference(each, centres, None, [HeadSpec(Exact())] * H)
        for t in range(T):
            change = 0.0
            for h in group:
                difference = found[h, t] - exact[h, t]
                squared += float(difference @ difference)
                size += float(exact[h, t] @ exact[h, t])
                change += float(difference @ each.gradient[h, t].double()) * (T - 1)
            weighted += change**2
    return math.sqrt(squared / size), weighted / (SEQUENCES * T)


@pytest.fixture(scope="module", params=[PLAIN, TERMS], ids=["plain", "sinks and a cap"])
def both(request):
    return measured(terms=request.param)


def test_rows_come_by_kv_head_and_candidate(both):
    _, layer = both
    assert layer.module == "layer"
    assert {row.module for row in layer.rows} == {"layer"}
    assert [(row.kv_head, row.candidate) for row in layer.rows] == [
        (g, p) for g in range(G) for p in range(len(CANDIDATES))
    ]


@pytest.mark.parametrize("kv_head", range(G))
@pytest.mark.parametrize("place", range(1, len(CANDIDATES)))
def test_errors_equal_the_plain_computation(both, kv_head, place):
    sequences, layer = both
    row = layer.rows[kv_head * len(CANDIDATES) + place]
    specs = [spec for head in range(G) for spec in group_specs(CANDIDATES, layer.fitted, place, head, H // G)]
    relative, weighted = plain_errors(sequences, layer, specs, kv_head)
    assert relative > 0.01
    assert row.relative_l2 == pytest.approx(relative, rel=1e-4)
    assert row.gradient_error == pytest.approx(weighted, rel=1e-4)


@pytest.mark.parametrize("kv_head", range(G))
@pytest.mark.parametrize("place", [2, 3, 4, 6, 7])
def test_windows_of_the_same_bytes_are_measured_beside(both, kv_head, place):
    sequences, layer = both
    row = layer.rows[kv_head * len(CANDIDATES) + place]
    relative, weighted = plain_errors(sequences, layer, [INSTEAD[place].spec] * H, kv_head)
    assert row.window_relative_l2 == pytest.approx(relative, rel=1e-4)
    assert row.window_gradient_error == pytest.approx(weighted, rel=1e-4)


def test_where_nothing_is_beside_nothing_is_said(both):
    _, layer = both
    for row in layer.rows:
        said = INSTEAD[row.candidate] is not None
        assert (row.window_relative_l2 is not None) == (row.window_gradient_error is not None) == said


def test_the_exact_candidate_has_no_error(both):
    _, layer = both
    for row in (layer.rows[0], layer.rows[len(CANDIDATES)]):
        assert row.candidate == 0
        assert row.relative_l2 == pytest.approx(0, abs=1e-6)
        assert row.gradient_error == pytest.approx(0, abs=1e-10)
        assert row.guarded_share == 0


def test_the_guarded_share_is_that_of_the_head_with_most():
    """Even orders around the centre, scores far from zero: counted in score space by hand."""
    candidates = (
        Candidate(HeadSpec(Taylor(2, "centre"), Near(3, 1))),
        Candidate(HeadSpec(Taylor(3, "centre"), Near(3, 1))),
    )
    sequences, layer = measured(candidates, (None, None), spread=4.0)
    k = [each.k.double() - torch.cat([s.k for s in sequences], 1).double().mean(1)[:, None] for each in sequences]
    apart = []
    for kv_head in range(G):
        total = 0
        for each, keys in zip(sequences, k, strict=True):
            hits = []
            for h in range(kv_head * 2, kv_head * 2 + 2):
                scores = SCALING * each.q[h].double() @ keys[kv_head].T
                far = [list(range(1, t - 2)) for t in range(T)]
                sums = [sum(1 + float(scores[t, j]) for j in far[t]) for t in range(T)]
                hits.append(sum(bool(far[t]) and sums[t] <= 1e-3 * len(far[t]) for t in range(T)))
            apart.append(hits[0] != hits[1])
            total += max(hits)
        assert layer.rows[2 * kv_head].guarded_share == pytest.approx(total / (SEQUENCES * T))
        assert total > 0
        assert layer.rows[2 * kv_head + 1].guarded_share == 0  # an odd order cannot vanish
    assert any(apart)


def test_every_query_head_has_coefficients_of_its_own(both):
    _, layer = both
    assert layer.fitted.keys() == {2, 6}
    for coefficients in layer.fitted.values():
        assert len(coefficients) == H
        assert all(len(own) == 1 for own in coefficients)


def test_coefficients_are_fitted_to_keys_that_are_not_kept(both):
    """The sum of squares over all rows, as the reference has it, is least where they are."""
    sequences, layer = both

    def squares(scale):
        fitted = {6: tuple((scale * own[0],) for own in layer.fitted[6])}
        specs = [spec for head in range(G) for spec in group_specs(CANDIDATES, fitted, 6, head, H // G)]
        centres = layer.prepared.centres.double()
        return sum(
            float(
                (reference(each, centres, None, specs) - reference(each, centres, None, [HeadSpec(Exact())] * H))
                .square()
                .sum()
            )
            for each in sequences
        )

    least = squares(1.0)
    assert least < min(squares(0.8), squares(1.25))


def test_coefficients_belong_to_their_seed():
    fitted = Candidate(HeadSpec(Taylor(4, "mean"), Near(3, 1)), fitted=True)
    sequences = [longer(each) for each in (0, 1)]

    def found(seed):
        return measure_levers("layer", sequences, (fitted,), (None,), seed=seed).fitted

    assert found(0) == found(0)
    assert found(0) != found(1)


def longer(seed):
    """More rows than coefficients are fitted to, so that they have to be drawn."""
    parts = [observed(seed + 10 * turn) for turn in range(1 + FIT_ROWS // T)]
    q, k, v, output, gradient = (
        torch.cat([getattr(part, name) for part in parts], 1) for name in ("q", "k", "v", "output", "gradient")
    )
    return Observed(q, k, v, output, gradient, SCALING)


def test_without_ranks_there_are_no_rotations():
    sequences, layer = measured(CANDIDATES[:4], INSTEAD[:4])
    assert layer.prepared.rotations is None
    expected = torch.cat([each.k for each in sequences], 1).double().mean(1)
    torch.testing.assert_close(layer.prepared.centres, expected.float())


def test_rotations_leave_the_scores_as_they_are(both):
    sequences, layer = both
    runner = Runner(sequences[0], layer.prepared)
    (q, k), (turned_q, turned_k) = runner.tensors(rotated=False), runner.tensors(rotated=True)
    for head in range(H):
        plain = q[head] @ k[head // 2].T
        torch.testing.assert_close(turned_q[head] @ turned_k[head // 2].T, plain, rtol=1e-4, atol=1e-4)
    assert (turned_q - q).abs().max() > 0.1


def test_ranks_without_rotations_are_refused():
    runner = Runner(observed(0), Prepared(torch.zeros(G, D), None))
    with pytest.raises(ValueError, match="ranks need rotations, and none were calibrated"):
        list(runner.run(0, [[CANDIDATES[4].spec] * 2]))
    list(runner.run(0, [[CANDIDATES[3].spec] * 2]))


@pytest.mark.parametrize("place", [5, 6, 7])
def test_kept_keys_without_a_probe_are_refused(place):
    sequences = [observed(0)]
    with pytest.raises(ValueError, match="kept keys need a probe, and none was fitted"):
        measure_levers("layer", sequences, CANDIDATES[place : place + 1], (None,), seed=0)


@pytest.mark.parametrize("kv_head", range(G))
def test_a_change_is_told_token_by_token_and_summed_over_the_group(kv_head):
    each = observed(0)
    own = slice(2 * kv_head, 2 * kv_head + 2)
    change = torch.randn(2, T, DV, generator=torch.Generator().manual_seed(7))
    runner = Runner(each, Prepared(torch.zeros(G, D), None))
    first_order, squared = runner.change(kv_head, each.output[own] + change)
    assert first_order.shape == (T,)
    assert first_order.dtype == torch.float64
    expected = (change.double() * each.gradient[own].double()).sum((0, 2))
    torch.testing.assert_close(first_order, expected, rtol=1e-4, atol=1e-6)
    assert squared == pytest.approx(float(change.double().square().sum()), rel=1e-5)
    assert runner.squared_output(kv_head) == pytest.approx(float(each.output[own].double().square().sum()))


def test_specs_are_those_of_the_query_heads_of_a_kv_head():
    fitted = {2: ((0.5,), (0.6,), (0.7,), (0.8,))}
    own = tuple(HeadSpec(Taylor(1, "centre", None, coefficients), Near(5, 2)) for coefficients in ((0.7,), (0.8,)))
    assert group_specs(CANDIDATES, fitted, 2, 1, 2) == own
    assert group_specs(CANDIDATES, fitted, 1, 0, 3) == (CANDIDATES[1].spec,) * 3
    assert group_specs(CANDIDATES, fitted, 0, 1, 2) == (HeadSpec(Exact()),) * 2
