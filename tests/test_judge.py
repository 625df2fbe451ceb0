"""Contenders on the same sequences: figures against plain evaluation, failures, time limits, encoders, tasks."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import tiny
import torch

from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.adapt.handle import adapted
from taylorder.analysis.losses import EXACT, hidden_states
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens
from taylorder.errors import NonFiniteError, UnsupportedModelError, UsageError
from taylorder.evaluation import evaluate as evaluation
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import compare
from taylorder.evaluation.evaluate import Evaluation, evaluate, evaluate_shortly, evaluate_tasks
from taylorder.evaluation.intervals import mean_interval, paired_difference
from taylorder.evaluation.rivals import Contender, per_layer
from taylorder.evaluation.tasks import Question, Task, run_tasks, summarise
from taylorder.kernels.spec import Dropped, HeadSpec, Near, Taylor
from taylorder.models.describe import describe
from taylorder.reports.evaluation_words import loss_of_config

TEXT = Text("made up", "words")
WORDS = "words enough to tell the tokens of a text apart, " * 12
LENGTH = 48


@pytest.fixture(scope="module")
def llama():
    model = tiny.llama()
    return model, describe(model, "tiny")


def judged(model, description, contenders, sequences=None, **options):
    sequences = tiny.tokens(3, LENGTH) if sequences is None else sequences
    return compare(model, description, sequences, contenders, tokens=Tokens(TEXT, [], None), seed=0, **options)


def everywhere(description, head):
    return per_layer(description, {module.name: head for module in description.modules}, {})


def own_losses(model, config, sequences, guard=True):
    with torch.no_grad(), adapted(model, config, guard=guard):
        return [float(model(ids[None], labels=ids[None], use_cache=False).loss) for ids in sequences]


def test_figures_are_those_of_the_adapted_model(llama):
    model, description = llama
    config = OrderConfig.uniform(description, 2, "mean", 8, 2)
    window = everywhere(description, HeadOrder(spec=HeadSpec(Dropped(), Near(12, 4))))
    sequences = tiny.tokens(3, LENGTH)
    found = judged(model, description, [Contender("config", config), Contender(rivals.WINDOW, window)], sequences)
    assert [each.name for each in found.standings] == [EXACT, "config", "window"]
    assert (found.length, found.sequences, found.text_source, found.text_sha256) == (48, 3, "made up", TEXT.sha256)
    exact, mine, other = (np.array(own_losses(model, c, sequences)) for c in (
        OrderConfig.uniform(description, "exact"), config, window
    ))  # fmt: skip
    standing = found.standing("config")
    for interval, expected in (
        (found.standing(EXACT).nll, mean_interval(exact)),
        (standing.nll, mean_interval(mine)),
        (standing.delta_exact, paired_difference(mine, exact)),
        (standing.delta_window, paired_difference(mine, other)),
        (found.standing("window").config_less, paired_difference(mine, other)),
    ):
        assert (interval.estimate, interval.low, interval.high) == pytest.approx(
            (expected.estimate, expected.low, expected.high), abs=1e-5
        )
    assert found.standing(EXACT).config_less is standing.config_less is None
    assert standing.perplexity == pytest.approx(math.exp(mine.mean()), rel=1e-5)
    assert standing.kl.estimate > 0.01
    assert 0 < standing.agreement < 1
    assert (
        found.standing(EXACT).delta_exact is found.standing(EXACT).kl is found.standing("window").delta_window is None
    )
    with torch.no_grad(), adapted(model, config):
        logits = model(sequences, use_cache=False).logits.double()
    exact_logits = model(sequences, use_cache=False).logits.detach().double()
    p, q = exact_logits[:, :-1].log_softmax(-1), logits[:, :-1].log_softmax(-1)
    assert standing.kl.estimate == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-5)
    assert standing.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_losses_by_position_add_up(llama, monkeypatch):
    monkeypatch.setattr("taylorder.evaluation.comparison.BUCKET_EDGES", (0, 5, 20, 1000))
    model, description = llama
    exact = judged(model, description, []).standing(EXACT)
    assert [bucket[:2] for bucket in exact.buckets] == [(0, 4), (5, 19), (20, LENGTH - 2)]
    total = sum(nll * (last - first + 1) for first, last, nll in exact.buckets)
    assert total / (LENGTH - 1) == pytest.approx(exact.nll.estimate, abs=1e-6)


def test_a_window_over_everything_is_exact_and_costs_the_cache(llama):
    model, description = llama
    wide = everywhere(description, HeadOrder(spec=HeadSpec(Dropped(), Near(LENGTH, 4))))
    whole = rivals.sliding_window(description, 10**9, LENGTH)
    found = judged(model, description, [Contender("wide", wide), whole])
    for name in ("wide", "window"):
        standing = found.standing(name)
        assert standing.delta_exact.estimate == pytest.approx(0, abs=1e-5)
        assert standing.kl.estimate < 1e-6
        assert standing.nominal_bytes == found.standing(EXACT).nominal_bytes
    assert found.standing("window").delta_exact.estimate == 0


def test_the_share_of_guarded_rows_counts_rows_with_far_keys_only(llama):
    model, description = llama
    negative = everywhere(description, HeadOrder(spec=HeadSpec(Taylor(1, coefficients=(-1.0,)), Near(8, 2))))
    near = everywhere(description, HeadOrder(spec=HeadSpec(Taylor(3), Near(LENGTH))))
    plain = OrderConfig.uniform(description, 3, "mean")
    found = judged(
        model, description,
        [Contender("all", negative), Contender("raw", negative, guard=False), Contender("none", plain),
         Contender("near", near)],
    )  # fmt: skip
    assert found.standing("all").guarded_share == 1
    assert found.standing("raw").guarded_share == 1
    assert found.standing("none").guarded_share == 0
    assert found.standing("near").guarded_share is None
    assert found.standing(EXACT).guarded_share is None
    assert found.standing("all").nll.estimate != found.standing("raw").nll.estimate


@pytest.mark.parametrize("layer", [0, 1])
def test_a_contender_that_overflows_is_reported_and_the_others_go_on(llama, layer):
    model, description = llama
    broken = per_layer(
        description, {description.modules[layer].name: HeadOrder(spec=HeadSpec(Taylor(1, coefficients=(3e38,))))}, {}
    )
    good = OrderConfig.uniform(description, 2, "mean", 8, 2)
    alone = judged(model, description, [Contender("good", good)]).standing("good")
    found = judged(model, description, [Contender("broken", broken), Contender("good", good)])
    assert "NaN or infinite" in found.standing("broken").failure
    assert found.standing("broken").nll is found.standing("broken").kl is None
    assert found.standing("good") == alone


def test_a_contender_that_breaks_down_late_has_no_figures(llama, monkeypatch):
    model, description = llama
    calls = []

    def states(model, ids):
        calls.append(ids)
        hidden = hidden_states(model, ids)
        return hidden * math.nan if len(calls) == 4 else hidden  # the contender's second sequence

    monkeypatch.setattr("taylorder.evaluation.comparison.hidden_states", states)
    found = judged(model, description, [Contender("late", OrderConfig.uniform(description, 3, "mean"))])
    assert found.standing("late").failure == "its final hidden states hold NaN or infinite values"
    assert found.sequences == 3
    assert len(calls) == 5


@pytest.mark.parametrize("factor", [math.nan, 1e38])
def test_a_model_that_breaks_down_by_itself_is_an_error(llama, monkeypatch, factor):
    model, description = llama
    monkeypatch.setattr("taylorder.evaluation.comparison.hidden_states", lambda *_: factor * hidden_states(*_))
    with pytest.raises(NonFiniteError, match=r"tiny breaks down without any config \(its .*\): check its weights"):
        judged(model, description, [Contender("config", OrderConfig.uniform(description, 1))])


def test_absent_contenders_are_listed_without_figures(llama):
    model, description = llama
    found = judged(model, description, [Contender("none", None, absent="does not fit")])
    standing = found.standing("none")
    assert (standing.failure, standing.nominal_bytes, standing.nll) == ("does not fit", None, None)


def test_models_without_a_head_are_compared_by_hidden_states():
    model = tiny.bert()
    description = describe(model, "tiny")
    config = OrderConfig.uniform(description, 3)
    sequences = tiny.tokens(3, LENGTH)
    found = judged(model, description, [Contender("config", config)], sequences)
    with torch.no_grad():
        exact = model(sequences).last_hidden_state.double()
        with adapted(model, config):
            other = model(sequences).last_hidden_state.double()
    relative = ((other - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean()
    standing = found.standing("config")
    assert standing.hidden_relative_l2 == pytest.approx(float(relative), abs=1e-5)
    assert standing.hidden_cosine == pytest.approx(
        float(torch.cosine_similarity(exact, other, dim=-1).mean()), abs=1e-5
    )
    assert standing.nominal_bytes is standing.nll is None
    assert found.standing(EXACT).hidden_relative_l2 == 0


def test_a_decoder_without_its_head_has_bytes_and_hidden_states(llama):
    model = tiny.llama().base_model
    description = describe(model, "tiny")
    found = judged(model, description, [Contender("config", OrderConfig.uniform(description, 2))])
    assert found.standing("config").nominal_bytes > 0
    assert found.standing("config").hidden_relative_l2 > 0


def test_progress_counts_to_the_end(llama):
    model, description = llama
    seen = []
    judged(
        model, description, [Contender("a", OrderConfig.uniform(description, 1)), Contender("b", None, absent="no")],
        progress=lambda *event: seen.append(event),
    )  # fmt: skip
    assert [done for _, done, _ in seen] == list(range(1, 10))
    assert {(stage, total) for stage, _, total in seen} == {("runs of 48 tokens", 9)}


class Clock:
    """Time that passes by ``step`` at every look."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_no_sequence_is_begun_that_would_end_too_late(llama, monkeypatch):
    model, description = llama
    contenders = [Contender("a", OrderConfig.uniform(description, 1)), *rivals.paper(description)]
    monkeypatch.setattr("taylorder.evaluation.comparison.time.monotonic", Clock(1.0))
    found = judged(model, description, contenders, tiny.tokens(6, LENGTH), seconds=17.0)
    assert found.sequences == 3
    assert found.standing(rivals.PAPER_RAW).failure == "left out, to save time"
    assert found.standing(rivals.PAPER).nll is not None
    monkeypatch.setattr("taylorder.evaluation.comparison.time.monotonic", Clock(1.0))
    assert judged(model, description, contenders, seconds=1000.0).standing(rivals.PAPER_RAW).nll is not None


