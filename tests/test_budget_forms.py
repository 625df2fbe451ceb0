"""A budget in the forms that people think in: read, refused, and made bytes per KV head of by model and context."""

from __future__ import annotations

import pytest
import tiny

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.errors import UsageError
from taylorder.models.describe import describe
from taylorder.reports.levers import budget_words
from taylorder.selection.cache_size import CacheSize
from taylorder.selection.run_levers import offer
from taylorder.selection.settings import AnalyzeSettings, Budget, parse_budgets

LENGTH = 48


@pytest.fixture(scope="module")
def llama():
    """2 layers of 2 KV heads, 32 bytes a token: exact attention holds 1,536 per KV head at 48 tokens."""
    return describe(tiny.llama(), "tiny")


@pytest.fixture(scope="module")
def gemma():
    """4 layers, every other one with a sliding window of 8."""
    return describe(tiny.gemma3(), "tiny")


def limit(model, text, context=LENGTH):
    return AnalyzeSettings(budget=Budget.parse(text), context=context, lever_length=LENGTH).limit(model)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("768B", 768), (" 0.75 KiB ", 768), ("50%", 768), ("12.5 %", 192), ("33.34%", 512),
        ("total:3KiB", 768), ("total: 3075B", 768), ("tokens:24", 768), ("tokens: 1", 32),
    ],
)  # fmt: skip
def test_all_forms_come_to_bytes_per_kv_head_rounded_down(llama, text, size):
    assert limit(llama, text).budget == size


def test_a_share_and_tokens_follow_the_context_and_bytes_do_not(llama):
    assert [limit(llama, text, 24).budget for text in ("50%", "tokens:12", "total:3KiB", "768B")] == [
        384,
        384,
        768,
        768,
    ]


def test_a_total_leaves_what_sliding_layers_do_not_take(gemma):
    exact = config_bytes(OrderConfig.uniform(gemma, "exact"), gemma, LENGTH)
    cache = CacheSize.of(gemma, LENGTH)
    assert exact == cache.exact_bytes + cache.closed_bytes
    assert cache.closed_bytes == config_bytes(OrderConfig.uniform(gemma, "exact"), gemma, 8) // 2
    total = cache.closed_bytes + 100 * cache.kv_heads
    assert limit(gemma, f"total:{total}B").budget == 100
    assert cache.total(100) == total
    assert limit(gemma, f"total:{cache.closed_bytes // 2}B").budget == 0


@pytest.mark.parametrize("form", ["1B", "1%", "total:1B", "tokens:1"])
def test_the_way_out_is_spelled_in_the_form_asked_for_and_suffices(gemma, form):
    cache, budget = CacheSize.of(gemma, LENGTH), Budget.parse(form)
    for size in (1, 77, 500):
        again = Budget.parse(budget.spelled(size, cache))
        assert again.form == budget.form
        assert again.per_kv_head(cache) >= size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("120%", "--budget is '120%', expected a share of what exact attention holds, above 0% and below 100%"),
        ("100%", "expected a share"),
        ("0%", "expected a share"),
        ("-5%", "or a share of exact such as 25%, a whole cache such as total:8GiB, or tokens:512"),
        ("12 furlongs", "--budget is '12 furlongs', expected a positive number of bytes with a unit: B, KiB"),
        ("whole:8GiB", "--budget is 'whole:8GiB', expected a positive number of bytes with a unit"),
        ("total:8", "--budget is 'total:8', which has no unit: write total:8KiB, total:8MiB, or total:8B"),
        ("total:50%", "--budget is 'total:50%', expected a positive number of bytes with a unit"),
        ("tokens:0", "--budget is 'tokens:0', expected a number of tokens from 1 on, such as tokens:512"),
        ("tokens:1.5", "expected a number of tokens"),
        ("tokens:8KiB", "expected a number of tokens"),
        (":5KiB", "--budget is ':5KiB'"),
        ("", "--budget is ''"),
    ],
)
def test_what_is_no_budget_is_refused_by_what_was_given(text, message):
    with pytest.raises(UsageError) as refused:
        Budget.parse(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1B", "the budget is 1 bytes per KV head, and the cheapest way to run one takes "),
        ("1%", "the budget 1% is 15 bytes per KV head, and the cheapest way to run one takes "),
        ("1536B", "the budget is 1536 bytes per KV head, and exact attention takes 1536 at 48 tokens, so that there"),
        ("total:1GiB", "nothing to choose: ask for less than total:6144B, or raise --context"),
        ("tokens:48", "the budget tokens:48 is 1536 bytes per KV head, and exact attention takes 1536 at 48 tokens"),
    ],
)  # fmt: skip
def test_budgets_beyond_what_is_possible_are_refused_before_anything_is_measured(llama, text, message):
    settings = AnalyzeSettings(budget=Budget.parse(text), context=LENGTH, lever_length=LENGTH)
    with pytest.raises(UsageError) as refused:
        offer(llama, settings)
    assert message in str(refused.value)


def test_the_least_that_is_named_is_accepted_and_a_byte_less_is_not(llama):
    def settings(text):
        return AnalyzeSettings(budget=Budget.parse(text), context=LENGTH, lever_length=LENGTH)

    with pytest.raises(UsageError) as refused:
        offer(llama, settings("1B"))
    least = str(refused.value).rpartition(" ")[2]
    offer(llama, settings(least))
    with pytest.raises(UsageError):
        offer(llama, settings(f"{int(least.removesuffix('B')) - 1}B"))


def test_a_total_that_sliding_layers_take_says_so(gemma):
    with pytest.raises(UsageError, match="is 0 bytes per KV head beside the [0-9]+ bytes of layers that stay exact"):
        offer(gemma, AnalyzeSettings(budget=Budget.parse("total:1B"), context=LENGTH, lever_length=LENGTH))


def test_the_words_name_all_forms_and_each_gives_the_same_budget_again(llama, gemma):
    assert budget_words(CacheSize.of(llama, LENGTH), 768) == (
        "768 B per KV head on average = 50% of exact = 3 KiB in total = 24 tokens of cache per KV head"
    )
    assert "KiB in total, " in budget_words(CacheSize.of(gemma, LENGTH), 768)
    assert "in layers that stay exact" in budget_words(CacheSize.of(gemma, LENGTH), 768)


def test_several_budgets_have_commas_between_them_and_folders_without_escapes():
    budgets = parse_budgets("32 KiB,25%,total:1.5MiB,tokens:512")
    assert [budget.folder for budget in budgets] == ["32KiB", "25percent", "total-1.5MiB", "tokens-512"]
    with pytest.raises(UsageError, match="--budget is ''"):
        parse_budgets("32KiB,")
