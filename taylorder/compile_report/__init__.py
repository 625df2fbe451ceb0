"""What the Triton kernels take on a GPU that need not be there: every setting compiled, its instructions counted.

``ahead_of_time`` compiles one setting of one kernel, ``compilers`` many of them in processes that may crash, ``sass``
counts the cycles of inner loops. Read it in this order. It is no part of the kernels that are published.
"""

from __future__ import annotations

TARGETS = ("sm_80", "sm_90", "gfx942")
"""What is compiled for unless something else is asked for."""
