"""A config as it lies on disk, with what the run that wrote it says of losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import EXACT
from taylorder.errors import TaylorderError
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.models.description import ModelDescription
from taylorder.runs import run_directory
from taylorder.runs.run_files import FILES


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
