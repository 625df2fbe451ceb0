"""Gradients through states in Triton, interpreted, against the same in tensor operations and float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import SCALING
from tolerances import TOLERANCE, relative_error
from triton_cases import altering

from taylorder.kernels import HeadSpec, differentiable, differentiable_attention, score_space_attention
from taylorder.kernels.polynomial import Polynomials
from taylorder.kernels.recorded_features import TorchFeatures
from taylorder.kernels.spec import Near, Taylor
from taylorder.kernels.triton_backend import state_gradients
from taylorder.kernels.triton_backend.launch import KERNELS
from taylorder.kernels.triton_backend.settings import Setting
from taylorder.kernels.triton_backend.state_gradients import TritonFeatures, triton_features
from taylorder.kernels.triton_backend.tiles import Layout

pytestmark = pytest.mark.interpreter
FP32 = TOLERANCE[torch.float32]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Blocks as large as the rows: in the interpreter operations cost time, and their sizes do not."""
    monkeypatch.setattr(state_gradients, "GRADIENT_ROWS", 64)
    monkeypatch.setattr(state_gradients, "query_rows", lambda *_: 64)
    monkeypatch.setattr(state_gradients, "fold_settings", lambda *_: (Setting(64, 4, 2),))


SPECS = {
    "order 2": (8, Taylor(2)),
    "order 3 around the mean": (8, Taylor(3, "mean")),
    "order 4": (6, Taylor(4)),
    "order 5": (3, Taylor(5, "mean")),
    "ranks": (8, Taylor(4, "mean", (0, 8, 5, 2))),
    "ranks around zero": (8, Taylor(4, "centre", (0, 6, 5, 2))),
}
LAYOUTS = [None, Layout("linear", 16), Layout("pair", 16), Layout("gather", 16)]