def test_without_any_time_the_exact_model_is_run_once(llama):
    model, description = llama
    found = judged(model, description, rivals.paper(description), seconds=0.0)
    assert found.sequences == 1
    assert found.standing(EXACT).nll.estimate > 0
    assert {each.failure for each in found.standings[1:]} == {"left out, to save time"}


def test_a_config_whose_near_fields_hold_every_key_is_said_to_run_as_exact(llama):
    model, description = llama
    noted = {
        near: judged(
            model, description, [Contender("config", OrderConfig.uniform(description, 2, "mean", near, 2), "a")]
        )
        for near in (LENGTH - 3, LENGTH - 2)
    }
    assert noted[LENGTH - 3].standing("config").note == "a"
    assert noted[LENGTH - 2].standing("config").note == (
        f"a; its near fields hold all {LENGTH} tokens, so that it runs as exact at this length"
    )
    assert noted[LENGTH - 2].standing("config").kl.estimate == pytest.approx(0, abs=1e-6)


def test_a_comparison_knows_the_beginning_and_the_vocabulary(llama, tiny_tokenizer):
    model, description = llama
    exact = OrderConfig.uniform(description, "exact")
    found = evaluated(model, tiny.beginning_with(tiny_tokenizer, "<s>"), exact, lengths=(16,)).comparisons[0]
    assert (found.bos, found.vocabulary) == (1, tiny.VOCAB)
    assert evaluated(model, tiny_tokenizer, exact, lengths=(16,)).comparisons[0].bos is None
    encoder = tiny.bert()
    assert judged(encoder, describe(encoder, "tiny"), []).vocabulary is None


