"""What both sides share: prompts, how a question is asked, and answers on disk.

Needs torch and nothing else: the environment of kvpress has no taylorder, and reads the prompts from a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Prompt:
    """A prompt of the tasks of ``eval``; its first ``context`` tokens are read and compressed, then the others follow.

    ``answers[i]`` is the token after ``positions[i]``, to be chosen among ``candidates``, or among all tokens where
    there are none. ``budgets`` are the tokens of cache per KV head that a config of that name holds when the context
    has been read, on average and rounded down.
    """

    kind: str
    length: int
    case: int
    ids: list[int]
    context: int
    positions: list[int]
    answers: list[int]
    candidates: list[int]
    budgets: dict[str, int]

    @property
    def turns(self) -> list[list[int]]:
        """Positions that one question asks about: every choice is a question, and a list is one that goes on."""
        return [[position] for position in self.positions] if self.candidates else [self.positions]


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """A prompt per line."""
    path.write_text("".join(json.dumps(asdict(prompt)) + "\n" for prompt in prompts), encoding="utf-8")


def read_prompts(path: Path, cases: int) -> tuple[list[Prompt], str]:
    """The prompts of the first ``cases``, and a digest of all that the file has.

    They come in an order in which about as many tokens of every length are done at any time.
    """
    content = path.read_bytes()
    prompts = [Prompt(**json.loads(line)) for line in content.splitlines()]
    chosen = [prompt for prompt in prompts if prompt.case < cases]
    chosen.sort(key=lambda prompt: (prompt.case + 1) * prompt.length)
    return chosen, hashlib.sha256(content).hexdigest()


@torch.inference_mode()
def read(model: Any, cache: Any, ids: Sequence[int]) -> None:
    """Run tokens without the language-model head; the cache takes them in."""
    model.model(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True)


@torch.inference_mode()
def ask(model: Any, cache: Any, prompt: Prompt, start: int, positions: Sequence[int]) -> list[int]:
    """Run the tokens from ``start`` to the last position after what the cache holds; the likeliest answers."""
    stop = positions[-1] + 1
    logits = model(
        input_ids=torch.tensor([prompt.ids[start:stop]]),
        past_key_values=cache,
        position_ids=torch.arange(start, stop)[None],  # a cache that lost keys has not lost their positions
        use_cache=True,
        logits_to_keep=torch.tensor(positions) - start,
    ).logits[0]
    if not prompt.candidates:
        return logits.argmax(-1).tolist()
    candidates = torch.tensor(prompt.candidates)
    return candidates[logits[:, candidates].argmax(-1)].tolist()


class Answers:
    """What methods answered, a line of JSON per method, budget and prompt; an interrupted run goes on after the last.

    Lines of other prompts are passed over, and so is a line that was cut off.
    """

    def __init__(self, path: Path, prompts: str, software: dict[str, str]) -> None:
        """Open; ``prompts`` is the digest of the prompts, ``software`` what answers come from."""
        self.path, self.about = path, {"prompts": prompts, "software": software}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known = {_identity(row) for row in rows_of(path, prompts)}

    def missing(self, prompt: Prompt, method: str, budget: str) -> bool:
        """Whether that has yet to be asked."""
        return (method, budget, prompt.kind, prompt.length, prompt.case) not in self._known

    def add(self, prompt: Prompt, method: str, budget: str, chosen: Sequence[int], held: tuple[float, float]) -> None:
        """Keep the chosen tokens, and the nominal bytes that a KV head held before the question and after it."""
        row = {"method": method, "budget": budget, "kind": prompt.kind, "length": prompt.length, "case": prompt.case}
        row |= {"bytes_before": held[0], "bytes_after": held[1], "chosen": list(chosen)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(self.about | row))  # first the end of a line that may have been cut off
        self._known.add(_identity(row))


def rows_of(path: Path, prompts: str) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of answers to these prompts; none where there is no file."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["prompts"] == prompts:
            yield row


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("method", "budget", "kind", "length", "case"))
