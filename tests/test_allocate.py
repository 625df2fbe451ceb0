import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorder.errors import UsageError
from taylorder.selection.knapsack import Option, allocate, allocate_within
from taylorder.selection.settings import parse_bytes

# Multiples of a power of two near the size of real losses: every sum of them is exact, so results compare with ==.
LOSSES = st.integers(-50, 50).map(lambda steps: steps * 2.0**-30)
SMALL = st.integers(0, 2000)


@st.composite
def instances(draw, sizes, losses=LOSSES):
    """Options, and one choice of them to set a limit by."""
    head = st.lists(st.builds(Option, sizes, losses), min_size=1, max_size=4)
    options = draw(st.lists(head, min_size=2, max_size=5))
    return options, [draw(st.sampled_from(head)) for head in options]


def brute_force(options):
    for choice in itertools.product(*(range(len(head)) for head in options)):
        taken = [head[index] for head, index in zip(options, choice, strict=True)]
        yield sum(option.nominal_bytes for option in taken), math.fsum(option.loss for option in taken)


def sums(options, allocation):
    taken = [head[index] for head, index in zip(options, allocation.choice, strict=True)]
    return sum(option.nominal_bytes for option in taken), math.fsum(option.loss for option in taken)


@settings(max_examples=60, deadline=None)
@given(instances(SMALL), st.integers(-2, 2))
def test_allocate_finds_the_least_loss_and_never_exceeds_the_budget(instance, nudge):
    options, target = instance
    least = min(size for size, _ in brute_force(options))
    budget = max(least, sum(option.nominal_bytes for option in target) + nudge)
    found = allocate(options, budget)
    assert (found.nominal_bytes, found.loss) == sums(options, found)
    assert found.nominal_bytes <= budget
    assert found.loss == min(loss for size, loss in brute_force(options) if size <= budget)
    assert found.bound <= found.loss


@settings(max_examples=60, deadline=None)
@given(instances(SMALL), st.sampled_from([0.0, 2.0**-31, -(2.0**-31)]))
def test_allocate_within_finds_the_fewest_bytes_and_agrees_with_allocate(instance, nudge):
    options, target = instance
    least = min(loss for _, loss in brute_force(options))
    limit = max(least, math.fsum(option.loss for option in target) + nudge)
    found = allocate_within(options, limit)
    assert (found.nominal_bytes, found.loss) == sums(options, found)
    assert found.loss <= limit
    assert found.nominal_bytes == min(size for size, loss in brute_force(options) if loss <= limit)
    assert found.nominal_bytes - 1 < found.bound <= found.nominal_bytes
    assert allocate(options, found.nominal_bytes).loss <= limit
    with pytest.raises(UsageError):
        allocate_within(options, least - 2.0**-40)


@settings(max_examples=60, deadline=None)
@given(instances(SMALL))
def test_a_dominated_option_is_never_chosen(instance):
    options, target = instance
    budget = sum(option.nominal_bytes for option in target)
    limit = math.fsum(option.loss for option in target)
    for found in (allocate(options, budget), allocate_within(options, limit)):
        for head, index in zip(options, found.choice, strict=True):
            taken = head[index]
            no_worse = [o for o in head if o.nominal_bytes <= taken.nominal_bytes and o.loss <= taken.loss]
            assert set(no_worse) == {taken}
            assert index == head.index(taken)


def test_of_equal_options_the_first_is_chosen():
    head = [Option(9, 0.0), Option(8, 0.0), Option(8, 0.0), Option(1, 1.0), Option(1, 1.0), Option(2, 1.0)]
    assert allocate([head, head], 100).choice == (1, 1)
    assert allocate([head, head], 2).choice == (3, 3)
    assert allocate_within([head, head], 0.0).choice == (1, 1)
    assert allocate_within([head, head], 2.0).choice == (3, 3)


def test_a_choice_that_misses_the_limit_by_one_byte_is_refused():
    heads = [[Option(0, 1.0), Option(10**14, 0.0)]] * 2
    found = allocate(heads, 2 * 10**14 - 1)
    assert (found.nominal_bytes, found.loss, found.gap) == (10**14, 1.0, 0.0)
    assert allocate(heads, 2 * 10**14).loss == 0.0


def test_a_choice_that_misses_the_limit_by_a_rounding_error_is_refused():
    heads = [[Option(100, 0.0), Option(0, 1.0)]] * 12
    found = allocate_within(heads, math.nextafter(5, 0))
    assert (found.nominal_bytes, found.loss, found.gap) == (800, 4.0, 0.0)
    assert allocate_within(heads, 5).nominal_bytes == 700


