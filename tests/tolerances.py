"""How far a fast path may be from the float64 polynomial, once for all tests."""

from __future__ import annotations

import torch

# Relative L2. Rounding of inputs and products at that precision, a few times over; never loosened in a test.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def relative_error(found, expected):
    """``|found - expected| / |expected|`` in float64."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())
