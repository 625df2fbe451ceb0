"""The iterative scheme: its slopes against finite differences, its steps on made-up slopes, and its records."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from measured_levers import (
    CENTRE_3,
    DROPPED,
    EVEN,
    EXACT,
    FITTED_1,
    FITTED_2,
    HALF_KEPT,
    KEPT,
    KEPT_1,
    KEPT_2,
    LENGTH,
    LONG,
    RANKED,
    SINKS_16,
    TAYLOR_1,
    hand_table,
)

from taylorder.adapt.handle import adapted
from taylorder.analysis.losses import hidden_states
from taylorder.errors import UsageError
from taylorder.kernels.spec import HeadSpec, Near, Taylor
from taylorder.selection import refine as module
from taylorder.selection import whole_model
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import config_of, table_bytes
from taylorder.selection.criteria import eligible
from taylorder.selection.refine import Round, Slopes, best_of, measure_slopes, refine, sensitivities
from taylorder.selection.under_limit import uniform_start
from taylorder.selection.whole_model import WholeModel
from taylorder.storage.records import Records


@pytest.fixture
def eager(monkeypatch):
    """Changes cost a hundredth of what they seem to: random models are so sensitive that no step would be tried."""
    monkeypatch.setattr(module, "sensitivities", lambda table: [each / 100 for each in sensitivities(table)])


@pytest.fixture
def tiny_llama(keeping_llama):
    return *keeping_llama, table_bytes(keeping_llama[1], LENGTH)


def exact_states(model, ids):
    return [hidden_states(model, sequence).clone() for sequence in ids]


@contextmanager
def attention_outputs(model, change: Callable[[str, torch.Tensor], torch.Tensor]):
    """Have what goes into every output projection, ``[1, T, H * d_v]``, changed by ``change(module name, output)``."""
    hooks = []
    for name, attention in model.named_modules():
        if name.endswith("self_attn"):
            hooks.append(
                attention.o_proj.register_forward_pre_hook(
                    lambda _, args, name=name: (change(name, args[0]), *args[1:])
                )
            )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def outputs_of(model, config, sequence):
    """Attention outputs ``[1, T, H * d_v]`` of every module under a config."""
    found = {}

    def keep(name, output):
        found[name] = output.clone()
        return output

    with adapted(model, config), attention_outputs(model, keep):
        hidden_states(model, sequence)
    return found


def mean_kl(model, config, sequence, exact, change=None):
    """KL to the exact model over all rows, the logits in float64."""
    head = model.get_output_embeddings().weight.detach().double()
    with adapted(model, config), attention_outputs(model, change) if change else nullcontext():
        hidden = hidden_states(model, sequence).clone()
    reference, log_p = ((states.double() @ head.T).log_softmax(-1) for states in (exact, hidden))
    return float((reference.exp() * (reference - log_p)).sum(-1).mean())


STEP = 4e-3


@pytest.mark.parametrize(
    "choice",
    [
        (DROPPED, CENTRE_3, FITTED_1, DROPPED),
        (RANKED, DROPPED, DROPPED, FITTED_2),
        (HALF_KEPT, KEPT, DROPPED, FITTED_1),
        (KEPT_2, KEPT_1, FITTED_2, DROPPED),
    ],
)
def test_slopes_are_the_derivatives_of_the_kl(tiny_llama, choice):
    """A candidate's output is mixed in a little; it is that of the config with this KV head alone changed.

    Only the first layer keeps keys: where keys change, others may be kept all at once, which has no derivative.
    """
    model, table, ids, sizes = tiny_llama
    exact = exact_states(model, ids)
    kl, slopes = measure_slopes(WholeModel(model, ids), table, sizes, choice)
    config = config_of(table, choice, context=LENGTH)
    kls = [mean_kl(model, config, sequence, each) for sequence, each in zip(ids, exact, strict=True)]
    assert kl == pytest.approx(sum(kls) / 2, rel=1e-4)
    assert kl > 0.01
    now = [outputs_of(model, config, sequence) for sequence in ids]
    found, expected, other_heads = [], [], []
    for head, (name, kv_head) in enumerate(table.kv_heads):
        columns = slice(kv_head * 16, kv_head * 16 + 16)  # two query heads of 8
        for place in (DROPPED, TAYLOR_1, SINKS_16, FITTED_2, KEPT, HALF_KEPT, KEPT_1, KEPT_2):
            if slopes.first_order[head][place] in (None, 0.0):
                continue
            changed = config_of(table, [*choice[:head], place, *choice[head + 1 :]], context=LENGTH)
            slope = square = 0.0
            for sequence, reference, present in zip(ids, exact, now, strict=True):
                delta = outputs_of(model, changed, sequence)[name] - present[name]
                assert delta[..., columns].norm() == pytest.approx(float(delta.norm()), rel=1e-6)

                def moved(by, name=name, delta=delta, sequence=sequence, reference=reference):
                    def mix(module_name, output):
                        return output + by * delta if module_name == name else output

                    return mean_kl(model, config, sequence, reference, mix)

                slope += (moved(STEP) - moved(-STEP)) / (2 * STEP) / len(ids)
                own = present[name][..., columns].double()
                square += float(delta.double().square().sum() / own.square().sum()) / len(ids)
            assert slopes.squared[head][place] == pytest.approx(square, rel=1e-3)
            found.append(slopes.first_order[head][place])
            expected.append(slope)
            other_heads.append(slopes.first_order[head - 1][place] or 0.0)
    found, expected, other_heads = (torch.tensor(each, dtype=torch.float64) for each in (found, expected, other_heads))
    assert len(found) >= 8
    assert (found - expected).norm() < 0.01 * expected.norm()
    assert (other_heads - expected).norm() > 0.3 * expected.norm(), "the slopes of another head are others"


def test_the_present_candidate_changes_nothing_and_far_ones_are_out_of_reach(measured_llama):
    model, table, ids = measured_llama
    choice = (DROPPED, FITTED_1, DROPPED, CENTRE_3)
    sizes = [[10 * own[EXACT], *own[1:]] for own in table_bytes(table, LENGTH)]
    _, slopes = measure_slopes(WholeModel(model, ids), table, sizes, choice)
    for head, now in enumerate(choice):
        rows = table.rows()[head]
        assert slopes.first_order[head][now] == slopes.squared[head][now] == 0.0
        near = [size <= 2 * sizes[head][now] and sizes[head][now] <= 2 * size for size in sizes[head]]
        allowed = [eligible(candidate, row) for candidate, row in zip(table.candidates, rows, strict=True)]
        expected = [place == now or (near[place] and allowed[place]) for place in range(len(table.candidates))]
        assert [slope is not None for slope in slopes.first_order[head]] == expected
        assert [square is not None for square in slopes.squared[head]] == expected
        assert not near[EXACT]
        assert sum(expected) > 1


def test_what_another_share_of_kept_keys_beats_is_not_run(tiny_llama):
    """In both errors and for no more bytes; what keeps the same share of keys is run whatever its errors."""
    model, table, ids, _ = tiny_llama
    errors = {HALF_KEPT: 0.1, KEPT: 0.2, DROPPED: 0.3, LONG: 0.05, KEPT_1: 0.4, FITTED_1: 0.5}
    bytes_of = {HALF_KEPT: 400, KEPT: 400, DROPPED: 400, LONG: 410, KEPT_1: 390, FITTED_1: 399}
    layers = [
        replace(
            layer,
            rows=tuple(
                replace(row, relative_l2=errors.get(row.candidate, 0.0), gradient_error=errors.get(row.candidate, 0.0))
                for row in layer.rows
            ),
        )
        for layer in table.layers
    ]
    table = replace(table, layers=tuple(layers))
    sizes = [[bytes_of.get(place, 9999) for place in range(len(table.candidates))]] * 4
    _, slopes = measure_slopes(WholeModel(model, ids), table, sizes, (KEPT, HALF_KEPT, DROPPED, LONG))
    run = [{place for place, slope in enumerate(of_head) if slope is not None} for of_head in slopes.first_order]
    # KEPT_1 is the cheapest, and LONG the best; KEPT_1 beats FITTED_1, HALF_KEPT beats KEPT and DROPPED.
    best = {HALF_KEPT, LONG, KEPT_1}
    assert run == [{KEPT, *best}, best, {DROPPED, *best}, best]


def test_the_model_adds_half_the_priced_square():
    slopes = Slopes([[0.0, -0.5, None], [0.25, 0.0, 1.0]], [[0.0, 0.5, None], [0.125, 0.0, 2.0]])
    assert slopes.promises([2.0, 4.0], 1.0) == [[0.0, -0.5 + 0.5, math.inf], [0.25 + 0.25, 0.0, 1.0 + 4.0]]
    assert slopes.promises([2.0, 4.0], 3.0) == [[0.0, -0.5 + 1.5, math.inf], [0.25 + 0.75, 0.0, 1.0 + 12.0]]


def test_sensitivity_is_what_a_squared_relative_error_costs():
    table = hand_table([[0.0, 0.5, 0.5, 1.0], [0.0] * 4], [[0.0, 1.0, 3.0, 5.0], [0.0] * 4])
    assert sensitivities(table) == [9.0 / 1.5, 0.0]


def test_the_best_round_is_that_of_least_kl():
    rounds = tuple(Round((place,), kl) for place, kl in enumerate([3.0, 1.0, 2.0]))
    assert best_of(rounds) is rounds[1]


def refined(model, table, ids, sizes, start, directory, budget, progress=lambda *_: None, rounds=4):
    return refine(
        WholeModel(model, ids), table, sizes, budget, start, rounds=rounds, name="test",
        records=Records(directory, {}), progress=progress,
    )  # fmt: skip


@pytest.mark.parametrize("start", [(DROPPED,) * 4, (EVEN, EVEN, SINKS_16, EXACT)])
def test_rounds_keep_to_the_budget_and_the_best_is_no_worse_than_the_start(tiny_llama, eager, tmp_path, start):
    model, table, ids, sizes = tiny_llama
    budget = sum(size[place] for size, place in zip(sizes, start, strict=True))
    found = refined(model, table, ids, sizes, start, tmp_path, budget)
    assert found[0].choice == start
    assert len(found) > 1
    for each in found:
        assert sum(size[place] for size, place in zip(sizes, each.choice, strict=True)) <= budget
        config = config_of(table, each.choice, context=LENGTH)
        kls = [mean_kl(model, config, ids[i], exact) for i, exact in enumerate(exact_states(model, ids))]
        assert each.kl == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    for each in found[1:]:
        assert each.bound <= each.promised < 0
    assert best_of(found).kl < found[0].kl


def test_a_run_that_goes_on_gives_what_an_uninterrupted_one_gives(tiny_llama, eager, tmp_path, monkeypatch):
    model, table, ids, sizes = tiny_llama
    start = uniform_start(table, sizes, sizes[0][DROPPED])
    budget = sum(size[place] for size, place in zip(sizes, start, strict=True))
    whole = refined(model, table, ids, sizes, start, tmp_path / "whole", budget)

    def interrupt(_stage, done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refined(model, table, ids, sizes, start, tmp_path / "parts", budget, interrupt)
    measurements = []
    measure_kl = WholeModel.kl
    monkeypatch.setattr(WholeModel, "kl", lambda *arguments: measurements.append(1) or measure_kl(*arguments))
    assert refined(model, table, ids, sizes, start, tmp_path / "parts", budget) == whole
    assert len(measurements) == len(whole) - 2
    monkeypatch.setattr(module, "measure_slopes", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(whole_model, "hidden_states", lambda *_: pytest.fail("the model ran"))
    assert refined(model, table, ids, sizes, start, tmp_path / "parts", budget) == whole


def test_what_was_measured_from_another_start_is_measured_again(tiny_llama, tmp_path):
    model, table, ids, sizes = tiny_llama
    budget = 4 * sizes[0][EXACT]
    refined(model, table, ids, sizes, (DROPPED,) * 4, tmp_path / "both", budget, rounds=1)
    again = refined(model, table, ids, sizes, (EVEN,) * 4, tmp_path / "both", budget, rounds=1)
    assert again == refined(model, table, ids, sizes, (EVEN,) * 4, tmp_path / "one", budget, rounds=1)


def test_a_start_beyond_the_budget_is_refused(tiny_llama, tmp_path):
    model, table, ids, sizes = tiny_llama
    cheapest = tuple(min(range(len(size)), key=size.__getitem__) for size in sizes)
    with pytest.raises(UsageError, match="the budget is 100 bytes"):
        refined(model, table, ids, sizes, cheapest, tmp_path, 100)


FAKE = hand_table([[0.0, 1.0, 0.5, 0.5]] * 2, [[0.0, 0.02, 0.01, 0.015]] * 2)
"""Sensitivity 0.03 for both KV heads."""
FAKE_SIZES = [[400, 200, 200, 300]] * 2
NO_WINDOW = [[400, 350, 200, 300]] * 2
"""The plain window is too large for what the polynomials fit in."""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Run the scheme on losses made up: ``fake([kl, …], first order)`` gives the rounds."""

    def run(kls, slope=-0.5, square=0.4, budget=500, towards=()):
        left = iter(kls)
        around = Slopes([[None, 0.0, slope, 3 * slope]] * 2, [[None, 0.0, 0.4, square]] * 2)
        asked = []

        def measure_kl(_whole, _table, choice):
            asked.append(tuple(choice))
            return next(left)

        def measure(whole, table, _sizes, choice):
            kl = math.nan if tuple(choice) in asked else measure_kl(whole, table, choice)
            here = around
            if len(asked) <= len(towards):
                wanted = towards[len(asked) - 1]
                here = Slopes(
                    [[None, *(-float(place == own) for place in (1, 2, 3))] for own in wanted], around.squared
                )
            return kl, here

        monkeypatch.setattr(WholeModel, "kl", measure_kl)
        monkeypatch.setattr(module, "measure_slopes", measure)
        found = refine(
            WholeModel(None, torch.zeros(1, 4)), FAKE, FAKE_SIZES, budget, [1, 1], rounds=len(kls), name="fake",
            records=Records(tmp_path, {}, fresh=True), progress=lambda *_: None,
        )  # fmt: skip
        assert [each.choice for each in found] == asked
        return found

    return run


