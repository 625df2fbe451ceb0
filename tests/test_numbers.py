"""Figures as a person reads them: percent, sizes, powers of ten, names of layers, quantiles."""

import math

import pytest

from taylorder.reports import summary
from taylorder.reports.numbers import compact, layer_names, percent, percent_cell, size


@pytest.mark.parametrize(
    ("error", "text", "cell"),
    [
        (0.0003, "0.03%", "<.1"),
        (0.0034, "0.34%", "0.3"),
        (0.07, "7%", "7.0"),
        (0.0812, "8.1%", "8.1"),
        (0.0999, "10%", "10"),
        (0.74, "74%", "74"),
        (1.06, "106%", "106"),
        (50.85, "5085%", "5e3"),
        (123.0, "1.2e4%", "1e4"),
        (0.0, "0%", "<.1"),
        (math.inf, "inf%", "inf"),
    ],
)
def test_errors_are_percentages(error, text, cell):
    assert percent(error) == text
    assert percent_cell(error) == cell


def test_three_digits_tell_a_near_miss_from_the_tolerance():
    assert percent(0.0707, 3) == "7.07%" != percent(0.07, 3)


@pytest.mark.parametrize(
    ("count", "text"),
    [(260, "260 B"), (1024, "1 KiB"), (557_700, "545 KiB"), (12_455_300, "11.9 MiB"), (10**400, "1e400 B")],
)
def test_sizes_are_in_binary_units(count, text):
    assert size(count) == text


def test_large_counts_become_powers_of_ten():
    assert compact(827_110) == "827,110"
    assert compact(11_414_115) == "1.1e7"


@pytest.mark.parametrize(
    ("modules", "labels", "pattern"),
    [
        (["h.0.attn", "h.11.attn"], ["0", "11"], "h.N.attn"),
        (["model.layers.3.self_attn"], ["3"], "model.layers.N.self_attn"),
        (["a.0.x.attn", "a.0.y.attn"], ["0", "1"], "a.0.x.attn to a.0.y.attn, numbered in order"),
        (["encoder.0", "decoder.block.0"], ["0", "1"], "encoder.0 to decoder.block.0, numbered in order"),
    ],
)
def test_modules_become_layer_numbers(modules, labels, pattern):
    names = layer_names(modules)
    assert list(names.labels.values()) == labels
    assert names.pattern == pattern


def test_quantiles_put_nan_last_and_stay_finite_where_they_can():
    assert summary.quantile([3, 1, 2], 0.5) == 2
    assert summary.quantile([1, 2], 0.5) == 1.5
    assert summary.quantile([1, 2, math.nan], 0.5) == 2
    assert summary.quantile([1, 2, math.nan], 1) == math.inf
    assert summary.quantile([math.inf, math.inf], 0.5) == math.inf
    assert math.isnan(summary.quantile([], 0.5))
