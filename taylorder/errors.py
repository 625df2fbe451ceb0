"""Errors with a name, an exit code and a way out.

Every error a user can cause or meet derives from :class:`TaylorderError`. The message names the thing, the value found,
the value expected and what to do; the command line prints it in one line and exits with ``exit_code``.
"""

from __future__ import annotations


class TaylorderError(Exception):
    """Base class: something went wrong that the user can understand and act on."""

    exit_code = 1


class UsageError(TaylorderError):
    """An argument is missing, unknown or out of range."""

    exit_code = 2


class UnsupportedModelError(TaylorderError):
    """The model computes attention in a way this tool cannot measure or replace truthfully."""

    exit_code = 3


class BoundMissedError(TaylorderError):
    """A bound the user asked for (for example ``eval --max-kl``) was not met."""

    exit_code = 4


class StoppedError(TaylorderError):
    """The user, or the machine, ended a command; the message says what is kept."""

    exit_code = 130


class Terminated(KeyboardInterrupt):  # what SIGTERM raises here, so that it ends a command as Ctrl-C does
    """The process was asked to end."""


class ConfigError(TaylorderError):
    """An ``orders.json`` is malformed, or does not belong to the model at hand."""


class MissingConfigError(ConfigError, UsageError):
    """The ``orders.json`` that was named is not there."""


class NonFiniteError(TaylorderError):
    """A model has or makes NaN or infinities: in its weights, queries, keys, values, logits or losses."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, to be quoted in one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