# The whole of `eval`


def evaluated(model, tokenizer, config, **options):
    description = describe(model, "tiny")
    alphas = {module.name: 2.5 + index for index, module in enumerate(description.modules)}
    settings = {"text": Text("made up", WORDS), "lengths": (16, 48), "tokens": 96, "alphas": alphas} | options
    return evaluate(model, tokenizer, config, description=description, tasks=False, **settings)


def test_rivals_stand_beside_the_config_at_its_bytes(llama, tiny_tokenizer):
    model, description = llama
    config = OrderConfig.uniform(description, 2, "mean", 8, 2)
    found = evaluated(model, tiny_tokenizer, config, every_rival=True)
    assert not found.exact_everywhere
    assert [(each.length, each.sequences) for each in found.comparisons] == [(16, 6), (48, 2)]
    names = [standing.name for standing in found.comparisons[1].standings]
    assert names == ["exact", "config", "window", "one order", "alphas", "paper", "unguarded"]
    config, window = (found.comparisons[1].standing(name) for name in ("config", "window"))
    assert config.nominal_bytes - 32 < window.nominal_bytes <= config.nominal_bytes


def test_what_runs_and_how_long_it_takes_is_said_first(llama, tiny_tokenizer):
    model, description = llama
    config, told, stages = OrderConfig.uniform(description, 2, "mean", 8, 2), [], []

    def progress(stage, done, total):
        stages.append((stage, done, total, len(told)))

    found = evaluated(model, tiny_tokenizer, config, progress=progress, say=told.append)
    assert [standing.name for standing in found.comparisons[0].standings] == [
        "exact", "config", "window", "one order", "alphas"
    ]  # fmt: skip
    assert told[0] == (
        "to run: exact, config, window, one order, alphas; each on sequences of the text, 6 of 16 tokens and 2 of 48 "
        "tokens"
    )
    assert re.fullmatch(r"that takes about \d+ s in all, by the first sequence", told[1])
    assert len(told) == 2
    first = stages.index(("runs of 16 tokens", 5, 30, 1))
    assert stages[first + 1][3] == 2, "after the first sequence"


