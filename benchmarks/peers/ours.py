"""The side of taylorder: prompts for both sides, and what exact attention, one window and configs answer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from peers.methods import CUT_WINDOW, EXACT, READ_EXACTLY, STREAMED, WINDOW
from peers.protocol import Answers, Prompt, ask, read
from taylorder.adapt import cost
from taylorder.adapt.cache import TaylorCache, nominal_cache_bytes
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.continuation import PROMPT_CHUNK
from taylorder.adapt.handle import Handle, attach
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.evaluation import rivals
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.evaluation.written_prompts import NEEDLES
from taylorder.kernels.spec import SINKS
from taylorder.models.description import ModelDescription

KINDS = ("lookup", "list", "needle")
BY_BUDGET = (STREAMED, READ_EXACTLY, WINDOW, CUT_WINDOW)


def drawn(
    tokenizer: Any, model: ModelDescription, configs: Mapping[str, OrderConfig], **options: Any
) -> Iterator[Prompt]:
    """The prompts of ``make_tasks``, asked at as many depths as it has, and the tokens that configs hold by then."""
    for task in make_tasks(tokenizer, kinds=KINDS, depths=len(NEEDLES), max_context=model.max_context, **options):
        yield Prompt(
            task.kind,
            task.length,
            task.case,
            ids=list(task.input_ids),
            context=task.context,
            positions=[question.position for question in task.questions],
            answers=[question.answer for question in task.questions],
            candidates=list(task.questions[0].candidates),
            budgets={
                name: rivals.bytes_per_kv_head(config, model, task.context) // _token_bytes(model)
                for name, config in configs.items()
            },
        )


@dataclass(frozen=True)
class OurSide:
    """A model, and configs for it by the names of their budgets."""

    model: Any
    description: ModelDescription
    configs: Mapping[str, PreparedConfig]

    def answer(self, prompt: Prompt, answers: Answers, budgets: Sequence[str]) -> None:
        """Ask what has not been asked; the context is read exactly once for all that begin with that."""
        exact: DynamicCache | None = None
        for method, budget in [(EXACT, ""), *((method, budget) for budget in budgets for method in BY_BUDGET)]:
            if not answers.missing(prompt, method, budget):
                continue
            if exact is None and method in (EXACT, CUT_WINDOW, READ_EXACTLY):
                exact = DynamicCache(config=self.model.config)
                read(self.model, exact, prompt.ids[: prompt.context])
            config = self._config(method, prompt, budget)
            with nullcontext() if config is None else attach(self.model, config) as handle, torch.inference_mode():
                cache = self._cache(method, handle, exact, prompt, prompt.budgets.get(budget, 0))
                before = self._bytes(cache)
                chosen = ask(self.model, cache, prompt, prompt.context, prompt.positions)
            answers.add(prompt, method, budget, chosen, (before, self._bytes(cache)))

    def _config(self, method: str, prompt: Prompt, budget: str) -> PreparedConfig | None:
        """What the model runs with, None for nothing."""
        if method in (STREAMED, READ_EXACTLY):
            return self.configs[budget]
        if method != WINDOW:
            return None
        room = prompt.budgets[budget] * _token_bytes(self.description)
        window = rivals.sliding_window(self.description, room, prompt.context)
        if window is None:
            raise ValueError(f"{room} bytes per KV head, those of {budget}, do not hold {SINKS} sinks and one key")
        return None if window.config is None else prepare(self.model, window.config, self.description)

    def _cache(
        self, method: str, handle: Handle | None, exact: DynamicCache | None, prompt: Prompt, tokens: int
    ) -> DynamicCache | TaylorCache:
        """A cache that has read the context."""
        if method == READ_EXACTLY:
            return taken_in(handle, exact)
        if method == EXACT:
            return copy.deepcopy(exact)
        if method == CUT_WINDOW:
            return cut(copy.deepcopy(exact), tokens)
        cache = DynamicCache(config=self.model.config) if handle is None else handle.new_cache()
        for start in range(0, prompt.context, PROMPT_CHUNK):
            read(self.model, cache, prompt.ids[start : min(start + PROMPT_CHUNK, prompt.context)])
        return cache

    def _bytes(self, cache: DynamicCache | TaylorCache) -> float:
        """Nominal bytes per KV head."""
        return nominal_cache_bytes(cache) / sum(module.kv_heads for module in self.description.modules)


def cut(cache: DynamicCache, tokens: int) -> DynamicCache:
    """Leave so many tokens in every layer: the sinks, and the last ones."""
    for layer in cache.layers:
        gone = slice(SINKS, max(SINKS, layer.keys.shape[2] - tokens + SINKS))
        stays = torch.ones(layer.keys.shape[2], dtype=torch.bool)
        stays[gone] = False
        layer.keys, layer.values = layer.keys[:, :, stays], layer.values[:, :, stays]
    return cache


def taken_in(handle: Handle, exact: DynamicCache) -> TaylorCache:
    """A cache of the handle's that holds what its config keeps of the keys and values of exact attention."""
    cache = handle.new_cache()
    for module, plan in handle.prepared.plans.items():
        keys, values = exact.layers[module.layer_idx].keys, exact.layers[module.layer_idx].values
        layer = cache.expecting(plan.name)
        if layer is None:  # all heads of the layer are exact
            cache.layers[module.layer_idx].update(keys, values)
            continue
        nobody_asks = keys.new_zeros(1, len(plan.heads), *keys.shape[2:])
        query, centred = plan.numbers(nobody_asks, keys)
        layer.update(centred, values)
        layer.attend(query, centred, values, scaling=1.0, valid=None, priority=plan.numbers.priority(keys, values))
    return cache


def _token_bytes(model: ModelDescription) -> int:
    return cost.kv_bytes(model.modules[0].head_dim, model.modules[0].value_dim, 1)
