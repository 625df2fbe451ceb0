"""The state: what it holds, what it weighs, and that rows and orders do not leak into one another."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import pytest
import torch
from kernel_cases import EAGER, MIXED, SCALING, Case, attend, problem, sized
from tolerances import TOLERANCE, relative_error

from taylorder.kernels import HeadSpec, taylor_attention
from taylorder.kernels.spec import Dropped, Near, Taylor
from taylorder.kernels.tables import FeatureTable, monomials


def step(case, state, seed=9):
    """One more token for every sequence, the same for all."""
    generator = torch.Generator().manual_seed(seed)
    B = state.shape.batch
    H, G, d, d_v = len(case.heads), case.k.shape[1], case.k.shape[3], case.v.shape[3]
    q, k, v = (
        torch.randn(1, n, 1, m, generator=generator).expand(B, -1, -1, -1) for n, m in ((H, d), (G, d), (G, d_v))
    )
    return taylor_attention(q, k, v, case.heads, scaling=SCALING, state=state)[0]


@pytest.mark.parametrize("degree", range(1, 6))
@pytest.mark.parametrize("coordinates", [1, 2, 5])
def test_monomials_expand_a_power_of_the_score(degree, coordinates):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, coordinates, generator=generator, dtype=torch.float64)
    features = [x, y]
    for p in range(2, degree + 1):
        names = monomials(p, coordinates, torch.device("cpu"))
        features = [f[names.parent] * z[names.last] for f, z in zip(features, (x, y), strict=True)]
    names = monomials(degree, coordinates, torch.device("cpu"))
    assert len(names.parent) == math.comb(coordinates + degree - 1, degree)
    power = (names.multiplicity[:, 0].double() * features[0] * features[1]).sum()
    assert power.item() == pytest.approx(float(x @ y) ** degree)


def test_tables_are_graded_and_cut_by_ranks():
    assert FeatureTable.build(64, 3).features == 2145
    assert FeatureTable.build(64, 4).features == 47905
    assert FeatureTable.build(64, 4, (0, 64, 8, 8)).features == 221
    low, high = FeatureTable.build(8, 3), FeatureTable.build(8, 4)
    assert high.offsets[: len(low.offsets)] == low.offsets
    whole, part = monomials(3, 5, torch.device("cpu")), monomials(3, 3, torch.device("cpu"))
    assert torch.equal(whole.parent[: len(part.parent)], part.parent)
    assert torch.equal(whole.last[: len(part.last)], part.last)


@pytest.mark.parametrize("order", range(1, 6))
def test_the_state_of_an_order_is_a_prefix_of_the_next(order):
    parts = []
    for P in (order, order + 1):
        with sized(EAGER):
            _, state = attend(problem([HeadSpec(Taylor(P))] * 2, G=2))
        parts.append(state.parts[0])
    low, high = parts
    D = low.table.features
    assert math.comb(8 + order - 1, order - 1) == D
    torch.testing.assert_close(high.features[:, :, :D], low.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(high.sums[:, :, :D], low.sums, rtol=1e-4, atol=1e-4)


def test_state_bytes():
    d, order, T = 64, 3, 1500
    D = math.comb(d + order - 1, order - 1)
    bound = 1.1 * D * (d + 1) * 4
    case = problem(
        [HeadSpec(Taylor(order))], B=1, G=1, T=T, d=d, d_v=d, cuts=(0, 300, 600, 1200, *range(1201, 1501, 7), 1500)
    )
    state = None
    for start, stop in zip(case.cuts, case.cuts[1:], strict=False):
        cut = slice(start, stop)
        _, state = taylor_attention(
            case.q[:, :, cut], case.k[:, :, cut], case.v[:, :, cut], case.heads, scaling=0.1, state=state
        )
        assert state.nbytes <= bound
    assert state.nominal_bytes >= D * (d + 1) * 4
    assert state.tokens == T


def test_dropping_the_far_field_needs_no_state():
    case = problem([HeadSpec(Dropped(), Near(8, 2))] * 2, T=2000)
    _, state = attend(case)
    assert state.nbytes < case.k.nbytes / 5
    assert state.nominal_bytes == 2 * case.k.shape[:2].numel() * 10 * (case.k.shape[-1] + case.v.shape[-1])


@pytest.mark.parametrize(
    "heads", [MIXED, [HeadSpec(Taylor(3))] * 2, [HeadSpec(Taylor(4, "mean", (0, 8, 4, 4)), Near(6, 1))] * 2]
)
@pytest.mark.parametrize("chosen", [EAGER, {}])
def test_reordering_beams_is_reordering_the_batch(heads, chosen):
    case = problem(heads, B=3)
    order = torch.tensor([2, 0, 0, 1])
    with sized(chosen):
        _, state = attend(case)
        moved = Case(case.heads, case.q[order], case.k[order], case.v[order], None, True, case.cuts)
        _, expected = attend(moved)
        torch.testing.assert_close(step(case, state.index_select(order)), step(case, expected), rtol=1e-5, atol=1e-6)
        doubled = step(case, state.repeat_interleave(2))
        torch.testing.assert_close(doubled[::2], doubled[1::2])
        torch.testing.assert_close(doubled[::2], step(case, state), rtol=1e-5, atol=1e-6)


def test_forks_do_not_see_each_other():
    case = problem(MIXED, cuts=(0, 100, 130))
    with sized(EAGER):
        _, state = attend(case)
        fork, again = state.clone(), state.clone()
        first = step(case, state, seed=1)
        for seed in range(2, 80):
            step(case, state, seed)
        assert torch.equal(step(case, fork, seed=1), first)
        assert again.tokens == 130
        assert state.tokens == 209
        torch.testing.assert_close(step(case, again.to("cpu"), seed=1), first)


def test_the_state_is_updated_in_place_and_returned():
    case = problem(MIXED)
    _, state = attend(case)
    _, after = taylor_attention(case.q, case.k, case.v, case.heads, scaling=SCALING, state=state)
    assert after is state


def test_score_space_backend_goes_on_and_agrees():
    case = problem(MIXED, cuts=(0, 60, 61, 130))
    slow, state = attend(case, backend="score-space")
    fast, _ = attend(case)
    assert state.backend == "score-space"
    assert relative_error(fast, slow) < TOLERANCE[torch.float32]
    with pytest.raises(ValueError, match="made by 'score-space'"):
        taylor_attention(case.q, case.k, case.v, case.heads, scaling=1.0, state=state, backend="torch")


def test_prefill_needs_little_more_memory_than_the_state():
    """The high-water mark of a fresh process: nothing of size tokens x features, nor tokens x tokens."""
    program = """
        import resource, torch
        from taylorder.kernels import HeadSpec, Near, Taylor, taylor_attention
        torch.set_num_threads(1)
        heads, d = [HeadSpec(Taylor(3, "mean"), Near(64, 4))] * 2, 64
        def run(T):
            q, k, v = torch.randn(1, 2, T, d), torch.randn(1, 2, T, d), torch.randn(1, 2, T, d)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            output, state = taylor_attention(q, k, v, heads, scaling=0.1)
            extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            return extra * 1024 - output.nbytes - state.nbytes
        run(1500)
        print(run(16384))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=300
    )
    # A chunk: 512 rows of q, k, v, output and scores, and tiles of features.
    assert int(done.stdout) < 16 << 20
