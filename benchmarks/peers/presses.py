"""The side of kvpress: what its presses answer. Runs in an environment of its own, without taylorder.

A press compresses a layer when the context has gone through its attention, which sees all of it. So one reading serves
all presses (:class:`AtOnce`): what a press is handed does not depend on the others. Settings are those of kvpress's own
evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    AdaKVPress,
    BasePress,
    ExpectedAttentionPress,
    KeyDiffPress,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
)
from transformers import AutoModelForCausalLM, DynamicCache

from peers.methods import (
    ADA_EXPECTED,
    ADA_SNAPKV,
    EXPECTED,
    KEYDIFF,
    KVPRESS_EXACT,
    RANDOM,
    SNAPKV,
    SNAPKV_ASKED,
    STREAMING_LLM,
)
from peers.protocol import Answers, Prompt, ask, read

SOFTWARE = {name: version(name) for name in ("kvpress", "transformers", "torch")}
PRESSES: dict[str, Callable[[float, int], BasePress]] = {
    SNAPKV: lambda ratio, _: SnapKVPress(ratio),
    EXPECTED: lambda ratio, _: ExpectedAttentionPress(ratio, epsilon=1e-2),
    ADA_SNAPKV: lambda ratio, _: AdaKVPress(SnapKVPress(ratio)),
    ADA_EXPECTED: lambda ratio, _: AdaKVPress(ExpectedAttentionPress(ratio, epsilon=1e-2)),
    KEYDIFF: lambda ratio, _: KeyDiffPress(ratio),
    RANDOM: lambda ratio, case: RandomPress(ratio, seed=case),
    STREAMING_LLM: lambda ratio, _: StreamingLLMPress(ratio),
}
"""By name, from the share of keys to remove and the number of the case."""

Masks = dict[int, Any]
"""By layer, the keys that a press leaves in the cache and hides from the question: heads hold different numbers."""


class AtOnce(BasePress):
    """Hands every layer to several presses, and leaves the cache it is attached to as it was.

    Attributes:
        caches: what each press leaves.
        hidden: what it hides of that.
    """

    def __init__(self, presses: Mapping[Any, BasePress], lengths: Mapping[Any, int] | None = None) -> None:
        """``lengths`` are of what a press sees, the first tokens of all that is read; by default, all."""
        self.presses, self.lengths = presses, lengths or {}
        self.caches = {key: DynamicCache() for key in presses}
        self.hidden: dict[Any, Masks] = {key: {} for key in presses}

    def post_init_from_model(self, model: Any) -> None:
        for press in self.presses.values():
            press.post_init_from_model(model)

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        for key, press in self.presses.items():
            first = slice(self.lengths.get(key, keys.shape[2]))
            seen = kwargs | {"position_embeddings": tuple(part[:, first] for part in kwargs["position_embeddings"])}
            module.masked_key_indices = None
            left = press.compress(
                module, hidden_states[:, first], keys[:, :, first], values[:, :, first], attentions, seen
            )
            if key in self.lengths:
                left = _without(keys[:, :, first][:, :, -1:], *left)
            self.caches[key].update(*(tensor.clone() for tensor in left), module.layer_idx)
            self.hidden[key][module.layer_idx] = module.masked_key_indices
        module.masked_key_indices = None
        return keys, values


def _without(key: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave out the last token, which is run again: its answer has to come from the compressed cache."""
    stays = (keys != key).any(-1)  # [1, G, N], one less for every KV head
    shape = (*keys.shape[:2], -1, keys.shape[3])
    return keys[stays].view(shape), values[stays].view(shape)


class KvpressSide:
    """A model that was written by ``save_pretrained``, run with presses."""

    def __init__(self, folder: Path) -> None:
        """Load it in float32, as the other side does."""
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, prompt: Prompt, answers: Answers, budgets: Sequence[str]) -> None:
        """Ask what has not been asked."""
        presses = {
            (name, budget): press(_ratio(prompt, prompt.context, budget), prompt.case)
            for budget in budgets
            for name, press in PRESSES.items()
            if answers.missing(prompt, name, budget)
        }
        exact = answers.missing(prompt, KVPRESS_EXACT, "")
        if presses or exact:
            at_once, whole = AtOnce(presses), DynamicCache()
            with at_once(self.model):
                read(self.model, whole, prompt.ids[: prompt.context])
            if exact:
                held, chosen = self._ask(whole, {}, prompt, prompt.context, prompt.positions)
                answers.add(prompt, KVPRESS_EXACT, "", chosen, held)
            for name, budget in presses:
                cache, hidden = at_once.caches.pop((name, budget)), at_once.hidden[name, budget]
                held, chosen = self._ask(cache, hidden, prompt, prompt.context, prompt.positions)
                answers.add(prompt, name, budget, chosen, held)
        for budget in budgets:
            if answers.missing(prompt, SNAPKV_ASKED, budget):
                self._answer_knowing_the_question(prompt, answers, budget)

    def _answer_knowing_the_question(self, prompt: Prompt, answers: Answers, budget: str) -> None:
        """SnapKV sees each question before it compresses context and question; then the last token is run again."""
        seen = {number: turn[0] + 1 for number, turn in enumerate(prompt.turns)}
        at_once = AtOnce({number: SnapKVPress(_ratio(prompt, length, budget)) for number, length in seen.items()}, seen)
        with at_once(self.model):
            read(self.model, DynamicCache(), prompt.ids[: max(seen.values())])
        held, chosen = [], []
        for number, turn in enumerate(prompt.turns):
            bytes_held, tokens = self._ask(at_once.caches.pop(number), {}, prompt, turn[0], turn)
            held.append(bytes_held)
            chosen += tokens
        before, after = (sum(values) / len(held) for values in zip(*held, strict=True))
        answers.add(prompt, SNAPKV_ASKED, budget, chosen, (before, after))

    def _ask(
        self, cache: DynamicCache, hidden: Masks, prompt: Prompt, start: int, positions: Sequence[int]
    ) -> tuple[tuple[float, float], list[int]]:
        """Nominal bytes that a KV head holds before the question and after it, and the chosen tokens."""
        layers = [layer.self_attn for layer in self.model.model.layers]
        for module in layers:
            module.masked_key_indices = hidden.get(module.layer_idx)
        before = self._bytes(cache, hidden)
        try:
            chosen = ask(self.model, cache, prompt, start, positions)
        finally:
            for module in layers:
                module.masked_key_indices = None
        return (before, self._bytes(cache, hidden)), chosen

    def _bytes(self, cache: DynamicCache, hidden: Masks) -> float:
        """Per KV head, keys and values counted in 16 bits, hidden ones not at all."""
        heads = self.model.config.num_key_value_heads * len(cache.layers)
        head_dim = cache.layers[0].keys.shape[-1]
        numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
        gone = sum(len(mask[0]) for mask in hidden.values() if mask is not None)
        return 2 * (numbers - 2 * head_dim * gone) / heads


def _ratio(prompt: Prompt, length: int, budget: str) -> float:
    """The share to remove of so many tokens for the budget's to be left: presses round what is left down."""
    left = min(length, prompt.budgets[budget])
    return max(0.0, 1 - (left + 0.5) / length)
