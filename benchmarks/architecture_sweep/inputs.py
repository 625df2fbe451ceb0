"""What the models are run on: token ids and a tokenizer for them, batches with padding, kinds of tokens."""

from __future__ import annotations

import inspect
import string
from typing import Any

import torch
import transformers
from torch import Tensor

from taylorder.analysis.text import Text

LENGTH = 48
PADDING = 12
_FIRST, _LAST = 16, 100  # letters of the tokenizer below; padding and other special tokens lie outside


def token_ids(length: int = LENGTH, batch: int = 1) -> Tensor:
    """Random letters ``[batch, length]``, the same each time."""
    return torch.randint(_FIRST, _LAST, (batch, length), generator=torch.Generator().manual_seed(3))


def left_padded(batch: Tensor) -> dict[str, Tensor]:
    """The batch with padding in place of the first tokens of its last row."""
    mask = torch.ones_like(batch)
    mask[-1, :PADDING] = 0
    return {"input_ids": batch.masked_fill(mask == 0, 0), "attention_mask": mask}


def batches(model: Any) -> dict[str, dict[str, Tensor]]:
    """Inputs by name: plain and padded, and both again with every kind of token that the model's forward takes.

    Kinds are all zeros (text) or have a block of ones, which is an image for models that have images and the second
    sentence for encoders.
    """
    tokens = token_ids(batch=2)
    found = {"tokens": {"input_ids": tokens}, "left padding": left_padded(tokens)}
    block = torch.zeros_like(tokens)
    block[:, 20:30] = 1
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inspect.signature(model.forward).parameters:
            for words, kinds in (("zeros", torch.zeros_like(tokens)), ("a block of ones", block)):
                found[f"{name}, {words}"] = {"input_ids": tokens, name: kinds}
                found[f"{name}, {words}, left padding"] = {**left_padded(tokens), name: kinds}
    return found


def tokenizer() -> Any:
    """One token per character."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel

    words = ["<pad>", "<s>", "</s>", "<unk>", *string.printable]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def text() -> Text:
    """Random letters to calibrate on."""
    letters = string.ascii_letters + string.digits + "    .,;"
    drawn = torch.randint(len(letters), (2000,), generator=torch.Generator().manual_seed(1))
    return Text("random letters", "".join(letters[number] for number in drawn))


def flattened(config: Any) -> dict[str, Any]:
    """The fields of a config and of those it holds, the outer ones winning."""
    found: dict[str, Any] = {}
    for value in vars(config).values():
        if isinstance(value, transformers.PreTrainedConfig):
            found = flattened(value) | found
    plain = {
        name: value
        for name, value in vars(config).items()
        if value is not None and not isinstance(value, transformers.PreTrainedConfig)
    }
    return found | plain
