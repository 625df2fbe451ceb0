"""``with adapted(model, config):`` makes a model run with a config, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taylorder.adapt.attention import Counts, ModuleRun, execution_digest, plan_layer
from taylorder.adapt.block import installed
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.verification import verify
from taylorder.errors import TaylorderError, UsageError
from taylorder.kernels import TritonUnavailableError
from taylorder.kernels.dispatch import choose_backend
from taylorder.models.attention import Observer


@contextmanager
def adapted(
    model: Any,
    config: OrderConfig,
    *,
    guard: bool = True,
    backend: str | None = None,
    observe: Observer | None = None,
) -> Iterator[Counts]:
    """Run ``model`` with the order of every head as ``config`` says, inside the block.

    ``model.generate`` then keeps a :class:`~taylorder.adapt.cache.TaylorCache` unless it is given another cache.
    Reversible and exception-safe: afterwards no hook and no changed config is left. Blocks may be nested, on one model
    (the inner config holds) or on several. The model is for inference then; gradients do flow. Before a model runs
    adapted for the first time, a short probe shows that it computes what it does by itself when every head is exact.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=3, expansion="mean", window=64, sinks=4)
    >>> prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    >>> with taylorder.adapted(loaded.model, config) as counts:
    ...     ids = loaded.model.generate(**prompt, max_new_tokens=8)  # [1, T]
    >>> sum(int(rows.sum()) for rows in counts.guarded_rows.values())  # odd orders around the mean never need it
    0

    Args:
        model: the transformers model the config was made for.
        config: per-head decisions.
        guard: False leaves vanishing and negative denominators as they are, to show what they do. It takes all keys to
            do that, so ``generate`` keeps an ordinary cache then.
        backend: of the kernels, ``triton`` or ``torch``; None chooses by device, see ``taylor_attention``. What no
            kernel does (gradients, both directions, ``guard=False``) is computed otherwise either way.
        observe: called by every attention module with what it was given and what it put out, see
            :data:`taylorder.models.attention.Observer`.

    Yields:
        :class:`~taylorder.adapt.attention.Counts` of guarded rows, filled while the model runs.

    Raises:
        ConfigError: the config does not belong to the model; says what differs.
        UnsupportedModelError: the model cannot be adapted, or does not compute the same when every head is exact.
        TaylorderError: the backend is Triton, which cannot run where the model is.
        UsageError: the backend is unknown; from a forward pass that asks for what an adapted model cannot give
            (attention weights, masks that truncated heads cannot follow, caches other than ``TaylorCache`` and
            ``DynamicCache``); from ``generate`` when it is asked for such a cache, or for assisted decoding, before
            anything is generated; from copying the model.
        NonFiniteError: from a forward pass that overflows.

    """
    config.check(model)
    _check_backend(model, backend)
    from taylorder.adapt.cache import TaylorCache

    verify(model, [layer.module for layer in config.layers])
    modules = dict(model.named_modules())
    counts = Counts()
    targets = {
        modules[layer.module]: ModuleRun(
            plan_layer(config, layer, guard=guard, backend=backend), counts, observe=observe
        )
        for layer in config.layers
    }

    def new_cache() -> TaylorCache:
        return TaylorCache.unchecked(model, config)

    with installed(model, targets, execution_digest(config), guard=guard, new_cache=new_cache):
        yield counts


def _check_backend(model: Any, backend: str | None) -> None:
    """Refuse a backend that is unknown or cannot run where the model is, before anything is computed."""
    weights = next(model.parameters())
    try:
        choose_backend(backend, None, weights.device, weights.dtype)
    except TritonUnavailableError as error:
        raise TaylorderError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
