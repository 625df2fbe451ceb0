"""What an evaluation says in plain words: verdicts, sizes worth a warning, bounds that were missed."""

from __future__ import annotations

import math

from taylorder.adapt import rivals
from taylorder.adapt.evaluate import Continuations, Evaluation
from taylorder.adapt.judge import Comparison, Standing
from taylorder.analysis.intervals import Interval
from taylorder.analysis.losses import EXACT
from taylorder.reports.human import counted, percent, size

ENOUGH = 6
"""With fewer sequences, all of them differ in the same direction by chance more often than one time in twenty."""

EQUALS_EXACT = "The config keeps every head exact: it is the exact model, with the same loss and the same bytes."


def continued(found: Continuations) -> str:
    """How greedy continuations by the config differ from those of the exact model."""
    told = (
        f"{counted(found.prompts, 'prompt')} of {counted(found.prompt_tokens, 'token')} from the text, "
        f"{counted(found.new_tokens, 'token')} made after each"
    )
    if found.agreed is None or found.same is None or found.exact_repetition is None or found.config_repetition is None:
        return f"{told}: no figures, {found.failure}."
    unparted = f"{found.same} of {found.prompts} {'does' if found.same == 1 else 'do'} not differ"
    return (
        f"{told}: the config makes the same {found.agreed:g} tokens (median) before the first that differs; "
        f"{unparted}. Repeated 4-grams: exact {percent(found.exact_repetition)}, "
        f"config {percent(found.config_repetition)}."
    )


def figure(value: float, signed: bool = False) -> str:
    """Nats with three decimals, two from ten on, none from a thousand on."""
    if not math.isfinite(value):
        return str(value)
    decimals = 3 if abs(value) < 9.9995 else 2 if abs(value) < 999.995 else 0
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text if float(text) or not signed else text[1:]


def bracket(interval: Interval, signed: bool = False) -> str:
    """``[low, high]``; nothing where a single sequence gives no interval."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"[{figure(interval.low, signed)}, {figure(interval.high, signed)}]"


def with_bracket(interval: Interval, signed: bool = False) -> str:
    """``estimate [low, high]``."""
    return f"{figure(interval.estimate, signed)} {bracket(interval, signed)}".rstrip()


def verdicts(evaluation: Evaluation) -> list[str]:
    """One sentence or two per length; one in all for a config that is exact everywhere."""
    if evaluation.exact_everywhere:
        return [EQUALS_EXACT]
    if evaluation.reason is not None:
        return [f"Not evaluated: {evaluation.reason}."]
    return [_verdict(comparison) for comparison in evaluation.comparisons]


def sizes(comparison: Comparison) -> list[str]:
    """Contenders that ran with more bytes than the KV cache they replace, in words."""
    exact = comparison.standing(EXACT)
    if exact is None or exact.nominal_bytes is None:
        return []
    kept = exact.nominal_bytes
    groups: dict[int, list[str]] = {}
    for standing in comparison.standings:
        if standing.failure is None and (standing.nominal_bytes or 0) > kept:
            groups.setdefault(standing.nominal_bytes or 0, []).append(standing.name)
    return [
        f"{_listed(names)}: {size(taken)} per KV head are more than the KV cache of {size(kept)} that they replace at "
        f"{counted(comparison.length, 'token')}; this saves nothing here, and exact attention takes less."
        for taken, names in groups.items()
    ]


def missed(evaluation: Evaluation, bound: float) -> str | None:
    """What to say if the config's mean KL is above the bound at some length; None if it is met everywhere."""
    if evaluation.exact_everywhere:
        return None
    told = []
    for comparison in evaluation.comparisons:
        where = f"at {counted(comparison.length, 'token')}"
        config = comparison.standing(rivals.CONFIG)
        if config is None or config.kl is None:
            told.append(f"the config broke down {where} and has no KL")
        elif not config.kl.estimate <= bound:
            told.append(f"the config's mean KL is {config.kl.estimate:.4g} nats per token {where}")
    return f"{'; '.join(told)}; --max-kl allows {bound:g}" if told else None


def loss_of_config(evaluation: Evaluation | None) -> str | None:
    """What the config does to the model's loss, for the verdict of an analysis; None if that was not measured."""
    if evaluation is None or evaluation.exact_everywhere or not evaluation.comparisons:
        return None
    comparison = evaluation.comparisons[0]
    config, exact = comparison.standing(rivals.CONFIG), comparison.standing(EXACT)
    where = f"on {counted(comparison.sequences, 'sequence')} of {counted(comparison.length, 'token')}"
    if config is None or exact is None:
        return None
    if config.failure is not None:
        return f"With all of them together the model breaks down {where}: {config.failure}."
    if config.nll is None or exact.nll is None or config.delta_exact is None:
        if config.hidden_relative_l2 is None:
            return None
        return f"Together they move the final hidden states by {percent(config.hidden_relative_l2)} {where}."
    return (
        f"Together they take the model's loss from {figure(exact.nll.estimate)} to {figure(config.nll.estimate)} nats "
        f"per token {where}: {with_bracket(config.delta_exact, signed=True)}."
    )


def _verdict(comparison: Comparison) -> str:
    where = f"At {counted(comparison.length, 'token')}"
    config = comparison.standing(rivals.CONFIG)
    if config is None or config.failure is not None:
        return f"{where} the config breaks down: {config.failure if config else 'it was not run'}."
    if config.nll is None or config.delta_exact is None:
        return f"{where} the config moves the final hidden states by {percent(config.hidden_relative_l2 or 0.0)}."
    change = config.delta_exact
    told = (
        f"{where} the config's loss is {figure(config.nll.estimate)} nats per token, "
        f"{figure(abs(change.estimate))} {'above' if change.estimate >= 0 else 'below'} exact {bracket(change, True)}"
    ).rstrip()
    return f"{told}. {_against_window(config, comparison)}"


def _against_window(config: Standing, comparison: Comparison) -> str:
    window, exact = comparison.standing(rivals.WINDOW), comparison.standing(EXACT)
    if window is None or exact is None:
        return ""
    if window.failure is not None or config.delta_window is None:
        return f"There is no window to compare it with: {window.failure}."
    delta, sequences = config.delta_window, comparison.sequences
    if window.nominal_bytes == exact.nominal_bytes:
        return (
            f"It takes no fewer bytes than the whole KV cache ({size(exact.nominal_bytes or 0)} per KV head), so exact "
            "attention is the better use of them."
        )
    rival = f"sinks and a window of the same bytes ({size(window.nominal_bytes or 0)} per KV head)"
    told = with_bracket(delta, signed=True)
    if not (math.isfinite(delta.low) and math.isfinite(delta.high)):
        return f"Its difference to {rival} is {told}; one sequence gives no interval and decides nothing."
    if delta.low <= 0 <= delta.high:
        return f"It cannot be told from {rival}: the difference, {told}, may be zero."
    verb = "beats" if delta.estimate < 0 else "loses to"
    if sequences >= ENOUGH:
        return f"It {verb} {rival}: the difference, {told}, excludes zero."
    return (
        f"On these {sequences} sequences it {verb} {rival}: the difference, {told}, excludes zero, but so few "
        f"sequences all agree by chance one time in {2 ** (sequences - 1)}."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
