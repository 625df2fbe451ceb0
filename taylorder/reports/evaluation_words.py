"""What an evaluation says in plain words: verdicts, sizes worth a warning, bounds that were missed."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

from taylorder.analysis.losses import EXACT, looks_untrained
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.continuations import Continuations
from taylorder.evaluation.evaluate import Evaluation
from taylorder.evaluation.intervals import Interval
from taylorder.reports.numbers import counted, percent, size

ENOUGH = 6
"""With fewer sequences, all of them differ in the same direction by chance more often than one time in twenty."""

Judgement: TypeAlias = Literal["better", "worse", "cannot be told apart here"]
BETTER: Final = "better"
WORSE: Final = "worse"
ALIKE: Final = "cannot be told apart here"

EQUALS_EXACT = "The config keeps every head exact: it is the exact model, with the same loss and the same bytes."


def continued(made: Continuations) -> str:
    """How greedy continuations by the config differ from those of the exact model."""
    start = (
        f"{counted(made.prompts, 'prompt')} of {counted(made.prompt_tokens, 'token')} from the text, "
        f"{counted(made.new_tokens, 'token')} made after each"
    )
    if made.agreed is None or made.same is None or made.exact_repetition is None or made.config_repetition is None:
        return f"{start}: no figures, {made.failure}."
    unparted = f"{made.same} of {made.prompts} {'does' if made.same == 1 else 'do'} not differ"
    return (
        f"{start}: the config makes the same {made.agreed:g} tokens (median) before the first that differs; "
        f"{unparted}. Repeated 4-grams: exact {percent(made.exact_repetition)}, "
        f"config {percent(made.config_repetition)}."
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
    if not interval.bounded:
        return ""
    return f"[{figure(interval.low, signed)}, {figure(interval.high, signed)}]"


def with_bracket(interval: Interval, signed: bool = False) -> str:
    """``estimate [low, high]``."""
    return f"{figure(interval.estimate, signed)} {bracket(interval, signed)}".rstrip()


def verdicts(evaluation: Evaluation) -> list[str]:
    """What the figures say at every length, and before that whether the model looks untrained."""
    if evaluation.exact_everywhere:
        return [EQUALS_EXACT]
    if evaluation.reason is not None:
        return [f"Not evaluated: {evaluation.reason}."]
    exact = evaluation.comparisons[0].standing(EXACT)
    loss = None if exact is None or exact.nll is None else exact.nll.estimate
    caution = untrained(loss, evaluation.comparisons[0].vocabulary)
    return [*([] if caution is None else [caution]), *map(_verdict, evaluation.comparisons)]


def untrained(nll: float | None, vocabulary: int | None) -> str | None:
    """What to say of a model whose own loss is hardly better than guessing; None of any other."""
    if nll is None or vocabulary is None or not looks_untrained(nll, vocabulary):
        return None
    return (
        f"The model as it is loses {nll:.2f} nats per token, where guessing among its {counted(vocabulary, 'token')} "
        f"loses {math.log(vocabulary):.2f}: it looks untrained, or given another model's tokens, and its figures "
        "say nothing about a trained model."
    )


def sizes(comparison: Comparison) -> list[str]:
    """Contenders that ran with more bytes than the KV cache they replace, in words."""
    exact = comparison.standing(EXACT)
    if exact is None or exact.nominal_bytes is None:
        return []
    whole = exact.nominal_bytes
    groups: dict[int, list[str]] = {}
    for standing in comparison.standings:
        if standing.failure is None and (standing.nominal_bytes or 0) > whole:
            groups.setdefault(standing.nominal_bytes or 0, []).append(standing.name)
    return [
        f"{_listed(names)}: {size(taken)} per KV head are more than the KV cache of {size(whole)} that they replace at "
        f"{counted(comparison.length, 'token')}; this saves nothing here, and exact attention takes less."
        for taken, names in groups.items()
    ]


def missed(evaluation: Evaluation, bound: float) -> str | None:
    """What to say if the config's mean KL is above the bound at some length; None if it is met everywhere."""
    if evaluation.exact_everywhere:
        return None
    misses = []
    for comparison in evaluation.comparisons:
        where = f"at {counted(comparison.length, 'token')}"
        config = comparison.standing(rivals.CONFIG)
        if config is None or config.kl is None:
            misses.append(f"the config broke down {where} and has no KL")
        elif not config.kl.estimate <= bound:
            misses.append(f"the config's mean KL is {config.kl.estimate:.4g} nats per token {where}")
    return f"{'; '.join(misses)}; --max-kl allows {bound:g}" if misses else None


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
        sentence = f"Together they move the final hidden states by {percent(config.hidden_relative_l2)} {where}"
    else:
        sentence = (
            f"Together they take the model's loss from {figure(exact.nll.estimate)} to {figure(config.nll.estimate)} "
            f"nats per token {where}: {_beside_exact(config.delta_exact)}"
        )
    return " ".join([f"{sentence}.", *_against_rivals(config, comparison)])


