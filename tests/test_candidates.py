"""What a KV head is offered, and that a lever left out is really missing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from taylorder.adapt.cost import near_bytes
from taylorder.errors import UsageError
from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import SINKS, Dropped, Exact, Near, Taylor
from taylorder.selection.candidates import (
    LEVERS,
    MORE_SINKS,
    MOST,
    MOST_WITH_KEPT,
    Candidate,
    candidates,
    parse_levers,
)
from taylorder.selection.near_sizes import SHARES, grown, keeping, kept_share, window_alone

LONG = (128, 512, 1024, 2048, 3072, 4096, 8192, 20_000)
"""Tokens of a sequence."""

LENGTHS = (16, 17, 33, 40, 64, 512, 1024, 2048, 4096, 20_000)
NEAR = (28, 4)
EVERY = [frozenset(some) for size in range(len(LEVERS) + 1) for some in itertools.combinations(LEVERS, size)]


def offered(*left_out, length=1024, near=NEAR, head_dim=64):
    return candidates(set(LEVERS) - set(left_out), head_dim, length, near)


def test_all_names_all_levers():
    assert parse_levers("all") == parse_levers(" all ") == frozenset(LEVERS)


def test_a_list_names_some_levers():
    assert parse_levers("window") == {"window"}
    assert parse_levers("ranks, order ,ranks") == {"ranks", "order"}
    assert parse_levers(",".join(LEVERS)) == frozenset(LEVERS)


@pytest.mark.parametrize(
    "text, name", [("order,rank", "'rank'"), ("", "''"), ("order,,window", "''"), ("order,all", "'all'")]
)
def test_a_name_that_is_no_lever_is_refused(text, name):
    with pytest.raises(UsageError) as caught:
        parse_levers(text)
    assert f"--levers has {name}, expected all, or some of order, expansion," in str(caught.value)


@pytest.mark.parametrize("length", LENGTHS)
def test_few_exact_first_without_repetition_and_within_the_sequence(length):
    for levers in EVERY:
        for head_dim in (4, 64):
            found = candidates(levers, head_dim, length, (min(28, length // 2), min(4, length // 4)))
            assert len(found) <= (MOST_WITH_KEPT if "kept" in levers else MOST)
            assert found[0] == Candidate(HeadSpec(Exact()))
            assert len(set(found)) == len(found)
            assert all(each.spec.near.tokens < max(length, SINKS + 1) for each in found)
            assert all(each.spec.ranks is None or max(each.spec.ranks) <= head_dim for each in found)
            assert HeadSpec(Exact()) not in {each.spec for each in found[1:]}


@pytest.mark.parametrize("length", [17, 40, 64])
def test_a_few_windows_are_offered_without_far_field_too(length):
    assert any(isinstance(each.spec.far, Dropped) for each in offered(length=length))


@pytest.mark.parametrize("length", LONG)
def test_all_levers_are_offered_at_every_length(length):
    found = offered(length=length)[1:]
    assert {each.columns()["order"] for each in found} == {1, 2, 3, 4}
    assert {each.columns()["expansion"] for each in found if each.columns()["order"] == 2} == {"centre", "mean"}
    assert len({each.spec.near.window for each in found}) > 3
    assert {each.spec.near.sinks for each in found} == {SINKS, MORE_SINKS}
    assert {None, (64, 64, 8), (64, 64, 8, 8)} <= {each.spec.ranks for each in found}
    assert {each.columns()["coefficients"] for each in found} == {"taylor", "fitted", "dropped"}


def test_longer_sequences_get_longer_windows():
    widest = [max(each.spec.near.tokens for each in offered(length=length)) for length in (64, 512, 2048)]
    assert widest == sorted(set(widest))
    assert widest[-1] > 2048 // 2


def test_without_order_there_is_no_polynomial():
    found = offered("order")[1:]
    assert {each.columns()["coefficients"] for each in found} == {"dropped"}
    assert not any(each.truncates for each in found)
    assert len({each.spec.near.window for each in found}) > 3


@pytest.mark.parametrize("near", [(12, 2), (100, 4), (100, 30)])
def test_without_window_all_have_the_near_field_given(near):
    found = offered("window", "sinks", "kept", near=near)[1:]
    assert {(each.spec.near.window, each.spec.near.sinks) for each in found} == {near}
    assert {each.columns()["order"] for each in found} == {1, 2, 3, 4}
    assert Candidate(HeadSpec(Dropped(), Near(near[0], near[1]))) in found


def test_sinks_alone_exchange_window_for_sinks():
    found = offered("window", "kept", near=(100, 4))[1:]
    assert {(each.spec.near.window, each.spec.near.sinks) for each in found} == {(100, 4), (88, MORE_SINKS)}
    assert {each.spec.near.tokens for each in found} == {104}


@pytest.mark.parametrize("left_out", [("sinks",), ("sinks", "order")])
def test_without_sinks_all_keep_the_same(left_out):
    assert {each.spec.near.sinks for each in offered(*left_out)[1:]} == {SINKS}


def test_without_ranks_all_coordinates_are_used():
    found = offered("ranks")
    assert {each.spec.ranks for each in found} == {None}
    assert 3 in {each.columns()["order"] for each in found}


def test_without_coefficients_polynomials_are_taylors():
    found = offered("coefficients")
    assert {each.columns()["coefficients"] for each in found if each.columns()["order"] != 1} == {"taylor"}
    assert {each.columns()["coefficients"] for each in found if each.columns()["order"] == 1} == {"taylor", "dropped"}


def test_without_expansion_no_order_has_two():
    for order in (1, 2, 3, 4):
        assert (
            len({each.columns()["expansion"] for each in offered("expansion") if each.columns()["order"] == order}) == 1
        )
    assert {
        each.columns()["expansion"] for each in offered("expansion") if each.truncates and each.columns()["order"] > 1
    } == {"mean"}


def sizes(found):
    """Nominal bytes at head dim 64 by share of kept keys, of what drops the far field with four sinks."""
    sizes = {}
    for each in found:
        near = each.spec.near
        if isinstance(each.spec.far, Dropped) and near.sinks == SINKS:
            sizes.setdefault(kept_share(near), []).append(near_bytes(near, 64, 64, near.tokens))
    return sizes


def test_without_kept_all_near_fields_are_windows_on_the_finer_grid():
    found = offered("kept", length=4096)
    assert {each.spec.near.kept for each in found} == {0}
    assert sizes(found) == {
        0: [256 * tokens for tokens in (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)]
    }


@pytest.mark.parametrize("length", [512, 1024, 4096])
def test_near_fields_of_every_share_have_the_bytes_of_a_window(length):
    found = sizes(offered(length=length))
    assert list(found) == [SHARES[0], 0, *SHARES[1:]]
    windows = sizes(offered("kept", length=length))[0]
    for share, own in found.items():
        nearest = [min(size for size in windows if size >= each) for each in own]
        assert all(window - 260 < each for each, window in zip(own, nearest, strict=True)), share
        assert own == sorted(set(own))
    assert len(found[SHARES[0]]) == len(windows)
    powers = [2**10 * 2**power for power in range(2, 20)]
    assert set(found[0]) <= set(powers)
    assert all(
        256 * 256 * 0.95 < min(own, key=lambda size: abs(size - 256 * 256)) <= 256 * 256 for own in found.values()
    )


def test_polynomials_stand_beside_kept_keys():
    found = [each for each in offered(length=4096) if each.truncates]
    assert {kept_share(each.spec.near) for each in found} == {SHARES[0]}
    assert len({each.spec.near for each in found if each.columns()["order"] == 1}) > 1


def test_kept_alone_shares_the_bytes_of_the_near_field_out():
    found = candidates({"kept"}, 64, 1024, (252, 4))
    assert [each.spec.near for each in found[1:]] == [
        Near(63, 4, 186), Near(252, 4), Near(126, 4, 124), Near(28, 4, 220),
    ]  # fmt: skip
    assert candidates({"kept"}, 64, 1024, (0, 4))[1:] == (Candidate(HeadSpec(Dropped(), Near(0, 4))),)


@pytest.mark.parametrize("token", [32, 256, 1024])
@pytest.mark.parametrize("near", [Near(12, 4), Near(63, 4, 186), Near(1, 0, 500), Near(400, 16, 3)])
def test_bytes_stay_where_window_and_kept_keys_are_exchanged(near, token):
    def size(field):
        return (field.window + field.sinks) * token + field.kept * (token + 4)

    for share in SHARES:
        assert (
            0
            <= size(Near(near.window, near.sinks)) - size(keeping(Near(near.window, near.sinks), share, token))
            < token + 4
        )
    assert 0 <= size(near) - size(window_alone(near, token)) < token
    for more in (0, token, 10 * token + 5, 5000 * token):
        larger = grown(near, more, token)
        assert 0 <= size(near) + more - size(larger) < token + 4
        assert larger.window >= near.window
        assert larger.kept >= near.kept
    assert larger.kept / larger.tokens == pytest.approx(near.kept / (near.window + near.kept), abs=0.02)


def test_each_kind_is_what_the_kernels_run():
    fitted = Candidate(HeadSpec(Taylor(2, "mean"), Near(12, 4)), fitted=True)
    assert fitted.head_spec((0.5, 0.25)) == HeadSpec(Taylor(2, "mean", None, (0.5, 0.25)), Near(12, 4))


@pytest.mark.parametrize("far", [Exact(), Dropped(), Taylor(2, "mean"), Taylor(3, "mean", (8, 8, 2))])
def test_fitted_coefficients_go_nowhere_else(far):
    assert Candidate(HeadSpec(far)).head_spec((0.5, 0.25)) == HeadSpec(far)


def test_a_fitted_candidate_without_coefficients_is_refused():
    with pytest.raises(ValueError, match="needs fitted coefficients"):
        Candidate(HeadSpec(Taylor(2, "mean")), fitted=True).head_spec()


def test_what_truncates():
    assert [Candidate(HeadSpec(far)).truncates for far in (Exact(), Dropped(), Taylor(1))] == [False, False, True]


@pytest.mark.parametrize(
    "candidate, label",
    [
        (Candidate(HeadSpec(Exact())), "exact"),
        (Candidate(HeadSpec(Dropped(), Near(1020, 4))), "1,020 + 4 keys"),
        (Candidate(HeadSpec(Taylor(1, "centre"), Near(12, 4)), fitted=True), "order 1 centre fitted, 12 + 4 keys"),
        (Candidate(HeadSpec(Taylor(2, "mean"), Near(12, 16))), "order 2 mean, 12 + 16 keys"),
        (Candidate(HeadSpec(Dropped(), Near(511, 4, 1509))), "511 + 4 + 1,509 kept keys"),
        (Candidate(HeadSpec(Taylor(4, "mean", (64, 64, 8, 2)), Near(12, 4))), "order 4 mean, rank 2, 12 + 4 keys"),
    ],
)
def test_labels(candidate, label):
    assert candidate.label() == label


def test_labels_tell_all_candidates_of_a_list_apart():
    found = offered(length=2048)
    assert len({each.label() for each in found}) == len(found)
    assert replace(found[1], spec=replace(found[1].spec, near=Near(13, 4))).label() != found[1].label()
