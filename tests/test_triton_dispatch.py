"""Which backend runs, what is said when Triton cannot, and how a setting is chosen."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import pytest
import tiny
import torch
from kernel_cases import MIXED, attend, problem
from triton_cases import EAGER, backward_error, sized

import taylorder
from taylorder.errors import TaylorderError, UsageError
from taylorder.kernels import BACKEND_VARIABLE, HeadSpec, TritonUnavailableError, triton_backend
from taylorder.kernels.dispatch import choose_backend
from taylorder.kernels.polynomial import Polynomials
from taylorder.kernels.spec import Near, Taylor
from taylorder.kernels.triton_backend import attention, fold, launch, state_gradients
from taylorder.kernels.triton_backend.settings import Setting

pytestmark = pytest.mark.interpreter
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    "device, dtype, expected",
    [
        (CPU, torch.float32, "torch"),
        (GPU, torch.float32, "triton"),
        (GPU, torch.bfloat16, "triton"),
        (GPU, torch.float64, "torch"),
    ],
)
def test_the_device_decides(monkeypatch, device, dtype, expected):
    monkeypatch.setattr(triton_backend, "triton_problem", lambda _device: None)
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    assert choose_backend(None, None, device, dtype) == expected


def test_the_caller_overrides_the_environment_and_the_environment_the_device(monkeypatch):
    monkeypatch.setattr(triton_backend, "triton_problem", lambda _device: None)
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    assert choose_backend(None, None, GPU, torch.float32) == "torch"
    assert choose_backend("score-space", None, GPU, torch.float32) == "score-space"
    monkeypatch.setenv(BACKEND_VARIABLE, "cudnn")
    with pytest.raises(ValueError, match="TAYLORDER_BACKEND is 'cudnn', expected one of"):
        choose_backend(None, None, CPU, torch.float32)


def test_a_state_goes_on_in_the_backend_that_made_it(monkeypatch):
    case = problem(MIXED, T=10)
    _, state = attend(case, "triton")
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    assert choose_backend(None, state, CPU, torch.float32) == "triton"
    with pytest.raises(ValueError, match="backend is 'torch', but the state was made by 'triton'"):
        attend(case, "torch", state)


def test_float64_is_refused():
    case = problem(MIXED, T=5).to(torch.float64)
    with pytest.raises(ValueError, match="backend is 'triton', which has no float64; expected another dtype, or"):
        attend(case, "triton")


def test_a_gpu_without_a_working_triton_is_an_error_not_another_backend(monkeypatch):
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(launch, "interpreted", lambda: False)  # no driver is here, as on a machine with a broken one
    with pytest.raises(TritonUnavailableError) as caught:
        choose_backend(None, None, GPU, torch.bfloat16)
    message = str(caught.value)
    assert "tensors on cuda:0 is Triton, and it cannot run there (RuntimeError: 0 active drivers" in message
    assert "choose backend='torch' or TAYLORDER_BACKEND=torch" in message
    assert choose_backend("torch", None, GPU, torch.bfloat16) == "torch"


def test_a_state_that_triton_cannot_go_on_from_is_left_as_it_was(monkeypatch):
    case = problem(MIXED, T=10)
    _, state = attend(case, "triton")
    held = state.parts[0].pending.keys.clone()
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(TritonUnavailableError, match="on a CPU it only runs in its interpreter"):
        attend(case, state=state)
    assert state.tokens == 10
    assert torch.equal(state.parts[0].pending.keys, held)


def test_a_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """Triton takes the current device, so the guard has to stand around every launch."""
    entered, guards = [], []

    class Guard:
        def __init__(self, tensor):
            guards.append(tensor)

        def __enter__(self):
            entered.append(len(entered))

        def __exit__(self, *_error):
            entered.pop()

    real = launch.kernel

    def kernel(name):
        assert entered, f"{name} is launched outside of a guard"
        return real(name)

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    monkeypatch.setattr(launch, "kernel", kernel)
    case = problem(MIXED, T=20)
    with sized(EAGER):
        attend(case, "triton")
    assert {tensor.device for tensor in guards} == {CPU}
    assert len(guards) >= 3


def test_a_moved_state_knows_the_device_it_is_on():
    _, state = attend(problem(MIXED, T=5), "triton")
    assert state.to("cpu").shape.device == state.guarded.device
    moved = state.to("meta")
    assert moved.shape.device == moved.guarded.device == torch.device("meta")


PROGRAM = """
import torch
from taylorder.kernels import HeadSpec, Taylor, TritonUnavailableError, taylor_attention
q, k = torch.zeros(1, 2, 3, 8), torch.zeros(1, 1, 3, 8)
try:
    taylor_attention(q, k, k, [HeadSpec(Taylor(3))] * 2, scaling=1.0, backend="triton")
