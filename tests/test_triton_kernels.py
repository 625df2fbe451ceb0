"""The Triton backend, interpreted, against the float64 reference: whole tables, paddings, layouts, ways to cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from kernel_cases import MIXED, SCALING, attend, cases, problem, reference
from tolerances import TOLERANCE, relative_error
from triton_cases import EAGER, LAYOUTS, altering, backward_error, layouts, sized, sizes

from taylorder.kernels import HeadSpec, reference_sums
from taylorder.kernels.spec import Near, Taylor
from taylorder.kernels.triton_backend import attention, plan
from taylorder.kernels.triton_backend.launch import KERNELS
from taylorder.kernels.triton_backend.tiles import Layout

pytestmark = pytest.mark.interpreter
FP32 = TOLERANCE[torch.float32]


def check_anything(case, chosen, layout):
    with sized(chosen, layout):
        found, state = attend(case, "triton")
    assert backward_error(found, case) < FP32
    padding = torch.zeros(found.shape[0], found.shape[2], dtype=torch.bool) if case.valid is None else ~case.valid
    assert found.abs().amax((1, 3))[padding].sum() == 0
    assert (state and state.tokens) == (case.q.shape[2] if case.causal else None)


@settings(max_examples=20, deadline=None)
@given(case=cases(orders=(1, 2, 3, 4)), chosen=sizes, layout=layouts)
def test_every_table_cut_padding_and_layout(case, chosen, layout):
    check_anything(case, chosen, layout)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(case=cases(orders=(1, 2, 3, 4, 6, 8)), chosen=sizes, layout=layouts)
def test_every_table_up_to_order_8(case, chosen, layout):
    check_anything(case, chosen, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "specs",
    [
        [HeadSpec(Taylor(4)), HeadSpec(Taylor(3))],
        [HeadSpec(Taylor(4, "mean")), HeadSpec(Taylor(2, "centre"))],
        [HeadSpec(Taylor(4, "mean", (0, 8, 5, 2))), HeadSpec(Taylor(3, "mean", (0, 8, 5)))],
        [HeadSpec(Taylor(4, coefficients=(0.9, 0.8, 0.5, 0.2)))] * 2,
    ],
)
def test_numerators_and_denominators_by_themselves(monkeypatch, specs, layout):
    """Without a near field the pieces that the last kernel adds up are the reference's sums, constant term aside."""
    case, made = problem(specs, B=1, G=1, T=40, scale=0.7), []

    def launch(name, programs, kernel_settings, arguments, *rest, original=attention.launch):
        original(name, programs, kernel_settings, arguments, *rest)
        if name == "add_near_and_divide":
            made.append(
                {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
            )

    monkeypatch.setattr(attention, "launch", launch)
    with sized({**EAGER, (attention, "SEGMENT"): 20}, layout):
        attend(case, "triton")
    truth, _ = reference_sums(case.q, case.k, case.v, case.heads, scaling=SCALING)
    last = made[-1]  # the second segment: 20 tokens folded, 20 pending
    assert float(last["folded_counts"]) == 20
    constant = last["coefficients"][0, 0].double()
    pitch, new = last["pitch"], last["new"]
    for _, first, piece, pieces in last["items"].tolist():
        own = slice(piece, piece + pieces)
        head, token = divmod(first, pitch)
        rows = min(last["numerators"].shape[1], new - token)
        assert pieces > 1
        here = slice(20 + token, 20 + token + rows)
        factor = constant[first : first + rows]
        numerator = last["numerators"][own].double().sum(0)[:rows] + factor[:, None] * last["folded_values"][0].double()
        denominator = last["denominators"][own].double().sum(0)[:rows] + factor * 20
        error = (denominator - truth.denominator[0, head, here]).abs() / truth.denominator_scale[0, head, here]
        assert error.max() < FP32
        error = (numerator - truth.numerator[0, head, here]).abs() / truth.numerator_scale[0, head, here]
        assert error.max() < FP32


CONTROLS = {
    "take_token": ("new_keys", lambda keys: keys * 1.1),
    "prepare_rows": ("queries", lambda queries: queries * 1.1),
    "fold_tokens": ("values", lambda values: values * 1.1),
    "read_state": ("sums", lambda sums: sums * 1.1),
    "read_pending": ("keys", lambda keys: keys * 1.1),
    "add_near_and_divide": ("values", lambda values: values * 1.1),
}


def test_every_kernel_has_a_control():
    gradients = {name for name, kernel in KERNELS.items() if kernel.file == "gradient_kernels"}  # test_triton_gradients
    assert set(CONTROLS) == set(KERNELS) - gradients


@pytest.mark.parametrize("kernel", CONTROLS)
def test_a_perturbed_input_of_any_kernel_shows(kernel):
    case = problem(
        [HeadSpec(Taylor(3, "mean"), Near(6, 2)), HeadSpec(Taylor(4, "centre"), Near(6, 2))],
        B=1, G=1, T=70, scale=0.5, cuts=(0, 68, 69, 70),
    )  # fmt: skip
    with sized(EAGER), altering(kernel, *CONTROLS[kernel]):
        wrong, _ = attend(case, "triton")
    with sized(EAGER), altering(kernel, CONTROLS[kernel][0], lambda tensor: tensor):
        right, _ = attend(case, "triton")
    assert backward_error(right, case) < FP32
    assert backward_error(wrong, case) > 100 * FP32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_in_and_out(dtype):
    """The interpreter multiplies in float32 whatever the input: what shows is that inputs and outputs are converted."""
    case = problem(MIXED, T=70, cuts=(0, 50, 69, 70), scale=0.5).to(dtype)
    with sized(EAGER):
        found, state = attend(case, "triton")
    assert found.dtype == dtype
    assert state.shape.dtype == dtype
    assert relative_error(found, reference(case)) < TOLERANCE[dtype]


@pytest.mark.parametrize("d, d_v, orders", [(16, 24, (4, 3)), (32, 32, (3, 2)), (64, 16, (2, 3)), (80, 80, (2, 2))])
@pytest.mark.parametrize("T", [1, 33])
def test_head_dims_and_value_dims(d, d_v, orders, T):
    case = problem([HeadSpec(Taylor(order)) for order in orders], B=1, G=1, T=T, d=d, d_v=d_v, scale=d**-0.5)
    with sized({**EAGER, (attention, "SEGMENT"): 32}):
        found, _ = attend(case, "triton")
    assert backward_error(found, case) < FP32


HEAVY = [
    (16, 16, 8, None),
    (32, 32, 4, None),
    (64, 64, 3, None),
    (64, 40, 4, (0, 64, 8, 8)),
    (80, 80, 3, None),
    (96, 96, 3, None),
    (128, 128, 3, (0, 128, 40)),
    (256, 256, 2, None),
    (256, 64, 3, (0, 256, 24)),
]


@pytest.mark.slow
@pytest.mark.parametrize("d, d_v, order, ranks", HEAVY)
@pytest.mark.parametrize("expansion", ["centre", "mean"])
def test_the_heavy_corners(d, d_v, order, ranks, expansion):
    specs = [
        HeadSpec(Taylor(order, expansion, ranks), Near(5, 2)),
        HeadSpec(Taylor(2, expansion, ranks and ranks[:2]), Near(5, 2)),
    ]
    case = problem(specs, B=1, G=1, T=60, d=d, d_v=d_v, scale=d**-0.5, cuts=(0, 50, 59, 60))
    wide = Layout("gather", 512) if d == 16 else None  # the interpreter's time is its operations, whatever their size
    with sized({**EAGER, (attention, "SEGMENT"): 64}, wide):
        found, state = attend(case, "triton")
    assert state.parts[0].state_rows != [None]
    assert backward_error(found, case) < FP32


def test_full_rank_order_4_at_head_dim_64():
    """The configuration that the compile report is about, decoded: three tokens read 47,905 features."""
    case = problem(
        [HeadSpec(Taylor(4)), HeadSpec(Taylor(3))], B=1, G=1, T=20, d=64, d_v=8, scale=0.125, cuts=(0, 17, 20)
    )
    with sized({**EAGER, (attention, "SEGMENT"): 64, (plan, "PROGRAMS"): 2}, Layout("pair", 512)):
        found, state = attend(case, "triton")
    assert state.parts[0].features.shape[1] > 47_904
    assert backward_error(found, case) < FP32


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_the_state_of_an_order_is_a_prefix_of_the_next(layout):
    states = []
    for order in (2, 3, 4, 5):
        with sized({**EAGER, (attention, "SEGMENT"): 200}, layout):
            _, state = attend(problem([HeadSpec(Taylor(order))] * 2, B=1, G=1, T=60), "triton")
        states.append(state.parts[0].features)
    for order, (lower, higher) in enumerate(pairwise(states), start=2):
        # The gather layout packs degrees without a gap: the last tile of an order may be of the next one in part.
        own = sum(count(degree, 8) for degree in range(1, order)) if layout.name == "gather" else lower.shape[1]
        assert higher.shape[1] >= lower.shape[1]
        torch.testing.assert_close(higher[:, :own], lower[:, :own], rtol=0, atol=0)


def count(degree, coordinates):
    from taylorder.kernels.tables import count as features

    return features(degree, coordinates)
