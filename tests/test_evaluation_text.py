"""Evaluation text: fixed order, one hash everywhere, English, never the calibration text."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from taylorder.analysis import docstrings
from taylorder.analysis.text import calibration_text
from taylorder.analysis.tokens import tokenise
from taylorder.evaluation import evaluation_text as evaluation
from taylorder.evaluation.evaluation_text import evaluation_text

PINNED = {"numpy": "2.4.6", "scipy": "1.17.1"}


@pytest.fixture
def fresh():
    """The walk is done once per process; tests of the walk forget it before and after."""
    docstrings._joined.cache_clear()
    yield
    docstrings._joined.cache_clear()


def _phrases(content, words=8):
    found = re.findall("[A-Za-z]+", content)
    return {tuple(found[start : start + words]) for start in range(len(found) - words)}


@pytest.mark.skipif({name: version(name) for name in PINNED} != PINNED, reason="other versions have other docstrings")
def test_the_pinned_versions_give_one_text():
    text = evaluation_text()
    assert text.sha256 == "fde6cc359f0227b4bf4b7c5057bcaddd0f91a266e7fc84483bd7d6adbc70531f"


def test_the_order_is_that_of_the_paths_and_not_that_of_the_file_system(monkeypatch, fresh):
    monkeypatch.setattr(evaluation, "PACKAGES", {"numpy": ("linalg", "fft"), "scipy": ("cluster",)})
    before = evaluation_text()
    docstrings._joined.cache_clear()
    forwards = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(forwards(self, pattern))))
    assert evaluation_text() == before


def test_files_are_sorted_within_each_distribution_and_tests_left_out():
    files = [path.as_posix() for path in docstrings._source_files(tuple(evaluation.PACKAGES.items()))]
    numpy_files = [file for file in files if "/numpy/" in file]
    scipy_files = [file for file in files if "/scipy/" in file]
    assert files == sorted(numpy_files) + sorted(scipy_files)
    assert len(numpy_files) > 20
    assert len(scipy_files) > 50
    assert not [file for file in files if "/tests/" in file]


def test_docstrings_are_clean_and_appear_once():
    content = evaluation_text().content
    assert content.count(inspect.cleandoc(np.percentile.__doc__)) == 1
    assert content.index("Compute the q-th percentile") < content.index("Median filter")


def test_the_source_names_the_versions():
    source = evaluation_text().source
    assert source == f"docstrings of numpy {version('numpy')} and scipy {version('scipy')}"


def test_more_than_half_of_it_is_english_prose():
    lines = [line for line in evaluation_text().content.splitlines() if line.strip()]
    code = [line for line in lines if line.lstrip().startswith((">>>", "..."))]
    other = [line for line in lines if not line.lstrip().startswith((">>>", "..."))]
    worded = [line for line in other if len(re.findall(r"\b[a-z]{2,}\b", line)) >= 5]
    assert len(code) < 0.25 * len(lines)
    assert sum(map(len, worded)) > 0.5 * sum(map(len, lines))


def test_it_shares_next_to_nothing_with_the_calibration_text():
    ours, theirs = _phrases(evaluation_text().content), _phrases(calibration_text().content)
    assert len(ours & theirs) < 1e-3 * len(theirs)
    same = set(evaluation_text().content.split("\n\n")) & set(calibration_text().content.split("\n\n"))
    assert not {part for part in same if len(part) > 80}


def test_files_of_the_user_are_joined_by_a_newline(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    text = evaluation_text([tmp_path / "a.txt", str(tmp_path / "b.txt")])
    assert text.content == "text of a.txt\ntext of b.txt"
    assert text.source == f"{tmp_path / 'a.txt'}, {tmp_path / 'b.txt'}"


@pytest.mark.builtin
def test_the_built_in_model_gets_enough_of_it(builtin):
    tokens = len(tokenise(builtin.tokenizer, evaluation_text()).ids)
    assert tokens >= 150_000
    assert tokens // 4096 >= 16
    assert tokens // 8192 >= 16
