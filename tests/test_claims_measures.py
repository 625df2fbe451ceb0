"""The other things measured for claims: rounding, the paper's set-up, ranges, losses by order, scaled weights."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import adapted
from taylorder.analysis.losses import hidden_states
from taylorder.claims.measure import finished
from taylorder.claims.measurement import Subject
from taylorder.claims.measurements import order_losses
from taylorder.claims.measurements.normal_inputs import NormalInputs
from taylorder.claims.measurements.order_losses import NEAR, measure_order_losses
from taylorder.claims.measurements.score_ranges import measure_ranges
from taylorder.claims.measurements.state_times import TimeMeasurement
from taylorder.claims.rounding import PRECISIONS, rounded
from taylorder.models.describe import describe
from taylorder.storage.records import Records


def quiet(*_):
    pass


def tokens(*shape, seed=0):
    return torch.randint(4, tiny.VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_is_what_the_formats_say():
    x = torch.tensor([[0.1, -1.0, 0.33, 0.0]])
    assert rounded(x, "fp16")[0, 0] == float(torch.tensor(0.1).half())
    assert rounded(x, "bf16")[0, 0] == float(torch.tensor(0.1).bfloat16())
    torch.testing.assert_close(rounded(x, "int4"), torch.tensor([[1 / 7, -1.0, 2 / 7, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(rounded(x, "int8")[0, 0], torch.tensor(13 / 127, dtype=torch.float64))
    assert rounded(torch.zeros(1, 3), "int4").eq(0).all()


def test_rounding_has_the_error_of_its_bits():
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    errors = {each: float((rounded(x, each) - x).norm() / x.norm()) for each in PRECISIONS}
    assert 1e-4 < errors["fp16"] < 3e-4 < errors["bf16"] < 3e-3 < errors["int8"] < 0.01 < errors["fp8"] < 0.04
    assert 0.08 < errors["int4"] < 0.2
    scaled = rounded(3.7 * x, "int4") / 3.7
    torch.testing.assert_close(scaled, rounded(x, "int4"), rtol=1e-6, atol=1e-6)


def test_the_papers_set_up_against_the_definition():
    (found,) = NormalInputs(head_dims=(8,), tokens=500, queries=4, heads=1).measure()
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 8, generator=draw, dtype=torch.float64) for n in (4, 500, 500))
    exact, truncated = [], []
    for row in range(4):
        s = k[: 497 + row] @ q[row] / math.sqrt(8)
        own = v[: 497 + row]
        exact.append(s.exp() @ own / s.exp().sum())
        w = 1 + s + s**2 / 2 + s**3 / 6
        truncated.append(w @ own / w.sum())
    exact, truncated = torch.stack(exact), torch.stack(truncated)
    assert found.relative_l2[4] == pytest.approx(float((truncated - exact).norm() / exact.norm()))
    assert found.median_error[4] == pytest.approx(float((truncated - exact).abs().median()))
    assert found.output_rms == pytest.approx(float(exact.square().mean().sqrt()))


def test_the_papers_set_up_says_what_is_known_of_it():
    """Four terms: small absolute errors of outputs that vanish with the number of keys, tens of percent relative."""
    draws = NormalInputs(head_dims=(64,), tokens=8192, queries=16, heads=2).measure()
    for draw in draws:
        assert 0.15 < draw.relative_l2[4] < 0.4
        assert draw.median_error[4] < 3e-3
        assert 1e-4 < draw.rounding["fp16"] < 1e-3
        assert draw.relative_l2[6] < draw.relative_l2[4] < draw.relative_l2[3]
    assert len({draw.relative_l2[4] for draw in draws}) == 2
    assert NormalInputs().tokens == 102_400


def test_ranges_are_those_of_the_first_tokens():
    model, ids = tiny.gemma3(), tokens(40)
    described = describe(model, "tiny")
    found = measure_ranges(model, described, ids, (10, 40))
    assert found.lengths == (10, 40)
    from taylorder.analysis.capture import run_layers

    seen = {}

    def consume(name, layer):
        allowed = layer.mask[0, 0] if layer.mask is not None else torch.ones(40, 40, dtype=torch.bool).tril()
        k = layer.k[0].double() - layer.k[0].double().mean(1, keepdim=True)
        group = layer.q.shape[1] // len(k)
        scores = layer.scaling * layer.q[0].double() @ k.repeat_interleave(group, 0).mT
        scores = scores.abs() * allowed
        seen[name] = [scores[:, :n].amax((1, 2)).tolist() for n in (10, 40)]

    with torch.inference_mode():
        run_layers(model, ids[None], consume)
    for name, expected in seen.items():
        for own, each in zip(found.largest[name], expected, strict=True):
            assert own == pytest.approx(each, rel=1e-4)
    assert len(seen) == 4


def test_losses_by_order_are_those_of_adapted_models(tmp_path, monkeypatch):
    model, ids = tiny.llama(), tokens(2, 40)
    described = describe(model, "tiny")
    options = {"orders": (1, 3), "records": Records(tmp_path, {}), "progress": quiet}
    found = measure_order_losses(model, described, ids, **options)
    assert found.length == 40
    assert found.near.keys() == found.plain.keys() == {1, 3}
    for kind, near in (("near", NEAR), ("plain", (0, 0))):
        for order in (1, 3):
            for place, sequence in enumerate(ids):
                with torch.inference_mode(), adapted(model, OrderConfig.uniform(described, order, "mean", *near)):
                    log_p = model.lm_head(hidden_states(model, sequence)).double().log_softmax(-1)
                expected = -float(log_p[:-1].gather(-1, sequence[1:, None]).mean())
                assert getattr(found, kind)[order][place] == pytest.approx(expected, rel=1e-5)
    assert found.plain[1] != found.plain[3]
    monkeypatch.setattr(order_losses, "losses_of_states", None)  # nothing runs again
    assert measure_order_losses(model, described, ids, **options) == found


def test_times_are_taken_in_turns_where_states_are_held(tmp_path, monkeypatch):
    measurement = TimeMeasurement(lengths=(80, 180), rounds=2, tokens=3, orders=(2,), window=8)
    model = tiny.llama(max_position_embeddings=256)
    subject = Subject(describe(model, "tiny"), model, None)
    found = finished(measurement, subject, Records(tmp_path, {}), quiet)
    assert found.lengths == (80, 180)
    assert found.states == ["order 2"]
    for rounds in found.milliseconds.values():
        assert len(rounds) == 2
        assert all(each > 0 for row in rounds for each in row)
    exact, state = found.held["exact"], found.held["order 2"]
    assert exact[1] == pytest.approx(exact[0] * 180 / 80)
    assert found.constant("order 2") == [0, 1]
    assert state[0] == state[1]
    monkeypatch.setattr(TimeMeasurement, "measure", None)  # nothing runs again
    assert finished(measurement, subject, Records(tmp_path, {}), quiet) == found


def test_a_model_that_sees_fewer_tokens_than_are_timed_has_no_times(tmp_path):
    model = tiny.llama()  # 64 tokens, and 66 are fed one by one
    subject = Subject(describe(model, "tiny"), model, None)
    assert finished(TimeMeasurement(), subject, Records(tmp_path, {}), quiet) is None
