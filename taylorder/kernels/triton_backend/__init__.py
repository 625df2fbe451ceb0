"""The Triton backend: prefill and decode for heads of mixed orders, one launch per layout.

Read in this order: ``tiles`` (what the rows of a state are), ``book`` (that as tables), ``heads`` (tables per head),
``plan`` (the work list), ``state_kernels`` and ``token_kernels`` (what runs on the GPU), ``call`` (one call).
"""

from .attention import new_state, run
from .kv_head_states import TritonPart
from .launch import TritonUnavailableError, triton_problem

__all__ = ["TritonPart", "TritonUnavailableError", "new_state", "run", "triton_problem"]