def gradients(of_features, spec, d, dtype, d_v=5, rows=20):
    """What is read from a state, and its gradients by keys, values, queries, coefficients and means."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads = ((HeadSpec(spec),) * 2,)
    polynomials = Polynomials.build(heads, d, torch.float64, torch.device("cpu"))
    ones = torch.ones(2, 50, 1, dtype=torch.float64)
    ones[0, :5] = 0.0  # padding
    inputs = [
        0.5 * noise(2, 50, d) * ones, noise(2, 50, d_v) * ones, 0.5 * noise(2, 2, rows, d),
        polynomials.coefficients * (1 + 0.1 * noise(2, 2, spec.order)), noise(2, 2, rows),
    ]  # fmt: skip
    weights = noise(2, 2, rows, d_v + 1).to(dtype)
    leaves = [each.to(dtype).requires_grad_() for each in inputs]
    keys, values, queries, coefficients, mean = leaves
    features = of_features(d, polynomials.ranks)
    means = [mean] * spec.order if spec.expansion == "mean" else None
    read = features.read(
        queries,
        features.fold(keys * ones.to(dtype), torch.cat([values, ones.to(dtype)], -1)),
        replace(polynomials, coefficients=coefficients, square=None),
        means,
    )
    found = torch.autograd.grad((read * weights).sum(), leaves[: 5 if means else 4])
    names = ("output", "keys", "values", "queries", "coefficients", "means")
    return dict(zip(names, [read.detach(), *found], strict=False))


def in_triton(name):
    d, spec = SPECS[name]
    return gradients(TritonFeatures, spec, d, torch.float32)


def in_torch(name):
    d, spec = SPECS[name]
    return gradients(lambda _, ranks: TorchFeatures(ranks), spec, d, torch.float64)


def errors(found, expected):
    assert found.keys() == expected.keys()
    return {name: relative_error(found[name], expected[name]) for name in expected}


@pytest.fixture
def layout(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(Layout, "choose", staticmethod(lambda *_: request.param))
    state_gradients._Tables.of.cache_clear()
    yield
    state_gradients._Tables.of.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
@pytest.mark.parametrize("name", SPECS)
def test_every_layout_passes_the_gradients_of_tensor_operations(name, layout):
    assert max(errors(in_triton(name), in_torch(name)).values()) < FP32


CONTROLS = {
    "fold_tokens": ("values", {"output", "queries", "coefficients", "means"}),
    "read_state": ("features", {"output", "values"}),
    "fold_rows": ("row_values", {"keys", "values"}),
    "differentiate_rows": ("features", {"keys", "queries", "coefficients", "means"}),
}
"""What is perturbed of each kernel, and what has to show it."""


@pytest.mark.parametrize("kernel", CONTROLS)
def test_a_perturbed_input_of_any_kernel_shows(kernel):
    argument, shown = CONTROLS[kernel]
    expected = in_torch("order 3 around the mean")
    with altering(kernel, argument, lambda tensor: tensor * 1.1):
        wrong = errors(in_triton("order 3 around the mean"), expected)
    assert {name for name, error in wrong.items() if error > 100 * FP32} == shown
    assert all(error < FP32 for name, error in wrong.items() if name not in shown)


def test_every_gradient_kernel_has_a_control():
    assert {name for name, kernel in KERNELS.items() if kernel.file == "gradient_kernels"} <= set(CONTROLS)


def launched(monkeypatch):
    names, original = set(), state_gradients.launch

    def launch(name, *rest):
        names.add(name)
        original(name, *rest)

    monkeypatch.setattr(state_gradients, "launch", launch)
    return names


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "far", [Taylor(3, "mean"), Taylor(4, "mean", (0, 8, 4, 2)), Taylor(3, coefficients=(1.0, 0.9, 0.6))]
)
def test_attention_passes_gradients_through_triton(monkeypatch, far, padded):
    monkeypatch.setattr(differentiable, "folds_from", lambda *_: 5)
    monkeypatch.setattr(differentiable, "BLOCK_ROWS", 25)
    names = launched(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    heads = [HeadSpec(far, Near(3, 1)), HeadSpec(Taylor(2, far.expansion, far.ranks and far.ranks[:2]), Near(3, 1))]
    inputs = [0.6 * torch.randn(2, heads_of, 50, 8, generator=generator, dtype=torch.float64) for heads_of in (2, 1, 1)]
    valid = torch.arange(50) >= torch.tensor([[3], [0]]) if padded else None
    weights = torch.randn(2, 2, 50, 8, generator=generator, dtype=torch.float64)

    def run(attend, dtype, **options):
        leaves = [each.to(dtype).requires_grad_() for each in inputs]
        output, _ = attend(*leaves, heads, scaling=SCALING, valid=valid, **options)
        return [output.detach(), *torch.autograd.grad((output * weights.to(dtype)).sum(), leaves)]

    expected = run(score_space_attention, torch.float64)
    found = run(differentiable_attention, torch.float32, backend="triton")
    assert names == set(CONTROLS)
    for own, other in zip(found, expected, strict=True):
        assert relative_error(own, other) < FP32


def test_torch_steps_in_where_triton_does_not_apply(monkeypatch):
    cpu = torch.device("cpu")
    assert triton_features(64, 64, (0, 64), cpu, torch.float32) is not None
    assert triton_features(80, 64, (0, 80), cpu, torch.float32) is None
    assert triton_features(64, 80, (0, 64), cpu, torch.float32) is None
    assert triton_features(64, 64, (0, 64), cpu, torch.float64) is None
    assert triton_features(64, 64, (0, 0), cpu, torch.float32) is None
    monkeypatch.setattr(state_gradients, "triton_problem", lambda _: "it is not there")
    assert triton_features(64, 64, (0, 64), cpu, torch.float32) is None
    monkeypatch.setattr(differentiable, "folds_from", lambda *_: 5)
    names = launched(monkeypatch)
    q = torch.randn(1, 1, 20, 4, requires_grad=True)
    for backend in (None, "torch", "triton"):
        differentiable_attention(q, q, q, [HeadSpec(Taylor(3))], scaling=0.5, backend=backend)[0].sum().backward()
    assert names == set()