@pytest.mark.parametrize(
    ("criterion", "lengths"),
    [
        ({"policy": "levers", "context": 64}, [64]),
        ({"policy": "error", "context": 24}, [24]),
        ({"policy": "error", "context": 64}, [64]),
        ({"policy": "levers", "context": 4096}, [64]),
    ],
)
def test_the_length_is_the_context_that_the_config_was_chosen_for(llama, tiny_tokenizer, criterion, lengths):
    model, description = llama
    config = OrderConfig.uniform(description, 2, "mean", 8, 2).model_copy(update={"criterion": criterion})
    found = evaluated(model, tiny_tokenizer, config, lengths=None)
    assert [comparison.length for comparison in found.comparisons] == lengths


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lengths": 32}, "lengths is 32, expected a list of numbers of tokens from 2 on"),
        ({"lengths": [33.5]}, r"lengths is \[33.5\], expected a list of numbers of tokens from 2 on"),
        ({"lengths": []}, r"lengths is \[\], expected a list of numbers of tokens from 2 on"),
        ({"seed": -1}, "seed is -1, expected a number from 0 on"),
    ],
)
def test_nonsense_is_refused(llama, tiny_tokenizer, options, words):
    model, description = llama
    with pytest.raises(UsageError, match=words):
        evaluated(model, tiny_tokenizer, OrderConfig.uniform(description, 2, "mean", 8, 2), **options)


def test_a_config_that_is_exact_is_not_compared_with_anything_at_equal_bytes(llama, tiny_tokenizer):
    model, description = llama
    found = evaluated(model, tiny_tokenizer, OrderConfig.uniform(description, "exact"), lengths=(16,), every_rival=True)
    assert found.exact_everywhere
    assert [standing.name for standing in found.comparisons[0].standings] == ["exact", "paper", "unguarded"]


def test_a_short_text_gives_fewer_sequences_and_too_short_a_one_an_error(llama, tiny_tokenizer):
    model, description = llama
    config, text = OrderConfig.uniform(description, "exact"), Text("short", WORDS[:40])
    assert evaluated(model, tiny_tokenizer, config, text=text, lengths=(16,)).comparisons[0].sequences == 2
    with pytest.raises(UsageError, match="short has 40 tokens, fewer than one sequence of 48; use more text"):
        evaluated(model, tiny_tokenizer, config, text=text)


def shortly(model, tokenizer, config, text=WORDS, **options):
    return evaluate_shortly(
        model, tokenizer, describe(model, "tiny"), config, text=lambda: Text("made up", text), seed=0, **options
    )


def test_the_short_form_runs_few_contenders(llama, tiny_tokenizer):
    model, description = llama
    found = shortly(model, tiny_tokenizer, OrderConfig.uniform(description, 2, "mean", 8, 2))
    (comparison,) = found.comparisons
    assert (comparison.length, comparison.sequences) == (tiny.CONTEXT, 4)
    names = [standing.name for standing in comparison.standings]
    assert names == ["exact", "config", "order 3", "paper"]
    exact = shortly(model, tiny_tokenizer, OrderConfig.uniform(description, "exact"))
    assert exact.comparisons[0].standing("config") is None
    assert exact.exact_everywhere