def _verdict(comparison: Comparison) -> str:
    where = f"At {counted(comparison.length, 'token')}"
    config = comparison.standing(rivals.CONFIG)
    if config is None or config.failure is not None:
        return f"{where} the config breaks down: {config.failure if config else 'it was not run'}."
    if config.nll is None or config.delta_exact is None:
        sentence = f"{where} the config moves the final hidden states by {percent(config.hidden_relative_l2 or 0.0)}"
    else:
        loss = figure(config.nll.estimate)
        sentence = f"{where} the config's loss is {loss} nats per token: {_beside_exact(config.delta_exact)}"
    return " ".join([f"{sentence}.", *_against_rivals(config, comparison)])


def _beside_exact(change: Interval) -> str:
    """The difference to exact attention, with what its whole interval says."""
    sentence = f"{with_bracket(change, signed=True)} beside exact"
    verdict = judged(change)
    return sentence if verdict is None else f"{sentence}, {'from which it ' if verdict == ALIKE else ''}{verdict}"


def judged(difference: Interval) -> Judgement | None:
    """What the whole interval of a difference says, a negative one being better; None where there is no interval."""
    if not difference.bounded:
        return None
    return BETTER if difference.high < 0 else WORSE if difference.low > 0 else ALIKE


def by_chance(comparison: Comparison) -> str | None:
    """How often so few sequences all differ in the same direction by chance; None of enough of them."""
    if comparison.sequences >= ENOUGH:
        return None
    return f"So few sequences all agree by chance one time in {2 ** (comparison.sequences - 1)}."


def _against_rivals(config: Standing, comparison: Comparison) -> list[str]:
    """Every rival in the table, with the config's difference to it and what its interval says."""
    exact, window = comparison.standing(EXACT), comparison.standing(rivals.WINDOW)
    sentences: list[str] = []
    if window is not None and window.failure is not None:
        sentences.append(f"There is no window to compare it with: {window.failure}.")
    by_verdict: dict[Judgement | None, list[str]] = {BETTER: [], WORSE: [], ALIKE: [], None: []}
    for rival in comparison.standings:
        if rival.config_less is None:  # exact, the config itself, and what broke down
            continue
        if rival is window and exact is not None and window.nominal_bytes == exact.nominal_bytes:
            sentences.append(
                f"It takes no fewer bytes than the whole KV cache ({size(exact.nominal_bytes or 0)} per KV head), so "
                "exact attention is the better use of them."
            )
            continue
        by_verdict[judged(rival.config_less)].append(_named(rival, _difference(rival.config_less, config)))
    parts = [f"is {verdict} than {_listed(by_verdict[verdict])}" for verdict in (BETTER, WORSE) if by_verdict[verdict]]
    if by_verdict[ALIKE]:
        parts.append(f"{ALIKE} from {_listed(by_verdict[ALIKE])}")
    if parts:
        sentences.append(f"It {_listed(parts)}.")
    rough = by_chance(comparison)
    if rough is not None and (by_verdict[BETTER] or by_verdict[WORSE]):
        sentences.append(rough)
    if by_verdict[None]:
        sentences.append(f"Without an interval, which decides nothing, it differs from {_listed(by_verdict[None])}.")
    return sentences


def _named(rival: Standing, difference: str) -> str:
    if rival.name != rivals.WINDOW:
        return f"{_IN_WORDS.get(rival.name, rival.name)} ({difference})"
    return f"sinks and one window of the same bytes ({size(rival.nominal_bytes or 0)} per KV head; {difference})"


_IN_WORDS = {rivals.PAPER: "the paper's order 4", rivals.PAPER_RAW: "the paper's order 4 unguarded"}


def _difference(difference: Interval, config: Standing) -> str:
    """Nats where there is a loss, else the share by which hidden states are moved, in percentage points."""
    if config.nll is not None:
        return with_bracket(difference, signed=True)
    sentence = f"{100 * difference.estimate:+.1f} percentage points"
    if not difference.bounded:
        return sentence
    return f"{sentence} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
