"""Variable-order Taylor attention: q, k, v and a table of per-head specs in, attention out.

Self-contained: relative imports, the standard library, torch and triton only, and Python 3.9 syntax, so that the folder
can be published as a Hub kernel. Shapes: q ``[B, H, T, d]``, k ``[B, G, T, d]``, v ``[B, G, T, d_v]``; H query heads
share G KV heads in order (query head h reads KV head ``h // (H / G)``).
"""

from .differentiable import differentiable_attention
from .dispatch import BACKEND_VARIABLE, BACKENDS, taylor_attention
from .exact import far_sums, near_blocks, windowed_attention
from .reference import ReferenceState, ReferenceSums, reference_attention, reference_sums
from .score_space import score_space_attention
from .spec import EXPANSIONS, GUARD, Dropped, Exact, Expansion, HeadSpec, Near, Taylor, check_heads
from .state import State
from .triton_backend import TritonUnavailableError

__all__ = [
    "BACKENDS",
    "BACKEND_VARIABLE",
    "EXPANSIONS",
    "GUARD",
    "Dropped",
    "Exact",
    "Expansion",
    "HeadSpec",
    "Near",
    "ReferenceState",
    "ReferenceSums",
    "State",
    "Taylor",
    "TritonUnavailableError",
    "check_heads",
    "differentiable_attention",
    "far_sums",
    "near_blocks",
    "reference_attention",
    "reference_sums",
    "score_space_attention",
    "taylor_attention",
    "windowed_attention",
]
