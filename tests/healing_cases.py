"""Trainings of tiny models, of seconds."""

from __future__ import annotations

from contextlib import contextmanager

from command_line import WORDS
from mixed_orders import PROBE_TEXT
from tiny import llama, tokens

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.healing.checkpoint import Checkpoint
from taylorder.healing.course import Course
from taylorder.healing.numbers import TrainedNumbers
from taylorder.healing.schedule import Schedule
from taylorder.healing.settings import HealSettings
from taylorder.healing.student import Student
from taylorder.healing.text import TrainingText
from taylorder.healing.trained import frozen, training_weights
from taylorder.healing.trained_probes import TrainedProbes
from taylorder.models.describe import describe
from taylorder.storage.records import Records

SEEN = Text("words", WORDS * 3)


def settings(**changes):
    """For four sequences of 16, then for two of 32 tokens in a step."""
    return HealSettings(**{"contexts": (16, 32), "sequences": 2, "minutes": None, "tokens": 1000} | changes)


def polynomials(model):
    """Order 3 around the mean beside a short near field, for all heads."""
    return OrderConfig.uniform(describe(model, "tiny"), 3, "mean", 4, 2)


@contextmanager
def student_of(model, config, kind="lora", seed=0):
    """A student of a config; None trains the exact model."""
    description = describe(model, "tiny")
    if kind == "config":
        with frozen(model):
            yield Student(model, description, TrainedNumbers(config), config)
    elif kind == "probes":
        with frozen(model):
            trained = TrainedProbes.on(model, config, tokens(2, 40), PROBE_TEXT)
            yield Student(model, description, trained, config)
    else:
        with training_weights(model, description, kind, seed) as trained:
            yield Student(model, description, trained, config)


def course(student, directory, tokenizer, steps=8, *, chosen=None, name="config", **options):
    """A training that keeps its state after every step."""
    chosen = chosen or settings()
    text = TrainingText.of(tokenise(tokenizer, SEEN), chosen.longest)
    schedule = Schedule.of(chosen, steps)
    checkpoint = Checkpoint(Records(directory, {}), name)
    return Course(name, student, schedule, text, chosen, checkpoint, **{"seconds_between": 0.0} | options)


def trained_alone(directory, tokenizer, kind="lora", steps=8, config=polynomials, **options):
    """A whole training of a fresh model: its outcome."""
    model = llama()
    with student_of(model, config and config(model), kind) as student:
        return course(student, directory, tokenizer, steps, chosen=settings(train=kind), **options).run()
