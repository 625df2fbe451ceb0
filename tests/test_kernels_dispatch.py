"""Arguments that make no sense are refused by name; the package works on its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import taylorder.kernels
from taylorder.kernels import HeadSpec, taylor_attention
from taylorder.kernels.spec import Near, Taylor

HEADS = [HeadSpec(Taylor(3))] * 4


def arguments(**changes):
    made = dict(
        q=torch.zeros(2, 4, 5, 8), k=torch.zeros(2, 2, 5, 8), v=torch.zeros(2, 2, 5, 3), heads=HEADS, scaling=1.0
    )
    return {**made, **changes}


@pytest.mark.parametrize(
    "changes, error, words",
    [
        (dict(q=[1.0]), TypeError, "q is a list, expected a tensor"),
        (dict(q=torch.zeros(4, 5, 8)), ValueError, "q has shape (4, 5, 8), expected 4 dimensions"),
        (dict(q=torch.zeros(2, 4, 5, 8, dtype=torch.int64)), ValueError, "q has dtype torch.int64, expected one of"),
        (
            dict(k=torch.zeros(2, 2, 5, 8).half()),
            ValueError,
            "k has dtype torch.float16, expected that of q: torch.float32",
        ),
        (dict(k=torch.zeros(2, 2, 5, 8, device="meta")), ValueError, "k is on meta, expected the device of q: cpu"),
        (dict(k=torch.zeros(2, 2, 6, 8)), ValueError, "k has shape (2, 2, 6, 8), expected (2, 2, 5, 8)"),
        (dict(k=torch.zeros(2, 2, 5, 7)), ValueError, "k has shape (2, 2, 5, 7)"),
        (dict(v=torch.zeros(2, 1, 5, 3)), ValueError, "v has shape (2, 1, 5, 3), expected (2, 2, 5)"),
        (dict(v=torch.zeros(2, 2, 5, 0)), ValueError, "value dim 0, expected at least 1"),
        (dict(k=torch.zeros(2, 3, 5, 8), v=torch.zeros(2, 3, 5, 3)), ValueError, "q has 4 heads and k has 3"),
        (dict(heads=HEADS[:3]), ValueError, "heads has 3 specs, expected one per query head: 4"),
        (dict(heads=["3"] * 4), TypeError, "heads[0] is a str, expected a HeadSpec"),
        (dict(scaling=float("nan")), ValueError, "scaling is nan, expected a finite number"),
        (dict(valid=torch.ones(2, 4, dtype=torch.bool)), ValueError, "valid has shape (2, 4), expected (2, 5)"),
        (dict(valid=torch.ones(2, 5)), TypeError, "valid is torch.float32, expected a bool tensor"),
        (dict(backend="cuda"), ValueError, "backend is 'cuda', expected one of ('triton', 'torch', 'score-space')"),
        (dict(state=3), TypeError, "state is a int, expected a State"),
        (dict(heads=[HeadSpec(Taylor(3), Near(2))] * 4, causal=False), ValueError, "bidirectional"),
    ],
)
def test_the_message_names_argument_value_and_expectation(changes, error, words):
    with pytest.raises(error) as caught:
        taylor_attention(**arguments(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(heads=[HeadSpec(Taylor(2))] * 4), "heads differ from those the state was made for"),
        (dict(causal=False), "state was given, but attention is bidirectional"),
        (
            dict(q=torch.zeros(1, 4, 5, 8), k=torch.zeros(1, 2, 5, 8), v=torch.zeros(1, 2, 5, 3)),
            "but the state was made for",
        ),
        (dict(v=torch.zeros(2, 2, 5, 4)), "value_dim=4"),
    ],
)
def test_a_state_goes_on_only_with_what_it_was_made_for(changes, words):
    _, state = taylor_attention(**arguments())
    with pytest.raises(ValueError) as caught:
        taylor_attention(**arguments(**changes, state=state))
    assert words in str(caught.value)
    assert state.tokens == 5


def test_the_output_can_be_used_where_gradients_are_recorded():
    weight = torch.ones(3, requires_grad=True)
    output, _ = taylor_attention(**arguments(q=torch.randn(2, 4, 5, 8)))
    (output * weight).sum().backward()
    assert weight.grad is not None


def test_the_package_works_alone(tmp_path):
    """Copied elsewhere under another name, with nothing but the standard library and torch to import."""
    shutil.copytree(
        Path(taylorder.kernels.__file__).parent,
        tmp_path / "attention_kernel",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    program = """
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"taylorder", "transformers", "pydantic", "scipy", "rich", "safetensors"}:
                    raise ImportError(f"{name} is not for kernels")
        sys.meta_path.insert(0, Refuse())
        import torch
        import attention_kernel as kernels
        q, k, v = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
        heads = [kernels.HeadSpec(kernels.Taylor(3, "mean"), kernels.Near(2, 1))] * 4
        output, state = kernels.taylor_attention(q, k, v, heads, scaling=0.3)
        expected, _ = kernels.reference_attention(q, k, v, heads, scaling=0.3)
        assert torch.allclose(output.double(), expected, atol=1e-5)
        print("alone", state.tokens)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "alone 9\n", done.stderr


def test_every_file_parses_as_python_3_9():
    import ast

    for path in Path(taylorder.kernels.__file__).parent.rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 9))