except TritonUnavailableError as error:
    print(error)
"""


def test_a_cpu_without_the_interpreter_is_told_how_to_get_it(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert "TRITON_INTERPRET=1 was not set when Python started" in done.stdout, done.stderr


def test_adapted_refuses_what_cannot_run_before_it_starts(monkeypatch):
    model = tiny.llama()
    config = taylorder.OrderConfig.uniform(model, 2)
    for backend, error, words in [
        ("cuda", UsageError, "backend is 'cuda', expected one of"),
        ("triton", TaylorderError, "cannot run there (on a CPU it only runs in its interpreter"),
    ]:
        monkeypatch.setattr(launch, "interpreted", lambda: False)
        with pytest.raises(error) as caught, taylorder.adapted(model, config, backend=backend):
            pass
        assert words in str(caught.value)


SETTINGS = (Setting(16, 4, 2), Setting(32, 4, 1), Setting(64, 8, 2))


def test_autotuning_tries_the_shipped_settings_once_and_keeps_the_fastest(monkeypatch):
    """With a stopwatch that says so, the second setting wins; what a kernel adds to is added once all the same."""
    tried = []

    def stopwatch(run, quantiles=None):
        run()
        run()
        tried.append(1)
        return [5.0 - (len(tried) % 3 == 2), 0.0, 0.0]

    chosen = []
    original = launch.tuned

    def tuned(name, settings):
        made = original(name, settings, stopwatch)
        chosen.append(made)
        return made

    original.cache_clear()
    monkeypatch.setattr(launch, "tuned", tuned)
    for module, name in ((fold, "fold_settings"), (attention, "pending_settings"), (attention, "near_settings")):
        monkeypatch.setattr(module, name, lambda *_sizes: SETTINGS)
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(triton_backend, "triton_problem", lambda _device: None)
    monkeypatch.setattr(attention, "machine", lambda: "interpreter")
    case = problem([HeadSpec(Taylor(3, "mean"), Near(4, 1)), HeadSpec(Taylor(2, "centre"), Near(4, 1))], B=1, G=1, T=60)
    with sized({**EAGER, (attention, "SEGMENT"): 30}):
        found, _ = attend(case, "triton")
        before = len(tried)
        again, _ = attend(case, "triton")
    original.cache_clear()
    assert backward_error(found, case) < 1e-5
    torch.testing.assert_close(found, again)
    assert len(tried) == before > 0
    offered = {config.kwargs.get("TOKENS") for made in chosen for config in made.configs if "TOKENS" in config.kwargs}
    assert offered == {16, 32, 64}
    folding = [made for made in chosen if made.base_fn.__name__ == "fold_tokens"]
    assert folding[0].best_config.kwargs == {"TOKENS": 32}


def test_the_key_of_autotuning_is_what_a_setting_depends_on():
    seen = {}

    def record(name, programs, settings, arguments, constants):
        seen[name] = key = launch.KERNELS[name].key
        assert set(key) <= set(constants), f"{name} is tuned by {key}, which are not all constants"

    with pytest.MonkeyPatch.context() as patch, sized(EAGER):
        case = problem([HeadSpec(Taylor(3, "mean"), Near(4, 1))] * 2, B=1, G=1, T=60, cuts=(0, 59, 60))
        patch.setattr(attention, "launch", record)
        patch.setattr(fold, "launch", record)
        attend(case, "triton")
        patch.setattr(state_gradients, "launch", record)
        keys, queries = torch.randn(1, 8, 4, requires_grad=True), torch.randn(1, 1, 8, 4, requires_grad=True)
        features = state_gradients.TritonFeatures(4, (0, 4, 4))
        polynomials = Polynomials.build(((HeadSpec(Taylor(3)),),), 4, torch.float32, torch.device("cpu"))
        read = features.read(queries, features.fold(keys, torch.ones(1, 8, 2)), polynomials, None)
        torch.autograd.grad(read.sum(), (keys, queries))
    assert set(seen) == set(launch.KERNELS)
    assert "ROWS" in seen["read_state"]
