"""What a healing will do and how long it takes, from a timed step of each training; planned once, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from taylorder.healing.schedule import Schedule
from taylorder.healing.settings import HealSettings
from taylorder.healing.states import CONFIG
from taylorder.healing.timing import Pace, longest_schedule
from taylorder.storage.durations import duration
from taylorder.storage.records import Records

_NAME = "plan"


@dataclass(frozen=True)
class Plan:
    """Steps, the seconds that each training takes by its name, and those of the table after them."""

    schedule: Schedule
    seconds: dict[str, float]
    table: float

    @property
    def share(self) -> float:
        """Of the time of all trainings, that for the config itself."""
        return self.seconds[CONFIG] / sum(self.seconds.values())

    def limit(self, name: str, settings: HealSettings) -> float | None:
        """Seconds that a training may take: its share of the minutes; None where those are not limited."""
        if settings.minutes is None:
            return None
        return 60 * settings.minutes * self.seconds[name] / sum(self.seconds.values())

    def sentence(self, tokens: int, source: str) -> str:
        """What will be done, and how long it takes."""
        said = (
            f"{self.schedule.steps} steps on {self.schedule.tokens:,} of {tokens:,} tokens of {source}: about "
            f"{duration(self.seconds[CONFIG])}"
        )
        controls = {name: seconds for name, seconds in self.seconds.items() if name != CONFIG}
        if controls:
            named = " and ".join(f"{duration(seconds)} for {name}" for name, seconds in controls.items())
            said += (
                f", and {named}, the controls, which take {1 - self.share:.0%} of the time (--no-controls skips them)"
            )
        return f"{said}; then about {duration(self.table)} for the table"


def planned(
    records: Records,
    settings: HealSettings,
    paces: Callable[[], Mapping[str, Pace]],
    *,
    held_out_tokens: int,
    refit_tokens: int,
    table_tokens: int,
) -> Plan:
    """As many steps as there is time for; a run that goes on has the plan that it began with.

    Args:
        records: keeps the plan.
        settings: the limits.
        paces: times a step of every training.
        held_out_tokens: that are read for one held-out loss.
        refit_tokens: that the probes of the config are fitted to, 0 where it keeps no keys.
        table_tokens: that are read for the table, all states together.

    """
    recorded = records.get(_NAME)
    if recorded is None:
        timed = paces()
        work = {
            name: pace.having(held_out_tokens, refit_tokens if name == CONFIG else 0) for name, pace in timed.items()
        }
        schedule = longest_schedule(settings, list(work.values()))
        recorded = {
            "steps": schedule.steps,
            "seconds": {name: of_training.seconds(schedule) for name, of_training in work.items()},
            "table": table_tokens * max(pace.forward for pace in timed.values()),
        }
        records.put(_NAME, recorded)
    return Plan(Schedule.of(settings, recorded["steps"]), recorded["seconds"], recorded["table"])
