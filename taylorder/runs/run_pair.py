"""Two configs as they lie on disk, with what the runs that wrote them say of losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import EXACT
from taylorder.errors import TaylorderError, UsageError
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.models.description import ModelDescription
from taylorder.runs import run_directory
from taylorder.runs.run_files import FILES
from taylorder.selection.config_pair import ConfigPair

_DIGITS = 19
"""Of a fingerprint, with its prefix: enough to tell two of them apart."""


@dataclass(frozen=True, slots=True)
class RecordedConfig:
    """A config, where it lies, and the records of the run that wrote it, as far as there are any.

    ``model`` is the model as the run describes it; ``comparison`` the losses on held-out text; ``calibration_kl`` the
    KL to exact on the text that a budget was chosen by, in nats per token; ``unread`` says why a run that is there
    tells nothing.
    """

    path: Path
    config: OrderConfig
    model: ModelDescription | None = None
    comparison: Comparison | None = None
    calibration_kl: float | None = None
    unread: str | None = None

    @property
    def standing(self) -> Standing | None:
        """How the config did on the held-out text of the run."""
        name = EXACT if rivals.exact_everywhere(self.config) else rivals.CONFIG
        return None if self.comparison is None else self.comparison.standing(name)


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


def read_recorded(path: Path) -> RecordedConfig:
    """Read a config, and the run beside it if it is the config of one.

    Raises:
        ConfigError: the config is missing or malformed.

    """
    config, directory = OrderConfig.load(path), path.parent
    if path.name != FILES["orders"] or not (directory / FILES["report"]).is_file():
        return RecordedConfig(path, config)
    try:
        analysis, selection = run_directory.read(directory)
        evaluation = run_directory.read_evaluation(directory)
    except TaylorderError as error:
        return RecordedConfig(path, config, unread=str(error))
    comparison = evaluation.comparisons[0] if evaluation is not None and evaluation.comparisons else None
    rounds = () if selection.levers is None else selection.levers.rounds
    return RecordedConfig(
        path, config, analysis.model, comparison, min((measured.kl for measured in rounds), default=None)
    )


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
