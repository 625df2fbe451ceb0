"""Train a model for its config, the controls likewise, and measure them all: from a config to a healed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.prepared import execution_digest
from taylorder.analysis.losses import EXACT, has_language_model_head
from taylorder.analysis.text import Text, calibration_text
from taylorder.analysis.tokens import Tokens, tokenise
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.evaluation import rivals
from taylorder.evaluation.continuations import drawn
from taylorder.evaluation.rivals import Contender
from taylorder.healing import states
from taylorder.healing.checkpoint import Checkpoint
from taylorder.healing.course import Course, Refit
from taylorder.healing.numbers import TrainedNumbers
from taylorder.healing.outcome import Outcome, read, write
from taylorder.healing.plan import Plan, planned
from taylorder.healing.probes import refitted
from taylorder.healing.settings import HealSettings
from taylorder.healing.student import Student
from taylorder.healing.table import TASK_TOKENS, Row, Sample, table
from taylorder.healing.text import TrainingText, training_text
from taylorder.healing.timing import Pace
from taylorder.healing.trained import Trained, as_they_were, frozen, trained_layers, training_weights
from taylorder.healing.trained_probes import TrainedProbes
from taylorder.healing.variants import has_polynomials
from taylorder.models.adapters import merge_adapter
from taylorder.models.describe import describe
from taylorder.models.description import ModelDescription
from taylorder.models.fingerprint import fingerprint
from taylorder.selection.choice_text import ChoiceText
from taylorder.selection.probes import probe_sequences
from taylorder.storage import processes
from taylorder.storage.durations import duration
from taylorder.storage.progress import Progress, silent
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

SEQUENCES = 8
"""Of each kind of unseen text."""

PROSE, CODE = "prose", "code"
"""Kinds of unseen text."""

SCALED = 2
"""Sequences whose keys say what the numbers of probes are measured in."""

ADAPTER = "adapter"
"""Folder, beside the records, of what was trained for the config."""


@dataclass(frozen=True)
class Healing:
    """What came of it.

    Attributes:
        model: what was healed, as it was before.
        config: for the healed weights; its probes are those that belong to them.
        settings: how.
        plan: what was planned.
        outcomes: of every training, by its name.
        rows: the table, exact first.
        samples: the unseen text of its figures.
        text: what was learnt from.
        text_tokens: tokens that this has.
        adapter: the folder of what was trained; None where that is in the config.

    """

    model: ModelDescription
    config: OrderConfig
    settings: HealSettings
    plan: Plan
    outcomes: dict[str, Outcome]
    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    text: Text
    text_tokens: int
    adapter: Path | None

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


def heal(
    model: Any,
    tokenizer: Any,
    config: OrderConfig,
    settings: HealSettings,
    *,
    directory: Path,
    fresh: bool = False,
    description: ModelDescription | None = None,
    text: Text | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda sentence: None,
) -> Healing:
    """Train a model so that it runs with a config as the exact model runs, and measure what that buys.

    The model is left as it was. What was done is kept in ``directory``, and a run with the same settings goes on there,
    at the step where it was.

    Args:
        model: a causal transformers model with a language-model head, in float32.
        tokenizer: its tokenizer.
        config: what it is to run with.
        settings: how it is trained.
        directory: keeps records and the adapter; created if need be.
        fresh: forget what is there.
        description: ``taylorder.describe(model)``, if it was made already.
        text: what to learn from; default :func:`~taylorder.healing.text.training_text`.
        progress: called with a stage, what is done of it, and its size.
        say: called with what will be done, how long it takes, and losses.

    Raises:
        ConfigError: the config does not belong to the model.
        UsageError: the config leaves nothing to heal, or the text is too short.
        UnsupportedModelError: the model predicts no next token, or its projections are not known.
        NonFiniteError: a loss is not finite.

    """
    description = description or describe(model)
    config.check(description)
    _refuse(model, description, config, settings)
    own_text = text is not None
    text = text or training_text()
    tokens = tokenise(tokenizer, text)
    learnt = TrainingText.of(tokens, settings.longest)
    samples = _samples(tokenizer, settings)
    records = Records(directory, _settings(description, config, settings, learnt), fresh=fresh)
    if records.replaced:
        say(f"{directory} had records of other settings, which are gone: this healing begins anew")
    window = rivals.window_instead(description, config, settings.longest)
    courses, reasons = _courses(config, window, settings)
    with _training(model, description, config, settings, learnt) as trained:
        student = partial(Student, model, description, trained)
        refit, refit_tokens = _refit(tokenizer, description, config, settings, tokens if own_text else None)

        def paces() -> dict[str, Pace]:
            say("timing a step")
            return {name: Pace.of(student(of), learnt.blocks[0], settings.stages) for name, of in courses.items()}

        plan = planned(
            records, settings, paces, held_out_tokens=learnt.held_out.numel(), refit_tokens=refit_tokens,
            table_tokens=states.measured(config, window, len(courses))
            * (sum(sample.sequences.numel() for sample in samples) + TASK_TOKENS),
        )  # fmt: skip
        say(plan.sentence(len(tokens.ids), text.source))
        outcomes = {}
        for name, trained_for in courses.items():
            outcome, checkpoint = read(records, name, trained_for), Checkpoint(records, name)
            if outcome is None:
                course = Course(
                    states.STAGES[name], student(trained_for), plan.schedule, learnt, settings, checkpoint,
                    limit=plan.limit(name, settings), refit=refit if name == states.CONFIG else None,
                    progress=progress, say=say,
                )  # fmt: skip
                outcome = course.run()
                write(records, name, outcome)
                taken = duration(outcome.seconds)
                say(f"{states.STAGES[name]}: {outcome.stopped}, best after {outcome.best} steps, {taken}")
            checkpoint.remove()
            outcomes[name] = outcome if settings.changes_weights else _in_the_config(trained, outcome)
        shown = states.states(config, window, outcomes, reasons)
        say(f"measuring {sum(not state.absent for state in shown)} states of the model on unseen text and tasks")
        rows = table(student(config), shown, samples, tokenizer, seed=settings.seed, records=records, progress=progress)
        adapter = directory / ADAPTER if settings.changes_weights else None
        if adapter is not None:
            trained.load(outcomes[states.CONFIG].weights)
            processes.from_first(lambda: trained.save(adapter, description))
    healed = _for_healed(model, description, outcomes[states.CONFIG], config, settings, text, adapter)
    return Healing(description, healed, settings, plan, outcomes, rows, samples, text, len(tokens.ids), adapter)


@contextmanager
def _training(
    model: Any, description: ModelDescription, config: OrderConfig, settings: HealSettings, text: TrainingText
) -> Iterator[Trained]:
    """What is trained, and the model as it was when the block ends."""
    if settings.changes_weights:
        with training_weights(model, description, settings.train, settings.seed) as trained:
            yield trained
        return
    with frozen(model):
        if settings.train == "config":
            yield TrainedNumbers(config)
        else:
            about = {"text": text.source, "tokens": text.blocks.numel(), "sha256": text.sha256}
            yield TrainedProbes.on(model, config, text.blocks[:SCALED], about)


def _in_the_config(trained: Trained, outcome: Outcome) -> Outcome:
    """The same outcome with what was trained in its config, and nothing beside it."""
    trained.load(outcome.weights)
    return replace(outcome, config=None if outcome.config is None else trained.into(outcome.config), weights={})


def _refuse(model: Any, description: ModelDescription, config: OrderConfig, settings: HealSettings) -> None:
    if not description.causal or not has_language_model_head(model):
        raise UnsupportedModelError(
            f"{description.name} predicts no next token, and healing trains a model by what it predicts: load a causal "
            "model with its head"
        )
    if rivals.exact_everywhere(config):
        raise UsageError("the config keeps every head exact, so there is nothing to heal; name another with --config")
    if settings.longest > description.max_context:
        raise UsageError(
            f"--context has {settings.longest}, but {description.name} sees {description.max_context} tokens at most; "
            "lower it"
        )
    if processes.world() > settings.sequences:
        raise UsageError(
            f"there are {processes.world()} processes, and a step has {settings.sequences} of the longest sequences, "
            f"of which each process takes one at least: ask for more with --sequences {processes.world()}"
        )
    if settings.drop_window and not has_polynomials(config):
        raise UsageError(
            "--drop-window leaves near fields out beside polynomials, and no head of the config has one; leave it out"
        )


def _settings(
    description: ModelDescription, config: OrderConfig, settings: HealSettings, text: TrainingText
) -> dict[str, Any]:
    """Everything that a record depends on."""
    return {
        "model": description.fingerprint, "dtype": description.dtype, "config": execution_digest(config),
        "text": text.sha256, "settings": settings.record(), "software": software_versions(),
    }  # fmt: skip


def _samples(tokenizer: Any, settings: HealSettings) -> tuple[Sample, ...]:
    from taylorder.evaluation.evaluation_text import evaluation_code, evaluation_text

    samples = []
    for name, text in ((PROSE, evaluation_text()), (CODE, evaluation_code())):
        sequences = drawn(tokenise(tokenizer, text), settings.longest, SEQUENCES, settings.seed)
        samples.append(Sample(name, text.source, text.sha256, sequences))
    return tuple(samples)


def _courses(
    config: OrderConfig, window: Contender, settings: HealSettings
) -> tuple[dict[str, OrderConfig | None], dict[str, str]]:
    """What is trained: a config by the name of each training, None for the exact model; and why the others are not."""
    courses: dict[str, OrderConfig | None] = {states.CONFIG: config}
    if not settings.changes_weights:
        what = "polynomials in it, whose numbers" if settings.train == "config" else "kept keys in it, whose choice"
        nothing = f"there are no {what} could be trained"
        return courses, {rivals.WINDOW: nothing, EXACT: nothing}
    if not settings.controls:
        return courses, {rivals.WINDOW: states.NO_CONTROLS, EXACT: states.NO_CONTROLS}
    reasons = {}
    if window.config is None:
        reasons[rivals.WINDOW] = window.absent or "exact"
    else:
        courses[rivals.WINDOW] = window.config
    return courses | {EXACT: None}, reasons


def _refit(
    tokenizer: Any, description: ModelDescription, config: OrderConfig, settings: HealSettings, tokens: Tokens | None
) -> tuple[Refit | None, int]:
    """How probes are fitted anew, on the user's text, else on the text that `analyze` fits them to; and its tokens."""
    if not config.probes or settings.train == "probes":
        return None, 0
    used = tokens or ChoiceText.of(tokenizer, tokenise(tokenizer, calibration_text())).joined
    sequences, _ = probe_sequences(used, description)
    return (lambda student, of: refitted(student, of, sequences, used.text)), sequences.numel()


def _for_healed(
    model: Any,
    description: ModelDescription,
    outcome: Outcome,
    config: OrderConfig,
    settings: HealSettings,
    text: Text,
    adapter: Path | None,
) -> OrderConfig:
    """The config for the weights with the adapter merged, which are in the model for a moment."""
    healed = description.fingerprint
    if adapter is not None:
        with as_they_were(model, trained_layers(model, description, settings.train), values=True):
            merge_adapter(model, adapter)
            healed = fingerprint(model)
    chosen = outcome.config or config
    about = {"train": settings.train, "steps": outcome.best, "text": text.source, "text_sha256": text.sha256,
             "seed": settings.seed, "base": description.fingerprint}  # fmt: skip
    return chosen.model_copy(
        update={
            "model": chosen.model.model_copy(update={"fingerprint": healed}),
            "calibration": chosen.calibration | {"healed": about},
        }
    )
