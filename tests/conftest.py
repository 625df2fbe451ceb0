"""Fixtures of all tests: the built-in model, loaded once and without a network, and a tokenizer for tiny ones."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # decided once, when triton is first imported: there is no GPU to compile for

import socket
import string
import sys

import pytest
import tiny

from taylorder import cli
from taylorder.adapt.config import OrderConfig
from taylorder.models.describe import describe
from taylorder.models.loading import load


@pytest.fixture(scope="session")
def builtin():
    """The built-in pretrained model, float32 on the CPU; loading it takes about ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        patch.setattr(socket, "getaddrinfo", _no_network)
        return load()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """One token per character of ASCII text, 104 in all; ids below 4 are special."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *string.printable]
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """A tiny Llama and its tokenizer as ``save_pretrained`` writes them."""
    return tiny.saved(tiny.llama(), tiny_tokenizer, tmp_path / "model")


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
        OrderConfig.uniform(describe(tiny.llama(), "tiny"), order, **options).save(tmp_path / "orders.json")
        return tmp_path / "orders.json"

    return write


def _no_network(*_args, **_options):
    raise AssertionError("the built-in model must load without a network")
