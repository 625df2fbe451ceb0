"""JSON is read with one meaning, or refused with the reason."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorder.storage.strict_json import brief, in_line, parse_json, read_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@settings(max_examples=50, deadline=None)
@given(values)
def test_what_python_writes_is_read_back_bit_for_bit(value):
    assert repr(parse_json(json.dumps(value), finite=False)) == repr(value)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice in one object"),
        ('[{"x": {"a": 1, "a": 2}}]', "the key 'a' stands twice in one object"),
        ("1e999", "found 1e999, expected a number that 64 bits hold"),
        ('{"a": [-1e400]}', "found -1e400, expected a number that 64 bits hold"),
        ("NaN", "found NaN, expected a finite number"),
        ("[-Infinity]", "found -Infinity, expected a finite number"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ('{"a":' * 10**5, "nested more than 100 deep"),
        ("[" * 10**6, "nested more than 100 deep"),
        ("1" * 5000, "Exceeds the limit"),
        ('"\\ud800"', "surrogates not allowed"),
        ('{"\\udfff": 1}', "surrogates not allowed"),
        ("", "Expecting value"),
        ("\x00", "Expecting value"),
        ('{"a": "\x00"}', "Invalid control character"),
        ("{} {}", "Extra data"),
        ("{'a': 1}", "Expecting property name"),
    ],
)
def test_what_has_no_meaning_or_two_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_numbers_that_are_not_finite_are_read_where_they_are_written():
    assert parse_json("[Infinity]", finite=False) == [math.inf]
    with pytest.raises(ValueError, match="64 bits"):
        parse_json("[1e999]", finite=False)


def test_a_hundred_levels_are_read():
    assert parse_json("[" * 100 + "]" * 100)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"a": "é"}


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}\x00", b'"\xe9"', b"\xff", b"{}\x00"])
def test_other_encodings_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_a_huge_file_is_refused_without_being_parsed(tmp_path):
    (tmp_path / "a.json").write_text(" " * 1001)
    with pytest.raises(ValueError, match="it has more than 1,000 bytes"):
        read_json(tmp_path / "a.json", largest=1000)


@pytest.mark.parametrize("value", ["a" * 10**5, ["a\nb"] * 10**4, 10**1000, {"a\n": 1}])
def test_what_is_shown_of_a_value_fits_into_a_line(value):
    assert len(brief(value)) <= 81
    assert "\n" not in brief(value)
    assert in_line("model.layers.0.self_attn") == "model.layers.0.self_attn"
    assert len(in_line("a" * 10**5)) <= 81
    assert in_line("a\nb") == r"'a\nb'"
