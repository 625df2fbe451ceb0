"""Models of transformers' classes that run with a contender's attention from the start, under gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fresh_models.contenders import Contender
from fresh_models.recall import WORDS
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.adapt.handle import Handle, attach
from taylorder.adapt.prepared import prepare
from taylorder.kernels import attend, row_attention
from taylorder.kernels.spec import Exact, Taylor
from taylorder.models.describe import describe

LAYERS, HEADS, WIDTH = 2, 2, 64
TEXT_LAYERS, TEXT_HEADS, TEXT_WIDTH, TEXT_HEAD_DIM = 4, 8, 128, 16
INITIAL = WIDTH**-0.5
"""Standard deviation of weights at the start: queries and keys of about unit variance, which truncated orders need."""

REACH = 3
"""Words that the convolution before each attention mixes, the word's own included."""


class Mixed(nn.Module):
    """A layer's norm, and behind it a causal convolution of every channel by itself."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = norm
        self.taps = nn.Parameter(torch.empty(REACH, width).uniform_(-(REACH**-0.5), REACH**-0.5))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden)
        T = hidden.shape[1]
        padded = nn.functional.pad(hidden, (0, 0, REACH - 1, 0))
        return sum((padded[:, back : back + T] * tap for back, tap in enumerate(self.taps)), torch.zeros(()))


def recall_model(head_dim: int, initial: float = INITIAL) -> Any:
    """Two layers; ``initial`` is the standard deviation of weights at the start."""
    return _model(WORDS, LAYERS, HEADS, head_dim, WIDTH, WIDTH, initial)


def text_model(vocabulary: int) -> Any:
    """Four layers, which are nearly a million parameters."""
    return _model(
        vocabulary, TEXT_LAYERS, TEXT_HEADS, TEXT_HEAD_DIM, TEXT_WIDTH, 3 * TEXT_WIDTH, initial=TEXT_WIDTH**-0.5
    )


def _model(vocabulary: int, layers: int, heads: int, head_dim: int, width: int, inner: int, initial: float) -> Any:
    """SmolLM3 without positions: words find their neighbours by a convolution alone."""
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    config = SmolLM3Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=head_dim, no_rope_layers=[0] * layers,
        max_position_embeddings=512, pad_token_id=None, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
        initializer_range=initial,
    )  # fmt: skip
    model = SmolLM3ForCausalLM(config)
    for layer in model.model.layers:
        layer.input_layernorm = Mixed(layer.input_layernorm, width)
    return model


def attached(model: Any, contender: Contender) -> Handle | None:
    """Have the model attend as the contender does until the handle is closed; None leaves softmax as it is.

    Coefficients that are learnt become parameters of ``model``, as ``coefficients`` of its attention modules.
    """
    if isinstance(contender.far, Exact):
        return None
    prepared = prepare(model, config_of(model, contender))
    if contender.trains_coefficients and isinstance(contender.far, Taylor):
        for module, plan in prepared.plans.items():
            rows = torch.tensor([contender.far.polynomial] * len(plan.heads or ()))
            module.coefficients = nn.Parameter(rows)  # type: ignore[assignment]
            del plan.numbers.coefficients
            plan.numbers.coefficients = module.coefficients
    return attach(model, prepared)


@contextmanager
def guard_of(contender: Contender) -> Iterator[None]:
    """In the block, rows keep their denominators whatever they are if the contender has no guard.

    ``attach(guard=False)`` does that too, but one head of one sequence after the other, which is too slow to train.
    """
    with ExitStack() as patches:
        for path in () if contender.guard else (row_attention, attend):  # under gradients, and without
            patches.enter_context(patch.object(path, "GUARD", -math.inf))
        yield


def config_of(model: Any, contender: Contender) -> OrderConfig:
    """The contender as a config of the model, ranks taken of coordinates as they are."""
    description = describe(model)
    modules = description.modules
    layers = []
    for module in modules:
        heads = [HeadOrder(spec=spec) for spec in contender.specs(module.head_dim, module.heads)]
        layers.append(LayerOrders.of(module, description, heads))
    config = OrderConfig(
        model=ModelIdentity.of(description), criterion={"policy": contender.name}, layers=tuple(layers)
    )
    if contender.rank is None:
        return config
    centres, rotations = {}, {}
    for module in modules:
        centres[module.name] = torch.zeros(module.kv_heads, module.head_dim)
        identity = torch.eye(module.head_dim).expand(module.kv_heads, -1, -1).contiguous()
        rotations[module.name] = identity, identity
    return config.with_key_centres(centres).with_rotations(rotations)
