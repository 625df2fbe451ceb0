"""``taylorder chat``: lines in, answers on stdout, what the cache holds on stderr, and what ends it."""

import io
import json
import os
import pty
import re
import select
import signal
import sys
import time

import pytest
import tiny
from command_line import ROOT
from talking import conversation, said, small_config, talker, with_template

from taylorder.adapt.continuation import Sampling
from taylorder.adapt.generate import compared
from taylorder.reports import chat as words
from taylorder.reports import generation

CACHE = (
    r"of 512 tokens; cache [\d.]+ KiB held, [\d.]+ KiB nominal \(exact: [\d.]+ KiB nominal\); 4 of 4 KV heads have left"
)


@pytest.fixture
def model():
    return talker()


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return with_template(tiny_tokenizer)


@pytest.fixture
def chat(run, loads, model, tokenizer, monkeypatch, tmp_path):
    """Pipe lines into ``taylorder chat``."""
    small_config(model).save(tmp_path / "run" / "orders.json")

    def call(lines, *arguments, tokenizer=tokenizer, model=model):
        loads(model, tokenizer, name="tiny")
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run("chat", "--config", tmp_path / "run", "--max-new-tokens", 12, *arguments)

    return call


def test_every_line_is_a_turn_of_one_conversation(chat, model, tokenizer):
    code, out, err = chat("What now?\n\n  Why? \n")
    assert code == 0, err
    same = conversation(model, tokenizer, sampling=Sampling(12))
    assert out == "".join(said(same.answer(turn)) + "\n" for turn in ("What now?", "Why?"))
    loading, first, second = err.splitlines()
    assert loading == "loading tiny"
    for line in (first, second):
        assert re.search(CACHE, line)
    tokens = [int(re.search(r"(\d+) of 512", line)[1]) for line in (first, second)]
    assert tokens[1] == same.fed > tokens[0]


def test_exact_is_heard_beside_and_changes_nothing(chat, model, tokenizer):
    code, out, err = chat("What now?\n/exact\nWhy?\n")
    assert code == 0, err
    same = conversation(model, tokenizer, sampling=Sampling(12))
    first, exact, second = said(same.answer("What now?")), said(same.exact()), said(same.answer("Why?"))
    assert out == f"{first}\nexact:\n{exact}\n{second}\n"
    assert exact != first
    turn = same.turns[0]
    assert generation.parting(compared(tokenizer, turn.exact, turn.answer)) in err.splitlines()
    assert "exact: 12 tokens" in err


def test_the_transcript_has_what_was_said_and_the_tokens_of_the_cache(chat, model, tokenizer, tmp_path):
    file = tmp_path / "a folder" / "said.json"
    drawn = ("--temperature", 0.6, "--seed", 4)
    code, _, err = chat(f"What now?\n/exact\n/save {file}\n", "--system", "Be brief.", *drawn)
    assert code == 0, err
    assert err.splitlines()[-1] == f"wrote {file}"
    same = conversation(model, tokenizer, system="Be brief.", sampling=Sampling(12, 0.6, 4))
    said(same.answer("What now?"))
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["schema"] == "taylorder/chat@1"
    assert document["messages"] == same.messages
    assert document["messages"][0]["content"] == "Be brief."
    assert document["tokens"] == same.tokens
    assert document["answers"] == [{"stopped": same.turns[0].answer.stopped, "exact": said(same.exact())}]
    assert document["cache"]["nominal_bytes"] == same.cache.nominal_bytes()
    assert document["cache"]["exact_nominal_bytes"] == 4 * 32 * same.fed  # KV heads, bytes a token
    assert document["sampling"] == {"max_new_tokens": 12, "temperature": 0.6, "seed": 4}
    assert document["config"]["path"] == str(tmp_path / "run" / "orders.json")


