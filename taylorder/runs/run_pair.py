"""Two configs with their records, and what was measured of both together."""

from __future__ import annotations

from dataclasses import dataclass

from taylorder.adapt.config import OrderConfig
from taylorder.errors import UsageError
from taylorder.evaluation.comparison import Comparison
from taylorder.runs.recorded_config import RecordedConfig
from taylorder.selection.config_pair import ConfigPair

_DIGITS = 19
"""Of a fingerprint, with its prefix: enough to tell two of them apart."""


@dataclass(frozen=True, slots=True)
class RunPair:
    """Two configs of one model, A and B: what differs, and what both lose.

    ``measured`` has standings ``exact``, ``A`` and ``B`` of the same sequences; None where they were not measured.
    """

    a: RecordedConfig
    b: RecordedConfig
    configs: ConfigPair
    measured: Comparison | None = None

    @property
    def same_sequences(self) -> bool:
        """Whether both runs measured losses on the same sequences, though each for itself."""
        ours, theirs = self.a.comparison, self.b.comparison
        return ours is not None and theirs is not None and _sequences(ours) == _sequences(theirs)

    @property
    def recorded_difference(self) -> float | None:
        """Loss of B less that of A in nats per token, where both runs measured them on the same sequences.

        Runs keep no losses of single sequences, so that it has no interval.
        """
        ours, theirs = self.a.standing, self.b.standing
        if not self.same_sequences or ours is None or theirs is None or ours.nll is None or theirs.nll is None:
            return None
        return theirs.nll.estimate - ours.nll.estimate


def check_same_model(a: RecordedConfig, b: RecordedConfig) -> None:
    """Refuse configs of two models.

    Raises:
        UsageError: their models differ.

    """
    ours, theirs = a.config.model, b.config.model
    if ours.fingerprint != theirs.fingerprint:
        raise UsageError(
            f"{a.path} is a config of {_named(a.config)} and {b.path} one of {_named(b.config)}; compare two configs "
            "of one model"
        )


def _named(config: OrderConfig) -> str:
    model = config.model
    return f"{model.name} ({model.architecture}, {model.layers} layers, weights {model.fingerprint[:_DIGITS]})"


def _sequences(comparison: Comparison) -> tuple[object, ...]:
    """What says which sequences were drawn, of what text."""
    return comparison.text_sha256, comparison.length, comparison.sequences, comparison.seed, comparison.bos
