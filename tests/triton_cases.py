"""What the tests of the Triton backend share: small sizes, layouts of choice, and an error that needs no division."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import strategies as st
from kernel_cases import SCALING

from taylorder.kernels import fold_rule, reference_sums
from taylorder.kernels.triton_backend import attention, fold, head_tables, plan, state_gradients
from taylorder.kernels.triton_backend.settings import Setting
from taylorder.kernels.triton_backend.tiles import Layout

SMALL = {
    (fold_rule, "BLOCK"): [1, 4, 64],
    (fold_rule, "RAW_SHARE"): [0.0, 0.0, 0.5],
    (fold, "FOLD_TOKENS"): [64, 4096],
    (attention, "SEGMENT"): [23, 1024],
    (plan, "PROGRAMS"): [1, 9],
    (plan, "PIECE_TILES"): [1, 8],
    (plan, "PIECE_TOKENS"): [16, 512],
    (plan, "STACKED_TOKENS"): [0, 16, 200],
    (attention, "query_rows"): [lambda *_sizes: 16, lambda *_sizes: 64],
    (attention, "pending_settings"): [lambda *_sizes: (Setting(16, 4, 2),), lambda *_sizes: (Setting(64, 4, 2),)],
    (attention, "near_settings"): [lambda *_sizes: (Setting(16, 4, 2),), lambda *_sizes: (Setting(64, 4, 2),)],
}
"""Tuning constants and values that make small inputs take the paths of large ones: they may change no result."""

LAYOUTS = [None, Layout("linear", 16), Layout("pair", 16), Layout("pair", 32), Layout("gather", 16)]
"""Layouts to force on all heads; None leaves the choice as it is."""

EAGER = {
    (fold_rule, "BLOCK"): 1,
    (fold_rule, "RAW_SHARE"): 0.0,
    (attention, "SEGMENT"): 40,
    (plan, "PROGRAMS"): 4,
    (plan, "PIECE_TILES"): 1,
    (plan, "PIECE_TOKENS"): 16,
    (attention, "query_rows"): lambda *_sizes: 64,
    (attention, "pending_settings"): lambda *_sizes: (Setting(64, 4, 2),),
    (attention, "near_settings"): lambda *_sizes: (Setting(64, 4, 2),),
}
"""Segments so short that nearly every far key is read from the state, and states cut into several pieces."""

sizes = st.fixed_dictionaries({key: st.sampled_from(values) for key, values in SMALL.items()})
layouts = st.sampled_from(LAYOUTS)


@contextmanager
def sized(chosen, layout=None):
    """Run with other tuning constants, and all heads in one layout."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in chosen.items():
            patch.setattr(module, name, value)
        if layout is not None:
            patch.setattr(Layout, "choose", staticmethod(lambda *_arguments: layout))
        head_tables.head_tables.cache_clear()  # remembers layouts
        yield
    head_tables.head_tables.cache_clear()


@contextmanager
def altering(kernel, argument, change):
    """Pass one kernel one argument changed."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (attention, fold, state_gradients):
            original = module.launch

            def launch(name, programs, settings, arguments, *rest, original=original):
                if name == kernel:
                    arguments = {**arguments, argument: change(arguments[argument])}
                original(name, programs, settings, arguments, *rest)

            patch.setattr(module, "launch", launch)
        yield


def backward_error(found, case):
    """How wrong sums have to be for ``found`` to be their quotient, relative to the sums of absolute terms.

    ``found * denominator - numerator`` is ``e1 - found * e2`` for errors e1 and e2 of the two sums; unlike the quotient
    it is well-conditioned when the denominator is small. Rows on the guard's threshold may fall on either side.
    """
    truth, _ = reference_sums(
        case.q, case.k, case.v, case.heads, scaling=SCALING, causal=case.causal, valid=case.valid,
        priority=case.priority, sink_logits=case.sink_logits, softcap=case.softcap, shift=case.shift,
    )  # fmt: skip
    B, _, T, _ = case.q.shape
    known = torch.ones(B, T, dtype=torch.bool) if case.valid is None else case.valid
    rows = known[:, None] & (truth.guard_margin > 1e-5)
    found = found.double()
    assert torch.isfinite(found).all()
    residual = (found * truth.denominator[..., None] - truth.numerator).abs()
    size = truth.numerator_scale + found.abs() * truth.denominator_scale[..., None] + 1e-30
    return float((residual / size)[rows].max()) if bool(rows.any()) else 0.0