def test_quit_and_help(chat):
    code, out, err = chat("/help\n/quit\nWhat now?\n")
    assert (code, out) == (0, "")
    for name in ("/exact", "/save FILE", "/help", "/quit", "Ctrl-C"):
        assert name in err
    assert max(map(len, words.HELP.splitlines()[1:])) <= 80


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("/exact\n", "error: nothing has been said yet that could be answered; say something first"),
        (
            "/sing a song\n",
            "error: '/sing a song' is no command; /help lists them, and after a space",
        ),
        ("/save\n", "error: '/save' is no command"),
        ("/save {tmp}\n", "error: /save {tmp} cannot be written (Is a directory); name another file"),
        ("x" * 600, "error: the conversation has 0 tokens and this turn 620 more, but the model sees 512 at most"),
        ("a\udcff\n", "error: a line of standard input is no UTF-8 text; convert it"),
    ],
)
def test_what_cannot_be_done_ends_a_piped_chat(chat, tmp_path, lines, message):
    code, out, err = chat(lines.format(tmp=tmp_path))
    assert (code, out) == (2, "")
    assert message.format(tmp=tmp_path) in err.splitlines()[-1]


def test_a_slash_after_a_space_is_said(chat):
    code, out, err = chat(" /exact\n")
    assert code == 0, err
    assert len(out) > 1


def test_an_answer_that_is_cut_says_so(chat, tokenizer):
    _, _, err = chat("abc\n", "--temperature", 0.6, model=talker(context=40), tokenizer=tokenizer)
    assert err.splitlines()[-1].startswith("cut after 12 tokens; 3")
    _, _, err = chat("abcdefghijk\n", "--temperature", 0.6, model=talker(context=40), tokenizer=tokenizer)
    assert err.splitlines()[-1].startswith("cut where the context is full; ")


def test_a_tokenizer_without_a_template_is_named(chat, tiny_tokenizer):
    code, _, err = chat("Once upon\n", tokenizer=tiny_tokenizer)
    assert code == 0, err
    assert words.WITHOUT_TEMPLATE in err.splitlines()


def test_a_run_knows_its_model_and_the_default_run_is_looked_for(run, nothing_loads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("chat")
    assert code != 0
    assert "taylorder-out" in err


def test_in_a_terminal_ctrl_c_stops_an_answer_and_at_the_prompt_the_chat(tokenizer, tmp_path):
    model = tiny.llama(max_position_embeddings=8192)
    small_config(model).save(tmp_path / "orders.json")
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = "<unk>"  # which this model does not make
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    tiny.saved(model, tokenizer, tmp_path / "model")
    terminal = Terminal("chat", tmp_path / "model", "--config", tmp_path / "orders.json", "--max-new-tokens", 8000)
    terminal.reads("> ")
    terminal.types("/sing\n")
    terminal.reads("error: '/sing' is no command")
    terminal.reads("> ")
    terminal.types("Go on.\n")
    terminal.reads("Go on.", more=40)
    terminal.types("\x03")
    terminal.reads("stopped; ")
    terminal.reads("> ")
    terminal.types("\x03", until="error: interrupted")
    assert terminal.ends() == 130


class Terminal:
    """A command in a terminal."""

    def __init__(self, *arguments):
        self.process, self.terminal = pty.fork()
        if not self.process:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has what it starts in the background ignore it
            environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT)}
            os.execve(sys.executable, [sys.executable, "-m", "taylorder", *map(str, arguments)], environment)
        self.text = ""

    def types(self, text, until=""):
        """Type, and with ``until`` again every few seconds: a key is lost while a prompt is being set up."""
        os.write(self.terminal, text.encode())
        while until not in self.text:
            if select.select([self.terminal], [], [], 5)[0]:
                self.text += os.read(self.terminal, 4096).decode(errors="replace")
            else:
                os.write(self.terminal, text.encode())

    def reads(self, text, more=0):
        """Wait for a text, and so many characters after it; what comes before is forgotten."""
        until = time.monotonic() + 240
        while (start := self.text.find(text)) < 0 or len(self.text) < start + len(text) + more:
            assert time.monotonic() < until, self.text
            if select.select([self.terminal], [], [], 1)[0]:
                self.text += os.read(self.terminal, 4096).decode(errors="replace")
        self.text = self.text[start + len(text) :]

    def ends(self):
        """Its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
