"""The states of a model that stand side by side in the table of a healing, and why some of them are not there."""

from __future__ import annotations

from collections.abc import Mapping

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import EXACT
from taylorder.evaluation import rivals
from taylorder.evaluation.rivals import Contender
from taylorder.healing.outcome import Outcome
from taylorder.healing.table import State
from taylorder.healing.variants import has_polynomials, near_off, state_off

BEFORE, AFTER = "before", "after"
WINDOW_BEFORE, WINDOW_AFTER = "window", "window, healed"
STATE_OFF, NEAR_OFF = "state off", "near field off"
TRAINED_EXACT = "exact, trained"

CONFIG = "config"
"""What the training for the config is called; those of the controls are called ``window`` and ``exact``."""

STAGES = {CONFIG: "healing", rivals.WINDOW: "healing one window", EXACT: "training exact"}
"""The trainings, as progress is told."""

NO_CONTROLS = "not run: --no-controls"


def measured(config: OrderConfig, window: Contender, trainings: int) -> int:
    """How many states there will be: one of each training, two untrained, a window, and two with a part left out."""
    return trainings + 2 + (window.config is not None) + 2 * has_polynomials(config)


def states(
    config: OrderConfig, window: Contender, outcomes: Mapping[str, Outcome], reasons: Mapping[str, str]
) -> tuple[State, ...]:
    """All states, in the order of the table.

    Args:
        config: as it was before.
        window: sinks and one window of its bytes.
        outcomes: of the trainings that were run, by their names.
        reasons: why the others were not.

    """
    healed = outcomes[CONFIG]
    after, weights = healed.config or config, healed.weights or None
    made = [
        State(EXACT, "the model as it is"),
        State(BEFORE, "the config, untrained", None, config),
        State(AFTER, "the config, healed", weights, after),
    ]
    for name, note, change in (
        (STATE_OFF, "healed, and then its polynomials left out: far keys are dropped", state_off),
        (NEAR_OFF, "healed, and then its near fields left out: polynomials alone", near_off),
    ):
        if has_polynomials(after):
            made.append(State(name, note, weights, change(after)))
        else:
            made.append(State(name, note, absent="no head has a polynomial"))
    held = "the config's bytes hold the whole context, where a window is exact"
    no_window = window.absent or (held if window.config is None else "")
    made.append(State(WINDOW_BEFORE, window.note, None, window.config, no_window))
    if (of_window := outcomes.get(WINDOW_BEFORE)) is None:
        made.append(State(WINDOW_AFTER, "the same healing of that window", absent=no_window or reasons[WINDOW_BEFORE]))
    else:
        note = "the same healing of that window"
        made.append(State(WINDOW_AFTER, note, of_window.weights, of_window.config))
    trained = "the exact model, trained on the same text to predict it"
    if (of_exact := outcomes.get(EXACT)) is None:
        made.append(State(TRAINED_EXACT, trained, absent=reasons[EXACT]))
    else:
        made.append(State(TRAINED_EXACT, trained, of_exact.weights))
    return tuple(made)
