"""What ``chat`` says beside the answers: its commands, what the cache holds, and the transcript as a document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from taylorder.adapt.config import ModelIdentity
from taylorder.adapt.conversation import Conversation
from taylorder.adapt.generate import compared
from taylorder.reports.generation import figures, parting
from taylorder.reports.numbers import counted, number, size
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/chat@1"

HELP = """A line is a turn; one that begins with a slash is a command, unless a space comes before it.
/exact      have the model as it is answer the last turn too
/save FILE  write the conversation to FILE, as JSON
/help       list the commands
/quit       end, as Ctrl-D does
Ctrl-C stops an answer; at the prompt it ends the chat."""

WITHOUT_TEMPLATE = (
    "The tokenizer has no chat template: the model goes on with each line as it stands, and after an answer a new line "
    "begins."
)


@dataclass(frozen=True, slots=True)
class ChatReport:
    """A conversation, and what it is had with."""

    conversation: Conversation
    config_path: str
    device: str


def after_answer(report: ChatReport) -> str:
    """What the cache holds after the last turn, beside what exact attention would, and what cut the answer."""
    conversation, made = report.conversation, report.conversation.turns[-1].answer
    left = conversation.left_out
    exact, without = size(conversation.exact_bytes), left.dropping + left.approximating
    parts = [
        f"{number(left.tokens)} of {counted(conversation.context, 'token')}",
        f"cache {size(made.cache_bytes)} held, {size(made.nominal_bytes)} nominal (exact: {exact} nominal)",
        f"{number(without)} of {counted(left.kv_heads, 'KV head')} have left out tokens",
    ]
    if made.guarded_rows:
        parts.append(f"{counted(made.guarded_rows, 'row')} fell back to order 1")
    return "; ".join([*_cut(made.stopped, conversation), *parts])


def after_exact(report: ChatReport) -> str:
    """What the exact answer to the last turn took, and where it parts from the other."""
    turn = report.conversation.turns[-1]
    if turn.exact is None:
        raise ValueError("the last turn has no exact answer")
    pair = compared(report.conversation.tokenizer, turn.exact, turn.answer)
    return f"{figures('exact', turn.exact)}\n{parting(pair)}"


def _cut(stopped: str, conversation: Conversation) -> list[str]:
    if stopped == "end":
        return []
    if stopped == "interrupted":
        return ["stopped"]
    if not conversation.room:
        return ["cut where the context is full"]
    return [f"cut after {counted(conversation.sampling.max_new_tokens, 'token')}"]


def as_document(report: ChatReport) -> dict[str, Any]:
    """A conversation as one JSON document, schema ``taylorder/chat@1``, with the tokens of its history."""
    conversation, model = report.conversation, report.conversation.description
    content = {
        "model": ModelIdentity.of(model).model_dump() | {"weights_note": model.weights_note},
        "config": {"path": report.config_path, "digest": conversation.prepared.digest},
        "sampling": asdict(conversation.sampling),
        "messages": conversation.messages,
        "answers": [
            {"stopped": turn.answer.stopped, "exact": None if turn.exact is None else turn.exact.text}
            for turn in conversation.turns
        ],
        "cache": {
            "tokens": conversation.fed,
            "held_bytes": conversation.cache.nbytes(),
            "nominal_bytes": conversation.cache.nominal_bytes(),
            "exact_nominal_bytes": conversation.exact_bytes,
        },
        "tokens": conversation.tokens,
        "device": report.device,
        "dtype": model.dtype,
    }
    return stamped(SCHEMA, content)
