"""Two configs of one model on the same held-out sequences: what each loses, and the second less the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import EXACT
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.evaluation.comparison import Comparison, compare
from taylorder.evaluation.continuations import drawn
from taylorder.evaluation.forecast import Forecast
from taylorder.evaluation.rivals import Contender
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress, silent

A, B = "A", "B"
"""What the two are called wherever they stand side by side; differences are B less A."""


def measure_both(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    a: OrderConfig,
    b: OrderConfig,
    *,
    text: Text,
    length: int,
    sequences: int,
    seed: int = 0,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda sentence: None,
) -> Comparison:
    """Run the exact model and both configs over the same sequences of ``length`` tokens, as many as the text has.

    Returns:
        Standings ``exact``, ``A`` and ``B``; ``config_less`` of A is B less A, paired by sequence.

    Raises:
        UsageError: the text does not fill one sequence.
        NonFiniteError: the exact model breaks down.

    """
    unseen = tokenise(tokenizer, text)
    sample = drawn(unseen, length, sequences, seed)
    return compare(
        model,
        description,
        sample,
        [Contender(A, a), Contender(B, b)],
        tokens=unseen,
        seed=seed,
        progress=Forecast([sample], [EXACT, A, B], progress=progress, say=say),
        judged=B,
    )
