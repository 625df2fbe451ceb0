"""Kernels compiled and run on a GPU, by themselves and inside a model, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from generating import MODELS, in_pieces, padded_batch, positions
from kernel_cases import MIXED, MIXED_KEPT, attend, problem, ranked, reference
from mixed_orders import mixed_config, reference_output
from tolerances import TOLERANCE, relative_error

import taylorder
from taylorder.adapt.cache import TaylorCache

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("cuts", [(0, 130), (0, 70, 129, 130)])
def test_each_dtype_meets_its_tolerance_and_a_perturbed_input_does_not(dtype, cuts):
    case = problem(MIXED, d=16, d_v=16, cuts=cuts, scale=0.5).to(dtype)
    there = replace(case, q=case.q.to(GPU), k=case.k.to(GPU), v=case.v.to(GPU))
    spoiled = case.k + 0.2 * torch.randn(case.k.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, _ = attend(there, "triton")
    wrong, _ = attend(replace(there, k=spoiled.to(GPU)), "triton")
    assert (found.dtype, found.device.type) == (dtype, GPU.type)
    assert relative_error(found.cpu(), reference(case)) < TOLERANCE[dtype]
    assert relative_error(wrong.cpu(), reference(case)) > TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("cuts", [(0, 700), (0, 600, 699, 700), (0, 400, *range(401, 501), 700)])
def test_keys_kept_by_priority_meet_the_tolerances_and_those_of_other_priorities_do_not(dtype, cuts):
    case = replace(ranked(MIXED_KEPT, T=700, d=16, d_v=16, scale=0.5, levels=100), cuts=cuts).to(dtype)
    there = replace(case, **{name: getattr(case, name).to(GPU) for name in ("q", "k", "v", "priority")})
    found, state = attend(there, "triton")
    wrong, _ = attend(replace(there, priority=there.priority.flip(2)), "triton")
    assert relative_error(found.cpu(), reference(case)) < TOLERANCE[dtype]
    assert relative_error(wrong.cpu(), reference(case)) > TOLERANCE[dtype]
    (pending,) = (part.pending for part in state.parts if hasattr(part, "pending"))
    assert max(pending.lengths[1:]) < 7 + 20 + 64  # the one that drops what is far


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("cuts", [(0, 130), (0, 70, 129, 130)])
def test_learned_sinks_meet_the_tolerances_and_others_do_not(dtype, cuts):
    sinks = torch.tensor([2.0, -1.0, 9.37, 0.5])
    case = replace(problem(MIXED, d=16, d_v=16, cuts=cuts, scale=0.5), sink_logits=sinks).to(dtype)
    there = replace(case, **{name: getattr(case, name).to(GPU) for name in ("q", "k", "v", "sink_logits")})
    found, _ = attend(there, "triton")
    wrong, _ = attend(replace(there, sink_logits=there.sink_logits + 0.1), "triton")
    assert relative_error(found.cpu(), reference(case)) < TOLERANCE[dtype]
    assert relative_error(wrong.cpu(), reference(case)) > TOLERANCE[dtype]


def test_a_model_takes_triton_by_itself_and_computes_the_formula():
    model = MODELS["llama"]()
    config = mixed_config(model)
    ids, mask = padded_batch(56)
    inputs = {"attention_mask": mask, "position_ids": positions(mask)}
    expected = reference_output(model, config, input_ids=ids, **inputs)[mask.bool()]
    model, ids, mask = model.to(GPU), ids.to(GPU), mask.to(GPU)
    inputs = {name: value.to(GPU) for name, value in inputs.items()}
    with torch.no_grad(), taylorder.adapted(model, config):
        whole = model(ids, **inputs).logits
        pieces = in_pieces(model, TaylorCache(model, config), ids, mask, (30, 1, 1, 20, 1, 1, 1, 1))
    with torch.no_grad():
        plain = model(ids, **inputs).logits
    assert relative_error(whole[mask.bool()].cpu(), expected) < 1e-4
    assert relative_error(pieces[mask.bool()].cpu(), expected) < 1e-4
    assert relative_error(plain[mask.bool()].cpu(), expected) > 1e-3  # negative control: the config matters
