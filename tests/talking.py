"""A tiny model to talk with: it says nothing but letters, or ends what it says, and sees enough of them."""

from __future__ import annotations

import copy

import tiny

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.conversation import Conversation
from taylorder.models.describe import describe

TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def talker(context=512):
    """A tiny Llama that makes no token but those that are one character of text, and the end."""
    model = tiny.llama(max_position_embeddings=context)

    def only_text(_module, _arguments, output):
        output.logits[..., [0, 1, 3, *range(104, tiny.VOCAB)]] = -1e4

    model.register_forward_hook(only_text)
    return model


def with_template(tokenizer, template=TEMPLATE):
    """A copy of a tokenizer that has a chat template."""
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = template
    return copied


def small_config(model):
    """Leaves out tokens from the ninth on."""
    return OrderConfig.uniform(describe(model, "tiny"), 2, "mean", window=6, sinks=2)


def conversation(model, tokenizer, **options):
    """A conversation with such a model."""
    return Conversation(model, tokenizer, small_config(model), describe(model, "tiny"), **options)


def said(pieces):
    """All pieces of an answer."""
    return "".join(pieces)