def test_a_failed_step_raises_the_price(fake):
    rounds = fake([1.0, 2.0, 2.0, 2.0, 2.0], square=60.0)
    assert [each.price for each in rounds] == [None, 1.0, 4.0]
    # 300 bytes for one KV head and 200 for the other; both steps start from the same best config.
    assert sorted(rounds[1].choice) == [2, 3]
    assert rounds[1].promised == pytest.approx(-0.5 - 1.5 + 0.03 * (0.4 + 60.0) / 2)
    assert rounds[2].choice == (2, 2)
    assert rounds[2].promised == pytest.approx(-1.0 + 4.0 * 0.03 * (0.4 + 0.4) / 2)


def test_no_config_is_measured_twice(fake):
    assert [each.price for each in fake([1.0] + [2.0] * 6)] == [None, 1.0]


def test_the_price_follows_how_much_of_its_promise_a_step_kept(fake):
    rounds = fake([9.0, 7.0, 6.9, 5.9, 3.9, 1.9], towards=[(2, 2), (2, 3), (3, 2), (1, 3), (3, 1)])
    assert [each.choice for each in rounds] == [(1, 1), (2, 2), (2, 3), (3, 2), (1, 3), (3, 1)]
    assert [each.promised for each in rounds[1:]] == pytest.approx([-2.0] * 5, abs=0.05)
    # All of it, a twentieth, a half, all, all.
    assert [each.price for each in rounds] == [None, 1.0, 0.5, 1.0, 1.0, 0.5]