@pytest.mark.parametrize("budget", [90 * 24_000, 90 * 65_536, 90 * 300_000])
def test_a_model_of_90_kv_heads(budget):
    rng = random.Random(0)
    options = []
    for _ in range(90):
        weight, power = rng.lognormvariate(-9, 1.5), rng.uniform(0.5, 1.5)
        sizes = [256 * round(64 * 1.25**step) for step in range(24)]
        options.append([Option(size, weight * (size / 16_384) ** -power * rng.uniform(0.8, 1.2)) for size in sizes])
    found = allocate(options, budget)
    assert (found.nominal_bytes, found.loss) == sums(options, found)
    assert found.nominal_bytes <= budget
    assert found.gap < 1e-6
    assert found.bound == pytest.approx(found.loss, rel=1e-6)
    back = allocate_within(options, found.loss)
    assert back.loss <= found.loss
    assert back.nominal_bytes <= found.nominal_bytes


HEADS = [[Option(2048, 0.5), Option(4096, 0.25)], [Option(1024, 0.5), Option(8192, -0.5)]]


def test_too_small_a_budget_says_what_is_needed():
    with pytest.raises(UsageError) as refused:
        allocate(HEADS, 3071)
    message = str(refused.value)
    assert "budget is 3071 bytes (1.5 KiB per KV head on average)" in message
    assert "the 2 KV heads need 3072 bytes (1.5 KiB per KV head on average): raise the budget" in message
    assert allocate(HEADS, 3072).choice == (0, 0)


def test_too_small_a_loss_says_what_is_needed():
    with pytest.raises(UsageError, match=r"largest loss is -0.5, but .* 2 KV heads add up to -0.25: allow at least"):
        allocate_within(HEADS, -0.5)
    assert allocate_within(HEADS, -0.25).choice == (1, 1)


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_refused(limit):
    with pytest.raises(UsageError, match=rf"largest loss is {limit}, expected a finite number"):
        allocate_within(HEADS, limit)


@pytest.mark.parametrize("solve", [allocate, allocate_within])
def test_missing_options_are_refused(solve):
    with pytest.raises(UsageError, match="there are 0 KV heads, expected at least one"):
        solve([], 1)
    with pytest.raises(UsageError, match="KV head 1 has 0 options, expected at least one"):
        solve([[Option(0, 0.0)], []], 1)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_an_option_is_finite(loss):
    with pytest.raises(UsageError, match=rf"loss {loss}, expected a finite number"):
        Option(1, loss)


def test_an_option_has_no_negative_bytes():
    with pytest.raises(UsageError, match="-1 nominal bytes, expected 0 or more"):
        Option(-1, 0.0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536B", 65_536),
        ("1b", 1),
        ("512B", 512),
        ("64KiB", 65_536),
        ("128 KiB", 131_072),
        (" 64kib ", 65_536),
        ("64kb", 64_000),
        ("64KB", 64_000),
        ("1.5MiB", 1_572_864),
        ("1.5MB", 1_500_000),
        ("2GiB", 2_147_483_648),
        ("2GB", 2_000_000_000),
        ("2.01KB", 2_010),  # 2.01 * 1000 is 2009.99… in floats
        ("9007199254740993B", 2**53 + 1),
        ("0.1KiB", 102),
        ("3.MiB", 3_145_728),
    ],
)
def test_parse_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "KiB", "0", "0KiB", "0.5", "0.9B", "-1", "-64KiB", "nan", "inf", "-inf", "nanKiB", "64K", "64 Ki"),
        *("64TiB", "64 K iB", "1,000", "1_000", "1e6", "0x10", "64KiB/s", "٣KiB", "64\u212aiB", "9" * 5000),
    ],
)
def test_parse_bytes_refuses(text):
    with pytest.raises(UsageError) as refused:
        parse_bytes(text)
    assert repr(text) in str(refused.value)
    assert "expected a positive number of bytes" in str(refused.value)
    assert "MiB" in str(refused.value)


@pytest.mark.parametrize("text", ["128", "1.5", " 65536 "])
def test_a_number_without_a_unit_is_no_size(text):
    with pytest.raises(UsageError, match=f"which has no unit: write {text.strip()}KiB, .*or {text.strip()}B$"):
        parse_bytes(text)
