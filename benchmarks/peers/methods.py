"""What is compared, by the names that answers and tables go by, and what each needs.

=================  =====================================================================================================
``source``         where it is from
``question``       whether it sees the question before it drops keys
``whole_context``  whether the model attends to all of the context at first, so that the whole cache is held once
``beforehand``     what has to be done once per model
``computes``       what it takes beside the model's own passes
``grows``          whether the cache grows by every token after the context
=================  =====================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

EXACT, WINDOW, STREAMED = "exact", "one window", "taylorder"
CUT_WINDOW, READ_EXACTLY = "one window, context read exactly", "taylorder, context read exactly"

KVPRESS_EXACT, STREAMING_LLM = "exact, kvpress", "StreamingLLM"
RANDOM, KEYDIFF, SNAPKV, EXPECTED = "random keys", "KeyDiff", "SnapKV", "Expected Attention"
ADA_SNAPKV, ADA_EXPECTED = "SnapKV, AdaKV", "Expected Attention, AdaKV"
SNAPKV_ASKED = "SnapKV, question in the prompt"

SAME = {EXACT: KVPRESS_EXACT, CUT_WINDOW: STREAMING_LLM}
"""What both sides run: their answers have to agree."""


@dataclass(frozen=True)
class Method:
    """A way to spend the bytes; fields as this module says."""

    name: str
    source: str = ""
    question: bool = False
    whole_context: bool = True
    beforehand: str = "nothing"
    computes: str = "nothing"
    grows: bool = True


_CHOSEN, _PROBES = "a config is chosen, probes are fitted", "a dot product per key"
_LAST, _QUERIES = "scores of the last 64 queries, again", "all queries again, their mean and covariance"
_RANKED = ", a ranking over KV heads"

METHODS = (
    Method(EXACT),
    Method(STREAMED, "this package", whole_context=False, beforehand=_CHOSEN, computes=_PROBES, grows=False),
    Method(READ_EXACTLY, "this package", beforehand=_CHOSEN, computes=_PROBES, grows=False),
    Method(KEYDIFF, "arXiv 2504.15364", computes="the mean key"),
    Method(EXPECTED, "arXiv 2510.00636", computes=_QUERIES),
    Method(ADA_EXPECTED, "arXiv 2510.00636, 2407.11550", computes=_QUERIES + _RANKED),
    Method(SNAPKV, "arXiv 2404.14469", computes=_LAST),
    Method(ADA_SNAPKV, "arXiv 2404.14469, 2407.11550", computes=_LAST + _RANKED),
    Method(RANDOM),
    Method(WINDOW, "arXiv 2309.17453", whole_context=False, grows=False),
    Method(CUT_WINDOW, "arXiv 2309.17453"),
    Method(SNAPKV_ASKED, "arXiv 2404.14469", question=True, computes=_LAST),
)
"""In the order of the tables; what kvpress runs besides is in :data:`SAME`."""
