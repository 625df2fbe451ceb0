"""The Triton backend: prefill and decode for heads of mixed orders, one launch per layout.

Read in this order: ``tiles`` (what the rows of a state are), ``layout_tables`` (that as tables), ``head_tables``
(tables per head), ``plan`` (the work list), ``preparing_kernels``, ``state_kernels`` and ``token_kernels`` (what runs
on the GPU), ``pending``, ``extents`` and ``kept_tokens`` (which tokens are near), ``attention`` (one call).
"""

from .attention import new_parts, run
from .launch import TritonUnavailableError, triton_problem

__all__ = ["TritonUnavailableError", "new_parts", "run", "triton_problem"]