def test_steps_that_promise_too_little_are_not_tried(fake):
    assert len(fake([1.0, 2.0], slope=-0.0001)) == 1
    assert len(fake([1.0, 2.0], slope=+0.1)) == 1


def test_the_start_is_the_best_uniform_choice_that_fits():
    table = hand_table([[0.0, 0.5, 0.5, 0.5]] * 2, [[0.0, 3.0, 2.0, 1.0], [0.0, 3.0, 2.0, 1.0]])
    assert uniform_start(table, FAKE_SIZES, 400) == [0, 0]
    assert uniform_start(table, FAKE_SIZES, 300) == [1, 1], "plain windows come first, whatever their error"
    assert uniform_start(table, NO_WINDOW, 300) == [3, 3]
    assert uniform_start(table, NO_WINDOW, 250) == [2, 2]


def test_the_start_is_never_what_may_not_be_chosen():
    errors, weighted, guarded = (
        [[0.0, 0.5, 0.5, 0.5]] * 2,
        [[0.0, 3.0, 2.0, 1.0]] * 2,
        [[0.0, 0.0, 0.0, 0.1], [0.0] * 4],
    )
    table = hand_table(errors, weighted, guarded)
    assert table.candidates[3] == Candidate(HeadSpec(Taylor(2, "mean"), Near(8, 4)))
    assert uniform_start(table, NO_WINDOW, 300) == [2, 2], "the even order is guarded on one KV head"
    cheap = [[400, 200, 200, 100]] * 2
    assert uniform_start(table, cheap, 50) == [1, 3], "the cheapest that each may run"
