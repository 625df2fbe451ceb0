"""Fixtures of all tests: the built-in model, tiny ones and a tokenizer, and the command line."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # decided once, when triton is first imported: there is nothing to compile for

import re
import socket
import string
import sys

import pytest
import tiny
from command_line import WORDS

from taylorder import cli
from taylorder.adapt.config import OrderConfig
from taylorder.analysis.text import Text
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.evaluation.written_prompts import NEEDLES
from taylorder.models.describe import describe
from taylorder.models.loading import LoadedModel, load


def pytest_collection_modifyitems(items):
    """A process compiles Triton's kernels or interprets them: tests of the other kind are skipped."""
    other, reason = "interpreter", "runs in Triton's interpreter: set TRITON_INTERPRET=1"
    if "TRITON_INTERPRET" in os.environ:
        other, reason = "gpu", "there is no GPU here, or TRITON_INTERPRET is set"
    for item in items:
        if item.get_closest_marker(other):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def builtin():
    """The built-in pretrained model, float32 on the CPU; loading it takes about ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        patch.setattr(socket, "getaddrinfo", _no_network)
        return load()


@pytest.fixture(scope="session")
def browser_folder(tmp_path_factory):
    """Where the browser keeps its profile and what it downloads."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="session")
def chromium(browser_folder):
    """A browser without a window, for tests that are skipped where there is none."""
    from browsing import started

    driver = started(browser_folder)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """One token per character of ASCII text, 104 in all; ids below 4 are special."""
    return tiny.tokenizer(r"[\s\S]", string.printable)


@pytest.fixture(scope="session")
def docstrings():
    """Enough of the evaluation text for short prompts."""
    return Text("start of the evaluation text", evaluation_text().content[:200_000])


@pytest.fixture(scope="session")
def word_tokenizer(docstrings):
    """One token per word with the space before it, digit, sign or space: as large vocabularies split English."""
    pattern = r" ?[A-Za-z]+|[\s\S]"
    samples = [docstrings.content, "\n\n0123456789."] + [f"{needle}\n {needle}" for needle in NEEDLES]
    return tiny.tokenizer(pattern, sorted({piece for sample in samples for piece in re.findall(pattern, sample)}))


@pytest.fixture(scope="session")
def measured_llama(tmp_path_factory):
    """A tiny Llama, the levers measured on two sequences, and these."""
    from measured_levers import measured

    model = tiny.llama()
    return model, *measured(model, tmp_path_factory.mktemp("levers"), sequences=2)


@pytest.fixture(scope="session")
def keeping_llama(tmp_path_factory):
    """The same with candidates that keep keys."""
    from measured_levers import KEEPING, measured

    model = tiny.llama()
    return model, *measured(model, tmp_path_factory.mktemp("levers"), KEEPING, sequences=2)


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """A tiny Llama and its tokenizer as ``save_pretrained`` writes them."""
    return tiny.saved(tiny.llama(), tiny_tokenizer, tmp_path / "model")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_tokenizer):
    """A folder with a tiny Llama, its tokenizer and a text; 2 layers of 2 KV heads, 32 bytes a token."""
    folder = tiny.saved(tiny.llama(), tiny_tokenizer, tmp_path_factory.mktemp("model"))
    (folder / "words.txt").write_text(WORDS, encoding="utf-8")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process: ``run(arguments)`` gives exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["taylorder", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def orders(tmp_path):
    """Write a uniform config for the tiny Llama: ``orders(order, **options)`` gives its path."""

    def write(order, **options):
        path = tmp_path / "config" / "orders.json"
        OrderConfig.uniform(describe(tiny.llama(), "tiny"), order, **options).save(path)
        return path

    return write


@pytest.fixture
def loads(monkeypatch):
    """Have commands load a model that is here: ``loads(model, tokenizer)`` gives the list of what they ask for.

    It is called what was asked for unless it is given a ``name``.
    """

    def replace(model, tokenizer=None, *, name=None, note=None):
        asked = []

        def load(wanted, **_):
            asked.append(wanted)
            return LoadedModel(model, tokenizer, name or wanted or "tiny", note)

        monkeypatch.setattr("taylorder.models.loading.load", load)
        return asked

    return replace


@pytest.fixture
def nothing_loads(monkeypatch):
    """To load a model fails the test."""
    monkeypatch.setattr("taylorder.models.loading.load", lambda *_, **__: pytest.fail("loaded"))


@pytest.fixture
def evaluates_on(monkeypatch):
    """Have commands evaluate on a few words, without a look at numpy and scipy: ``evaluates_on(words)``."""

    def replace(words):
        text = Text("a few words", words)
        monkeypatch.setattr("taylorder.evaluation.evaluation_text.evaluation_text", lambda files=(): text)

    return replace


def _no_network(*_args, **_options):
    raise AssertionError("the built-in model must load without a network")