def test_the_short_form_of_an_encoder_has_the_difference_to_every_rival(tiny_tokenizer):
    """An encoder has no near field; its rival is the same order everywhere."""
    model = tiny.bert()
    (found,) = shortly(model, tiny_tokenizer, OrderConfig.uniform(describe(model, "tiny"), 5, "mean")).comparisons
    config, rival = found.standing("config"), found.standing("order 3")
    expected = config.hidden_relative_l2 - rival.hidden_relative_l2
    assert rival.config_less.estimate == pytest.approx(expected)
    assert rival.config_less.low < expected < rival.config_less.high
    assert "order 3 (" in loss_of_config(Evaluation(False, (found,)))


@pytest.mark.parametrize(("window", "told"), [(16, "sinks and one window of the same bytes ("), (None, "do not hold")])
def test_the_short_form_beside_a_window_says_how_the_config_compares(llama, tiny_tokenizer, window, told):
    model, description = llama
    head = (
        HeadOrder(spec=HeadSpec(Taylor(1), Near(1)))
        if window is None
        else HeadOrder(spec=HeadSpec(Dropped(), Near(window, 4)))
    )
    found = shortly(model, tiny_tokenizer, everywhere(description, head), beside_window=True)
    assert [standing.name for standing in found.comparisons[0].standings] == ["exact", "config", "window"]
    assert told in loss_of_config(found)


def test_a_model_that_breaks_down_by_itself_ends_the_short_form(tiny_tokenizer):
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[-1].self_attn.o_proj.weight[3, 3] = math.nan
    with pytest.raises(
        NonFiniteError,
        match=r"has 1 NaN or infinite of 1,024 values in the weight model\.layers\.1\.self_attn\.o_proj\.weight: ",
    ):
        shortly(model, tiny_tokenizer, OrderConfig.uniform(describe(model, "tiny"), 2))


def test_the_short_form_says_why_there_is_none(llama, tiny_tokenizer, monkeypatch):
    model, description = llama
    config = OrderConfig.uniform(description, 1)
    assert "fewer than one sequence" in shortly(model, tiny_tokenizer, config, text="abc").reason
    monkeypatch.setattr(
        evaluation, "compare", lambda *_, **__: (_ for _ in ()).throw(UnsupportedModelError("odd logits"))
    )
    found = shortly(model, tiny_tokenizer, config)
    assert (found.comparisons, found.reason) == ((), "odd logits")


@pytest.fixture
def tasks(monkeypatch):
    ids = tuple(tiny.tokens(1, 40)[0].tolist())
    made = tuple(
        Task("copy", length, case, ids[case:length], tuple(Question(p, ids[case + p + 1]) for p in range(4, 12)), 4)
        for length in (20, 36)
        for case in range(2)
    )
    monkeypatch.setattr(evaluation, "make_tasks", lambda *_, **__: made)
    return made


def test_tasks_are_run_under_config_and_window(llama, tasks, tiny_tokenizer):
    model, description = llama
    config, seen = OrderConfig.uniform(description, 2, "mean", 4, 2), []
    found = evaluate_tasks(model, tiny_tokenizer, description, config, progress=lambda *event: seen.append(event))
    assert [each.name for each in found] == ["config", "window"]
    exact = run_tasks(model, tasks)
    with adapted(model, config):
        assert found[0].rows == summarise(exact, run_tasks(model, tasks))
    assert [row.length for row in found[1].rows] == [20, 36]
    assert seen[-1] == ("tasks", 12, 12)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_tasks_of_an_exact_config_are_run_once(llama, tasks, tiny_tokenizer):
    model, description = llama
    (found,) = evaluate_tasks(model, tiny_tokenizer, description, OrderConfig.uniform(description, "exact"))
    assert found.name == "exact"
    assert found.rows[0].exact_accuracy == found.rows[0].other_accuracy


def test_tasks_of_a_config_that_breaks_down_have_a_reason(llama, tasks, tiny_tokenizer):
    model, description = llama
    broken = everywhere(description, HeadOrder(spec=HeadSpec(Taylor(1, coefficients=(3e38,)))))
    found = evaluate_tasks(model, tiny_tokenizer, description, broken)
    assert found[0].rows == ()
    assert found[0].failure
    assert found[1].rows or found[1].failure == "the config's bytes hold no window"
