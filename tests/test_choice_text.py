"""The text that a choice is made on: prose and source code by default, the user's own alone."""

from __future__ import annotations

import torch

from taylorder.analysis.text import Text, calibration_text, source_code
from taylorder.analysis.tokens import tokenise
from taylorder.selection.choice_text import ChoiceText


def test_the_default_text_has_source_code_beside_the_prose(tiny_tokenizer):
    prose, code = (tokenise(tiny_tokenizer, text) for text in (calibration_text(), source_code()))
    text = ChoiceText.of(tiny_tokenizer, prose)
    assert text.joined.ids[: len(prose.ids)] == prose.ids
    assert 0.5 < len(code.ids) / len(prose.ids) < 1.5
    assert "class ArgumentParser" in text.joined.text.content
    assert text.joined.text.source.startswith("pydoc_data.topics and source of argparse, ")
    for count, of_prose in ((1, 1), (2, 1), (5, 3)):
        expected = [prose.first(64, 64 * of_prose)]
        if count > of_prose:
            expected.append(code.first(64, 64 * (count - of_prose)))
        assert torch.equal(text.sequences(64, count), torch.cat(expected))


def test_a_text_that_the_user_names_stays_alone(tiny_tokenizer):
    tokens = tokenise(tiny_tokenizer, Text("a file", calibration_text().content[:5000]))
    text = ChoiceText.of(tiny_tokenizer, tokens)
    assert text.joined is tokens
    assert torch.equal(text.sequences(64, 3), tokens.first(64, 3 * 64))
