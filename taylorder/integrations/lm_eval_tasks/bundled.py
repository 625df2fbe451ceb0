"""What the YAML files beside this one call: documents drawn for a tokenizer, and their score by length and depth.

lm-eval hands over ``--model_args`` and ``--metadata`` together, as keyword arguments.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from taylorder.errors import UsageError
from taylorder.evaluation.task_prompts import LENGTHS, write_prompts
from taylorder.evaluation.written_prompts import Answer
from taylorder.models.sources import explained, gguf_parsed_once
from taylorder.runs import run_files
from taylorder.runs.subject import subject_of

_SHOWN = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""The lengths that have a row in the results, as the YAML files declare them."""

_ASKED = 8
"""Questions per prompt at most, evenly spaced: each of them is a forward pass."""

Documents = dict[str, Any]


def lookup(**given: Any) -> Documents:
    """Associative recall."""
    return _documents("lookup", given)


def word_list(**given: Any) -> Documents:
    """Lists to be repeated."""
    return _documents("list", given)


def needle(**given: Any) -> Documents:
    """Odd sentences at five depths."""
    return _documents("needle", given)


def text_file(text: str | None = None, **_: Any) -> Documents:
    """One document: the text of a file."""
    if text is None:
        raise UsageError("taylorder_text is told of no file: name a text file with --metadata text=FILE")
    try:
        content = Path(text).read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"text={text} cannot be read ({error.strerror}); name a text file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"text={text} is no UTF-8 text; convert it") from error
    if not content.strip():
        raise UsageError(f"text={text} is empty; name a file with text in it")
    return _test_split([{"text": content}])


def score(document: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Right or not, as a part of all, of the documents of that length, and of those with the answer at that depth."""
    if document["choices"]:
        likelihoods = [likelihood for likelihood, _ in results]
        right = likelihoods.index(max(likelihoods)) == document["right"]
    else:
        ((_, right),) = results
    parts = ["acc", f"length_{document['length']}"]
    if document["depth"] is not None:
        parts.append(f"depth_{document['depth']}")
    return dict.fromkeys(parts, float(right))


def _documents(kind: str, given: dict[str, Any]) -> Documents:
    lengths = _lengths(given.get("lengths", LENGTHS))
    names = (given.get(name) for name in ("tokenizer", "pretrained", "gguf_file", "orders"))
    rows = [
        {
            "context": prompt.text[: answer.start - 1],  # lm-eval puts the space back
            "answer": prompt.text[answer.start : answer.end],
            "choices": list(answer.choices),
            "right": answer.choices.index(prompt.text[answer.start : answer.end]) if answer.choices else 0,
            "length": length,
            "depth": answer.depth,
        }
        for length, prompt in write_prompts(_tokenizer(*names), kind, lengths=lengths)
        for answer in _thinned(prompt.answers)
    ]
    return _test_split(rows)


def _test_split(rows: list[dict[str, Any]]) -> Documents:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _thinned(answers: tuple[Answer, ...]) -> list[Answer]:
    count = min(len(answers), _ASKED)
    return [answers[index * len(answers) // count] for index in range(count)]


def _lengths(asked: Any) -> tuple[int, ...]:
    lengths = tuple(asked) if isinstance(asked, list | tuple) else (asked,)
    if not lengths or not set(lengths) <= set(_SHOWN):
        raise UsageError(f"lengths is {asked}, expected some of {', '.join(map(str, _SHOWN))}, as [256,512]")
    return lengths


@cache
def _tokenizer(tokenizer: str | None, pretrained: str | None, gguf_file: str | None, orders: str | None) -> Any:
    """The tokenizer of the model that is run, found as the model is."""
    from transformers import AutoTokenizer

    from taylorder.integrations.lm_eval_model import source_of

    name = tokenizer or pretrained or subject_of(Path(orders or run_files.DEFAULT)).to_load.model
    source = source_of(name, None if tokenizer else gguf_file)
    with explained(source), gguf_parsed_once(source):
        return AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf)
