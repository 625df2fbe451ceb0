"""Arguments that make no sense are refused by name; the package works on its own."""

from __future__ import annotations

import re

import pytest
import torch

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
    with pytest.raises(error, match=re.escape(words)):
        taylor_attention(**arguments(**changes))


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
    with pytest.raises(ValueError, match=re.escape(words)):
        taylor_attention(**arguments(**changes, state=state))
    assert state.tokens == 5


def test_the_output_can_be_used_where_gradients_are_recorded():
    weight = torch.ones(3, requires_grad=True)
    output, _ = taylor_attention(**arguments(q=torch.randn(2, 4, 5, 8)))
    (output * weight).sum().backward()
    assert weight.grad is not None
